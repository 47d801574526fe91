"""Effects: the right difference, in the right groups, and nothing that cannot be compared."""

import math
from collections.abc import Callable
from typing import Any

import pytest
from scipy import stats

from mimicry.report.effects import ConditionEffect, GroupEffects
from mimicry.study.tree import Condition, StudyTree
from tests.report.made_up import LOSSES, content_of, eval_loss, put, put_all
from tests.small_study import ANNA, BORIS, COUNTERED, MIST, ORIGINAL


def of(found: GroupEffects, condition: Condition) -> ConditionEffect:
    (one,) = (one for one in found.conditions if one.condition == condition)
    return one


def test_an_effect_is_the_loss_minus_that_of_the_original(tree: StudyTree) -> None:
    put_all(tree)

    found = content_of(tree).main

    assert found.by_place[ANNA, MIST].value == pytest.approx(0.06)
    assert found.by_place[BORIS, COUNTERED].value == pytest.approx(0.02)
    mist = of(found, MIST)
    differences = [ends[1] - ends[0] for ends in LOSSES.values()]
    assert mist.summary is not None and mist.summary.wilcoxon is not None
    assert mist.summary.mean == pytest.approx(0.05)
    assert mist.summary.wilcoxon == pytest.approx(stats.wilcoxon(differences, method="exact").pvalue)
    assert mist.holm == pytest.approx(2 * mist.summary.wilcoxon)


def test_a_countermeasure_is_compared_with_the_protection_alone(tree: StudyTree) -> None:
    put_all(tree)

    countered = of(content_of(tree).main, COUNTERED)

    assert countered.against_protected is not None
    assert countered.against_protected.mean == pytest.approx((-0.05 - 0.02 - 0.04 - 0.035) / 4)
    assert countered.undone == pytest.approx(1 - (0.01 + 0.02 + 0.01 + 0.015) / (0.06 + 0.04 + 0.05 + 0.05))


def test_nothing_is_undone_of_an_effect_that_nobody_knows(tree: StudyTree) -> None:
    for artist, (original, _, countered) in LOSSES.items():
        put(tree, ORIGINAL, artist, original)
        put(tree, MIST, artist, original + (0.01 if artist in (ANNA, BORIS) else -0.009))
        put(tree, COUNTERED, artist, countered)

    found = of(content_of(tree).main, COUNTERED)

    assert found.against_protected is not None
    assert found.undone is None


def test_seeds_are_replicates_and_tell_the_noise(tree: StudyTree) -> None:
    put_all(tree)
    put_all(tree, seed=43, variant="seed-43", shift=0.002)
    put_all(tree, seed=44, variant="seed-44", shift=0.004)

    (found,) = content_of(tree).groups

    assert found.group.seeds == [42, 43, 44]
    assert found.by_place[ANNA, MIST].value == pytest.approx(0.062)
    assert found.noise is not None
    assert found.noise.deviation == pytest.approx(0.002)
    assert found.noise.freedom == 2 * 2 * len(LOSSES)
    assert found.loss_noise is not None
    assert found.loss_noise.deviation == pytest.approx(0.002 * math.sqrt(2 / 3))
    assert of(found, MIST).over_noise == pytest.approx(0.052 / 0.002)


def test_an_effect_is_taken_within_its_own_series(tree: StudyTree) -> None:
    put_all(tree)
    put(tree, MIST, ANNA, 0.9, seed=43, variant="seed-43")

    (found,) = content_of(tree).groups

    one, other = found.by_place[ANNA, MIST].effects
    assert one.value == pytest.approx(0.06)
    assert other.value is None
    assert "none__none: waiting" in other.obstacles


def test_one_seed_tells_no_noise(tree: StudyTree) -> None:
    put_all(tree)

    found = content_of(tree).main

    assert found.noise is None
    assert of(found, MIST).over_noise is None


def test_another_recipe_is_a_group_of_its_own(tree: StudyTree) -> None:
    put_all(tree)
    for artist in LOSSES:
        put(tree, ORIGINAL, artist, 0.2, variant="rank-8", options={"rank": 8})
        put(tree, MIST, artist, 0.9, variant="rank-8", options={"rank": 8})

    main, apart = content_of(tree).groups

    assert [one.name for one in main.group.series] == ["hf_diffusers"]
    assert [one.name for one in apart.group.series] == ["hf_diffusers@rank-8"]
    assert main.by_place[ANNA, MIST].value == pytest.approx(0.06)
    assert apart.by_place[ANNA, MIST].value == pytest.approx(0.7)
    assert content_of(tree, variants=("rank-8",)).main.group.name == "hf_diffusers@rank-8"


def test_the_same_seed_again_is_not_a_replicate(tree: StudyTree) -> None:
    put_all(tree)
    put_all(tree, variant="again")

    assert [found.noise for found in content_of(tree).groups] == [None, None]


def test_an_adapter_of_another_recipe_stays_out(tree: StudyTree) -> None:
    put_all(tree)
    put(tree, MIST, ANNA, 0.9, options={"rank": 8})

    found = content_of(tree).main

    (effect,) = found.by_place[ANNA, MIST].effects
    assert effect.value is None
    assert "rank 4 -> 8" in effect.obstacles[0]
    summary = of(found, MIST).summary
    assert summary is not None
    assert summary.count == len(LOSSES) - 1


Spoil = Callable[[StudyTree], Any]


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda tree: put(tree, MIST, ANNA, 0.36, unpaired=["lacks '01'"]), "unpaired"),
        (lambda tree: put(tree, MIST, ANNA, None), "no evaluation loss"),
        (lambda tree: put(tree, ORIGINAL, ANNA, None), "none__none: no evaluation loss"),
        (lambda tree: put(tree, MIST, ANNA, 0, eval_loss=eval_loss(0.36, "in-sample")), "in-sample"),
        (lambda tree: put(tree, MIST, ANNA, 0, eval_loss=eval_loss(0.36, "unknown")), "nobody knows"),
        (lambda tree: put(tree, MIST, ANNA, 0, eval_loss=eval_loss(0.36, images=3)), "3 paintings"),
        (lambda tree: put(tree, MIST, ANNA, 0, eval_loss=eval_loss(0.36, timesteps=[1.0])), "timesteps"),
        (lambda tree: put(tree, MIST, ANNA, 0, eval_loss=eval_loss(0.36, start=0.6)), "starts from"),
        (lambda tree: put(tree, MIST, ANNA, 0.36, seed=7), "seed 42 -> 7"),
    ],
)
def test_what_cannot_be_compared_is_not(tree: StudyTree, spoil: Spoil, word: str) -> None:
    put_all(tree)
    spoil(tree)

    found = content_of(tree).main

    (effect,) = found.by_place[ANNA, MIST].effects
    assert effect.value is None
    assert any(word in obstacle for obstacle in effect.obstacles)
    summary = of(found, MIST).summary
    assert summary is not None
    assert summary.count == len(LOSSES) - 1


def test_what_leaves_it_comparable_is_noted(tree: StudyTree) -> None:
    put_all(tree)
    for condition, end in ((ORIGINAL, 0.3), (MIST, 0.36)):
        put(
            tree,
            condition,
            ANNA,
            end,
            eval_loss=eval_loss(end, "in-sample"),
            numerics={"device": "cpu" if condition == MIST else "cuda"},
        )

    (effect,) = content_of(tree).main.by_place[ANNA, MIST].effects

    assert effect.value == pytest.approx(0.06)
    assert effect.notes[0] == "in-sample"
    assert "device 'cuda' -> 'cpu'" in effect.notes[1]
