"""Pairs of processes that train together, and the program that forks them: its imports are paid for once.

python -m tests.tuning.hf_diffusers.sd3.pair FOLDER

FOLDER/pairs.json is a list of pairs, each a list of trainings: {"flags": [...], "fault": NAME}. What a pair
leaves lies in a folder with its number: for each rank its output, and how its trainings ended.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mimicry.common.errors import MimicryError, TrainingFailed, UsageError
from mimicry.common.processes import Interrupted, stop_signals_raise

COUNT = 2
# Faults are planted in process 1. Those of a batch come with this sample, in the third optimizer step.
_FAULTY_SAMPLE = 5


def run_pairs(folder: Path, *pairs: list[dict[str, Any]]) -> None:
    """Let pairs of processes, one pair after the other, do their trainings."""
    (folder / "pairs.json").write_text(json.dumps(pairs))
    subprocess.run(
        [sys.executable, "-m", "tests.tuning.hf_diffusers.sd3.pair", str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        cwd=Path(__file__).parents[4],
        stdin=subprocess.DEVNULL,
        timeout=120,
        check=True,
    )


def printed(folder: Path, pair: int) -> list[str]:
    """Return what the processes of a pair have printed."""
    return [(folder / str(pair) / f"{rank}.log").read_text() for rank in range(COUNT)]


def exit_codes(folder: Path, pair: int) -> list[int]:
    """Return the exit codes of a pair; that of a killed process is negative."""
    codes: list[int] = json.loads((folder / str(pair) / "codes.json").read_text())
    return codes


def endings(folder: Path, pair: int, rank: int) -> list[str]:
    """Return how the trainings of a process ended: "complete", or an error in words."""
    found: list[str] = json.loads((folder / str(pair) / f"{rank}.json").read_text())
    return found


def _plant(patch: pytest.MonkeyPatch, fault: str) -> None:
    from mimicry.tuning.hf_diffusers.sd3 import adapted_transformer, setup
    from mimicry.tuning.hf_diffusers.sd3.adapted_transformer import AdaptedTransformer
    from mimicry.tuning.hf_diffusers.sd3.batches import BatchSource, ForwardBatch

    make_batch, batch_loss = BatchSource.make, AdaptedTransformer.loss

    def faulty_batch(batches: BatchSource, first: int) -> ForwardBatch:
        if first == _FAULTY_SAMPLE:
            if fault == "stop":
                os.kill(os.getpid(), signal.SIGTERM)
            elif fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif fault == "error":
                raise TrainingFailed("this image cannot be read")
            elif fault == "bug":
                raise ZeroDivisionError("a bug")
        return make_batch(batches, first)

    def faulty_loss(model: AdaptedTransformer, batch: ForwardBatch) -> Any:
        nothing = fault == "nan" and batch.samples[0].index == _FAULTY_SAMPLE
        return batch_loss(model, batch) * (float("nan") if nothing else 1.0)

    def faulty_check(*words: Any) -> None:
        raise UsageError("this GPU is too old")

    def faulty_load(*words: Any, **more: Any) -> None:
        raise TrainingFailed("no memory for the transformer")

    patch.setattr(BatchSource, "make", faulty_batch)
    patch.setattr(AdaptedTransformer, "loss", faulty_loss)
    if fault == "prepare":
        patch.setattr(setup, "check_optimizer", faulty_check)
    if fault == "load":
        patch.setattr(adapted_transformer, "read_transformer", faulty_load)


def _train_all(trainings: list[dict[str, Any]]) -> list[str]:
    from mimicry.tuning.hf_diffusers.sd3.stages import train_adapter
    from mimicry.tuning.hf_diffusers.spec.trainer_args import parse_args

    found = []
    for training in trainings:
        with pytest.MonkeyPatch.context() as patch:
            if os.environ["RANK"] == "1":
                _plant(patch, training["fault"])
            try:
                with stop_signals_raise():
                    train_adapter(parse_args(training["flags"]))
                found.append("complete")
            except (MimicryError, Interrupted, SystemExit, ZeroDivisionError) as error:
                found.append(f"{type(error).__name__}: {error}")
    return found


def _run_pair(folder: Path, trainings: list[dict[str, Any]]) -> None:
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    os.environ |= {"WORLD_SIZE": str(COUNT), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = []
    for rank in range(COUNT):
        processes.append(os.fork())
        if processes[-1] == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            output = os.open(folder / f"{rank}.log", os.O_WRONLY | os.O_CREAT)
            os.dup2(output, 1)
            os.dup2(output, 2)
            (folder / f"{rank}.json").write_text(json.dumps(_train_all(trainings)))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)  # quicker than to clear up what the imports have made
    codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
    (folder / "codes.json").write_text(json.dumps(codes))


def main() -> None:
    """Fork the pairs."""
    from mimicry.tuning.hf_diffusers.sd3 import stages  # noqa: F401 - what takes its time

    folder = Path(sys.argv[1])
    for number, trainings in enumerate(json.loads((folder / "pairs.json").read_text())):
        _run_pair(folder / str(number), trainings)


if __name__ == "__main__":
    main()
