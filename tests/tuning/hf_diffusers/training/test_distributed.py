"""Two processes that train one adapter: the result of one, and an end that is the same for both."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from mimicry.tuning.hf_diffusers.training.distributed import Processes
from tests.tuning.hf_diffusers.sd3.pair import endings, exit_codes, printed, run_pairs
from tests.tuning.hf_diffusers.sd3.parts import train
from tests.tuning.hf_diffusers.sd3.resuming import WEIGHTS, assert_same_end, metrics, names
from tests.tuning.hf_diffusers.studio import Studio, training_run

STEPS = 6
# What may happen to process 1, what the main process then says, and the steps that were taken.
GONE = {
    "error": ("process 1 of 2: this image cannot be read", 2),
    "bug": ("process 1 of 2: ZeroDivisionError: a bug", 2),
    "kill": ("another of the 2 processes is gone without a word", 2),
    "load": ("process 1 of 2: no memory for the transformer", 0),
}


def flags(studio: Studio) -> list[str]:
    return [
        *(f"--max_train_steps={STEPS}", "--random_flip", "--lora_dropout=0.3", "--lr_scheduler=cosine"),
        *(f"--eval_data_dir={studio.images}", "--eval_timesteps=2", "--train_batch_size=1"),
    ]


def job(studio: Studio, folder: Path, *more: str, fault: str = "") -> dict[str, Any]:
    return {"flags": studio.words(folder, *flags(studio), *more), "fault": fault}


@pytest.fixture(scope="module")
def pair(studio: Studio, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair of processes with all trainings that leave both alive, then pairs that lose one of them."""
    folder = tmp_path_factory.mktemp("pair")
    trainings = [
        job(studio, folder / "whole", "--cache_latents"),
        job(studio, folder / "stopped", fault="stop"),
        job(studio, folder / "stopped"),
        job(studio, folder / "diverged", "--checkpointing_steps=2", fault="nan"),
        job(studio, folder / "refused", fault="prepare"),
        job(studio, folder / "unknown", "--resume_from_checkpoint=checkpoint-9"),
        job(studio, folder / "epochs", "--num_train_epochs=3", "--scale_lr", "--lr_scheduler=constant"),
    ]
    gone = [[job(studio, folder / fault, fault=fault)] for fault in GONE]
    run_pairs(folder, trainings, *gone)
    return folder


@pytest.fixture(scope="module")
def alone(studio: Studio, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process with the same samples in each step."""
    folder = tmp_path_factory.mktemp("alone") / "out"
    train(studio, folder, *flags(studio), "--gradient_accumulation_steps=2")
    return folder


def test_how_each_training_ended(pair: Path) -> None:
    assert exit_codes(pair, 0) == [0, 0]
    main, other = endings(pair, 0, 0), endings(pair, 0, 1)
    diverged = "the loss of step 3 is nan: training diverged; type a smaller --learning-rate"
    unknown = "--resume-from-checkpoint checkpoint-9: there is no such folder; type latest, none or the path "
    assert main[:5] == [
        *("complete", "Interrupted: SIGTERM", "complete", f"TrainingFailed: {diverged}"),
        "UsageError: process 1 of 2: this GPU is too old",
    ]
    assert main[5].startswith(f"UsageError: {unknown}")
    assert other[:6] == [
        *("complete", "Interrupted: SIGTERM", "complete", "SystemExit: 1", "SystemExit: 2", "SystemExit: 2"),
    ]
    assert main[6] == other[6] == "complete"


def test_the_result_is_that_of_one_process_up_to_float_order(pair: Path, alone: Path) -> None:
    ours, theirs = load_file(pair / "whole" / WEIGHTS), load_file(alone / WEIGHTS)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert (ours[name].float() - theirs[name].float()).abs().max() < 1e-6, name
    one, other = training_run(pair / "whole"), training_run(alone)
    for key in ("draws_sha256", "steps", "images"):
        assert one[key] == other[key], key
    assert one["eval_loss"]["start"] == other["eval_loss"]["start"]
    for line, expected in zip(metrics(pair / "whole"), metrics(alone), strict=True):
        assert line == pytest.approx(expected, rel=1e-5)


def test_the_number_of_processes_is_part_of_the_recipe(pair: Path, alone: Path) -> None:
    ours, theirs = (training_run(folder)["recipe"]["options"] for folder in (pair / "whole", alone))
    changed = {name: value for name, value in ours.items() if value != theirs[name]}
    assert changed == {"num_processes": 2, "gradient_accumulation_steps": 1}


def test_the_others_neither_print_nor_write(pair: Path) -> None:
    main, other = printed(pair, 0)
    assert main.count("reading the transformer") == 5
    assert other == ""
    assert names(pair / "whole") == [
        *("adapter_config.json", "metrics.jsonl", WEIGHTS, "training_run.json"),
    ]


def test_stopped_in_one_process_and_resumed_is_the_same_bytes(pair: Path) -> None:
    run = training_run(pair / "stopped")
    assert run["resumed_from"] == 2
    assert_same_end(pair / "stopped", pair / "whole")


def test_divergence_leaves_the_last_checkpoint(pair: Path) -> None:
    run = training_run(pair / "diverged")
    assert (run["status"], run["steps"]) == ("failed", 2)
    assert names(pair / "diverged") == ["checkpoint-2", "metrics.jsonl", "training_run.json"]


def test_what_cannot_begin_leaves_nothing(pair: Path) -> None:
    assert not (pair / "refused").exists()
    assert not (pair / "unknown").exists()


def test_epochs_and_learning_rate_count_all_processes(pair: Path) -> None:
    """Three epochs of four images, two a step."""
    run = training_run(pair / "epochs")
    assert run["steps"] == 6
    assert {line["lr"] for line in metrics(pair / "epochs") if "lr" in line} == {2e-4}


@pytest.mark.parametrize("number", range(len(GONE)), ids=GONE)
def test_a_process_that_is_gone_ends_the_training(number: int, pair: Path) -> None:
    fault, (reason, steps) = list(GONE.items())[number]
    code = -9 if fault == "kill" else 0
    assert exit_codes(pair, number + 1) == [0, code], printed(pair, number + 1)
    (ending,) = endings(pair, number + 1, 0)
    assert ending.startswith(f"TrainingFailed: {reason}")
    run = training_run(pair / fault)
    assert (run["status"], run["steps"]) == ("failed", steps)
    assert run["error"].startswith(reason)
    assert names(pair / fault) == ["metrics.jsonl", "training_run.json"]
    assert (reason in printed(pair, number + 1)[1]) == reason.startswith("process 1")


class TestAlone:
    def test_nobody_is_waited_for(self) -> None:
        alone = Processes()
        assert alone.is_main
        assert not alone.stop_asked
        assert alone.barrier_gather("word") == ["word"]
        assert alone.broadcast_from_main(lambda: 7) == 7
        assert alone.shard([3, 4, 5]) == [3, 4, 5]

    def test_items_are_shared_in_turns(self) -> None:
        assert [Processes(3, index).shard("abcd") for index in range(3)] == [
            ["a", "d"],
            ["b", None],
            ["c", None],
        ]
        assert Processes(3, 2).shard([]) == []
