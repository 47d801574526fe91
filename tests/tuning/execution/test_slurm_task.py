"""A job on its node: its training is stopped with a checkpoint, taken up, and not begun in vain."""

import os
import signal
import sys
import threading
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mimicry.common.claims import Claim
from mimicry.study.tree import StudyTree
from mimicry.tuning.adapters.folder import AdapterFolder
from mimicry.tuning.execution.slurm_task import SlurmTask
from mimicry.tuning.planning.plan import training_of
from tests.small_study import put_adapter

# Trains until it is stopped, and says with which words it was called.
_TRAINING = """\
import json, signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
(folder / "words").write_text(json.dumps(sys.argv[2:]))
def stop(number, frame):
    (folder / "checkpoint-7").mkdir(exist_ok=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
(folder / "ignores_usr2").write_text(str(signal.getsignal(signal.SIGUSR2) is signal.SIG_IGN))
(folder / "begun").touch()
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _delayed_submission(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for submitit, whose type holds what the next allocation does."""
    helpers = types.SimpleNamespace(DelayedSubmission=lambda task: types.SimpleNamespace(function=task))
    monkeypatch.setitem(sys.modules, "submitit", types.SimpleNamespace(helpers=helpers))
    monkeypatch.setitem(sys.modules, "submitit.helpers", helpers)


def task_of(folder: Path, code: str, **facts: Any) -> SlurmTask:
    return SlurmTask([sys.executable, "-c", code, str(folder)], folder, **facts)


def stop_when_begun(task: SlurmTask, folder: Path) -> list[Any]:
    """Run the task, and its checkpoint in a handler of SIGUSR2, as submitit does; return what that gave."""
    given: list[Any] = []

    def handler(number: int, frame: object) -> None:
        given.append(task.checkpoint())
        raise SystemExit(255)

    def send() -> None:
        deadline = time.monotonic() + 30
        while not (folder / "begun").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGUSR2)

    previous = signal.signal(signal.SIGUSR2, handler)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        with pytest.raises(SystemExit) as caught:
            task()
        assert caught.value.code == 255
    finally:
        sender.join()
        signal.signal(signal.SIGUSR2, previous)
    return given


def test_before_the_time_limit_it_stops_with_a_checkpoint_and_goes_on(tmp_path: Path) -> None:
    task = task_of(tmp_path, _TRAINING, idle=3)
    (again,) = stop_when_begun(task, tmp_path)
    assert (tmp_path / "checkpoint-7").exists()
    assert (tmp_path / "ignores_usr2").read_text() == "True"
    assert (again.function.words, again.function.folder, again.function.idle) == (task.words, tmp_path, 0)


def test_allocations_that_take_no_step_are_counted_and_end(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-7").mkdir()
    (again,) = stop_when_begun(task_of(tmp_path, _TRAINING, idle=3), tmp_path)
    assert again.function.idle == 4
    (tmp_path / "begun").unlink()
    (again,) = stop_when_begun(again.function, tmp_path)
    assert again is None


def test_a_training_that_ends_well_returns(tmp_path: Path) -> None:
    assert task_of(tmp_path, "")() == 0


@pytest.mark.parametrize("code", [1, 2, 3])
def test_another_end_is_that_of_the_job(tmp_path: Path, code: int) -> None:
    with pytest.raises(SystemExit) as caught:
        task_of(tmp_path, f"raise SystemExit({code})")()
    assert caught.value.code == code


def test_after_a_signal_it_waits_for_slurm_to_say_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mimicry.tuning.execution.slurm_task.END_SECONDS", 0.5)
    begin = time.monotonic()
    with pytest.raises(SystemExit) as caught:
        task_of(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")()
    assert caught.value.code == 128 + signal.SIGKILL
    assert time.monotonic() - begin >= 0.5


def test_it_waits_for_the_claim_of_a_node_that_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mimicry.tuning.execution.slurm_task.CLAIM_POLL_SECONDS", 0.1)
    claim = Claim.take_anew(tmp_path)
    timer = threading.Timer(0.5, claim.release)
    timer.start()
    # It ends with 3, as apply_tuning does, while the claim is there.
    code = "import os, sys; sys.exit(3 if os.path.exists(sys.argv[1] + '/.claim.json') else 0)"
    assert task_of(tmp_path, code)() == 0
    timer.join()


def test_an_overwrite_replaces_what_it_was_meant_for_and_nothing_newer(tree: StudyTree) -> None:
    folder = put_adapter(tree)
    code = "import sys; sys.exit(7 if '--overwrite' in sys.argv else 0)"

    def ends(replaces: Sequence[str] | None) -> int:
        try:
            return task_of(folder, code, replaces=replaces)()
        except SystemExit as end:
            return int(str(end.code))

    assert ends(training_of(AdapterFolder(folder))) == 7
    assert ends(["of", "another", "training"]) == 0
    assert ends(None) == 0
