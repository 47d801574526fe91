"""The program apply_tuning as it trains: what is left, exit codes, stop signals, other stacks."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.small_study import (
    ANNA,
    BORIS,
    bookmarks_in,
    listing,
)
from tests.tuning.quick_studio import (
    DEADLINE_SECONDS,
    PROGRAM,
    QuickStudio,
    change_behaviours,
    quick_calls,
    write_quick_stack,
)


def test_a_condition_is_trained_on_its_own_images_and_found_again(quick_studio: QuickStudio) -> None:
    words = ("--protection=mist", "--countermeasure=noisy_upscaling", "--style=baroque")

    first, second = quick_studio.tune(*words), quick_studio.tune(*words)

    assert (first.code, second.code) == (0, 0)
    calls = quick_calls(quick_studio.stack)
    assert [call["words"][0] for call in calls] == [
        str(quick_studio.tree.robust_samples / "noisy_upscaling" / "mist" / str(artist))
        for artist in (ANNA, BORIS)
    ]
    assert first.out.splitlines()[-1] == "2 trained"
    assert second.out.splitlines()[-1] == "2 skipped"
    marks = bookmarks_in(quick_studio.tree)
    assert marks.keys() == {f"quick/mist/noisy_upscaling/{artist}" for artist in (ANNA, BORIS)}


def test_overwrite_trains_again_and_keeps_the_old_one(quick_studio: QuickStudio) -> None:
    quick_studio.tune("--artist=Anna_Berg")

    assert quick_studio.tune("--artist=Anna_Berg", "--overwrite").code == 0

    assert quick_studio.trained() == [ANNA.name] * 2
    output = quick_studio.tree.data_root / "models/lora/quick/none__none" / str(ANNA)
    assert len(list(output.glob("set_aside/*-complete/*.safetensors"))) == 1


def test_a_failure_shows_the_end_of_its_log_and_exits_with_1(quick_studio: QuickStudio) -> None:
    change_behaviours(quick_studio.stack, Anna_Berg="fail: it burned")

    ended = quick_studio.tune()

    assert ended.code == 1
    assert "    | a quick training on 3 files\n    | error: it burned\n" in ended.out
    log = quick_studio.tree.data_root / "models/lora/quick/none__none" / str(ANNA) / "train.log"
    assert f"it burned; 3 images; the defaults are meant for 20; log: {log}" in ended.out
    assert ended.out.splitlines()[-1] == "3 trained, 1 failed"
    assert log.read_text() == "a quick training on 3 files\nerror: it burned\n"


def test_a_training_without_a_step_is_ended_and_the_next_one_begun(quick_studio: QuickStudio) -> None:
    change_behaviours(quick_studio.stack, Anna_Berg="hang")

    ended = quick_studio.tune("--style=baroque", "--stall-minutes=0.03")

    assert ended.code == 1
    assert "no step for 0.03 minutes" in ended.out
    assert quick_studio.trained() == [ANNA.name, BORIS.name]
    assert not process_runs(quick_calls(quick_studio.stack)[0]["pid"])
    assert bookmarks_in(quick_studio.tree)[f"quick/none/none/{ANNA}"]["status"] == "failed"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_stop_signal_ends_everything_with_its_own_exit_code(
    number: signal.Signals, code: int, quick_studio: QuickStudio
) -> None:
    change_behaviours(quick_studio.stack, Anna_Berg="hang")
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), *quick_studio.words("--style=baroque")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = quick_studio.tree.data_root / "models/lora/quick/none__none" / str(ANNA) / "metrics.jsonl"
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (metrics.exists() and metrics.stat().st_size):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate(timeout=1)
        time.sleep(0.05)

    process.send_signal(number)
    out, err = process.communicate(timeout=DEADLINE_SECONDS)

    assert process.returncode == code
    assert "the same command takes up where it stopped" in err
    assert err.endswith(f"stopped by {number.name}\n")
    assert out.splitlines()[-1] == "1 interrupted, 1 left"
    assert not process_runs(quick_calls(quick_studio.stack)[0]["pid"])
    marks = bookmarks_in(quick_studio.tree)
    assert marks[f"quick/none/none/{ANNA}"]["status"] == "interrupted"
    assert marks[f"quick/none/none/{BORIS}"]["status"] == "waiting"

    change_behaviours(quick_studio.stack)
    assert quick_studio.tune("--style=baroque").code == 0
    assert bookmarks_in(quick_studio.tree)[f"quick/none/none/{ANNA}"]["status"] == "complete"


def process_runs(pid: int) -> bool:
    try:
        # An orphan that nobody buries is a zombie, without a command line.
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except OSError:
        return False


# A stack with settings of its own


def test_a_stack_without_options_is_trained_without_base_model_and_token(quick_studio: QuickStudio) -> None:
    bare = write_quick_stack(quick_studio.folder / "bare", options=False)

    ended = quick_studio.tune_bare("--data-root=study", "--stack=./bare", "--artist=Anna_Berg")

    assert (ended.code, ended.err) == (0, "")
    (call,) = quick_calls(bare)
    assert call["words"] == [
        f"study/original_art/{ANNA}",
        f"study/models/lora/bare/none__none/{ANNA}",
    ]
    assert bookmarks_in(quick_studio.tree).keys() == {f"bare/none/none/{ANNA}"}
    again = quick_studio.tune_bare(
        "--data-root=study", "--stack=./bare", "--artist=Anna_Berg", "--no-push-to-hub"
    )
    assert again.out.splitlines()[-1] == "1 skipped"


def test_options_that_would_not_reach_the_stack_are_refused(quick_studio: QuickStudio) -> None:
    write_quick_stack(quick_studio.folder / "bare", options=False)
    before = listing(quick_studio.folder)

    ended = quick_studio.tune_bare(
        *("--data-root=study", "--stack=./bare", "--rank=4", "--no-cache-latents", "--push-to-hub"),
        *("--hub-namespace=lab", f"--train-script={PROGRAM}"),
    )

    assert (ended.code, ended.out) == (2, "")
    assert (
        "stack bare takes no options, so --rank, --cache-latents, --push-to-hub, --hub-namespace, "
        "--train-script would have no effect" in ended.err
    )
    assert listing(quick_studio.folder) == before
