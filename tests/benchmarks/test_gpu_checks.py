"""The checks for a GPU, at the smallest sizes on the CPU, where they must come out well."""

import pytest
import torch

from benchmarks.gpu_checks import CHECKS, relative_error
from tests.benchmarks.test_train_step import CPU, TINY

COMPILING = {"compile", "compiled"}
ATTENTION = {"attention_cudnn", "attention_flash", "attention_efficient"}


@pytest.mark.parametrize("check", sorted(CHECKS.keys() - COMPILING - ATTENTION))
def test_a_check_finds_nothing_wrong(check: str) -> None:
    torch.manual_seed(0)

    figures = CHECKS[check](TINY, CPU)

    assert figures
    assert [what for what, value in figures.items() if value is False] == []
    assert all(value < 0.05 for what, value in figures.items() if "error" in what or "difference" in what)


def test_attention_is_compared_with_maths_in_fp32() -> None:
    figures = CHECKS["attention_flash"](TINY, CPU)

    errors = [value for what, value in figures.items() if what.startswith("error")]
    assert len(errors) == 4
    assert all(0 < error < 0.02 for error in errors)
    assert figures["the same bits twice"] is True


def test_the_error_is_relative() -> None:
    assert relative_error(torch.tensor([3.0, 5.0]), torch.tensor([3.0, 4.0])) == pytest.approx(0.2)
