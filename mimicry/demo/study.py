"""The six painters of the demo, all invented, and the pictures of its study.

Each painting is drawn as original art, with the miniature protection, and with the miniature countermeasure.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product

import torch
from PIL import Image

from mimicry.common.environment import processor_count
from mimicry.demo.hands import BrushStrokes, Hand, Lamplight, LeadedFacets, Shards
from mimicry.demo.paintings import SUBJECTS, Palette, draw_scene, draw_size, generator
from mimicry.demo.variants import VariantMaker
from mimicry.study.tree import Artist, StudyTree


@dataclass(frozen=True, kw_only=True)
class Painter:
    artist: Artist
    palettes: tuple[Palette, ...]
    hand: Hand


_MORNING = Palette(
    sky_above=(142, 190, 232), sky_below=(250, 226, 206), sun=(255, 236, 150), hill=(150, 168, 200),
    ground=(168, 202, 120), water=(120, 182, 210), foliage=(92, 160, 96), wood=(150, 110, 92),
    wall=(240, 222, 200), roof=(222, 130, 110), sail=(255, 248, 236),
)  # fmt: skip
_BLOSSOM = Palette(
    sky_above=(186, 170, 226), sky_below=(252, 210, 214), sun=(255, 220, 170), hill=(168, 150, 190),
    ground=(196, 206, 140), water=(150, 160, 214), foliage=(226, 150, 172), wood=(142, 104, 100),
    wall=(250, 236, 214), roof=(196, 110, 130), sail=(255, 250, 244),
)  # fmt: skip
_HARVEST_EVENING = Palette(
    sky_above=(36, 52, 140), sky_below=(240, 140, 60), sun=(255, 210, 70), hill=(74, 44, 110),
    ground=(206, 150, 40), water=(30, 80, 150), foliage=(20, 92, 70), wood=(84, 40, 40),
    wall=(230, 180, 90), roof=(170, 44, 50), sail=(250, 220, 150),
)  # fmt: skip
_STARLESS_NIGHT = Palette(
    sky_above=(16, 26, 90), sky_below=(52, 96, 170), sun=(250, 226, 120), hill=(24, 50, 76),
    ground=(36, 90, 60), water=(20, 56, 130), foliage=(16, 70, 50), wood=(66, 44, 50),
    wall=(196, 170, 90), roof=(120, 50, 70), sail=(226, 220, 160),
)  # fmt: skip
_OCHRE = Palette(
    sky_above=(176, 160, 132), sky_below=(214, 196, 158), sun=(236, 210, 150), hill=(110, 92, 74),
    ground=(150, 118, 76), water=(110, 116, 112), foliage=(88, 96, 66), wood=(74, 54, 40),
    wall=(202, 182, 146), roof=(140, 80, 54), sail=(226, 214, 186),
)  # fmt: skip
_SLATE = Palette(
    sky_above=(128, 136, 140), sky_below=(190, 188, 176), sun=(226, 208, 160), hill=(82, 88, 92),
    ground=(132, 116, 88), water=(90, 104, 116), foliage=(80, 92, 78), wood=(62, 52, 46),
    wall=(188, 178, 158), roof=(120, 84, 68), sail=(220, 214, 200),
)  # fmt: skip
_CARNIVAL = Palette(
    sky_above=(30, 150, 220), sky_below=(250, 220, 80), sun=(250, 80, 50), hill=(130, 50, 170),
    ground=(40, 180, 110), water=(20, 110, 210), foliage=(10, 130, 80), wood=(100, 40, 60),
    wall=(250, 170, 190), roof=(220, 30, 70), sail=(255, 240, 220),
)  # fmt: skip
_HARBOUR = Palette(
    sky_above=(240, 120, 90), sky_below=(250, 200, 120), sun=(255, 240, 160), hill=(20, 90, 130),
    ground=(230, 90, 60), water=(10, 150, 160), foliage=(30, 120, 120), wood=(60, 40, 90),
    wall=(250, 230, 170), roof=(40, 70, 160), sail=(250, 250, 240),
)  # fmt: skip
_CELLAR = Palette(
    sky_above=(150, 110, 80), sky_below=(230, 180, 120), sun=(255, 220, 150), hill=(130, 90, 60),
    ground=(150, 100, 60), water=(90, 80, 70), foliage=(110, 100, 50), wood=(90, 50, 30),
    wall=(230, 190, 140), roof=(170, 60, 40), sail=(250, 226, 186),
)  # fmt: skip
_MOONRISE = Palette(
    sky_above=(110, 140, 190), sky_below=(200, 220, 240), sun=(244, 248, 255), hill=(90, 110, 150),
    ground=(110, 130, 140), water=(80, 120, 170), foliage=(70, 120, 110), wood=(70, 70, 90),
    wall=(210, 220, 236), roof=(90, 90, 140), sail=(240, 246, 255),
)  # fmt: skip

_SPLIT = "historical"

PAINTERS = (
    Painter(
        artist=Artist(_SPLIT, "impressionism", "Brigid_O'Hara"),
        palettes=(_HARVEST_EVENING, _STARLESS_NIGHT),
        hand=BrushStrokes(
            length=0.22, width=0.045, slope=0.0, slope_spread=0.12, swirl=1.3, broken_colour=42
        ),
    ),
    Painter(
        artist=Artist(_SPLIT, "impressionism", "Zoé_Marchais"),
        palettes=(_MORNING, _BLOSSOM),
        hand=BrushStrokes(length=0.12, width=0.05, slope=0.8, slope_spread=0.3, swirl=0.0, broken_colour=34),
    ),
    Painter(
        artist=Artist(_SPLIT, "cubism", "Otto_Brandvold"),
        palettes=(_OCHRE, _SLATE),
        hand=LeadedFacets(cells=40, contrast=0.25, fade=0.3, lead=0.15, lead_width=0.032),
    ),
    Painter(
        artist=Artist(_SPLIT, "cubism", "Tamsin_Quell"),
        palettes=(_CARNIVAL, _HARBOUR),
        hand=Shards(cuts=20, contrast=0.25, tint=24),
    ),
    Painter(
        artist=Artist(_SPLIT, "baroque", "Casimir_Drovanti"),
        palettes=(_CELLAR,),
        hand=Lamplight(shaft=False, light=(1.2, 0.95, 0.62), darkness=(20, 11, 6), reach=0.29, grain=3.0),
    ),
    Painter(
        artist=Artist(_SPLIT, "baroque", "Ysolde_van_Aerde"),
        palettes=(_MOONRISE,),
        hand=Lamplight(shaft=True, light=(0.85, 1.0, 1.15), darkness=(7, 10, 20), reach=0.15, grain=8.0),
    ),
)


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
    # So that rounding does not depend on the number of cores.
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)


def draw_painting(tree: StudyTree, painter: Painter, index: int, seed: int, maker: VariantMaker) -> None:
    """Draw painting number `index` of `painter`, its version protected by Mist, and that version upscaled.

    The painting depends on the arguments only; the variants also on the CPU, as they amplify its rounding.
    They are PNG: compression would exceed the bound of the protection.
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
