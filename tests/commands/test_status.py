"""mimicry status as it is typed: exit codes, filters, JSON, watching, and the next command."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from mimicry.commands.status import status
from mimicry.common.claims import Claim
from mimicry.common.processes import run_command
from mimicry.study.tree import AdapterId, State, StudyTree
from tests.small_study import (
    ANNA,
    BORIS,
    CONFIG,
    COUNTERED,
    DORA,
    EVERYBODY,
    MIST,
    ORIGINAL,
    original,
    output_dir,
    put_adapter,
    share_samples,
    write_adapter,
    write_study,
)
from tests.tuning.fake_slurm import FakeSlurm, put_submission
from tests.tuning.status.study_states import PLAIN, put_all, put_bookmark, put_record

DEADLINE_SECONDS = 60.0


@dataclass
class Shown:
    code: int
    out: str
    err: str

    @property
    def next(self) -> list[str]:
        """The words of the command that the last line says."""
        last = self.out.splitlines()[-1]
        assert last.startswith("next: ")
        return shlex.split(last.removeprefix("next: "))


Show = Callable[..., Shown]


@pytest.fixture
def tree(tmp_path: Path) -> StudyTree:
    return write_study(tmp_path / "a study")


@pytest.fixture
def show(tree: StudyTree, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Show:
    monkeypatch.setenv("COLUMNS", "120")

    def run(*words: str) -> Shown:
        capsys.readouterr()
        code = run_command(status, [f"--data-root={tree.data_root}", *words])
        said = capsys.readouterr()
        return Shown(code, said.out, said.err)

    return run


def put_everything(tree: StudyTree) -> None:
    put_all(tree, ORIGINAL, MIST, COUNTERED, artists=EVERYBODY)


def base(tree: StudyTree) -> list[str]:
    return ["--data-root", str(tree.data_root)]


class TestExitCodes:
    def test_all_complete_is_0(self, tree: StudyTree, show: Show) -> None:
        put_everything(tree)

        done = show()

        assert (done.code, done.err) == (0, "")
        assert done.out.splitlines()[0] == f"study: {tree.data_root}"
        assert "12 complete" in done.out.splitlines()
        assert done.next == ["mimicry", "samples", *base(tree)]

    @pytest.mark.parametrize("state", [State.FAILED, State.BLOCKED, State.BROKEN])
    def test_something_bad_is_1(self, tree: StudyTree, show: Show, state: State) -> None:
        put_everything(tree)
        weights = output_dir(tree) / "pytorch_lora_weights.safetensors"
        if state is State.BROKEN:
            weights.write_bytes(b"")
        else:
            weights.unlink()
            put_record(output_dir(tree), status=state, error="it burned")

        assert show().code == 1

    @pytest.mark.parametrize("state", [State.WAITING, State.INTERRUPTED, State.STALE, State.RUNNING])
    def test_something_left_is_3(self, tree: StudyTree, show: Show, state: State) -> None:
        put_everything(tree)
        if state is State.STALE:
            put_adapter(tree, images=[])
        else:
            shutil.rmtree(output_dir(tree))
        if state in (State.INTERRUPTED, State.RUNNING):
            put_record(output_dir(tree), status="running")
        if state is State.RUNNING:
            with Claim.take_anew(output_dir(tree)):
                done = show()
        else:
            done = show()

        assert done.code == 3
        assert f"11 complete, 1 {'waiting' if state is State.WAITING else state}" in done.out

    def test_a_bad_cell_that_a_filter_leaves_out_does_not_count(self, tree: StudyTree, show: Show) -> None:
        put_everything(tree)
        put_record(output_dir(tree), status="failed")
        (output_dir(tree) / "pytorch_lora_weights.safetensors").unlink()

        assert show("--protection", "mist").code == 0
        assert show("--artist", BORIS.name).code == 0
        assert show("--style", "baroque").code == 1

    def test_nothing_with_images_is_3(self, tree: StudyTree, show: Show) -> None:
        done = show("--protection", "glaze", "--countermeasure", "none")

        assert done.code == 3
        assert "no images of anybody: glaze__none" in done.out


class TestUsage:
    def test_all_misspelt_names_are_refused_together(self, show: Show) -> None:
        done = show("--protection=mits", "--artist=Ana_Berg")

        assert (done.code, done.out) == (2, "")
        assert "did you mean 'mist'" in done.err and "did you mean 'Anna_Berg'" in done.err

    def test_an_unknown_variant_is_refused(self, show: Show) -> None:
        assert show("--variant=seed-44").code == 2

    def test_json_is_not_watched(self, show: Show) -> None:
        done = show("--json", "--watch")

        assert done.code == 2
        assert "--watch" in done.err

    def test_a_study_that_is_not_there_is_refused(self, tmp_path: Path, show: Show) -> None:
        done = show(f"--data-root={tmp_path / 'elsewhere'}")

        assert done.code == 2
        assert "--data-root" in done.err

    def test_a_broken_tracker_is_a_warning(self, tree: StudyTree, show: Show) -> None:
        put_everything(tree)
        tree.tracker.parent.mkdir(exist_ok=True)
        tree.tracker.write_text("{")

        done = show()

        assert done.code == 0
        assert "warning: " in done.err
        assert tree.tracker.read_text() == "{"


class TestWhatIsShown:
    def test_json_has_cells_counts_and_recipes(self, tree: StudyTree, show: Show) -> None:
        put_all(tree, ORIGINAL, artists=(ANNA,))

        done = show("--json", "--countermeasure=none")

        value: dict[str, Any] = json.loads(done.out)
        assert done.code == 3
        assert value["counts"] == {"complete": 1, "waiting": 7}
        assert [cell["artist"] for cell in value["cells"] if cell["state"] == "complete"] == [ANNA.name]
        assert [group["adapters"] for group in value["recipes"][PLAIN]] == [1]

    def test_artists_may_be_columns(self, show: Show) -> None:
        header = show("--by-artist", "--pilot").out.splitlines()[2]

        assert header.split() == ["condition", "all", "Dora_Eik", "Anna_Berg", "Clara_Dunn"]

    def test_all_variants_are_shown_or_one(self, tree: StudyTree, show: Show) -> None:
        adapter = AdapterId(PLAIN, ORIGINAL, ANNA, "seed-43")
        write_adapter(tree.adapter_dir(adapter), original(tree), replace(CONFIG, seed=43))

        both, one = show(), show("--variant=seed-43", "--artist=Anna_Berg", "--protection=none")

        assert [line for line in both.out.splitlines() if line.startswith(PLAIN)] == [PLAIN, adapter.series]
        assert "1 complete, 23 waiting" in both.out
        assert one.code == 0
        assert PLAIN not in one.out
        assert one.next[-2:] == ["--variant", "seed-43"]

    def test_shared_samples_of_two_protections_have_no_cells(self, tree: StudyTree, show: Show) -> None:
        share_samples(tree)

        out = show().out

        assert "12 waiting" in out.splitlines()
        assert any("mist__noisy_upscaling" in line for line in out.splitlines() if "no images" in line)

    def test_verbose_shows_all(self, tree: StudyTree, show: Show) -> None:
        for artist in EVERYBODY:
            put_bookmark(tree, MIST, artist, status=State.FAILED, error="it burned")

        assert "1 more, shown by -v" in show().out
        assert "shown by -v" not in show("-v").out


STUDY_FILE = """\
[study]
protections = ["none", "mist"]
countermeasures = ["none"]
replicates = 2

