"""The loop ends in time, takes up where it was stopped, and returns the average of the weights."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tools.demo_weights.loop import Budget, Training


def _training(folder: Path, model: nn.Module, workers: int = 2) -> Training:
    return Training("line", model, learning_rate=0.05, decay=0.9, workers=workers, folder=folder)


def _model() -> nn.Module:
    torch.manual_seed(7)
    return nn.Linear(3, 1)


def _loss_of(model: nn.Module, seen: list[int] | None = None):  # type: ignore[no-untyped-def]
    def loss_of(batch: int) -> tuple[Tensor, dict[str, float]]:
        if seen is not None:
            seen.append(batch)
        inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(batch))
        return (model(inputs) - inputs.sum(dim=1, keepdim=True)).square().mean(), {"other": 1.0}

    return loss_of


def test_it_learns_and_stops_at_its_steps(tmp_path: Path) -> None:
    model, seen = _model(), list[int]()
    training = _training(tmp_path, model)
    training.run(_loss_of(model, seen), Budget(steps=300, minutes=1))

    assert sorted(seen) == list(range(600))
    assert training.summary()["steps"] == 300
    assert float(_loss_of(model)(9999)[0].detach()) < 0.01


def test_a_budget_of_time_ends_it(tmp_path: Path) -> None:
    model = _model()
    training = _training(tmp_path, model)
    training.run(_loss_of(model), Budget(steps=10**9, minutes=0.2 / 60))

    assert 0 < training.steps < 10**6
    assert training.seconds >= 0.2


def test_a_stopped_training_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.demo_weights.loop.SAVE_SECONDS", -1.0)
    whole, stopped = _model(), _model()
    budget = Budget(steps=40, minutes=100)
    _training(tmp_path / "whole", whole).run(_loss_of(whole), budget)

    def stopping(batch: int) -> tuple[Tensor, dict[str, float]]:
        if batch == 42:
            raise KeyboardInterrupt
        return _loss_of(stopped)(batch)  # type: ignore[no-any-return]

    with pytest.raises(KeyboardInterrupt):
        _training(tmp_path / "stopped", stopped).run(stopping, budget)
    again = nn.Linear(3, 1)
    _training(tmp_path / "stopped", again).run(_loss_of(again), budget)

    assert torch.allclose(again.weight, whole.weight, atol=1e-5)  # type: ignore[arg-type]


def test_workers_average_their_gradients(tmp_path: Path) -> None:
    model = _model()
    training = _training(tmp_path, model, workers=3)
    loss_of = _loss_of(model)
    expected = torch.stack([torch.autograd.grad(loss_of(batch)[0], model.weight)[0] for batch in range(3)])  # type: ignore[arg-type]
    training.step(loss_of, 0.0)

    assert model.weight.grad is not None
    slope, mean = model.weight.grad.flatten(), expected.mean(dim=0).flatten()  # type: ignore[operator]
    # Clipping may have shortened it.
    assert torch.allclose(slope / slope.norm(), mean / mean.norm(), atol=1e-5)
