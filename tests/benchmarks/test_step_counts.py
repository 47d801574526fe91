"""The counts of a block's work, and the constants that the choice of checkpointed blocks takes from them."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.step_counts import BLOCKS, WAYS, count, peak_without_gradients
from mimicry.tuning.hf_diffusers.sd3.evaluation import eval_batch_size
from mimicry.tuning.hf_diffusers.sd3.memory import choose_checkpointed_blocks, kept_per_value
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


@pytest.mark.parametrize(("name", "blocks"), [("large", 38), ("medium", 24), ("medium, dual attention", 24)])
def test_an_evaluation_on_a_gpu_takes_no_more_than_a_training_that_checkpoints_every_block(
    name: str, blocks: int
) -> None:
    values, reserve = 4250 * BLOCKS[name].width, 1 << 29

    def trains_in(activations: float) -> bool:
        """Return whether `activations` bytes are enough where nothing else than checkpointing takes any."""
        return not choose_checkpointed_blocks(
            int(reserve + activations),
            stream_values=values,
            value_bytes=2,
            kept=[0] * blocks,
            trained_parameters=0,
        )

    size, peak = eval_batch_size(torch.device("cuda"), 1), peak_without_gradients(BLOCKS[name])
    assert size > 1
    assert 20 < peak < 28
    assert trains_in(200 * values)
    assert not trains_in(size * peak * values)
