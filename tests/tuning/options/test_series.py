"""Which series a study has, and which of them names mean."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mimicry.common.errors import UsageError
from mimicry.tuning.options.config import TuningConfig
from mimicry.tuning.options.study_file import (
    RECIPE_FIELDS,
    Series,
    StudyFile,
    Variant,
    all_series,
    chosen_series,
    variant_and_seed,
)

FILE = Path("study.toml")


def said(
    recipe: Mapping[str, Any] | None = None, *variants: Variant, replicates: int | None = None
) -> StudyFile:
    study = {} if replicates is None else {"replicates": replicates}
    return StudyFile(FILE, study, recipe or {}, {variant.name: variant for variant in variants})


RANK_32 = Variant("rank-32", {"rank": 32}, 2)
SMALL = Variant("small", {"resolution": 512, "seed": 7}, 2)
STUDY = said({"rank": 8}, RANK_32, SMALL, replicates=3)
NAMES = ["none", "seed-43", "seed-44", "rank-32", "rank-32-seed-43", "small", "small-seed-8"]


def names(series: tuple[Series, ...]) -> list[str]:
    return [one.name for one in series]


def test_without_a_file_there_is_one() -> None:
    config = TuningConfig(rank=4)

    assert all_series(config, {"rank"}, StudyFile()) == (Series(None, config),)


def test_replicates_without_a_file_are_named_by_their_seed() -> None:
    config = TuningConfig(seed=5)

    series = all_series(config, {"seed"}, StudyFile(), 3)

    assert series == (
        Series(None, config),
        Series("seed-6", TuningConfig(seed=6)),
        Series("seed-7", TuningConfig(seed=7)),
    )


def test_the_plain_one_comes_first_then_each_variant_with_its_replicates() -> None:
    series = all_series(TuningConfig(rank=8), (), STUDY)

    assert names(series) == NAMES
    assert [one.variant for one in series][:2] == [None, "seed-43"]
    assert [(one.config.rank, one.config.resolution, one.config.seed) for one in series] == [
        (8, 1024, 42),
        (8, 1024, 43),
        (8, 1024, 44),
        (32, 1024, 42),
        (32, 1024, 43),
        (8, 512, 7),
        (8, 512, 8),
    ]


def test_replicates_of_the_call_are_those_of_the_plain_one() -> None:
    assert names(all_series(TuningConfig(), (), STUDY, 1)) == ["none", *NAMES[3:]]


def test_what_is_typed_and_not_in_the_recipe_holds_for_variants_too() -> None:
    variant = Variant("quick", {"rank": 4, "compile_blocks": True, "eval_timesteps": 1})
    typed = TuningConfig(eval_timesteps=9)

    plain, quick = all_series(typed, {"eval_timesteps"}, said({"eval_timesteps": 2}, variant))

    assert plain.config == typed
    assert quick.config == TuningConfig(rank=4, compile_blocks=True, eval_timesteps=9)


def test_what_is_typed_for_one_variant_leaves_the_others() -> None:
    """Typed with --variant rank-32, whose value it is."""
    series = all_series(TuningConfig(rank=32), {"rank"}, STUDY)

    assert [one.config.rank for one in series] == [8, 8, 8, 32, 32, 8, 8]


def test_the_base_model_is_part_of_a_recipe_though_by_another_name() -> None:
    assert {"rank", "seed", "pretrained_model_name_or_path", "revision", "variant"} <= RECIPE_FIELDS
    assert RECIPE_FIELDS.isdisjoint({"cache_dir", "compile_blocks", "class_data_dir", "eval_timesteps"})


def test_what_is_wrong_with_all_of_them_is_said_at_once() -> None:
    long = Variant("x" * 40, {"rank": 4}, 2)
    prior = Variant("prior", {"class_prompt": "a painting"})

    with pytest.raises(UsageError) as caught:
        all_series(TuningConfig(), (), said({}, long, prior))

    first, second = caught.value.problems
    assert first.startswith(f"study.toml: [variants.{long.name}]: the replicate with seed 43 needs a shorter")
    assert second.startswith("study.toml: [variants.prior]: --class-prompt is 'a painting'")


def test_a_seed_without_a_next_one() -> None:
    with pytest.raises(UsageError, match=re.escape(f"--seed is {2**63}")):
        all_series(TuningConfig(seed=2**63 - 1), (), StudyFile(), 2)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (None, (None, None)),
        ("rank-32", ("rank-32", None)),
        ("seed-43", (None, 43)),
        ("rank-32-seed-7", ("rank-32", 7)),
        ("seed-x", ("seed-x", None)),
        ("a-seed-1-seed-2", ("a-seed-1", 2)),
    ],
)
def test_the_name_of_a_replicate(name: str | None, parts: tuple[str | None, int | None]) -> None:
    assert variant_and_seed(name) == parts


class TestChoosing:
    series = all_series(TuningConfig(rank=8), (), STUDY)

    @pytest.mark.parametrize(
        ("asked", "chosen"),
        [
            ([], NAMES),
            (["all"], NAMES),
            (["rank-32", "all"], NAMES),
            (["none"], ["none"]),
            (["seed-44"], ["seed-44"]),
            (["rank-32"], ["rank-32", "rank-32-seed-43"]),
            (["rank-32-seed-43"], ["rank-32-seed-43"]),
            (["small", "none", "small"], ["none", "small", "small-seed-8"]),
        ],
    )
    def test_names(self, asked: list[str], chosen: list[str]) -> None:
        assert names(chosen_series(self.series, asked)) == chosen

    def test_unknown_names_are_refused_with_the_nearest(self) -> None:
        with pytest.raises(UsageError) as caught:
            chosen_series(self.series, ["rank-23", "none", "sead-43"])

        first, second = caught.value.problems
        assert "--variant rank-23: there is no such variant; did you mean 'rank-32'" in first
        assert "--variant sead-43: there is no such variant; did you mean 'seed-43'" in second

    def test_a_study_beside(self) -> None:
        config = TuningConfig(rank=64)

        assert chosen_series(self.series, ["rank-64"], config) == (Series("rank-64", config),)
        assert names(chosen_series(self.series, ["x", "none"], config)) == ["none", "x"]

    def test_a_replicate_that_its_variant_does_not_have_is_not_a_study_beside(self) -> None:
        with pytest.raises(UsageError, match="there is no such variant"):
            chosen_series(self.series, ["rank-32-seed-49"], TuningConfig(rank=64))
