"""What the proof that the study learns is made of: short trainings, their losses, and how samples look.

Style is measured in two ways. Manner: the Gram matrix of the tiny VAE's latents, after Gatys et al. 2015,
arXiv:1508.06576, that is which of them occur together, wherever they are. The mean of each picture is taken
off before, since most of it is colour, which protected pictures show as well as any. Texture: how strong the
changes of brightness are in each direction.
"""

import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from mimicry.demo.draw_demo import STUDY_TOML
from mimicry.demo.paintings import SUBJECTS
from mimicry.sampling.sampler import Sampler
from mimicry.study.images import ImageFolder, read_rgb
from mimicry.study.pairing import held_out
from mimicry.study.tree import Artist, Condition, StudyTree
from mimicry.tuning.hf_diffusers.sd3.sampling import SamplingSettings
from mimicry.tuning.hf_diffusers.sd3.stages import train_adapter
from mimicry.tuning.hf_diffusers.spec.base_model import BaseModel
from mimicry.tuning.hf_diffusers.spec.trainer_args import parse_args
from mimicry.tuning.hf_diffusers.training.latents import apply_crop, to_pixels
from mimicry.tuning.hf_diffusers.training.rng import Crop
from mimicry.tuning.options.config import TuningConfig

_STUDY = tomllib.loads(STUDY_TOML)
_RECIPE, _HOLD_OUT = _STUDY["recipe"], _STUDY["study"]["hold_out"]
SIDE, _TOKENS = _RECIPE["resolution"], _RECIPE["max_sequence_length"]
_SEEDS_SAMPLED = (0, 1, 2)
_DIRECTIONS = 8
_WORDS = {"hills": "hills", "house": "a house", "tree": "a tree", "boat": "a boat", "sun": "the sun"}
_PROMPTS = tuple(f"a painting of {_WORDS[subject]} in the style of sks" for subject in SUBJECTS)


def _is_told(name: str, value: Any) -> bool:
    return not isinstance(value, bool) and name != "pretrained_model_name_or_path"


@dataclass(frozen=True)
class Laboratory:
    """A drawn demo, and a folder for what is made of it."""

    demo: Path
    folder: Path

    def paintings(self, artist: Artist, condition: Condition = Condition()) -> Path:  # noqa: B008 - frozen
        """Return the folder of the paintings of `artist` in a condition."""
        tree = StudyTree(self.demo / "style_mimicry")
        return tree.images_of(tree.source(condition).root, artist)

    def held_out(self, artist: Artist) -> ImageFolder:
        """Return the original paintings of `artist` that no adapter learns from."""
        images = ImageFolder.read(self.paintings(artist))
        return images.only(held_out(images.stems, _HOLD_OUT))

    def train(self, artist: Artist, condition: Condition, seed: int, held_out_of: Artist) -> Path:
        """Train an adapter as apply_tuning does, evaluated on what is held out; return its folder.

        The painters' files have the same names, so the same are held out of all.
        """
        output_dir = self.folder / f"adapter-{artist.name}-{condition}-{seed}"
        train_adapter(
            parse_args(
                [
                    f"--instance_data_dir={self.paintings(artist, condition)}",
                    f"--pair_with_dir={self.paintings(artist)}",
                    f"--eval_data_dir={self.paintings(held_out_of)}",
                    f"--output_dir={output_dir}",
                    f"--pretrained_model_name_or_path={self.demo / 'tiny_sd3'}",
                    f"--seed={seed}",
                    f"--hold_out={_HOLD_OUT}",
                    # As in the demo; what it turns off, the trainer does not do by itself.
                    *(f"--{name}={value}" for name, value in _RECIPE.items() if _is_told(name, value)),
                ]
            )
        )
        # Accelerate keeps the precision of the first training of a process.
        AcceleratorState._reset_state(reset_partial_state=True)
        return output_dir

    def sampler(self) -> Sampler:
        """Return what draws with the adapters."""
        return Sampler.load(
            BaseModel(self.demo / "tiny_sd3"),
            TuningConfig(mixed_precision="no", resolution=SIDE, max_sequence_length=_TOKENS),
            SamplingSettings(resolution=SIDE, steps=10, guidance=3.0),
            _PROMPTS,
        )

    def look(self) -> "Look":
        """Return the measure of style."""
        return Look(AutoencoderKL.from_pretrained(self.demo / "tiny_sd3", subfolder="vae"))


