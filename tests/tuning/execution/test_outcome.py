"""How an attempt ended, told from what it left and not from its exit code."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mimicry.common.errors import TrainingFailed
from mimicry.common.files import read_json, sha256_file, write_json
from mimicry.common.processes import running_child
from mimicry.study.tree import State, StudyTree
from mimicry.tuning.adapters.folder import TRAIN_LOG, WEIGHTS, AdapterFolder
from mimicry.tuning.adapters.recipe import recipe_hash
from mimicry.tuning.adapters.training_run import TRAINING_RUN
from mimicry.tuning.execution import outcome
from mimicry.tuning.execution.outcome import Attempt, MetricsReader, StallGuard, UnrecordedTraining, follow
from mimicry.tuning.planning.target import Target
from tests.hostile_names import over_hostile_names
from tests.small_study import ANNA, listing, original, plan_of, put_adapter, target_of, write_images
from tests.tuning.lora_files import files_in, save_lora
from tests.tuning.quick_studio import QuickStudio


def log(folder: Path, text: str) -> None:
    with (folder / TRAIN_LOG).open("a") as file:
        file.write(text)


def finish(folder: Path, **run: Any) -> None:
    source = save_lora(folder.parent / "saved")
    AdapterFolder(folder).publish(source, {"status": "complete", **run}, None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "out"


@over_hostile_names
def test_a_new_folder(hostile_name: str, tmp_path: Path) -> None:
    attempt = Attempt.begin(AdapterFolder(tmp_path / "a" / hostile_name))
    assert attempt.failure(1) == "exit code 1 and no adapter"
    finish(tmp_path / "a" / hostile_name)
    assert attempt.failure(1) is None


@pytest.mark.parametrize("code", [0, 1, -9])
def test_a_verified_adapter_counts_whatever_the_exit_code(folder: Path, code: int) -> None:
    attempt = Attempt.begin(AdapterFolder(folder))
    finish(folder)
    assert attempt.failure(code) is None


def test_exit_code_zero_without_an_adapter_is_a_failure(folder: Path) -> None:
    assert Attempt.begin(AdapterFolder(folder)).failure(0) == "exit code 0 and no adapter"


def test_a_broken_adapter_is_set_aside(folder: Path) -> None:
    attempt = Attempt.begin(AdapterFolder(folder))
    log(folder, "trained\n")
    finish(folder)
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-1])
    failure = attempt.failure(0)
    assert failure is not None
    assert WEIGHTS in failure
    assert not (folder / WEIGHTS).exists()
    assert not (folder / TRAINING_RUN).exists()
    (aside,) = (folder / "set_aside").iterdir()
    assert aside.name.endswith("-broken")
    assert (aside / WEIGHTS).read_bytes() == content[:-1]
    assert TRAIN_LOG in files_in(folder)


def test_the_record_says_why(folder: Path) -> None:
    attempt = Attempt.begin(AdapterFolder(folder))
    log(folder, "error: something else\n")
    write_json(folder / TRAINING_RUN, {"status": "failed", "error": "loss is not finite at step 3"})
    assert attempt.failure(1) == "loss is not finite at step 3"


def test_a_record_of_an_earlier_run_does_not_count(folder: Path) -> None:
    folder.mkdir()
    write_json(folder / TRAINING_RUN, {"error": "an older fault"})
    hour_ago = (folder / TRAINING_RUN).stat().st_mtime - 3600
    os.utime(folder / TRAINING_RUN, (hour_ago, hour_ago))
    attempt = Attempt.begin(AdapterFolder(folder))
    assert attempt.failure(1) == "exit code 1 and no adapter"
    write_json(folder / TRAINING_RUN, {"error": "a new fault"})
    assert attempt.failure(1) == "a new fault"


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_an_unreadable_record_is_no_traceback(folder: Path, text: str) -> None:
    attempt = Attempt.begin(AdapterFolder(folder))
    (folder / TRAINING_RUN).write_text(text)
    assert attempt.failure(7) == "exit code 7 and no adapter"


def test_the_log_of_this_attempt_only(folder: Path) -> None:
    folder.mkdir()
    log(folder, "error: of an earlier attempt\n")
    attempt = Attempt.begin(AdapterFolder(folder))
    assert attempt.log_lines(5) == []
    assert attempt.failure(1) == "exit code 1 and no adapter"
    log(folder, "Traceback\nKeyError: 'x'\n\n")
    assert attempt.failure(1) == "exit code 1 and no adapter: KeyError: 'x'"
    log(folder, "error: first\nerror: second\nlauncher's traceback\n")
    assert attempt.failure(1) == "second"
    assert attempt.log_lines(2) == ["error: second", "launcher's traceback"]


def test_a_file_where_the_folder_belongs_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "adapter").touch()

    with pytest.raises(TrainingFailed, match="adapter cannot be made: File exists"):
        Attempt.begin(AdapterFolder(tmp_path / "adapter"))


def test_a_trainer_that_had_no_time_to_say_why(folder: Path) -> None:
    attempt = Attempt.begin(AdapterFolder(folder))
    write_json(folder / TRAINING_RUN, {"status": "running", "steps": 3})
    assert "was killed and had no time to say why" in str(attempt.failure(1))
    assert attempt.stopped_by() is None
    assert attempt.steps() == 3


def test_a_trainer_that_was_stopped(folder: Path) -> None:
    attempt = Attempt.begin(AdapterFolder(folder))
    assert attempt.stopped_by() is None
    write_json(folder / TRAINING_RUN, {"status": "interrupted", "error": "stopped by SIGHUP"})
    assert attempt.failure(1) == "stopped by SIGHUP"
    assert attempt.stopped_by() == signal.SIGHUP


def test_one_that_was_stopped_before_it_began_a_record(folder: Path) -> None:
    folder.mkdir()
    log(folder, "stopped by SIGHUP\n")
    attempt = Attempt.begin(AdapterFolder(folder))
    assert attempt.stopped_by() is None
    log(folder, "reading\nstopped by SIGTERM\n\n")
    assert attempt.failure(1) == "stopped by SIGTERM"
    assert attempt.stopped_by() == signal.SIGTERM
    log(folder, "stopped by hand\n")
    assert attempt.stopped_by() is None


def test_one_that_was_stopped_for_a_reason(folder: Path) -> None:
    """Who watches over a training that hangs ends it by a signal, which the trainer takes for the reason."""
    attempt = Attempt.begin(AdapterFolder(folder))
    log(folder, "stopped by SIGTERM\nerror: no step for 30 minutes; see the log\n")
    write_json(folder / TRAINING_RUN, {"status": "interrupted", "error": "stopped by SIGTERM"})
    assert attempt.failure(1) == "no step for 30 minutes; see the log"
    assert attempt.stopped_by() is None


def test_a_full_disk_on_which_nothing_could_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = Attempt.begin(AdapterFolder(folder))
    write_json(folder / TRAINING_RUN, {"status": "running"})
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    assert f"the disk of {folder} is full" in str(attempt.failure(1))


@pytest.fixture
def target(tree: StudyTree) -> Target:
    return target_of(plan_of(tree))


def train(target: Target) -> Path:
    return save_lora(target.folder.weights)


def test_it_tells_what_was_trained_and_on_what(target: Target) -> None:
    training = UnrecordedTraining.begin(target)
    weights = train(target)

    training.record_if_missing(7)

    run = read_json(target.folder.record)
    recipe = target.request.spec.recipe
    assert recipe is not None
    assert (run["status"], run["stack"], run["steps"]) == ("complete", "hf_diffusers", 7)
    assert (run["recipe"], run["recipe_hash"]) == (recipe, recipe_hash(recipe))
    files = [{key: image[key] for key in ("name", "size", "sha256")} for image in run["images"]]
    assert files == target.images.records()
    assert [image["width"] for image in run["images"]] == [8, 8, 8]
    assert run["unpaired"] == []
    assert run["warnings"] == list(target.warnings)
    assert (run["weights"]["sha256"], run["weights"]["bytes"]) == (
        sha256_file(weights),
        weights.stat().st_size,
    )
    assert target.judge().state is State.COMPLETE


def test_other_images_make_it_stale(target: Target) -> None:
    training = UnrecordedTraining.begin(target)
    train(target)
    training.record_if_missing(7)

    write_images(target.images.path, salt="another")

    found = target.judge()
    assert found.state is State.STALE
    assert found.reason == "other images: changed '01_tree.png', '02_boat.png', '03_hills.png'"


def test_a_record_that_is_there_stays(tree: StudyTree, target: Target) -> None:
    training = UnrecordedTraining.begin(target)
    folder = put_adapter(tree)
    before = listing(folder)

    training.record_if_missing(7)

    assert listing(folder) == before


def test_what_was_trained_on_changed_images_is_set_aside(target: Target) -> None:
    training = UnrecordedTraining.begin(target)
    weights = train(target)
    write_images(target.images.path, salt="another")

    with pytest.raises(TrainingFailed, match="images were changed while it was trained on them"):
        training.record_if_missing(7)

    assert not weights.exists()
    assert len(list((target.folder.path / "set_aside").glob(f"*-stale/{weights.name}"))) == 1
    assert target.judge().state is State.WAITING


def test_with_captions_the_next_call_finds_it_complete(quick_studio: QuickStudio) -> None:
    caption = original(quick_studio.tree) / "01_tree.txt"
    caption.write_text("a tree, sks")
    words = ("--artist=Anna_Berg", "--captions")

    assert quick_studio.tune(*words).out.splitlines()[-1] == "1 trained"
    assert quick_studio.tune(*words).out.splitlines()[-1] == "1 skipped"
    assert quick_studio.trained() == [ANNA.name]
    caption.write_text("a boat, sks")
    assert "other captions" in quick_studio.tune(*words).out


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


class TestMetricsReader:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "metrics.jsonl"

    def test_a_file_that_comes_later(self, path: Path) -> None:
        reader = MetricsReader(path)
        assert reader.new_lines() == []
        append(path, '{"step": 1}\n{"step": 2}\n')
        assert reader.new_lines() == [{"step": 1}, {"step": 2}]
        assert reader.new_lines() == []

    def test_old_lines_are_passed_over(self, path: Path) -> None:
        append(path, '{"step": 1}\n')
        reader = MetricsReader(path)
        assert reader.new_lines() == []
        append(path, '{"step": 2}\n')
        assert reader.new_lines() == [{"step": 2}]

    def test_every_split_of_the_lines(self, path: Path) -> None:
        """A line is reported once, when its newline is there, wherever the writer was interrupted."""
        text = "".join(json.dumps({"step": step, "note": "é"}, ensure_ascii=False) + "\n" for step in (1, 2))
        content = text.encode()
        for cut in range(len(content) + 1):
            path.unlink(missing_ok=True)
            reader = MetricsReader(path)
            path.write_bytes(content[:cut])
            first = reader.new_lines()
            assert len(first) == content[:cut].count(b"\n")
            path.write_bytes(content)
            assert [line["step"] for line in first + reader.new_lines()] == [1, 2]

    def test_a_file_that_was_cut_back_is_read_again(self, path: Path) -> None:
        """As when the trainer begins anew where an interrupted run has left its lines, the last one torn."""
        append(path, '{"step": 1}\n{"step": 2}\n{"st')
        reader = MetricsReader(path)
        path.write_bytes(b"")
        assert reader.new_lines() == []
        append(path, '{"step": 1}\n')
        assert reader.new_lines() == [{"step": 1}]
        path.unlink()
        assert reader.new_lines() == []
        append(path, '{"step": 7}\n')
        assert reader.new_lines() == [{"step": 7}]

    def test_lines_that_a_resumed_run_keeps_are_passed_over(self, path: Path) -> None:
        """As when the trainer goes on from the checkpoint of step 2."""
        append(path, '{"step": 1, "seconds": 0.5}\n{"step": 2}\n{"step": 3}\n{"st')
        reader = MetricsReader(path)
        path.write_bytes(b'{"step": 1, "seconds": 0.5}\n{"step": 2}\n')
        assert reader.new_lines() == []
        append(path, '{"step": 3}\n')
        assert reader.new_lines() == [{"step": 3}]
        # And once more, when all of its lines were seen to come.
        path.write_bytes(b'{"step": 1, "seconds": 0.5}\n')
        assert reader.new_lines() == []
        append(path, '{"step": 2}\n')
        assert reader.new_lines() == [{"step": 2}]

    def test_lines_that_a_new_run_wrote_meanwhile_are_read(self, path: Path) -> None:
        append(path, '{"step": 1, "seconds": 0.5}\n{"step": 2}\n')
        reader = MetricsReader(path)
        path.write_bytes(b'{"step": 1, "seconds": 0.6}\n')
        assert reader.new_lines() == [{"step": 1, "seconds": 0.6}]

    def test_a_file_that_was_cut_back_and_has_grown_again_between_two_looks(self, path: Path) -> None:
        """As when nobody saw that a job was stopped and went on: the rest of a line is passed over."""
        whole = b'{"step": 1}\n{"step": 2, "seconds": 0.25}\n{"step": 3, "seconds": 17}\n{"step": 4}\n'
        for size in range(1, len(whole)):
            path.write_bytes(whole[:size])
            reader = MetricsReader(path)
            path.write_bytes(whole)
            begins_a_line = whole[size - 1 : size] == b"\n"
            left = whole[size:] if begins_a_line else whole[size:].partition(b"\n")[2]
            assert reader.new_lines() == list(map(json.loads, left.splitlines()))

    def test_a_loss_that_is_no_number(self, path: Path) -> None:
        reader = MetricsReader(path)
        append(path, '{"loss": NaN}\n')
        (line,) = reader.new_lines()
        assert line["loss"] != line["loss"]


class TestStallGuard:
    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
        now = [1000.0]
        monkeypatch.setattr("mimicry.tuning.execution.outcome.time.monotonic", lambda: now[0])

        def advance(seconds: float) -> None:
            now[0] += seconds

        return advance

    def test_steps_are_signs_of_life(self, clock: Callable[[float], None], tmp_path: Path) -> None:
        guard = StallGuard(tmp_path / "log", 60)
        for _ in range(5):
            clock(59)
            guard.check(stepped=True)
        clock(60)
        guard.check(stepped=False)
        clock(1)
        with pytest.raises(TrainingFailed, match=r"no step for 1 minutes.*--stall-minutes"):
            guard.check(stepped=False)

    def test_before_the_first_step_a_growing_log_will_do(
        self, clock: Callable[[float], None], tmp_path: Path
    ) -> None:
        log = tmp_path / "log"
        guard = StallGuard(log, 60)
        for _ in range(5):
            append(log, "downloading\n")
            clock(59)
            guard.check(stepped=False)
        clock(61)
        with pytest.raises(TrainingFailed):
            guard.check(stepped=False)

    def test_after_the_first_step_it_will_not(self, clock: Callable[[float], None], tmp_path: Path) -> None:
        log = tmp_path / "log"
        guard = StallGuard(log, 60)
        guard.check(stepped=True)
        for _ in range(2):
            append(log, "retrying for ever\n")
            clock(30)
            guard.check(stepped=False)
        append(log, "retrying for ever\n")
        clock(1)
        with pytest.raises(TrainingFailed):
            guard.check(stepped=False)

    def test_silence_from_the_start(self, clock: Callable[[float], None], tmp_path: Path) -> None:
        guard = StallGuard(tmp_path / "log", 90)
        guard.check(stepped=False)
        clock(91)
        with pytest.raises(TrainingFailed, match=r"no step for 1\.5 minutes"):
            guard.check(stepped=False)


class TestFollow:
    @pytest.fixture(autouse=True)
    def often(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(outcome, "POLL_SECONDS", 0.01)

    def test_lines_then_exit_code(self, tmp_path: Path) -> None:
        """The lines written in the last moment before the end are told too."""
        metrics = tmp_path / "metrics.jsonl"
        code = (
            "import json, sys\n"
            "for step in range(1, 51):\n"
            "    with open(sys.argv[1], 'a') as file: file.write(json.dumps({'step': step}) + '\\n')\n"
            "sys.exit(4)\n"
        )
        seen: list[dict[str, Any]] = []
        words = [sys.executable, "-S", "-c", code, str(metrics)]
        reader = MetricsReader(metrics)
        with running_child(words, output=None, environment=os.environ, grace_seconds=1) as child:
            assert follow(child, reader, seen.append) == 4
        assert [line["step"] for line in seen] == list(range(1, 51))

    def test_a_stall_ends_it(self, tmp_path: Path) -> None:
        words = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
        with (
            pytest.raises(TrainingFailed),
            running_child(words, output=None, environment=os.environ, grace_seconds=20) as child,
        ):
            guard = StallGuard(tmp_path / "log", 0.05)
            follow(child, MetricsReader(tmp_path / "m"), lambda line: None, guard)
        assert child.wait(0) is not None