[recipe]
rank = 4
"""


class TestStudyFile:
    @pytest.fixture(autouse=True)
    def file(self, tree: StudyTree) -> Path:
        tree.study_file.write_text(STUDY_FILE)
        return tree.study_file

    def test_the_cells_are_those_that_the_file_names(self, tree: StudyTree, show: Show) -> None:
        put_all(tree, ORIGINAL, MIST, artists=EVERYBODY)
        put_adapter(tree, COUNTERED)

        done = show()

        assert done.out.splitlines()[0] == f"study: {tree.data_root}, as {tree.study_file} says"
        assert "8 complete, 8 waiting" in done.out.splitlines()
        assert [line for line in done.out.splitlines() if line.startswith(PLAIN)] == [
            PLAIN,
            f"{PLAIN}@seed-43",
        ]
        assert (show("--variant=none").code, done.code) == (0, 3)

    def test_what_it_says_need_not_be_typed(self, tree: StudyTree, show: Show) -> None:
        put_all(tree, ORIGINAL, artists=EVERYBODY)

        assert show().next == [*("apply_tuning", *base(tree), "--pretrained-model-name-or-path", "lab/tiny")]
        assert show("--variant=seed-43").next[3:] == ["--variant", "seed-43"]
        assert "--study" in show("--study=none").next

    def test_another_file_may_be_named(self, tree: StudyTree, show: Show, tmp_path: Path) -> None:
        other = tmp_path / "other.toml"
        other.write_text('[study]\nprotections = ["mist"]\n')

        done = show(f"--study={other}")

        assert "8 waiting" in done.out.splitlines()
        assert done.next[:5] == ["apply_tuning", *base(tree), "--study", str(other)]

    def test_a_broken_file_is_refused(self, file: Path, show: Show) -> None:
        file.write_text("[study]\nprotection = 1\n")

        assert show().code == 2


class TestNextCommand:
    def test_what_is_waiting_is_trained_with_the_recipe_of_the_study(
        self, tree: StudyTree, show: Show
    ) -> None:
        put_all(tree, ORIGINAL, artists=(ANNA,))

        assert show("--artist=Anna_Berg", "--artist=Boris_Cole").next == [
            *("apply_tuning", *base(tree), "--artist", "Anna_Berg", "--artist", "Boris_Cole"),
            *("--protection", "all", "--countermeasure", "all"),
            *("--rank", "4", "--pretrained-model-name-or-path", "lab/tiny"),
        ]

    def test_one_condition_is_named(self, tree: StudyTree, show: Show) -> None:
        put_all(tree, ORIGINAL, COUNTERED, artists=EVERYBODY)

        assert show().next[:5] == ["apply_tuning", *base(tree), "--protection", "mist"]
        assert "--countermeasure" not in show().next

    def test_filters_of_conditions_are_kept(self, show: Show) -> None:
        assert show("--protection=mist").next[-4:] == ["--protection", "mist", "--countermeasure", "all"]

    def test_a_variant_is_named(self, tree: StudyTree, show: Show) -> None:
        put_everything(tree)
        adapter = AdapterId(PLAIN, ORIGINAL, ANNA, "seed-43")
        write_adapter(tree.adapter_dir(adapter), original(tree), replace(CONFIG, seed=43))

        words = show().next

        assert words[0] == "apply_tuning"
        assert words[words.index("--variant") + 1] == "seed-43"
        assert words[words.index("--seed") + 1] == "43"

    def test_blocked_stale_owed_and_running_have_their_own(self, tree: StudyTree, show: Show) -> None:
        put_everything(tree)
        put_adapter(tree, artist=DORA, hub={"owed": "x", "error": "away"})
        assert show().next == ["mimicry", "upload", *base(tree)]
        put_adapter(tree, images=[])
        assert show().next[-1] == "--dry-run"
        (original(tree, BORIS) / "02_boat.jpg").write_bytes(b"x")
        shutil.rmtree(output_dir(tree, artist=BORIS))
        assert show().next[-1] == "--dry-run"

    def test_while_all_runs_one_watches(self, tree: StudyTree, show: Show) -> None:
        put_everything(tree)
        shutil.rmtree(output_dir(tree))

        with Claim.take_anew(output_dir(tree)):
            assert show().next == ["mimicry", "status", *base(tree), "--watch"]


def test_watching_shows_it_again_until_ctrl_c(tree: StudyTree) -> None:
    put_everything(tree)
    words = [
        sys.executable,
        "-m",
        "mimicry.cli",
        "status",
        "--data-root",
        str(tree.data_root),
        "--watch",
        "0.2",
    ]
    deadline = time.monotonic() + DEADLINE_SECONDS
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "120"}
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        seen: list[str] = []
        while sum("updated at" in line for line in seen) < 2:
            assert time.monotonic() < deadline
            seen.append(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        said = process.stderr.read()
        code = process.wait(DEADLINE_SECONDS)

    assert sum(line.startswith("study: ") for line in seen) == 2
    assert "\x1b" not in "".join(seen) + rest  # it is not a terminal
    assert (code, said) == (130, "")


class TestCluster:
    def test_queued_and_running_cells_have_node_and_job(
        self, tree: StudyTree, show: Show, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        slurm = FakeSlurm.install(tmp_path / "bin", monkeypatch)
        keys = [AdapterId("hf_diffusers", ORIGINAL, artist).key for artist in (ANNA, BORIS)]
        name = put_submission(tree, keys)
        slurm.show(f"{name}|7|0|RUNNING|n1|None", f"{name}|7|1|PENDING||Priority")
        with Claim.take_anew(output_dir(tree)):
            shown = show("--protection=none", "--countermeasure=none")
            found = json.loads(show("--protection=none", "--countermeasure=none", "--json").out)
        assert "1 running, 1 queued" in shown.out
        log = f"progress/slurm/{name}/7_0_0_log.out"
        assert f"(job 7_0 is running on n1, log: {log})" in shown.out
        assert f"  none__none/{BORIS}: job 7_1 is pending (Priority)" in shown.out
        states = {cell["artist"]: (cell["state"], cell["reason"]) for cell in found["cells"]}
        assert states[BORIS.name] == ("queued", "job 7_1 is pending (Priority)")
        assert states[DORA.name][0] == "waiting"
        assert {cell["artist"]: cell["job_log"] for cell in found["cells"]}[ANNA.name] == log

    def test_a_queue_that_cannot_be_asked_is_told_and_left_out(
        self, tree: StudyTree, show: Show, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put_submission(tree, [AdapterId("hf_diffusers", ORIGINAL, ANNA).key])
        FakeSlurm.install(tmp_path / "bin", monkeypatch).refuse("Socket timed out")
        shown = show()
        assert "warning: jobs of the cluster are left out: squeue failed: Socket timed out" in shown.err
        assert "queued" not in shown.out
