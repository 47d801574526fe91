"""All programs say the same of each cell, whatever a study has gone through."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.agreement.programs import cells
from tests.agreement.situations import SITUATIONS, all_complete
from tests.agreement.study import Study, new_study, typed_words
from tests.agreement.table import agreement

APART = ("a failed bookmark without a record", "max train steps edited in study toml", "a queued job")


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Study]:
    with new_study(tmp_path / "lab") as study:
        yield study


@pytest.mark.parametrize("name", SITUATIONS)
def test_all_programs_agree(name: str, study: Study) -> None:
    SITUATIONS[name](study)

    assert {row.key: row.wrong for row in agreement(study) if row.wrong} == {}


@pytest.mark.parametrize("name", APART)
def test_programs_of_their_own_say_the_same(name: str, study: Study) -> None:
    SITUATIONS[name](study)

    for program in ("plan", "status", "verify", "report"):
        assert cells(study, program, apart=True) == cells(study, program), program


def test_a_plan_is_about_the_options_that_are_typed(study: Study) -> None:
    all_complete(study)
    study.put_all()
    study.typed = typed_words(replace(study.config, rank=8))

    planned = cells(study, "plan").values()

    assert {(cell["state"], cell["action"]) for cell in planned} == {("stale", "skip")}
    assert all("rank 4 -> 8" in cell["reason"] for cell in planned)
    assert {cell["state"] for cell in cells(study, "status").values()} == {"complete"}


def test_there_are_situations_enough_of_every_state(tmp_path: Path) -> None:
    states = set()
    for number, build in enumerate(SITUATIONS.values()):
        with new_study(tmp_path / str(number)) as study:
            build(study)
            states |= {wanted.state for wanted in study.expected.values()}

    assert len(SITUATIONS) >= 30
    assert states == {
        *("complete", "stale", "broken", "failed", "interrupted"),
        *("blocked", "queued", "running", "waiting", "no data"),
    }
