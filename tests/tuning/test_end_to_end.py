"""The whole chain as users start it: apply_tuning, wrapper, accelerate and trainer, on the tiny model."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import mimicry
from mimicry.study.tree import Artist, Condition, StudyTree
from mimicry.tuning.adapters.folder import ADAPTER_CONFIG, METRICS, TRAIN_LOG, WEIGHTS
from mimicry.tuning.adapters.training_run import TRAINING_RUN
from tests.fake_hub import TOKEN, FakeHub
from tests.small_study import COUNTERED, ORIGINAL, bookmarks_in, listing, output_dir
from tests.tuning.hf_diffusers.studio import (
    DEADLINE_SECONDS,
    SECRET,
    await_step,
    environment,
    processes_naming,
    training_run,
)

PROGRAM = Path(mimicry.__file__).parent / "tuning" / "apply_tuning.py"
HOSTILE = Artist("historical", "baroque", "O'Keeffe; {x}")
SECOND = Artist("historical", "baroque", "Ysolde_van_Aerde")
OTTO = Artist("historical", "cubism", "Otto_Brandvold")
PILOTS = (HOSTILE, OTTO)
OTTO_REPOSITORY = "sd35-lora-none-none-Otto_Brandvold"
STEPS = 3


@dataclass(frozen=True)
class Chain:
    """A study of a few of the demo's paintings, and the tiny model."""

    tree: StudyTree
    base_model: Path

    def words(self, *words: str) -> list[str]:
        """Return a command line for short trainings; `words` change or add to it."""
        return [
            sys.executable,
            str(PROGRAM),
            f"--data-root={self.tree.data_root}",
            f"--pretrained-model-name-or-path={self.base_model}",
            *("--resolution=64", "--rank=4", "--gradient-accumulation-steps=1", "--no-push-to-hub"),
            f"--max-train-steps={STEPS}",
            *words,
        ]

    def tune(self, words: Sequence[str], **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words,
            cwd=self.tree.data_root.parent,
            env=environment(**changes),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=2 * DEADLINE_SECONDS,
        )

    def start(self, words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        with log.open("wb") as output:
            return subprocess.Popen(
                words,
                cwd=self.tree.data_root.parent,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def output(self, artist: Artist, condition: Condition = ORIGINAL) -> Path:
        return output_dir(self.tree, condition, artist)


def copy_study(demo_dir: Path, folder: Path) -> Chain:
    """Copy three paintings for each of three artists, in two conditions; one artist gets a hostile name."""
    demo, tree = StudyTree(demo_dir / "style_mimicry"), StudyTree(folder / "a study")
    for artist, painter in ((HOSTILE, "Casimir_Drovanti"), (SECOND, SECOND.name), (OTTO, OTTO.name)):
        for condition in (ORIGINAL, COUNTERED):
            source = demo.source(condition).root
            images = demo.images_of(source, Artist(artist.split, artist.style, painter))
            copies = tree.images_of(tree.data_root / source.relative_to(demo.data_root), artist)
            copies.mkdir(parents=True)
            for path in sorted(images.iterdir())[:3]:
                shutil.copyfile(path, copies / path.name)
    return Chain(tree, demo_dir / "tiny_sd3")


@dataclass(frozen=True)
class Pilot:
    """The pilot as a user runs it: original art with uploads, countered art without, the first one again."""

    chain: Chain
    hub: FakeHub
    original: subprocess.CompletedProcess[str]
    countered: subprocess.CompletedProcess[str]
    again: subprocess.CompletedProcess[str]
    before: dict[str, tuple[int, int, int]]
    after: dict[str, tuple[int, int, int]]


@pytest.fixture(scope="module")
def pilot(demo_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Pilot:
    folder = tmp_path_factory.mktemp("pilot")
    chain = copy_study(demo_dir, folder)
    models = chain.tree.data_root / "models"
    with FakeHub() as hub:
        # One of the two repositories will be there for all the world to see: it must not get anything.
        hub.public_names.add(f"lab/{OTTO_REPOSITORY}")
        original = chain.tune(
            chain.words("--pilot", "--push-to-hub", "--data-root=a study"),
            **hub.environment(),
            HF_HOME=str(folder / "hf_home"),
        )
    countered = chain.tune(
        chain.words("--pilot", "--protection=mist", "--countermeasure=noisy_upscaling", "--data-root=a study")
    )
    before = listing(models)
    again = chain.tune(chain.words("--pilot"))
    return Pilot(chain, hub, original, countered, again, before, listing(models))


def test_the_pilot_trains_the_first_artist_of_each_style_under_every_name(pilot: Pilot) -> None:
    assert pilot.countered.returncode == 0, pilot.countered.stdout + pilot.countered.stderr
    assert pilot.countered.stdout.splitlines()[-1] == "2 trained"
    assert pilot.original.stdout.splitlines()[-1] == "2 trained", pilot.original.stdout
    for condition in (ORIGINAL, COUNTERED):
        outputs = pilot.chain.tree.lora / "hf_diffusers" / str(condition)
        assert pilot.chain.tree.artists(outputs) == sorted(PILOTS)


@pytest.mark.parametrize("artist", PILOTS, ids=str)
@pytest.mark.parametrize("condition", [ORIGINAL, COUNTERED], ids=str)
def test_an_adapter_has_its_weights_and_its_records(
    pilot: Pilot, condition: Condition, artist: Artist
) -> None:
    output = pilot.chain.output(artist, condition)
    weights, run = load_file(output / WEIGHTS), training_run(output)

    assert {path.name for path in output.iterdir()} == {
        WEIGHTS, ADAPTER_CONFIG, TRAINING_RUN, METRICS, TRAIN_LOG,
    }  # fmt: skip
    assert {min(tensor.shape) for tensor in weights.values()} == {4}
    assert (run["status"], run["steps"], len(run["images"])) == ("complete", STEPS, 3)
    lines = [json.loads(line) for line in (output / METRICS).read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 3]
    assert json.loads((output / ADAPTER_CONFIG).read_text())["r"] == 4
    assert f"step {STEPS}/{STEPS}" in (output / TRAIN_LOG).read_text()


def test_the_conditions_differ_in_their_images_and_in_nothing_else(pilot: Pilot) -> None:
    for artist in PILOTS:
        one, other = (training_run(pilot.chain.output(artist, each)) for each in (ORIGINAL, COUNTERED))
        assert one["recipe_hash"] == other["recipe_hash"]
        assert one["draws_sha256"] == other["draws_sha256"]
        assert one["numerics"] == other["numerics"]
        # Both are measured on the original art.
        assert one["eval_loss"]["start"] == other["eval_loss"]["start"]
        assert one["eval_loss"]["images"] == other["eval_loss"]["images"] == 3
        assert {image["sha256"] for image in one["images"]}.isdisjoint(
            image["sha256"] for image in other["images"]
        )
        assert one["weights"]["sha256"] != other["weights"]["sha256"]


def test_the_tracker_has_a_bookmark_for_each_adapter(pilot: Pilot) -> None:
    document = json.loads(pilot.chain.tree.tracker.read_text())
    marks = bookmarks_in(pilot.chain.tree)

    assert marks.keys() == {
        f"{condition}/{artist}" for condition in ("none/none", "mist/noisy_upscaling") for artist in PILOTS
    }
    # Mist alone and everybody but the pilots are still to be trained.
    assert document["step_status"] == {"step_3_fine_tune_sd35": "in_progress"}
    for mark in marks.values():
        assert (mark["status"], mark["images"], mark["steps"]) == ("complete", 3, STEPS)
        assert (pilot.chain.tree.data_root / mark["log"]).is_file()
        assert mark["loss"] > 0
        assert mark["eval_loss"]["start"] > 0
        assert mark["eval_loss"]["end"] > 0
    # In the line of each artist, and in the summary.
    assert pilot.original.stdout.count(" -> ") == 4


def test_the_same_command_again_trains_nothing(pilot: Pilot) -> None:
    assert pilot.again.returncode == 0
    assert pilot.again.stdout.splitlines()[-1] == "2 skipped"
    assert pilot.after == pilot.before


def test_an_adapter_is_uploaded_to_a_private_repository(pilot: Pilot) -> None:
    (name,) = (name for name in pilot.hub.repositories if name != f"lab/{OTTO_REPOSITORY}")
    uploaded = pilot.hub.repositories[name]
    output = pilot.chain.output(HOSTILE)

    assert name.startswith("lab/sd35-lora-none-none-O-Keeffe-x")
    assert uploaded.private
    assert uploaded.commits == [["README.md", ADAPTER_CONFIG, WEIGHTS, TRAINING_RUN]]
    assert uploaded.files[WEIGHTS] == (output / WEIGHTS).read_bytes()
    published = b"".join(uploaded.files[text] for text in ("README.md", ADAPTER_CONFIG, TRAINING_RUN))
    assert os.fsencode(pilot.chain.tree.data_root.parent) not in published
    assert os.fsencode(pilot.chain.base_model) not in published
    hub = bookmarks_in(pilot.chain.tree)[f"none/none/{HOSTILE}"]["hub"]
    assert (hub["repository_id"], hub["commit"]) == (name, uploaded.head)
    assert f"uploaded to {name}" in pilot.original.stdout


def test_an_upload_that_the_hub_refuses_is_owed_and_the_adapter_complete(pilot: Pilot) -> None:
    mark = bookmarks_in(pilot.chain.tree)[f"none/none/{OTTO}"]

    assert pilot.original.returncode == 1
    assert mark["status"] == "complete"
    assert mark["hub"]["owed"] == OTTO_REPOSITORY
    assert "is not private" in mark["hub"]["error"]
    assert f"upload owed: {OTTO_REPOSITORY} was not uploaded" in pilot.original.stdout
    assert pilot.hub.repositories[f"lab/{OTTO_REPOSITORY}"].files == {}


def test_a_token_is_written_down_nowhere(pilot: Pilot) -> None:
    said = "".join(
        done.stdout + done.stderr for done in (pilot.original, pilot.countered, pilot.again)
    ).encode()
    written = [path.read_bytes() for path in pilot.chain.tree.data_root.rglob("*") if path.is_file()]

    assert len(written) > 4 * 5
    assert all(token.encode() not in text for text in (said, *written) for token in (TOKEN, SECRET))


# Stopping


@pytest.fixture
def chain(demo_dir: Path, tmp_path: Path) -> Chain:
    return copy_study(demo_dir, tmp_path)


def test_a_stopped_batch_leaves_nothing_running_and_is_taken_up_by_the_same_command(
    chain: Chain, tmp_path: Path
) -> None:
    words = chain.words(f"--artist={OTTO.name}", "--max-train-steps=80")
    output, log = chain.output(OTTO), tmp_path / "apply_tuning.log"
    process = chain.start(words, log)
    await_step(process, output, log)

    process.send_signal(signal.SIGTERM)

    assert process.wait(DEADLINE_SECONDS) == 143
    assert processes_naming(str(chain.tree.data_root)) == []
    assert log.read_text().splitlines()[-1] == "stopped by SIGTERM"
    mark = bookmarks_in(chain.tree)[f"none/none/{OTTO}"]
    assert (mark["status"], mark["error"]) == ("interrupted", "stopped by SIGTERM")
    run = training_run(output)
    assert run["status"] == "interrupted"
    assert 1 <= run["steps"] < 80
    assert mark["steps"] <= run["steps"]  # apply_tuning may not have seen the last ones
    assert not (output / WEIGHTS).exists()
    assert (output / f"checkpoint-{run['steps']}").is_dir()

    done = chain.tune(words)

    assert done.returncode == 0, done.stdout + done.stderr
    assert training_run(output)["steps"] == 80
    assert training_run(output)["resumed_from"] == run["steps"]
    lines = [json.loads(line) for line in (output / METRICS).read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 81))
    assert [line["step"] for line in lines if "eval_loss" in line] == [0, 80]
    assert not list(output.glob("*checkpoint*"))
    mark = bookmarks_in(chain.tree)[f"none/none/{OTTO}"]
    assert (mark["status"], mark["resumed_from"]) == ("complete", run["steps"])
    assert "error" not in mark


def test_a_killed_apply_tuning_takes_wrapper_launcher_and_trainer_along(chain: Chain, tmp_path: Path) -> None:
    words = chain.words(f"--artist={OTTO.name}", "--max-train-steps=20000")
    log = tmp_path / "apply_tuning.log"
    process = chain.start(words, log)
    await_step(process, chain.output(OTTO), log)
    assert len(processes_naming(str(chain.tree.data_root))) >= 4

    process.kill()
    process.wait()

    deadline = time.monotonic() + DEADLINE_SECONDS
    while left := processes_naming(str(chain.tree.data_root)):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    assert bookmarks_in(chain.tree)[f"none/none/{OTTO}"]["status"] == "waiting"
    plan: dict[str, Any] = json.loads(chain.tune([*words, "--dry-run", "--json"]).stdout)
    assert plan["counts"] == {
        "train": 1,
        "complete": 0,
        "stale": 0,
        "claimed": 0,
        "queued": 0,
        "blocked": 0,
        "no data": 0,
    }
