"""The program that made the demo's weights: python -m tools.demo_weights DIR."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

from mimicry.common.files import write_bytes, write_json
from mimicry.common.processes import run_command
from mimicry.demo.variants import Upscaler
from tools.demo_weights.base import Base, base_loss, encode_paintings
from tools.demo_weights.loop import Budget, LossOf, Training
from tools.demo_weights.model_card import model_card
from tools.demo_weights.tiny_sd3 import new_models, write_pipeline, write_tokenizers
from tools.demo_weights.training_set import draw_training_set
from tools.demo_weights.upscaling import save_upscaler, upscaler_loss
from tools.demo_weights.vae import as_pixels, vae_loss
from tools.demo_weights.vae_start import start_as_cosine_transform

_VAE_PAINTINGS, _UPSCALER_PAINTINGS, _BASE_PAINTINGS = 4000, 1000, 6000
# The most minutes and steps of each part.
_PARTS = {"vae": (28.0, 40_000), "upscaler": (4.0, 4_000), "base": (58.0, 40_000)}


def _budget_options(command: Callable[..., None]) -> Callable[..., None]:
    for name, (minutes, steps) in reversed(_PARTS.items()):
        command = click.option(f"--{name}-steps", default=steps, show_default=True)(command)
        command = click.option(f"--{name}-minutes", default=minutes, show_default=True)(command)
    return command


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@_budget_options
@click.option("--seed", type=int, default=7, show_default=True, help="Seed of paintings, captions and noise.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=2,
    show_default=True,
    help="Number of threads, each with a batch.",
)
def train(folder: Path, seed: int, device: str, threads: int, **limits: float) -> None:
    """Train the demo's model and write it to DIR/tiny_sd3 and DIR/upscaler.safetensors.

    The VAE comes first, then the upscaler, and then the transformer with the text encoders. Each ends after
    its minutes or steps, whichever comes first. States are saved every minute; the same command continues
    where it was stopped.
    """
    torch.set_num_threads(1)  # the training loop has its own threads
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    models = {name: model.to(device) for name, model in new_models().items()}
    budgets = {
        name: Budget(steps=int(limits[f"{name}_steps"]), minutes=limits[f"{name}_minutes"]) for name in _PARTS
    }
    work = _Work(folder, seed, device, threads, budgets)
    work.train_vae(models["vae"])
    work.train_upscaler()
    work.train_base(models)

    for model in models.values():
        model.to("cpu", torch.bfloat16)
    shutil.rmtree(folder / "tiny_sd3", ignore_errors=True)
    write_pipeline(models, folder / "tiny_sd3")
    options = {"seed": seed, "device": device, "threads": threads, **limits}
    write_json(folder / "training.json", {"asked": options, "runs": work.runs})
    write_bytes(folder / "MODEL_CARD.md", model_card(options, work.runs).encode("utf-8"))
    print(f"written: {folder / 'tiny_sd3'}", flush=True)


@dataclass
class _Work:
    """The parts of the training, each of which trains one model; `runs` has their summaries."""

    folder: Path
    seed: int
    device: str
    threads: int
    budgets: dict[str, Budget]
    runs: dict[str, dict[str, float]] = field(default_factory=dict)

    def train_vae(self, vae: Any) -> None:
        drawn = draw_training_set(self.seed, "vae_painting", _VAE_PAINTINGS, side=64, plain_share=0.3)
        images_NHWI = drawn.images_NHWI
        start_as_cosine_transform(vae, as_pixels(images_NHWI[:64], self.device))
        self._run("vae", vae, vae_loss(vae, images_NHWI, self.seed, self.device), rate=2e-3, decay=0.995)

    def train_upscaler(self) -> None:
        drawn = draw_training_set(
            self.seed, "upscaler_painting", _UPSCALER_PAINTINGS, side=128, plain_share=0.4
        )
        upscaler = Upscaler().to(self.device)
        loss_of = upscaler_loss(upscaler, drawn.images_NHWI, self.seed, self.device)
        self._run("upscaler", upscaler, loss_of, rate=2e-3, decay=0.99)
        save_upscaler(upscaler, self.folder / "upscaler.safetensors")

    def train_base(self, models: dict[str, Any]) -> None:
        drawn = draw_training_set(self.seed, "base_painting", _BASE_PAINTINGS, side=64, plain_share=0.85)
        latents = encode_paintings(models["vae"], drawn.images_NHWI, self.device)
        config = models["vae"].config
        print(f"latents: shift {config.shift_factor}, scaling {config.scaling_factor}", flush=True)
        write_tokenizers(self.folder / "tokenizers")
        base = Base(models, self.folder / "tokenizers")
        self._run("base", base, base_loss(base, latents, drawn.subjects, self.seed), rate=1e-3, decay=0.999)

    def _run(self, name: str, model: nn.Module, loss_of: LossOf, *, rate: float, decay: float) -> None:
        training = Training(
            name, model, learning_rate=rate, decay=decay, workers=self.threads, folder=self.folder
        )
        training.run(loss_of, self.budgets[name])
        _round(model)
        self.runs[name] = training.summary()


def _round(model: nn.Module) -> None:
    """Round the weights to bf16, as they are saved, so that the next part is trained on what users load."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))


if __name__ == "__main__":
    sys.exit(run_command(train))
