"""The study in miniature is true: a style is learnt, Mist hinders that, noisy upscaling undoes most of it.

`pytest -s` prints the figures that the margins are about.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest

from mimicry.study.tree import Artist, Condition
from tests.demo.learning import Laboratory, Style, evaluation, samples

pytestmark = pytest.mark.slow

ARTIST = Artist("historical", "baroque", "Casimir_Drovanti")
OTHER = Artist("historical", "impressionism", "Zoé_Marchais")
ORIGINAL, MIST, COUNTERED = Condition(), Condition("mist"), Condition("mist", "noisy_upscaling")
CONDITIONS = (ORIGINAL, MIST, COUNTERED)
SEEDS = (1, 2, 3)


@dataclass(frozen=True)
class Learnt:
    """What one seed gave, on the artist's held-out paintings: losses, and how far samples look from them."""

    loss_of_base: float
    loss: dict[Condition, float]
    loss_by_other: float
    manner_of_base: float
    manner: dict[Condition, float]
    texture_of_base: float
    texture: dict[Condition, float]


@pytest.fixture(scope="session")
def laboratory(true_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    return Laboratory(true_demo, tmp_path_factory.mktemp("learning"))


@pytest.fixture(scope="session")
def base(laboratory: Laboratory) -> Style:
    """How the base model paints."""
    return laboratory.look().of(samples(laboratory.sampler(), None))


@pytest.fixture(scope="session", params=SEEDS, ids=lambda seed: f"seed {seed}")
def learnt(request: pytest.FixtureRequest, laboratory: Laboratory, base: Style) -> Learnt:
    seed = request.param
    adapters = {
        condition: laboratory.train(ARTIST, condition, seed, held_out_of=ARTIST) for condition in CONDITIONS
    }
    by_other = laboratory.train(OTHER, ORIGINAL, seed, held_out_of=ARTIST)
    sampler, look = laboratory.sampler(), laboratory.look()
    painted = look.of_files(laboratory.held_out(ARTIST).paths)
    styles = {condition: look.of(samples(sampler, adapter)) for condition, adapter in adapters.items()}
    found = Learnt(
        loss_of_base=evaluation(adapters[ORIGINAL])[0],
        loss={condition: evaluation(adapter)[1] for condition, adapter in adapters.items()},
        loss_by_other=evaluation(by_other)[1],
        manner_of_base=base.manner_distance(painted),
        manner={condition: style.manner_distance(painted) for condition, style in styles.items()},
        texture_of_base=base.texture_distance(painted),
        texture={condition: style.texture_distance(painted) for condition, style in styles.items()},
    )
    print(found)
    return found


def test_the_loss_on_held_out_paintings_falls(learnt: Learnt) -> None:
    assert learnt.loss[ORIGINAL] < 0.85 * learnt.loss_of_base


def test_it_falls_by_more_than_from_anothers_paintings(learnt: Learnt) -> None:
    assert learnt.loss[ORIGINAL] < 0.85 * learnt.loss_by_other


def test_samples_come_nearer_to_the_artist(learnt: Learnt) -> None:
    assert learnt.manner[ORIGINAL] < 0.7 * learnt.manner_of_base
    assert learnt.texture[ORIGINAL] < 0.7 * learnt.texture_of_base


def test_mist_hinders_learning(learnt: Learnt) -> None:
    assert learnt.loss[MIST] > 1.2 * learnt.loss[ORIGINAL]
    assert learnt.manner[MIST] > 1.05 * learnt.manner[ORIGINAL]
    assert learnt.texture[MIST] > 1.4 * learnt.texture[ORIGINAL]


def test_the_countered_set_lies_between(learnt: Learnt) -> None:
    assert 1.03 * learnt.loss[ORIGINAL] < learnt.loss[COUNTERED] < 0.9 * learnt.loss[MIST]
    assert learnt.manner[COUNTERED] < 0.95 * learnt.manner[MIST]
    assert learnt.texture[COUNTERED] < 0.8 * learnt.texture[MIST]
