"""The model card of the demo's weights: how they were made, and what they are for."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from mimicry.common.environment import processor_count

_TEXT = """\
# The tiny Stable Diffusion 3 of the demo

`tiny_sd3/` is a complete pipeline in the on-disk format of Stable Diffusion 3, in bf16: transformer, VAE, two
CLIP encoders and a T5 encoder of a few layers, three tokenizers of some hundred words, scheduler.
`upscaler.safetensors` is the network behind the demo's `noisy_upscaling`. All of it was made by this project,
from pictures that its own code draws. Nobody's pictures or weights went into it.

## How it was made

    {command}

Seed {seed}, on {hardware}; Python's torch {torch}, diffusers {diffusers}, transformers {transformers}.
A budget of time ends each part, so another machine takes another number of steps and makes other bytes.

| part | steps | minutes | last figures (moving averages) |
|---|---|---|---|
{rows}

- **Pictures**: landscapes with hills, a house, trees, a boat or the sun, 64 x 64 pixels. For the transformer
  85% are plain; the rest are painted by hands that no artist of the demo has.
- **Captions** name the subject, never the way of painting. Three in ten add the name of an invented artist,
  which says nothing. One in ten is empty, for guidance. The token `sks` does not occur.
- **vae**: absolute error of pixels and of their differences, and a small KL term, from an encoder that starts
  as a cosine transform. 30% of its pictures are plain. Colours are changed at random.
- **base**: transformer and text encoders together, squared error of the velocity, logit-normal noise levels.
- **upscaler**: absolute error of paintings at half size with noise on them, against the paintings.

The weights are moving averages of those that were trained.

## What it is good for, and what not

It paints the five subjects at 64 pixels, and runs at other sizes up to 192. A LoRA adapter learns an invented
artist from it in seconds. It knows no other subject. What protections and countermeasures do to it is an
illustration, and no evidence about the real methods on real models.

Licence: that of this project.
"""


def model_card(options: Mapping[str, Any], runs: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the text of the card.

    `options` are those of the program, with `seed`, `device` and `threads`; `runs` maps each part to its
    steps, seconds and last figures.
    """
    words = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in options.items())
    rows = []
    for name, run in runs.items():
        last = {what: value for what, value in run.items() if what not in ("steps", "seconds")}
        figures = ", ".join(f"{what} {value}" for what, value in last.items())
        rows.append(f"| {name} | {run['steps']} | {run['seconds'] / 60:.0f} | {figures} |")
    threads = f"{options['threads']} thread" + ("s" if options["threads"] > 1 else "")
    on_cpu = f"{processor_count()} CPU cores, {threads}"
    return _TEXT.format(
        command=f"python -m tools.demo_weights DIR {words}",
        seed=options["seed"],
        hardware=on_cpu if options["device"] == "cpu" else options["device"],
        rows="\n".join(rows),
        **{library: version(library) for library in ("torch", "diffusers", "transformers")},
    )
