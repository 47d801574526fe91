"""The ways of training that are compared, at the smallest sizes."""

import math

import pytest
import torch

from benchmarks.random_transformer import Geometry
from benchmarks.train_step import CASES, WAYS, Step, Task, Way, count_operations, measure

CPU = torch.device("cpu")
TINY = Geometry(blocks=2, heads=1, context_width=32, side=4, text_tokens=3, positions=2)
# Compiling takes minutes.
EAGER = [name for name, way in WAYS.items() if not way.compiled]


def gradients(step: Step) -> torch.Tensor:
    step.micro_step()
    found = [step.adapter[name].grad for name in sorted(step.adapter)]
    return torch.cat([gradient.flatten().double() for gradient in found if gradient is not None])


@pytest.mark.parametrize("way", EAGER)
def test_every_way_is_measured(way: str) -> None:
    torch.manual_seed(0)
    task = Task(way, TINY, runs=1, accumulation=2, operations=count_operations(TINY), rate=1e9)

    figures, kernels = measure(task, CPU)

    assert all(math.isfinite(value) for value in figures.values())
    assert figures["optimizer step [s]"] > 0
    assert (kernels is not None) == WAYS[way].profiled


@pytest.mark.parametrize("way", ["lean", "autocast"])
def test_ways_train_alike(way: str) -> None:
    exact, found = gradients(Step(Way(exact=True), TINY, CPU)), gradients(Step(WAYS[way], TINY, CPU))

    assert 0 < float((found - exact).norm() / exact.norm()) < 0.05


def test_the_plain_way_is_that_of_the_example() -> None:
    step = Step(WAYS["plain"], TINY, CPU)

    assert {value.dtype for value in step.parameters} == {torch.bfloat16}
    assert step.table is None
    assert step.checkpointed == TINY.blocks
    assert not step.optimizer.defaults["fused"]


@pytest.mark.parametrize("way", [way for way in EAGER if way != "plain"])
def test_other_ways_train_in_fp32_with_a_table(way: str) -> None:
    step = Step(WAYS[way], TINY, CPU)

    assert {value.dtype for value in step.parameters} == {torch.float32}
    assert step.table is not None
    assert step.checkpointed == (TINY.blocks if WAYS[way].all_checkpointed else 0)


def test_an_optimizer_step_changes_the_adapter_and_nothing_else() -> None:
    step = Step(WAYS["lean"], TINY, CPU)
    before = {name: value.detach().clone() for name, value in step.transformer.named_parameters()}

    step.optimizer_step(2)

    changed = {
        name for name, value in step.transformer.named_parameters() if not torch.equal(value, before[name])
    }
    assert changed
    assert changed <= set(step.adapter)


def test_a_case_is_a_way_with_or_without_a_limit() -> None:
    tasks = [Task(case, TINY, runs=1, accumulation=1, operations=1, rate=1) for case in CASES]

    assert {task.way for task in tasks} == set(WAYS.values())
    assert {task.limit_gib for task in tasks} == {0, 15.3, 23.3}
