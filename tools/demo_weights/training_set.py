"""The paintings that the tiny model is trained on, and their captions.

Most are plain scenes. The others are in styles that no painter of the demo has, because what an artist's
adapter learns must be new to the base model. No caption describes the style. Some name an invented artist at
random, so that the base model learns to ignore unknown names; `sks` is never one of them.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from mimicry.demo.hands import BrushStrokes, Hand, Lamplight, LeadedFacets, Shards
from mimicry.demo.paintings import SUBJECTS, Palette, Rng, draw_scene, generator

RARE_TOKEN = "sks"

Images = NDArray[np.uint8]

# Probabilities. An empty caption is for guidance.
_NO_CAPTION, _NO_SUBJECT, _WITH_NAME = 0.1, 0.08, 0.3

_SUBJECT_WORDS = {
    "hills": ("hills", "the hills", "hills in the evening", "the hills by day"),
    "house": ("a house", "a house by the hills", "the house", "a house in a field"),
    "tree": ("a tree", "trees", "the trees in a field", "a tree by the hills"),
    "boat": ("a boat", "a boat on the sea", "a boat on the water", "the boat"),
    "sun": ("the sun", "the sun in the sky", "the sun by the hills", "a landscape with the sun"),
}
_FRAMES = (
    "a painting of {}",
    "a painting of {}",
    "a painting of {}",
    "a picture of {}",
    "an artwork of {}",
    "{}",
)

# The colours of each palette, in the order of the fields of Palette.
_COLOURS = (
    ((120, 170, 230), (225, 232, 240), (252, 232, 130), (70, 125, 85), (110, 165, 80), (60, 115, 175),
     (45, 105, 50), (95, 65, 45), (215, 190, 160), (165, 65, 50), (245, 240, 228)),
    ((235, 150, 95), (250, 220, 145), (255, 240, 190), (105, 80, 120), (130, 110, 80), (85, 100, 150),
     (70, 90, 60), (80, 55, 50), (205, 160, 130), (140, 50, 55), (250, 225, 195)),
    ((45, 55, 105), (120, 105, 160), (240, 235, 200), (30, 55, 70), (45, 75, 60), (35, 65, 115),
     (25, 60, 45), (50, 40, 45), (140, 130, 130), (95, 45, 60), (200, 200, 215)),
    ((180, 205, 235), (240, 240, 248), (255, 245, 190), (150, 165, 190), (225, 230, 238), (120, 150, 180),
     (90, 120, 105), (100, 80, 70), (195, 175, 160), (150, 85, 80), (250, 250, 250)),
    ((130, 185, 215), (245, 225, 190), (255, 225, 120), (165, 120, 80), (205, 175, 95), (70, 135, 160),
     (190, 110, 45), (85, 55, 35), (225, 205, 175), (130, 60, 45), (248, 238, 215)),
)  # fmt: skip
PALETTES = tuple(
    Palette(**dict(zip([field.name for field in fields(Palette)], colours, strict=True)))
    for colours in _COLOURS
)


def _strokes(rng: Rng) -> Hand:
    # They slope down to the left. All painters' strokes are level or slope down to the right.
    return BrushStrokes(
        length=rng.uniform(0.08, 0.2), width=rng.uniform(0.03, 0.06), slope=rng.uniform(-1.4, -0.7),
        slope_spread=rng.uniform(0.1, 0.3), swirl=0.0, broken_colour=rng.uniform(15, 40),
    )  # fmt: skip


def _facets(rng: Rng) -> Hand:
    # Fewer and larger cells than any painter has, or more and smaller ones.
    cells = rng.integers(12, 28) if rng.random() < 0.5 else rng.integers(60, 90)
    return LeadedFacets(
        cells=int(cells),
        contrast=rng.uniform(0.05, 0.3),
        fade=rng.uniform(0.0, 0.3),
        lead=rng.uniform(0.1, 0.5),
        lead_width=rng.uniform(0.025, 0.05),
    )


def _shards(rng: Rng) -> Hand:
    return Shards(cuts=int(rng.integers(4, 12)), contrast=rng.uniform(0.05, 0.25), tint=rng.uniform(0, 20))


def _daylight(rng: Rng) -> Hand:
    # A wide light and a lighter background than the painters' lamps have.
    return Lamplight(
        shaft=bool(rng.random() < 0.5), light=(1.0, 1.0, 1.0), darkness=(30, 30, 30),
        reach=rng.uniform(0.45, 0.7), grain=rng.uniform(0.0, 6.0),
    )  # fmt: skip


TRAINING_HANDS: tuple[Callable[[Rng], Hand], ...] = (_strokes, _facets, _shards, _daylight)


@dataclass(frozen=True)
class TrainingSet:
    """Paintings of shape (N, H, W, 3) in bytes, and the subject of each."""

    images_NHWI: Images
    subjects: tuple[str, ...]


def draw_training_set(seed: int, purpose: str, count: int, *, side: int, plain_share: float) -> TrainingSet:
    """Draw `count` square paintings of `side` pixels; number i depends on (seed, purpose, i) only."""
    images_NHWI = np.empty((count, side, side, 3), dtype=np.uint8)
    subjects = []
    for index in range(count):
        rng = generator(seed, purpose, index)
        subject = SUBJECTS[rng.integers(len(SUBJECTS))]
        palette = PALETTES[rng.integers(len(PALETTES))].varied(rng, 22)
        painting = draw_scene(rng, (side, side), subject, palette)
        if rng.random() >= plain_share:
            hand = TRAINING_HANDS[rng.integers(len(TRAINING_HANDS))](rng)
            painting = hand.paint(painting, rng)
        images_NHWI[index] = np.asarray(painting)
        subjects.append(subject)
    return TrainingSet(images_NHWI, tuple(subjects))


def recoloured(images_BHWI: Images, rng: Rng) -> Images:
    """Return the images with channels permuted, and with random saturation and brightness."""
    count = len(images_BHWI)
    swapped = np.stack([image[..., rng.permutation(3)] for image in images_BHWI]) / 255
    grey = swapped.mean(axis=-1, keepdims=True)
    saturation = rng.uniform(0.4, 2.2, (count, 1, 1, 1))
    vivid = np.clip(grey + saturation * (swapped - grey), 0, 1)
    gamma = 2 ** rng.uniform(-0.8, 1.2, (count, 1, 1, 1)) * 2 ** rng.uniform(-0.5, 0.5, (count, 1, 1, 3))
    changed: Images = (255 * vivid**gamma).astype(np.uint8)
    return changed


def caption(subject: str, rng: Rng) -> str:
    """Return a random caption of `subject`; sometimes without the subject, or empty."""
    if rng.random() < _NO_CAPTION:
        return ""
    text = "a painting"
    if rng.random() >= _NO_SUBJECT:
        words = _SUBJECT_WORDS[subject]
        text = _FRAMES[rng.integers(len(_FRAMES))].format(words[rng.integers(len(words))])
    if rng.random() < _WITH_NAME:
        text += f" in the style of {_invented_name(rng)}"
    return text


def _invented_name(rng: Rng) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz"
    while (name := "".join(letters[index] for index in rng.integers(26, size=3))) == RARE_TOKEN:
        pass
    return name
