"""Numerics of sister adapters: what counts as a difference, and who is a sister."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from mimicry.study.tree import Condition, StudyTree
from mimicry.tuning.adapters.folder import WEIGHTS
from mimicry.tuning.adapters.numerics import describe_differences, numerics_differences, sister_differences
from mimicry.tuning.adapters.recipe import OWN_TRAINER, recipe
from mimicry.tuning.adapters.training_run import TRAINING_RUN
from tests.small_study import ANNA, BASE, BORIS, CONFIG, ORIGINAL, output_dir, put_adapter

MIST = Condition("mist", "none")
HERE = {"device": "cpu", "torch": "2.13"}
THERE = {"device": "H200", "torch": "2.13"}


def differences(tree: StudyTree, **values: Any) -> dict[str, list[str]]:
    """Return those of Anna's adapter for mist, which is to be trained here."""
    asked = recipe(dataclasses.replace(CONFIG, **values), BASE.identity(), OWN_TRAINER)
    return sister_differences(output_dir(tree, MIST), asked, HERE)


def test_what_is_told_by_one_alone_is_no_difference() -> None:
    assert numerics_differences({"torch": "2.12", "old": 1}, {"torch": "2.13", "new": 2}) == [
        "torch '2.12' -> '2.13'"
    ]
    assert numerics_differences(HERE, HERE) == []


def test_sisters_are_compared_and_named(tree: StudyTree) -> None:
    put_adapter(tree, ORIGINAL, numerics=THERE)
    assert differences(tree) == {"none__none": ["device 'H200' -> 'cpu'"]}
    words = describe_differences(differences(tree))
    assert words == "other numerics than none__none (device 'H200' -> 'cpu')"


def test_alike_is_no_difference(tree: StudyTree) -> None:
    put_adapter(tree, ORIGINAL, numerics=HERE)
    assert differences(tree) == {}
    assert describe_differences({}) == ""


def test_who_is_no_sister(tree: StudyTree) -> None:
    put_adapter(tree, ORIGINAL, BORIS, numerics=THERE)
    put_adapter(tree, MIST, ANNA, numerics=THERE)  # itself, before it is trained again
    assert differences(tree) == {}
    put_adapter(tree, ORIGINAL, numerics=THERE)
    assert differences(tree, rank=7) == {}
    assert differences(tree) != {}


@pytest.mark.parametrize("spoil", ["no weights", "no record", "no numerics", "not JSON"])
def test_an_adapter_that_tells_nothing_is_passed_over(spoil: str, tree: StudyTree) -> None:
    folder = put_adapter(tree, ORIGINAL, numerics=None if spoil == "no numerics" else THERE)
    if spoil == "no weights":
        (folder / WEIGHTS).unlink()
    elif spoil == "no record":
        (folder / TRAINING_RUN).unlink()
    elif spoil == "not JSON":
        (folder / TRAINING_RUN).write_text("{")
    assert differences(tree) == {}


def test_an_adapter_elsewhere_has_no_sisters(tmp_path: Path) -> None:
    (tmp_path / "x" / TRAINING_RUN).parent.mkdir()
    (tmp_path / "x" / TRAINING_RUN).write_text(json.dumps({"numerics": THERE}))
    assert sister_differences(tmp_path / "out", {"options": {}}, HERE) == {}
