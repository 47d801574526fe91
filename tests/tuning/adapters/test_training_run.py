"""The record as a type: what is read of any JSON object, and which keys our own programs write."""

from pathlib import Path
from typing import Any

import pytest

from mimicry.tuning.adapters.recipe import recipe_hash
from mimicry.tuning.adapters.training_run import (
    LEFT_OUT,
    EvalLoss,
    Evaluation,
    Failure,
    LaterClassImages,
    Memory,
    Numerics,
    Progress,
    Published,
    Result,
    Trained,
    TrainingRun,
    joined,
)
from mimicry.tuning.options.config import TuningConfig

IDENTITY: dict[str, str | None] = {"name": "lab/model", "revision": "c" * 40}


@pytest.mark.parametrize(
    ("name", "good", "bad", "otherwise"),
    [
        ("status", "complete", 1, None),
        ("recipe_hash", "ab", ["ab"], None),
        ("started_at", "2026-01-01", 2026, None),
        ("seconds", 3, True, None),
        ("mean_loss", 0.5, "0.5", None),
        ("earlier_seconds", 2.5, "long", 0.0),
        ("steps", 7, 7.5, 0),
        ("resumed_from", 4, "checkpoint-4", None),
        ("options", {"rank": 4}, [4], None),
        ("eval_loss", {"start": 1}, 1.0, None),
        ("images", [{"name": "x"}], {"name": "x"}, None),
        ("hub", {"url": "x"}, None, {}),
        ("other_numerics", {"mist": ["x"]}, "mist", {}),
        ("warnings", ["odd"], "odd", []),
        ("stack", "sd15", {}, None),
    ],
)
def test_a_key_of_another_kind_reads_like_a_missing_one(
    name: str, good: Any, bad: Any, otherwise: Any
) -> None:
    assert getattr(TrainingRun({name: good}), name) == good
    assert getattr(TrainingRun({name: bad}), name) == otherwise
    assert getattr(TrainingRun({}), name) == otherwise


def test_what_lies_deeper_is_read_too() -> None:
    run = TrainingRun(
        {
            "options": {"rank": 4, "seed": 7, "hold_out": 2},
            "numerics": {"device": "cpu"},
            "class_images": {"listing_sha256": "ab"},
            "weights": {"sha256": "cd"},
            "steps": 0,
        }
    )
    assert (run.rank, run.hold_out, run.device) == (4, 2, "cpu")
    assert (run.class_image_listing, run.weights_sha256) == ("ab", "cd")
    nothing = TrainingRun({})
    assert (nothing.rank, nothing.hold_out, nothing.device) == (None, 0, None)
    assert (nothing.class_image_listing, nothing.weights_sha256) == (None, None)


def test_unknown_keys_and_their_order_are_kept() -> None:
    run = TrainingRun({"new": 1, "status": "running", "steps": 3})
    assert list(run.ended("failed", "it burned", "today").items()) == [
        *(("new", 1), ("status", "failed"), ("steps", 3), ("error", "it burned"), ("finished_at", "today")),
    ]


def test_the_keys_come_in_the_order_of_the_file() -> None:
    trained = Trained.describe(
        TuningConfig(), IDENTITY, Path("model"), trainer="mimicry", command=["x"], notes=["odd"]
    )
    progress = Progress(status="complete", started_at="then", finished_at=None, steps=3, resumed_from=None)
    content = joined(
        trained,
        Numerics(numerics={"device": "cpu"}, memory=Memory(checkpointed_blocks=2)),
        LaterClassImages(class_images={"count": 4}),
        progress,
        Evaluation(eval_loss=EvalLoss(skipped="no reason")),
        Result(final_loss=1.0, mean_loss=2.0, draws_sha256="ab"),
        Failure(error="it burned"),
        Published(weights={"sha256": "cd"}),
    )
    assert (
        list(content)
        == """
        schema recipe recipe_hash options base_model command paths host versions warnings images unpaired
        numerics memory other_numerics class_images status started_at finished_at steps resumed_from eval_loss
        final_loss mean_loss draws_sha256 error weights
        """.split()
    )
    assert content["memory"] == {"checkpointed_blocks": 2}
    assert content["eval_loss"] == {"skipped": "no reason"}
    assert content["recipe_hash"] == recipe_hash(content["recipe"])
    assert LEFT_OUT not in content.values()
