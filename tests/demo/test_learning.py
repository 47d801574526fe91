"""The study in miniature is true: a style is learnt, Mist hinders that, noisy upscaling helps a little."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mimicry.common.study_tree import Artist, Condition
from tests.demo.learning import Laboratory, distance, evaluation, samples

pytestmark = pytest.mark.slow

ARTIST = Artist("historical", "baroque", "Casimir_Drovanti")
OTHER = Artist("historical", "impressionism", "Zoé_Marchais")
ORIGINAL, MIST, COUNTERED = Condition(), Condition("mist"), Condition("mist", "noisy_upscaling")
SEEDS = (1, 2, 3)


@dataclass(frozen=True)
class Learnt:
    """What one seed gave, on the artist's held-out paintings: losses, and how far samples look from them."""

    loss_before: float
    loss: float
    loss_by_other: float
    base: float
    original: float
    mist: float
    countered: float


@pytest.fixture(scope="session")
def laboratory(true_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    yield Laboratory(true_demo, tmp_path_factory.mktemp("learning"))
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session", params=SEEDS, ids=lambda seed: f"seed {seed}")
def learnt(request: pytest.FixtureRequest, laboratory: Laboratory) -> Learnt:
    adapters = [
        laboratory.train(artist, condition, request.param, held_out_of=ARTIST)
        for artist, condition in ((ARTIST, ORIGINAL), (ARTIST, MIST), (ARTIST, COUNTERED), (OTHER, ORIGINAL))
    ]
    sampler, look = laboratory.sampler(), laboratory.look()
    painted = look.of_folder(laboratory.paintings(ARTIST, ORIGINAL, held_out=True))
    looks = [distance(look.of(samples(sampler, adapter)), painted) for adapter in (None, *adapters[:3])]
    before, after = evaluation(adapters[0])
    found = Learnt(before, after, evaluation(adapters[3])[1], *looks)
    print(found)
    return found


def test_the_loss_on_held_out_paintings_falls(learnt: Learnt) -> None:
    assert learnt.loss < 0.9 * learnt.loss_before


def test_it_falls_by_more_than_from_anothers_paintings(learnt: Learnt) -> None:
    assert learnt.loss < 0.9 * learnt.loss_by_other


def test_samples_move_towards_the_artist(learnt: Learnt) -> None:
    assert learnt.original < 0.7 * learnt.base


def test_mist_lets_them_move_less(learnt: Learnt) -> None:
    assert learnt.mist > 1.2 * learnt.original


def test_the_countered_set_lies_between(learnt: Learnt) -> None:
    assert learnt.original < learnt.countered < learnt.mist
