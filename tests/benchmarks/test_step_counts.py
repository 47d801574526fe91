"""The counts of a block's work, and the constants that the choice of checkpointed blocks takes from them."""

from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.step_counts import BLOCKS, WAYS, count
from mimicry.tuning.hf_diffusers.sd3.memory import kept_per_value
from mimicry.tuning.options.config import TuningConfig

KEPT = "kept [bytes a value]"


@pytest.mark.parametrize("name", BLOCKS)
def test_the_trainer_does_less_than_half_and_keeps_what_it_counts_on(name: str) -> None:
    shape = BLOCKS[name]
    plain, lean = (count(way, shape) for way in WAYS)
    for what in ("operations, forward", "operations, backward", "elementwise bytes, both [MB]"):
        assert 0 < lean[what] < plain[what] / 2
    assert lean[KEPT] < plain[KEPT]
    block: Any = SimpleNamespace(use_dual_attention=shape.dual)
    assert lean[KEPT] <= kept_per_value(block, TuningConfig()) <= lean[KEPT] + 1


def test_width_and_heads_hardly_matter() -> None:
    """What is kept for each value is nearly the same in Large and Medium, so one constant will do."""
    large, medium = (count("lean", BLOCKS[name])[KEPT] for name in ("large", "medium"))
    assert large == pytest.approx(medium, rel=0.01)
