"""Optimizers and schedules by name, the libraries that some of them need, and the steps that they take."""

import math
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from mimicry.common.errors import UsageError
from mimicry.tuning.hf_diffusers.spec.preflight import learning_rate
from mimicry.tuning.hf_diffusers.training.optimizers import (
    check_optimizer,
    make_optimizer,
    make_scheduler,
    optimizer_warnings,
)
from mimicry.tuning.options.config import LR_SCHEDULERS, TuningConfig
from tests.tuning.hf_diffusers.sd3.parts import train
from tests.tuning.hf_diffusers.studio import Studio, training_run

CPU = torch.device("cpu")
PLAIN_ARGUMENTS = {"lr": 1e-4, "betas": (0.9, 0.999), "weight_decay": 1e-4, "eps": 1e-8}
PRODIGY_ARGUMENTS = {
    "beta3": None,
    "decouple": True,
    "use_bias_correction": True,
    "safeguard_warmup": True,
}


class StandIn(torch.optim.SGD):
    """An optimizer of another library: remembers how it was made and follows the gradient."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], **arguments: Any) -> None:
        self.arguments = arguments
        super().__init__(list(parameters), lr=arguments["lr"])


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put stand-ins in the place of both libraries."""
    put_stand_in(monkeypatch, "prodigyopt", Prodigy=StandIn)
    put_stand_in(monkeypatch, "bitsandbytes", optim=SimpleNamespace(AdamW8bit=StandIn))


def put_stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    module = ModuleType(name)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def no_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("prodigyopt", "bitsandbytes"):
        monkeypatch.setitem(sys.modules, name, None)


def parameters(count: int = 3) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(7, 5, generator=generator)) for _ in range(count)]


def problems(config: TuningConfig) -> tuple[str, ...]:
    with pytest.raises(UsageError) as caught:
        check_optimizer(config)
    return caught.value.problems


class TestAdamW:
    def test_it_is_fused_where_the_device_has_it(self) -> None:
        optimizer = make_optimizer(TuningConfig(), parameters(), CPU)
        assert type(optimizer) is torch.optim.AdamW
        assert optimizer.defaults["fused"] is True
        assert {name: optimizer.defaults[name] for name in PLAIN_ARGUMENTS} == PLAIN_ARGUMENTS

    def test_it_is_not_where_the_device_has_not(self) -> None:
        optimizer = make_optimizer(TuningConfig(), parameters(), torch.device("meta"))
        assert optimizer.defaults["fused"] is None

    def test_its_steps_are_those_of_the_plain_one_and_repeat_bit_by_bit(self) -> None:
        def after_steps(optimizer: torch.optim.Optimizer, values: list[torch.nn.Parameter]) -> torch.Tensor:
            generator = torch.Generator().manual_seed(2)
            for _ in range(20):
                for value in values:
                    value.grad = torch.randn(value.shape, generator=generator)
                optimizer.step()
            return torch.stack([value.detach() for value in values])

        config = TuningConfig(learning_rate=0.01, adam_weight_decay=0.1)
        one, other, plain = parameters(), parameters(), parameters()
        first = after_steps(make_optimizer(config, one, CPU), one)
        assert torch.equal(first, after_steps(make_optimizer(config, other, CPU), other))
        reference = torch.optim.AdamW(plain, lr=0.01, weight_decay=0.1, fused=False, foreach=False)
        torch.testing.assert_close(first, after_steps(reference, plain))


@pytest.mark.usefixtures("libraries")
class TestLibraries:
    """Stand-ins: what the libraries are asked for, not what they do."""

    def test_8_bit_adam_gets_the_options_of_adamw(self) -> None:
        optimizer = make_optimizer(TuningConfig(use_8bit_adam=True), parameters(), CPU)
        assert isinstance(optimizer, StandIn)
        assert optimizer.arguments == PLAIN_ARGUMENTS

    def test_prodigy_gets_its_own_too(self) -> None:
        optimizer = make_optimizer(TuningConfig(optimizer="prodigy"), parameters(), CPU)
        assert isinstance(optimizer, StandIn)
        assert optimizer.arguments == PLAIN_ARGUMENTS | PRODIGY_ARGUMENTS
        config = TuningConfig(
            optimizer="Prodigy",
            learning_rate=1.0,
            prodigy_beta3=0.5,
            prodigy_decouple=False,
            prodigy_use_bias_correction=False,
            prodigy_safeguard_warmup=False,
        )
        optimizer = make_optimizer(config, parameters(), CPU)
        assert isinstance(optimizer, StandIn)
        assert optimizer.arguments == PLAIN_ARGUMENTS | {
            "lr": 1.0,
            "beta3": 0.5,
            "decouple": False,
            "use_bias_correction": False,
            "safeguard_warmup": False,
        }

    def test_8_bits_of_prodigy_are_refused(self) -> None:
        (problem,) = problems(TuningConfig(optimizer="prodigy", use_8bit_adam=True))
        assert problem == "--use-8bit-adam goes with --optimizer AdamW only, and --optimizer is prodigy"


