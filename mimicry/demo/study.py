"""Draws the pictures of the study: original art, miniature protection, miniature countermeasure."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import product

import torch
from PIL import Image

from mimicry.common.environment import processor_count
from mimicry.demo.paintings import SUBJECTS, draw_scene, draw_size, generator
from mimicry.demo.variants import VariantMaker
from mimicry.study.tree import StudyTree

PAINTINGS_PER_ARTIST = 20

_SUFFIXES = (".jpg", ".png", ".webp", ".jpeg")


def draw_study(tree: StudyTree, seed: int) -> None:
    """Draw twenty paintings of every painter into `tree`, each with its two variants."""
    maker = VariantMaker.load()

    def draw(task: tuple[Painter, int]) -> None:
        draw_painting(tree, *task, seed, maker)

    # Pictures this small are not faster with several threads each, but several of them at once are.
    with _one_thread_each(), ThreadPoolExecutor(processor_count()) as pool:
        for _ in pool.map(draw, product(PAINTERS, range(PAINTINGS_PER_ARTIST))):
            pass


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let torch use one thread for each picture, so that rounding does not depend on the number of cores."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)


def draw_painting(tree: StudyTree, painter: Painter, index: int, seed: int, maker: VariantMaker) -> None:
    """Draw painting number `index` of `painter`, its version protected by Mist, and that version upscaled.

    The painting depends on the arguments only; the variants also on the CPU, because they amplify its
    rounding. Variants are PNG: compression would exceed the bound of the protection.
    """
    artist = painter.artist
    original_art, mist_art, upscaled_art = (
        tree.images_of(root, artist)
        for root in (
            tree.original_art,
            tree.protected_art / "mist",
            tree.robust_samples / "noisy_upscaling" / "mist",
        )
    )
    for folder in (original_art, mist_art, upscaled_art):
        folder.mkdir(parents=True, exist_ok=True)
    subject = SUBJECTS[index % len(SUBJECTS)]
    stem = f"{index + 1:02d}_{subject}"
    key = (artist.style, artist.name, index)
    original = original_art / (stem + _SUFFIXES[index % len(_SUFFIXES)])
    _paint(painter, index, subject, seed).save(original, quality=92)

    # The protection starts from the file, as others see the painting after compression.
    with Image.open(original) as opened:
        mist = maker.mist(opened.convert("RGB"))
    mist.save(mist_art / f"{stem}.png")
    upscaled = maker.noisy_upscaling(mist, generator(seed, *key, "noisy_upscaling"))
    upscaled.save(upscaled_art / f"{stem}.png")


def _paint(painter: Painter, index: int, subject: str, seed: int) -> Image.Image:
    key = (painter.artist.style, painter.artist.name, index)
    rng = generator(seed, *key, "scene")
    palette = painter.palettes[index % len(painter.palettes)]
    scene = draw_scene(rng, draw_size(rng), subject, palette)
    return painter.hand.paint(scene, generator(seed, *key, "hand"))