def evaluation(adapter: Path) -> tuple[float, float]:
    """Return the evaluation loss of the base model and of the adapter."""
    losses: dict[str, Any] = json.loads((adapter / "training_run.json").read_text("utf-8"))["eval_loss"]
    return losses["start"], losses["end"]


def samples(sampler: Sampler, adapter: Path | None) -> list[Image.Image]:
    """Return a picture of each subject and seed, painted with `adapter`, or by the base model alone."""
    with sampler.base.adapter(adapter):
        return [sampler.image(prompt, seed) for prompt in _PROMPTS for seed in _SEEDS_SAMPLED]


@dataclass(frozen=True)
class Style:
    """How a set of pictures is painted: `manner` has shape (C, C), `texture` (D,)."""

    manner: Tensor
    texture: Tensor

    def manner_distance(self, painted: "Style") -> float:
        """Return how far the manner is from that of `painted`, in the latents' deviations there."""
        scale_C = painted.manner.diagonal().sqrt()
        scale_CC = scale_C[:, None] * scale_C
        return _relative_difference(self.manner / scale_CC, painted.manner / scale_CC)

    def texture_distance(self, painted: "Style") -> float:
        """Return how far the texture is from that of `painted`."""
        return _relative_difference(self.texture, painted.texture)


class Look:
    """Measures the style of sets of pictures."""

    def __init__(self, vae: Any) -> None:
        self._vae = vae.float().eval()

    def of(self, pictures: Sequence[Image.Image]) -> Style:
        """Return the style of a set of pictures."""
        pixels_BIHW = torch.cat([to_pixels(apply_crop(picture, Crop(), SIDE)) for picture in pictures])
        return Style(self._manner(pixels_BIHW), _texture(pixels_BIHW))

    def of_files(self, paths: Sequence[Path]) -> Style:
        """Return the style of the pictures in files."""
        return self.of([read_rgb(path) for path in paths])

    @torch.no_grad()
    def _manner(self, pixels_BIHW: Tensor) -> Tensor:
        """Return the mean Gram matrix, (C, C), of what varies within a picture."""
        latents_BCN: Tensor = self._vae.encode(pixels_BIHW).latent_dist.mean.flatten(2)
        latents_BCN = latents_BCN - latents_BCN.mean(dim=2, keepdim=True)
        gram_BCC = latents_BCN @ latents_BCN.mT / latents_BCN.shape[2]
        return gram_BCC.mean(dim=0)


def _texture(pixels_BIHW: Tensor) -> Tensor:
    """Return the mean slope of brightness in each of so many directions, (D,)."""
    grey_BHW = pixels_BIHW.mean(dim=1)
    down_BHW = grey_BHW[:, 2:, 1:-1] - grey_BHW[:, :-2, 1:-1]
    across_BHW = grey_BHW[:, 1:-1, 2:] - grey_BHW[:, 1:-1, :-2]
    angle_BHW = torch.atan2(down_BHW, across_BHW) % torch.pi
    sector_BHW = (angle_BHW / torch.pi * _DIRECTIONS).long().clamp(max=_DIRECTIONS - 1)
    slope_BHW = torch.hypot(down_BHW, across_BHW)
    sums_D = torch.zeros(_DIRECTIONS).index_add(0, sector_BHW.flatten(), slope_BHW.flatten())
    return sums_D / slope_BHW.numel()


def _relative_difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())
