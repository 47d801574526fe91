"""The program that made the demo's weights: python -m mimicry.demo.training DIR."""

import shutil
import sys
from pathlib import Path

import click
import torch
from torch import nn

from mimicry.common.files import write_json
from mimicry.common.programs import run_command
from mimicry.demo.tiny_sd3 import new_models, write_pipeline, write_tokenizers
from mimicry.demo.training.base import Base, base_loss, encode_paintings
from mimicry.demo.training.loop import Budget, Training
from mimicry.demo.training.training_set import draw_training_set
from mimicry.demo.training.upscaling import upscaler_loss
from mimicry.demo.training.vae import as_pixels, vae_loss
from mimicry.demo.training.vae_start import start_as_cosine_transform
from mimicry.demo.upscaler import Upscaler, save_upscaler

_VAE_PAINTINGS, _UPSCALER_PAINTINGS, _BASE_PAINTINGS = 4000, 1000, 6000


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option("--vae-minutes", type=float, default=20.0, show_default=True, help="Time for the VAE.")
@click.option("--upscaler-minutes", type=float, default=3.0, show_default=True, help="For the upscaler.")
@click.option("--base-minutes", type=float, default=40.0, show_default=True, help="For the transformer.")
@click.option(
    "--decoder-minutes", type=float, default=10.0, show_default=True, help="For more of the decoder."
)
@click.option("--vae-steps", type=int, default=20_000, show_default=True, help="At most so many steps.")
@click.option("--upscaler-steps", type=int, default=4_000, show_default=True)
@click.option("--base-steps", type=int, default=20_000, show_default=True)
@click.option("--decoder-steps", type=int, default=10_000, show_default=True)
@click.option("--seed", type=int, default=7, show_default=True, help="Of paintings, captions and noise.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option("--threads", type=int, default=2, show_default=True, help="Threads, each with a batch.")
def train(
    folder: Path,
    vae_minutes: float,
    upscaler_minutes: float,
    base_minutes: float,
    decoder_minutes: float,
    vae_steps: int,
    upscaler_steps: int,
    base_steps: int,
    decoder_steps: int,
    seed: int,
    device: str,
    threads: int,
) -> None:
    """Train the demo's model and write it to DIR/tiny_sd3 and DIR/upscaler.safetensors.

    The VAE comes first, then the upscaler, then the transformer with the text encoders, and at last the
    VAE's decoder again, to which the transformer is indifferent. Each ends after its
    minutes or steps, whichever comes first. The state of each is saved every minute: the same command goes on
    where it was stopped. With --device cuda and no limit of time in the way, more steps give better weights.
    """
    torch.set_num_threads(1)  # the threads are the loop's
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    models = new_models()

    paintings = draw_training_set(seed, "vae_painting", _VAE_PAINTINGS, side=64, plain_share=0.5)
    vae = models["vae"].to(device)
    start_as_cosine_transform(vae, as_pixels(paintings.images_NHWI[:64], device))
    vae_run = Training("vae", vae, learning_rate=2e-3, decay=0.995, workers=threads, folder=folder)
    vae_run.run(
        vae_loss(vae, paintings.images_NHWI, seed, device), Budget(steps=vae_steps, minutes=vae_minutes)
    )
    _round(vae)

    paintings = draw_training_set(seed, "upscaler_painting", _UPSCALER_PAINTINGS, side=128, plain_share=0.4)
    upscaler = Upscaler().to(device)
    upscaler_run = Training(
        "upscaler", upscaler, learning_rate=2e-3, decay=0.99, workers=threads, folder=folder
    )
    upscaler_run.run(
        upscaler_loss(upscaler, paintings.images_NHWI, seed, device),
        Budget(steps=upscaler_steps, minutes=upscaler_minutes),
    )
    _round(upscaler)
    save_upscaler(upscaler, folder / "upscaler.safetensors")

    paintings = draw_training_set(seed, "base_painting", _BASE_PAINTINGS, side=64, plain_share=0.85)
    latents = encode_paintings(vae, paintings.images_NHWI, device)
    print(f"latents: shift {vae.config.shift_factor}, scaling {vae.config.scaling_factor}", flush=True)
    write_tokenizers(folder / "tokenizers")
    base = Base(models, folder / "tokenizers").to(device)
    base_run = Training("base", base, learning_rate=1e-3, decay=0.999, workers=threads, folder=folder)
    base_run.run(
        base_loss(base, latents, paintings.subjects, seed), Budget(steps=base_steps, minutes=base_minutes)
    )
    _round(base)

    paintings = draw_training_set(seed, "decoder_painting", _VAE_PAINTINGS, side=64, plain_share=0.5)
    vae.encoder.requires_grad_(False)
    decoder_run = Training("decoder", vae, learning_rate=1.5e-3, decay=0.998, workers=threads, folder=folder)
    decoder_run.run(
        vae_loss(vae, paintings.images_NHWI, seed, device),
        Budget(steps=decoder_steps, minutes=decoder_minutes),
    )
    _round(vae)

    for model in models.values():
        model.to("cpu", torch.bfloat16)
    shutil.rmtree(folder / "tiny_sd3", ignore_errors=True)
    write_pipeline(models, folder / "tiny_sd3")
    runs = {run.name: run.summary() for run in (vae_run, upscaler_run, base_run, decoder_run)}
    write_json(folder / "training.json", {"seed": seed, "device": device, "threads": threads, "runs": runs})
    print(f"written: {folder / 'tiny_sd3'}", flush=True)


def _round(model: nn.Module) -> None:
    """Round the weights to bf16, in which they are saved: what is trained on top sees what users will load."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))


if __name__ == "__main__":
    sys.exit(run_command(train))
