"""apply_tuning with several trainings at a time: who is where, what they see, and how they are stopped."""

import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from mimicry.common.environment import processor_count
from tests.fake_gpus import FakeGpus
from tests.small_study import EVERYBODY, bookmarks_in
from tests.tuning.quick_studio import (
    DEADLINE_SECONDS,
    MAKE_WEIGHTS,
    PROGRAM,
    QuickStudio,
    change_behaviours,
    quick_calls,
    write_quick_stack,
)

# A trainer that notes what it sees, refuses to share a GPU or to begin beside the first one, waits after its
# first step until so many have taken one, and answers a stop signal once so many have had one.
_SCRIPT = (
    """\
import json, os, signal, struct, sys, time
from pathlib import Path

stack, output = Path(__file__).parent, Path(sys.argv[2])
meets = json.loads((stack / "behaviours.json").read_text())
names = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "OMP_NUM_THREADS", "OMP_WAIT_POLICY")
seen = {name: os.environ[name] for name in names if name in os.environ}
with (stack / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps({"pid": os.getpid(), "words": sys.argv[1:], "seen": seen}) + "\\n")

def meet(name):
    (stack / f"{name}-{os.getpid()}").touch()
    while len(list(stack.glob(f"{name}-*"))) < int(meets.get(name, 0)):
        time.sleep(0.01)

def stop(number, frame):
    meet("stopped")
    (output / "checkpoint-1").mkdir()
    print("stopped by", signal.Signals(number).name, flush=True)
    os._exit(128 + number)

for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, stop)
if (stack / "calls.jsonl").read_text().count("\\n") == 1:
    time.sleep(0.3)
    (stack / "first step").touch()
elif not (stack / "first step").exists():
    sys.exit("error: began before the first step of the first training")
gpu = seen.get("CUDA_VISIBLE_DEVICES")
try:
    if gpu:
        (stack / f"on {gpu}").mkdir()
except FileExistsError:
    sys.exit(f"error: another training is on {gpu}")
(output / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\\n')
meet("stepped")
if "stopped" in meets:
    time.sleep(600)
"""
    + MAKE_WEIGHTS
    + """\
if gpu:
    (stack / f"on {gpu}").rmdir()
(output / "pytorch_lora_weights.safetensors").write_bytes(weights)
"""
)


@pytest.fixture
def studio(quick_studio: QuickStudio, monkeypatch: pytest.MonkeyPatch) -> QuickStudio:
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    stack = write_quick_stack(quick_studio.folder / "meeting", script=_SCRIPT)
    return replace(quick_studio, stack=stack)


def seen_by(studio: QuickStudio) -> list[dict[str, str]]:
    return [call["seen"] for call in quick_calls(studio.stack)]


def test_each_training_sees_a_gpu_of_its_own_and_none_is_used_twice_at_a_time(
    studio: QuickStudio, fake_gpus: FakeGpus
) -> None:
    fake_gpus.count(3)
    change_behaviours(studio.stack, stepped="3")

    ended = studio.tune("--stall-minutes=1")

    assert (ended.code, ended.out.splitlines()[-1]) == (0, "4 trained"), ended.out
    seen = seen_by(studio)
    assert {one["CUDA_VISIBLE_DEVICES"] for one in seen[:3]} == {"0", "1", "2"}
    assert seen[3]["CUDA_VISIBLE_DEVICES"] in {"0", "1", "2"}
    assert {one["CUDA_DEVICE_ORDER"] for one in seen} == {"PCI_BUS_ID"}
    assert {one["OMP_WAIT_POLICY"] for one in seen} == {"PASSIVE"}
    assert {one["OMP_NUM_THREADS"] for one in seen} == {str(max(1, processor_count() // 3))}
    for gpu in "012":
        assert f"training on 3 images; GPU {gpu}; " in ended.out
    assert {mark["status"] for mark in bookmarks_in(studio.tree).values()} == {"complete"}


def test_several_trainings_run_on_the_processors(studio: QuickStudio, fake_gpus: FakeGpus) -> None:
    change_behaviours(studio.stack, stepped="4")

    ended = studio.tune("--parallel=4", "--stall-minutes=1")

    assert (ended.code, ended.out.splitlines()[-1]) == (0, "4 trained"), ended.out
    assert {one["OMP_NUM_THREADS"] for one in seen_by(studio)} == {str(max(1, processor_count() // 4))}
    assert "CUDA_VISIBLE_DEVICES" not in seen_by(studio)[0]


def test_gpus_are_chosen_among_those_that_are_visible(
    studio: QuickStudio, fake_gpus: FakeGpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_gpus.count(4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-0001,MIG-x")

    ended = studio.tune("--gpus=MIG-x,3")

    assert ended.code == 0
    assert {one["CUDA_VISIBLE_DEVICES"] for one in seen_by(studio)} == {"MIG-x", "3"}
    assert "CUDA_DEVICE_ORDER" not in seen_by(studio)[0]


def test_a_wrong_gpu_is_refused_with_all_else_that_is_wrong(studio: QuickStudio, fake_gpus: FakeGpus) -> None:
    fake_gpus.count(2)

    ended = studio.tune("--gpus=5", "--protection=mists")

    assert (ended.code, ended.out) == (2, "")
    assert "--gpus 5: '5' is not a GPU that this program may use; these are: 0, 1" in ended.err
    assert "mists" in ended.err
    assert quick_calls(studio.stack) == []


def test_a_stop_signal_stops_all_side_by_side_and_the_same_command_goes_on(studio: QuickStudio) -> None:
    change_behaviours(studio.stack, stepped="3", stopped="3")
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), *studio.words("--parallel=3", "--gpus=none")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    outputs = studio.tree.data_root / "models/lora/meeting/none__none"
    deadline = time.monotonic() + DEADLINE_SECONDS
    while len([path for path in outputs.rglob("metrics.jsonl") if path.stat().st_size]) < 3:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate(timeout=1)
        time.sleep(0.05)

    process.send_signal(signal.SIGTERM)
    try:
        out, err = process.communicate(timeout=DEADLINE_SECONDS)
    finally:
        process.kill()

    # None of them answers before all of them were told.
    assert (process.returncode, out.splitlines()[-1]) == (143, "3 interrupted, 1 left"), err
    assert len(list(outputs.rglob("checkpoint-1"))) == 3
    marks = bookmarks_in(studio.tree)
    assert [marks[f"meeting/none/none/{artist}"]["status"] for artist in EVERYBODY] == [
        *["interrupted"] * 3,
        "waiting",
    ]

    change_behaviours(studio.stack)
    ended = studio.tune("--parallel=3")
    assert (ended.code, ended.out.splitlines()[-1]) == (0, "4 trained")
