"""Trackers are found by what is installed, and a missing one is named with what to type."""

from importlib.metadata import PackageNotFoundError

import pytest

from mimicry.tuning.hf_diffusers import metric_trackers
from mimicry.tuning.hf_diffusers.metric_trackers import chosen_trackers, report_problems
from mimicry.tuning.options.config import TuningConfig
from tests.tuning.lora_files import batch_problems
from tests.tuning.model_files import make_model


def install(patch: pytest.MonkeyPatch, *names: str) -> None:
    def version(name: str) -> str:
        if name not in names:
            raise PackageNotFoundError(name)
        return "1.0"

    patch.setattr(metric_trackers, "version", version)


@pytest.mark.parametrize(
    ("installed", "report_to", "chosen", "missing"),
    [
        ((), "none", [], ""),
        (("tensorboard", "wandb"), "none", [], ""),
        (("tensorboard",), "tensorboard", ["tensorboard"], ""),
        (("wandb",), "TensorBoard", None, "tensorboard is not installed"),
        ((), "wandb", None, "wandb is not installed"),
        (("wandb",), "all", ["wandb"], ""),
        (("wandb", "tensorboard"), "all", ["tensorboard", "wandb"], ""),
        ((), "all", None, "tensorboard or wandb is not installed"),
    ],
)
def test_what_is_asked_for_must_be_installed(
    installed: tuple[str, ...],
    report_to: str,
    chosen: list[str] | None,
    missing: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch, *installed)
    config = TuningConfig(report_to=report_to)

    problems = report_problems(config)

    if chosen is None:
        (problem,) = problems
        assert missing in problem
        assert "pip install 'mimicry[reports]'" in problem
    else:
        assert problems == []
        assert chosen_trackers(config) == chosen


def test_a_batch_is_refused_before_it_begins(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("batch")
    config = TuningConfig(
        report_to="wandb", resolution=64, pretrained_model_name_or_path=str(make_model(folder / "model"))
    )
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        (problem,) = batch_problems(config, folder, 1, uploads=False)
    assert problem.startswith("--report-to wandb: ")
