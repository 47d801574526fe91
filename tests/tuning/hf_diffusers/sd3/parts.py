"""The trainer's parts put together for a test: a trainer that is ready for its first step."""

from pathlib import Path

import torch

from mimicry.tuning.adapters.weights import Adapter
from mimicry.tuning.hf_diffusers.sd3.adapted_transformer import AdaptedTransformer
from mimicry.tuning.hf_diffusers.sd3.batches import BatchSource
from mimicry.tuning.hf_diffusers.sd3.prompts import TextEncoders
from mimicry.tuning.hf_diffusers.sd3.setup import Setup
from mimicry.tuning.hf_diffusers.sd3.stages import train_adapter
from mimicry.tuning.hf_diffusers.sd3.trainer import Trainer
from mimicry.tuning.hf_diffusers.spec.trainer_args import TrainerArgs, parse_args
from mimicry.tuning.hf_diffusers.training.device import training_dtype
from mimicry.tuning.hf_diffusers.training.latents import LatentSource
from mimicry.tuning.hf_diffusers.training.resume import begin
from tests.tuning.hf_diffusers.studio import Studio


def make_args(studio: Studio, output_dir: Path, *flags: str, images: Path | None = None) -> TrainerArgs:
    """Return the job of a short run."""
    return parse_args(studio.words(output_dir, *flags, images=images))


def train(studio: Studio, output_dir: Path, *flags: str, images: Path | None = None) -> Adapter:
    """Train in this process, from the flags to the published adapter."""
    adapter = train_adapter(make_args(studio, output_dir, *flags, images=images))
    assert adapter is not None
    return adapter


def make_trainer(studio: Studio, output_dir: Path, *flags: str, images: Path | None = None) -> Trainer:
    """Return a trainer that has taken no step yet."""
    setup = Setup.prepare(make_args(studio, output_dir, *flags, images=images))
    config, device, data = setup.args.config, setup.runtime.device, setup.data
    encoders = TextEncoders(setup.model, config.variant, device, training_dtype(config), warn=print)
    prompts = encoders.encode_all(data.prompts.texts, config.max_sequence_length)
    latents = LatentSource.load(setup.model, data.images.paths, config, device, data.class_paths)
    batches = BatchSource.from_data(setup.model, data, setup.runtime, prompts, latents)
    record = setup.new_record()
    model = AdaptedTransformer.load(setup, batches, record)
    begin(record)
    return Trainer(model, batches.with_modulation(model.modulation), record)


def draw_lora_b(parameters: dict[str, torch.nn.Parameter]) -> None:
    """Put numbers into every lora_B, which is zero before the first step: then all gradients are alive."""
    generator = torch.Generator().manual_seed(3)
    for name in sorted(parameters):
        if ".lora_B." in name:
            values = torch.randn(parameters[name].shape, generator=generator)
            parameters[name].data.copy_(0.1 * values)
