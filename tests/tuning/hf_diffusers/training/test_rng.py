"""Chance is a function of (seed, purpose, index, stem), the same for ever and everywhere."""

import hashlib
from itertools import pairwise
from typing import Any

import pytest

from mimicry.tuning.hf_diffusers.training.rng import (
    CLASS,
    Crop,
    Sample,
    SamplePlan,
    dropout_seed,
    generator,
    normal,
)
from tests.hostile_names import over_hostile_names

STEMS = ("01_hills", "02_house", "03_tree", "04_boat", "05_sun")
LORA_A = "transformer_blocks.0.attn.to_q.lora_A.default.weight"

# Whoever changes one of these makes every adapter that was ever trained irreproducible.
GOLDEN_UNIFORM = {
    "order": "dccb25040cefff26287568421a3887fe",
    "crop": "55067ada0f63dd106843e93ffd979167",
    "flip": "2a87eb5479b7a406fb3a4b09f54e5a5d",
}
GOLDEN_NORMAL = {
    "vae": "c7002e13949abe7d689658892c9eb094",
    "noise": "4de14962778e3bb246531cc879086302",
    "timestep": "439b1fbc5b526cd1a3b004c9c15d9114",
    "lora_A": "35a8b8aa253e69da7fa06c9f41559b6e",
}
GOLDEN_DROPOUT_SEED = 6741774730302394804
GOLDEN_ORDER = "8f0f3827a346c2949cd93eec9ba8c6d0"
GOLDEN_CROPS = "2ccb7b285a15449dca9376e3c9ef2d9d"
GOLDEN_CLASS_ORDER = "2fbe1b23f332e24dd634d98737fe82b7"
GOLDEN_CLASS_CROPS = "f147332aa7f379c6c9f303d79793ff4b"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def plan(stems: tuple[str, ...] = STEMS, seed: int = 42, repeats: int = 1, **how: Any) -> SamplePlan:
    crops: dict[str, Any] = {"center_crop": False, "random_flip": True}
    return SamplePlan(seed=seed, stems=stems, **(crops | how), repeats=repeats)


@pytest.mark.parametrize(("purpose", "golden"), GOLDEN_UNIFORM.items())
def test_uniform_streams_are_golden(purpose: str, golden: str) -> None:
    assert digest(generator(42, purpose, 7, "03_tree").random(64).astype("<f8").tobytes()) == golden


@pytest.mark.parametrize(("purpose", "golden"), GOLDEN_NORMAL.items())
def test_normal_streams_are_golden(purpose: str, golden: str) -> None:
    name = LORA_A if purpose == "lora_A" else "03_tree"
    values = normal(42, purpose, 7, name, (16, 8, 8))
    assert values.shape == (16, 8, 8)
    assert digest(values.astype("<f4").tobytes()) == golden


def crops_of(samples: list[Sample]) -> bytes:
    """Return all crops as bytes, with the name that the class had when the values were pinned."""
    return "".join(str(sample.crop).replace("Crop", "View") for sample in samples).encode()


def test_the_plan_of_samples_is_golden() -> None:
    samples = [plan().sample(index) for index in range(15)]
    assert digest("".join(sample.stem for sample in samples).encode()) == GOLDEN_ORDER
    assert digest(crops_of(samples)) == GOLDEN_CROPS


def test_the_plan_of_class_samples_is_golden_and_of_its_own() -> None:
    samples = [plan(kind=CLASS).sample(index) for index in range(15)]
    assert digest("".join(sample.stem for sample in samples).encode()) == GOLDEN_CLASS_ORDER
    assert digest(crops_of(samples)) == GOLDEN_CLASS_CROPS
    assert [samples[0].purpose(name) for name in ("vae", "noise", "timestep")] == [
        *("class_vae", "class_noise", "class_timestep")
    ]
    assert plan().sample(0).purpose("noise") == "noise"


@pytest.mark.parametrize(
    "other",
    [(43, "noise", 12, "x"), (42, "vae", 12, "x"), (42, "noise", 13, "x"), (42, "noise", 12, "y")],
    ids=["seed", "purpose", "index", "stem"],
)
def test_every_argument_makes_another_stream(other: tuple[int, str, int, str]) -> None:
    assert normal(42, "noise", 12, "x", (8,)).tolist() != normal(*other, (8,)).tolist()


def test_arguments_that_run_together_are_told_apart() -> None:
    assert generator(1, "noise", 12, "3").random() != generator(1, "noise", 1, "23").random()
    assert generator(1, "noise", 1, "a").random() != generator(11, "noise", 1, "a").random()


@over_hostile_names
def test_any_stem_has_a_stream(hostile_name: str) -> None:
    assert (
        normal(1, "noise", 0, hostile_name, (4,)).tolist()
        == normal(1, "noise", 0, hostile_name, (4,)).tolist()
    )
    assert generator(1, "noise", 0, hostile_name).random() != generator(1, "noise", 0, "x").random()


def test_a_name_that_is_no_utf8_has_a_stream() -> None:
    assert generator(1, "noise", 0, "caf\udce9").random() != generator(1, "noise", 0, "caf").random()


def test_every_image_is_shown_once_in_each_epoch_in_a_new_order() -> None:
    epochs = [
        [plan().sample(index).stem for index in range(start, start + len(STEMS))]
        for start in range(0, 10 * len(STEMS), len(STEMS))
    ]
    assert all(sorted(epoch) == list(STEMS) for epoch in epochs)
    assert sum(before != after for before, after in pairwise(epochs)) >= 8


