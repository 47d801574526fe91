"""The wrapper with two processes: launched, stopped whole, and taken up again."""

import signal
import time
from pathlib import Path

from tests.tuning.hf_diffusers.studio import (
    DEADLINE_SECONDS,
    WRAPPER,
    Studio,
    await_step,
    end,
    processes_naming,
    run,
    start,
    training_run,
)

STEPS = 150


def words(studio: Studio, output_dir: Path) -> list[str]:
    return [
        *(f"--input-dir={studio.images}", f"--output-dir={output_dir}", "--no-push-to-hub"),
        *(f"--pretrained-model-name-or-path={studio.base_model}", "--mixed-precision=no", "--rank=4"),
        *("--resolution=32", f"--max-train-steps={STEPS}", "--gradient-accumulation-steps=1"),
        "--num-processes=2",
    ]


def test_stopped_and_taken_up_again(studio: Studio, tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    process = start(WRAPPER, words(studio, out), tmp_path, log)
    try:
        await_step(process, out, log, count=3)
        assert len([line for line in processes_naming(f"--output_dir={out}") if "-u" in line.split()]) == 2
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert process.wait(DEADLINE_SECONDS) == 128 + signal.SIGTERM
        assert time.monotonic() - began < 15
    finally:
        end(process)
    assert processes_naming(str(out)) == []
    stopped = training_run(out)
    assert (stopped["status"], stopped["error"]) == ("interrupted", "stopped by SIGTERM")
    assert 3 <= stopped["steps"] < STEPS
    assert (out / f"checkpoint-{stopped['steps']}").is_dir()

    outcome = run(WRAPPER, words(studio, out), tmp_path)
    assert outcome.returncode == 0, outcome.stderr + (out / "train.log").read_text()
    complete = training_run(out)
    assert (complete["status"], complete["steps"]) == ("complete", STEPS)
    assert complete["resumed_from"] == stopped["steps"]
    assert complete["recipe"]["options"]["num_processes"] == 2
    # Each said once, however many processes there are.
    lines = (out / "train.log").read_text().splitlines()
    assert lines.count("reading the transformer") == 2
    assert lines.count("stopped by SIGTERM") == 1
    # Neither torch's launcher nor accelerate's has anything to add.
    assert not any(line.startswith("Traceback") for line in lines)
