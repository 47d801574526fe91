"""Draws the study's tree of pictures: original art, its protection in miniature, the countermeasure."""

from PIL import Image

from mimicry.common.study_tree import StudyTree
from mimicry.demo.chance import generator
from mimicry.demo.painters import PAINTERS, Painter
from mimicry.demo.paintings import SUBJECTS, draw_scene, draw_size
from mimicry.demo.variants import VariantMaker

PAINTINGS_PER_ARTIST = 20

_SUFFIXES = (".jpg", ".png", ".webp", ".jpeg")


def draw_study(tree: StudyTree, seed: int) -> None:
    """Draw twenty paintings of every painter into `tree`, each with its two variants."""
    maker = VariantMaker.load()
    for painter in PAINTERS:
        for index in range(PAINTINGS_PER_ARTIST):
            draw_painting(tree, painter, index, seed, maker)


def draw_painting(tree: StudyTree, painter: Painter, index: int, seed: int, maker: VariantMaker) -> None:
    """Draw painting number `index` of `painter`, protected by `maker`'s Mist, and that upscaled noisily.

    What is drawn depends on the arguments only; the variants also on the CPU, whose rounding they magnify.
    They are PNG: compression would undo the bound of the protection.
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

    # The protection starts from the file, as its reader sees it after compression.
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
