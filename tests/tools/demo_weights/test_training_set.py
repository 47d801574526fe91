"""The base model sees no painter's hand, and no caption binds sks or a style."""

import numpy as np
import pytest

from mimicry.demo.hands import BrushStrokes, Lamplight, LeadedFacets, Shards
from mimicry.demo.paintings import SUBJECTS, generator
from mimicry.demo.study import PAINTERS
from tools.demo_weights.training_set import (
    PALETTES,
    RARE_TOKEN,
    TRAINING_HANDS,
    caption,
    draw_training_set,
    recoloured,
)


@pytest.mark.parametrize("make", TRAINING_HANDS)
def test_no_hand_is_near_that_of_a_painter(make: object) -> None:
    assert callable(make)
    hands = [make(generator(7, index)) for index in range(200)]

    for painter in PAINTERS:
        for hand in hands:
            match hand, painter.hand:
                case BrushStrokes(), BrushStrokes():
                    assert abs(hand.slope - painter.hand.slope) > 0.5
                case LeadedFacets(), LeadedFacets():
                    assert not 0.7 < hand.cells / painter.hand.cells < 1.4
                case Shards(), Shards():
                    assert hand.cuts < 0.6 * painter.hand.cuts
                case Lamplight(), Lamplight():
                    assert hand.reach > 1.5 * painter.hand.reach


def test_no_palette_is_a_painters() -> None:
    assert not set(PALETTES) & {palette for painter in PAINTERS for palette in painter.palettes}


def test_captions_name_the_subject_and_never_the_rare_token() -> None:
    captions = [caption("boat", generator(7, index)) for index in range(2000)]

    assert sum("boat" in text for text in captions) / 2000 > 0.75
    assert 0.05 < captions.count("") / 2000 < 0.15
    assert not any(RARE_TOKEN in text.split() for text in captions)
    styled = [text for text in captions if "in the style of" in text]
    assert len({text.split()[-1] for text in styled}) > 0.9 * len(styled)


def test_a_set_depends_on_its_seed_and_name_only() -> None:
    one, longer = (draw_training_set(7, "a", count, side=32, plain_share=0.5) for count in (5, 8))

    assert np.array_equal(one.images_NHWI, longer.images_NHWI[:5])
    assert one.subjects == longer.subjects[:5]
    assert set(longer.subjects) <= set(SUBJECTS)
    other = draw_training_set(7, "b", 5, side=32, plain_share=0.5)
    assert not np.array_equal(one.images_NHWI, other.images_NHWI)


def test_recolouring_changes_colours_and_keeps_shapes() -> None:
    images = draw_training_set(7, "a", 6, side=32, plain_share=1.0).images_NHWI
    changed = recoloured(images, generator(7))

    assert changed.shape == images.shape
    assert not np.array_equal(changed, images)
    for before, after in zip(images, changed, strict=True):
        edges = [
            np.abs(np.diff(picture.astype(float).mean(axis=-1), axis=0)).ravel()
            for picture in (before, after)
        ]
        assert np.corrcoef(*edges)[0, 1] > 0.3
