"""Trackers hear of each step once, and of no path and no token. Their libraries are stand-ins."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import tracking
from accelerate.utils import LoggerType

from mimicry.common.errors import UsageError
from mimicry.tuning.hf_diffusers.spec import preflight
from mimicry.tuning.options.config import OPTIONS
from tests.tuning.hf_diffusers.sd3.parts import train
from tests.tuning.hf_diffusers.sd3.resuming import RUN, STEPS, WEIGHTS, stopped
from tests.tuning.hf_diffusers.studio import SECRET, Studio, training_run


class Libraries:
    """tensorboard and wandb as far as accelerate calls them; `calls` is what they were told, in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.config = SimpleNamespace(update=lambda values, **_: self.note("wandb config", values))
        self.faulty = ""

    def note(self, what: str, *values: Any) -> None:
        if what == self.faulty:
            raise ConnectionError("nobody at home in /home/somebody")
        self.calls.append((what, *values))

    def told(self, what: str) -> list[tuple[Any, ...]]:
        return [call[1:] for call in self.calls if call[0] == what]

    def SummaryWriter(self, folder: str, **words: Any) -> Any:  # noqa: N802 - the name that tensorboard gives it
        self.note("writer", folder, words)
        return SimpleNamespace(
            add_scalar=lambda name, value, global_step: self.note("scalar", name, global_step, value),
            add_hparams=lambda values, metric_dict: self.note("hparams", values),
            flush=lambda: None,
            close=lambda: self.note("closed"),
        )

    def init(self, **words: Any) -> Any:
        self.note("init", words)
        return SimpleNamespace(
            log=lambda values, step: self.note("log", step, values), finish=lambda: self.note("finished")
        )


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> Libraries:
    stand_in = Libraries()
    monkeypatch.setattr(torch.utils, "tensorboard", stand_in, raising=False)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in)
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    monkeypatch.setattr(preflight, "version", lambda name: "1.0")
    both = [LoggerType.TENSORBOARD, LoggerType.WANDB]
    monkeypatch.setattr(tracking, "_available_trackers", both)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    return stand_in


def test_each_step_is_told_once(studio: Studio, tmp_path: Path, libraries: Libraries) -> None:
    out = tmp_path / "out"
    train(studio, tmp_path / "without", f"--eval_data_dir={studio.images}")
    train(studio, out, f"--eval_data_dir={studio.images}", "--report_to=all")

    assert (out / WEIGHTS).read_bytes() == (tmp_path / "without" / WEIGHTS).read_bytes()
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    expected = [
        (name, line["step"], line[name])
        for line in lines
        for name in ("loss", "lr", "grad_norm", "eval_loss")
        if name in line
    ]
    assert len(expected) == 2 * 3 + 2
    assert libraries.told("scalar") == expected
    steps = libraries.told("log")
    assert [step for step, _ in steps] == [0, 1, 2, 2]
    assert [(name, step, value) for step, values in steps for name, value in values.items()] == expected
    assert libraries.told("writer") == [(str(out / "logs" / "mimicry"), {"purge_step": 0})]
    assert libraries.calls[-2:] == [("closed",), ("finished",)]


def test_they_hear_of_options_and_of_no_path(studio: Studio, tmp_path: Path, libraries: Libraries) -> None:
    out = tmp_path / "mist__none" / "historical" / "baroque" / "Anna_Berg"
    train(studio, out, "--report_to=all", "--cache_latents", f"--prompt_cache_dir={tmp_path / 'prompts'}")

    recipe = {option.name for option in OPTIONS if option.facts.in_recipe}
    for (values,) in (*libraries.told("hparams"), *libraries.told("wandb config")):
        assert set(values) == recipe
        assert values["rank"] == 4
    ((init,),) = libraries.told("init")
    assert init["name"] == "mist__none/historical/baroque/Anna_Berg"
    assert (init["project"], init["resume"]) == ("mimicry", "allow")
    assert init.pop("dir") == str(out / "logs")  # where wandb keeps its files; it tells nobody
    told = str([init, *libraries.told("hparams"), *libraries.told("wandb config"), *libraries.told("log")])
    for secret in (str(tmp_path), str(studio.base_model), str(studio.images), SECRET):
        assert secret not in told
    for name in ("x_disable_meta", "disable_git", "disable_code"):
        assert init["settings"][name] is True
    assert init["settings"]["console"] == "off"


def test_a_folder_for_all_has_a_place_for_each(studio: Studio, tmp_path: Path, libraries: Libraries) -> None:
    out = tmp_path / "mist__none" / "historical" / "baroque" / "Anna_Berg"
    train(studio, out, "--report_to=tensorboard", f"--logging_dir={tmp_path / 'logs'}")

    folder = tmp_path / "logs" / "mist__none" / "historical" / "baroque" / "Anna_Berg" / "mimicry"
    assert [call[0] for call in libraries.told("writer")] == [str(folder)]
    assert libraries.told("init") == []
    assert training_run(out)["options"]["logging_dir"] is None


def test_a_resumed_run_goes_on_where_it_was(
    studio: Studio, whole: Path, tmp_path: Path, libraries: Libraries
) -> None:
    stopped(studio, tmp_path / "out", 3, "--report_to=all")
    train(studio, tmp_path / "out", *RUN, "--report_to=all", "--logging_dir=logs")

    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert [step for name, step, _ in libraries.told("scalar") if name == "loss"] == [*range(1, STEPS + 1)]
    # Of what a killed run has sent after its checkpoint, tensorboard shows nothing.
    assert [words for _, words in libraries.told("writer")] == [{"purge_step": 0}, {"purge_step": 4}]
    (first,), (second,) = libraries.told("init")
    assert first["id"] == second["id"]
    assert len(libraries.told("hparams")) == len(libraries.told("wandb config")) == 1

    train(studio, tmp_path / "other", "--report_to=wandb")
    assert libraries.told("init")[-1][0]["id"] != first["id"]


@pytest.mark.parametrize("faulty", ["init", "log", "finished"])
def test_a_fault_costs_no_training(
    faulty: str, studio: Studio, whole: Path, tmp_path: Path, libraries: Libraries
) -> None:
    libraries.faulty = faulty
    train(studio, tmp_path / "out", *RUN, "--report_to=wandb")

    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    warnings = training_run(tmp_path / "out")["warnings"]
    if faulty != "finished":  # which comes when everything is written
        assert warnings == [
            "metrics are not reported any more: ConnectionError; metrics.jsonl has them",
        ]
    assert libraries.told("log") == [] or faulty == "finished"


def test_a_missing_library_is_refused(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "installed_trackers", list)
    with pytest.raises(UsageError, match=r"pip install 'mimicry\[reports\]'"):
        train(studio, tmp_path / "out", "--report_to=tensorboard")
    assert not (tmp_path / "out").exists()