def test_a_sample_knows_its_image() -> None:
    for index in range(20):
        sample = plan().sample(index)
        assert (sample.index, sample.stem) == (index, STEMS[sample.image])


def test_a_sample_does_not_depend_on_those_asked_for_before() -> None:
    forwards = [plan().sample(index) for index in range(40)]
    backwards = [plan().sample(index) for index in reversed(range(40))]
    assert forwards == backwards[::-1]


def test_another_seed_shows_another_order_and_other_crops() -> None:
    ours, others = ([plan(seed=seed).sample(index) for index in range(20)] for seed in (42, 43))
    assert [sample.stem for sample in ours] != [sample.stem for sample in others]
    assert not {sample.crop for sample in ours} & {sample.crop for sample in others}


def test_a_set_that_lacks_an_image_shows_the_others_in_the_same_order() -> None:
    fewer = plan(tuple(stem for stem in STEMS if stem != "03_tree"))
    for epoch in range(6):
        whole = [plan().sample(5 * epoch + place).stem for place in range(5)]
        assert [fewer.sample(4 * epoch + place).stem for place in range(4)] == [
            stem for stem in whole if stem != "03_tree"
        ]


def test_a_view_depends_on_nothing_but_seed_index_and_stem() -> None:
    renamed = tuple("09_other" if stem == "03_tree" else stem for stem in STEMS)
    crops = {(sample.index, sample.stem): sample.crop for sample in map(plan().sample, range(50))}
    shared = [
        sample for sample in map(plan(renamed).sample, range(50)) if (sample.index, sample.stem) in crops
    ]
    assert len(shared) > 10
    assert all(sample.crop == crops[sample.index, sample.stem] for sample in shared)


def test_crops_are_fractions_drawn_anew_for_each_sample() -> None:
    crops = [plan().sample(index).crop for index in range(400)]
    places = [place for crop in crops for place in (crop.across, crop.down)]
    assert len(set(places)) == 800
    assert 0 <= min(places) < 0.02
    assert 0.98 < max(places) <= 1
    assert sum(places) / 800 == pytest.approx(0.5, abs=0.03)


def test_about_half_of_the_samples_are_mirrored() -> None:
    flipped = [plan().sample(index).crop.flipped for index in range(400)]
    assert sum(flipped) == pytest.approx(200, abs=30)


def test_center_crop_and_no_flip_show_every_image_in_one_view() -> None:
    assert {plan(center_crop=True, random_flip=False).sample(index).crop for index in range(50)} == {
        Crop(across=0.5, down=0.5, flipped=False)
    }


def test_flips_are_the_same_with_and_without_center_crop() -> None:
    for index in range(50):
        centred, free = plan(center_crop=True).sample(index), plan(center_crop=False).sample(index)
        assert centred.crop.flipped == free.crop.flipped


class TestRepeats:
    def test_an_epoch_shows_each_image_so_often(self) -> None:
        samples = [plan(repeats=3).sample(index) for index in range(10 * 15)]
        epochs = [[sample.stem for sample in samples[start : start + 15]] for start in range(0, 150, 15)]
        assert all(sorted(epoch) == sorted(3 * STEMS) for epoch in epochs)
        assert all(before != after for before, after in pairwise(epochs))
        # Not the same order three times over: an image may come twice before another has come once.
        assert any(len(set(epoch[:5])) < 5 for epoch in epochs)
        assert len({sample.crop for sample in samples}) == 150

    def test_a_set_that_lacks_an_image_shows_the_others_in_the_same_order(self) -> None:
        fewer = plan(tuple(stem for stem in STEMS if stem != "03_tree"), repeats=2)
        for epoch in range(6):
            whole = [plan(repeats=2).sample(10 * epoch + place).stem for place in range(10)]
            assert [fewer.sample(8 * epoch + place).stem for place in range(8)] == [
                stem for stem in whole if stem != "03_tree"
            ]

    def test_fixed_views_are_all_listed(self) -> None:
        samples = plan(repeats=3, center_crop=True, random_flip=False)
        listed = {sample.image for sample in samples.distinct_crops(range(1000))}
        assert listed == set(range(len(STEMS)))


def test_the_seed_of_dropout_is_golden() -> None:
    assert dropout_seed(42, 7) == GOLDEN_DROPOUT_SEED
    assert 0 <= GOLDEN_DROPOUT_SEED < 2**63
    assert len({dropout_seed(seed, index) for seed in (1, 2) for index in range(50)}) == 100


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("center_crop", [True, False])
@pytest.mark.parametrize("random_flip", [True, False])
def test_distinct_views_show_all_that_the_samples_show(
    center_crop: bool, random_flip: bool, repeats: int
) -> None:
    samples = plan(center_crop=center_crop, random_flip=random_flip, repeats=repeats)
    shown = {(sample.image, sample.crop) for sample in (samples.sample(index) for index in range(50))}

    assert {(sample.image, sample.crop) for sample in samples.distinct_crops(range(50))} == shown


def test_fixed_views_are_listed_once() -> None:
    samples = plan(center_crop=True, random_flip=False)

    assert len(list(samples.distinct_crops(range(4_000_000)))) == len(STEMS)