class TestWholeTraining:
    """With a stand-in for prodigyopt; one for bitsandbytes would be taken for the real one by peft, too."""

    @pytest.fixture(autouse=True)
    def _library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        put_stand_in(monkeypatch, "prodigyopt", Prodigy=StandIn)

    def test_prodigy_is_used_and_recorded(self, studio: Studio, tmp_path: Path) -> None:
        train(studio, tmp_path, "--optimizer=PRODIGY", "--learning_rate=0.5")
        run = training_run(tmp_path)
        assert run["status"] == "complete"
        assert run["recipe"]["options"]["optimizer"] == "prodigy"
        assert run["warnings"] == []

    def test_a_rate_with_which_it_hardly_trains_is_warned_of(self, studio: Studio, tmp_path: Path) -> None:
        train(studio, tmp_path, "--optimizer=prodigy", "--upcast_before_saving")
        (warning,) = training_run(tmp_path)["warnings"]
        assert "type --learning-rate 1" in warning


@pytest.mark.usefixtures("no_libraries")
class TestWithoutLibraries:
    @pytest.mark.parametrize(
        ("config", "package", "flag"),
        [
            (TuningConfig(optimizer="prodigy"), "prodigyopt", "--optimizer prodigy"),
            (TuningConfig(use_8bit_adam=True), "bitsandbytes", "--use-8bit-adam"),
        ],
    )
    def test_the_extra_is_named(self, config: TuningConfig, package: str, flag: str) -> None:
        (problem,) = problems(config)
        assert problem.startswith(f"{flag} needs {package}")
        assert f"type pip install {package}," in problem

    def test_adamw_needs_none(self) -> None:
        check_optimizer(TuningConfig())
        assert type(make_optimizer(TuningConfig(), parameters(), CPU)) is torch.optim.AdamW

    def test_all_problems_come_at_once(self) -> None:
        config = TuningConfig(
            optimizer="prodigy", use_8bit_adam=True, lr_scheduler="polynomial", learning_rate=1e-8
        )
        assert len(problems(config)) == 4

    def test_a_training_is_refused_before_anything_is_written(self, studio: Studio, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="pip install bitsandbytes"):
            train(studio, tmp_path / "out", "--use_8bit_adam")
        assert not (tmp_path / "out").exists()


class TestLearningRate:
    def test_scale_lr_multiplies_by_the_samples_of_a_step(self) -> None:
        config = TuningConfig(learning_rate=1e-4, train_batch_size=3, gradient_accumulation_steps=5)
        scaled = TuningConfig(
            learning_rate=1e-4, train_batch_size=3, gradient_accumulation_steps=5, scale_lr=True
        )
        assert learning_rate(replace(config, num_processes=2)) == 1e-4
        assert learning_rate(scaled) == pytest.approx(15e-4)
        doubled = replace(scaled, num_processes=2)
        assert learning_rate(doubled) == pytest.approx(30e-4)
        assert make_optimizer(doubled, parameters(), CPU).param_groups[0]["lr"] == pytest.approx(30e-4)

    def test_prodigy_is_warned_of_below_a_tenth(self) -> None:
        assert optimizer_warnings(TuningConfig(optimizer="prodigy", learning_rate=1.0)) == []
        assert optimizer_warnings(TuningConfig(optimizer="prodigy", learning_rate=0.1)) != []
        assert optimizer_warnings(TuningConfig()) == []

    def test_polynomial_from_below_its_end_is_refused(self) -> None:
        (problem,) = problems(TuningConfig(lr_scheduler="polynomial", learning_rate=1e-7))
        assert "--learning-rate" in problem
        check_optimizer(TuningConfig(lr_scheduler="polynomial", learning_rate=2e-7))


def plain_rate(name: str, step: int, steps: int, warmup: int, cycles: int, power: float) -> float:
    """Return the factor of the rate in a step counted from 0, as text books have these schedules."""
    if name == "constant":
        return 1.0
    if step < warmup:
        return step / warmup
    done = (step - warmup) / (steps - warmup)
    end = 1e-7  # of polynomial, for a rate of 1
    factors: dict[str, float] = {
        "constant_with_warmup": 1.0,
        "linear": 1 - done,
        "cosine": (1 + math.cos(math.pi * done)) / 2,
        "cosine_with_restarts": (1 + math.cos(math.pi * (cycles * done % 1))) / 2,
        "polynomial": (1 - end) * (1 - done) ** power + end,
    }
    return factors[name]


class TestScheduler:
    @pytest.mark.parametrize("name", LR_SCHEDULERS)
    @pytest.mark.parametrize(("warmup", "cycles", "power"), [(0, 1, 1.0), (4, 3, 2.0)])
    def test_rates_are_those_of_the_books(self, name: str, warmup: int, cycles: int, power: float) -> None:
        config = TuningConfig(
            learning_rate=1.0,
            lr_scheduler=name,
            lr_warmup_steps=warmup,
            lr_num_cycles=cycles,
            lr_power=power,
        )
        optimizer = make_optimizer(config, parameters(1), CPU)
        scheduler = make_scheduler(config, optimizer, 20)
        rates = []
        for _ in range(20):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        assert rates == pytest.approx(
            [plain_rate(name, step, 20, warmup, cycles, power) for step in range(20)]
        )

    def test_its_state_can_be_kept(self) -> None:
        config = TuningConfig(lr_scheduler="cosine", lr_warmup_steps=3)

        def scheduler_after(steps: int) -> Any:
            optimizer = make_optimizer(config, parameters(1), CPU)
            scheduler = make_scheduler(config, optimizer, 20)
            for _ in range(steps):
                optimizer.step()
                scheduler.step()
            return scheduler

        fresh = scheduler_after(0)
        fresh.load_state_dict(scheduler_after(7).state_dict())
        assert fresh.get_last_lr() == scheduler_after(7).get_last_lr()
        fresh.optimizer.step()
        fresh.step()
        assert fresh.get_last_lr() == scheduler_after(8).get_last_lr()
