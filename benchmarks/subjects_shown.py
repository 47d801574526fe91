"""Measure whether the tiny base model paints what the prompt says, and how well its VAE keeps a painting.

    .venv/bin/python -m benchmarks.subjects_shown [--model DIR] [--samples 20] [--output FILE]

A small classifier learns the five subjects from drawn scenes that went through the model's VAE, as samples
do. It is tested on other drawn scenes, then on samples for "a painting of a house" and so on. Chance level is
one in five. "Facet lines kept" is the fraction of the darkness of facet lines after encoding and decoding.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mimicry.demo.hands import LeadedFacets
from mimicry.demo.paintings import SUBJECTS, draw_scene, generator
from mimicry.demo.variants import TINY_SD3
from tools.demo_weights.training_set import PALETTES, draw_training_set
from tools.demo_weights.vae import as_pixels
from tools.results_file import add_output_option, report

_PROMPTS = {
    "hills": "a painting of hills",
    "house": "a painting of a house",
    "tree": "a painting of a tree",
    "boat": "a painting of a boat",
    "sun": "a painting of the sun",
}
_DRAWN, _TRIED, _EPOCHS, _BATCH = 3000, 500, 6, 50


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=TINY_SD3)
    parser.add_argument("--samples", type=int, default=20, help="Number of samples of each subject.")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=20)
    add_output_option(parser)
    options = parser.parse_args()

    from diffusers import StableDiffusion3Pipeline

    pipeline = StableDiffusion3Pipeline.from_pretrained(options.model).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    torch.manual_seed(0)
    classifier = _trained_classifier(pipeline.vae)
    images_NIHW, labels_N = _drawn(pipeline.vae, "tried", _TRIED)
    figures = {"drawn scenes told right": _share_right(classifier, images_NIHW, labels_N)}
    for subject, prompt in _PROMPTS.items():
        output = pipeline(
            [prompt] * options.samples,
            height=64, width=64, num_inference_steps=options.steps, guidance_scale=options.guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in range(options.samples)],
            max_sequence_length=77, output_type="pt",
        )  # fmt: skip
        labels_N = torch.full((options.samples,), SUBJECTS.index(subject))
        figures[f"samples of {subject} told right"] = _share_right(
            classifier, 2 * output.images - 1, labels_N
        )
    sampled = [value for name, value in figures.items() if name.startswith("samples")]
    figures["samples told right, mean"] = float(np.mean(sampled))
    figures |= _kept_by(pipeline.vae)
    report("subjects_shown", figures, options.output, samples=options.samples, guidance=options.guidance)


def _drawn(vae: Any, purpose: str, count: int) -> tuple[Tensor, Tensor]:
    """Return drawn scenes (N, 3, 64, 64) after the VAE's encoder and decoder, and their subjects' indices."""
    drawn = draw_training_set(11, purpose, count, side=64, plain_share=1.0)
    images_NIHW = _through(vae, as_pixels(drawn.images_NHWI, "cpu"))
    return images_NIHW, torch.tensor([SUBJECTS.index(subject) for subject in drawn.subjects])


@torch.no_grad()
def _through(vae: Any, pixels_NIHW: Tensor) -> Tensor:
    batches = [
        vae.decode(vae.encode(batch).latent_dist.mean).sample for batch in torch.split(pixels_NIHW, _BATCH)
    ]
    return torch.cat(batches).contiguous()


def _trained_classifier(vae: Any) -> nn.Module:
    classifier = nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=2, padding=2), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(32, 48, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(48, 64, 3, padding=1), nn.ReLU(),
        nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(256, len(SUBJECTS)),
    )  # fmt: skip
    images_NIHW, labels_N = _drawn(vae, "learnt", _DRAWN)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3)
    for _ in range(_EPOCHS):
        for rows in torch.split(torch.randperm(_DRAWN), _BATCH):
            noisy = images_NIHW[rows] + 0.05 * torch.randn_like(images_NIHW[rows])
            loss = nn.functional.cross_entropy(classifier(noisy), labels_N[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return classifier.eval()


@torch.no_grad()
def _share_right(classifier: nn.Module, images_NIHW: Tensor, labels_N: Tensor) -> float:
    return float((classifier(images_NIHW.float()).argmax(dim=1) == labels_N).float().mean())


def _kept_by(vae: Any) -> dict[str, float]:
    """Return the VAE's absolute error, of 1, and the fraction of facet lines that it keeps."""
    hand = LeadedFacets(cells=40, contrast=0.25, fade=0.3, lead=0.15, lead_width=0.032)
    scenes = []
    for index in range(40):
        rng = generator(11, "facets", index)
        palette = PALETTES[index % len(PALETTES)]
        scenes.append(np.asarray(hand.paint(draw_scene(rng, (64, 64), SUBJECTS[index % 5], palette), rng)))
    before_NIHW = as_pixels(np.stack(scenes), "cpu")
    after_NIHW = _through(vae, before_NIHW)
    kept = (_detail(before_NIHW) * _detail(after_NIHW)).sum() / _detail(before_NIHW).square().sum()
    error = float((after_NIHW - before_NIHW).abs().mean()) / 2
    return {"error of the VAE on facets, of 1": error, "facet lines kept": float(kept)}


def _detail(pixels_NIHW: Tensor) -> Tensor:
    """Return the details of the brightness below three pixels, which in facets are nearly all lines."""
    grey_N1HW = pixels_NIHW.mean(dim=1, keepdim=True)
    return grey_N1HW - nn.functional.avg_pool2d(grey_N1HW, 5, stride=1, padding=2, count_include_pad=False)


if __name__ == "__main__":
    main()
