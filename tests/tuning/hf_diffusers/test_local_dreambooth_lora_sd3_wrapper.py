"""The wrapper as a program: the README's command for one artist, and every way it can end."""

import os
import shlex
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from peft import PeftConfig

from mimicry.common.claims import Claim
from mimicry.tuning.hf_diffusers.launch import OWN_SCRIPT
from tests.fake_hub import FakeHub
from tests.tuning.hf_diffusers.conftest import Tuned
from tests.tuning.hf_diffusers.stand_in import given_flags, write_stand_in
from tests.tuning.hf_diffusers.studio import (
    DEADLINE_SECONDS,
    SECRET,
    WRAPPER,
    Studio,
    await_step,
    end,
    environment,
    processes_naming,
    run,
    start,
    training_run,
)
from tests.tuning.lora_files import check_adapter

WEIGHTS = "pytorch_lora_weights.safetensors"
COMPLETE = ["adapter_config.json", "metrics.jsonl", WEIGHTS, "train.log", "training_run.json"]

needs_proc = pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file below `folder` with its content."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.fixture
def own_copy(tuned: Tuned, tmp_path: Path) -> Tuned:
    """The trained artist in a folder that the test may change."""
    shutil.copytree(tuned.folder, tmp_path / "checkout", symlinks=True)
    return Tuned(tmp_path / "checkout", tuned.words, tuned.outcome)


class TestOneArtist:
    def test_the_command_works_as_typed(self, tuned: Tuned) -> None:
        assert tuned.outcome.returncode == 0, tuned.outcome.stderr
        assert tuned.outcome.stdout.splitlines()[-1].startswith("complete: data/style_mimicry/models/")
        assert sorted(path.name for path in tuned.output_dir.iterdir()) == COMPLETE
        adapter = check_adapter(tuned.output_dir, rank=4)
        config = PeftConfig.from_pretrained(str(tuned.output_dir))
        assert config.r == adapter.rank == 4
        run = training_run(tuned.output_dir)
        assert (run["status"], run["steps"]) == ("complete", 3)
        assert len((tuned.output_dir / "metrics.jsonl").read_text().splitlines()) == 3

    def test_the_projects_defaults_reach_the_trainer(self, tuned: Tuned) -> None:
        options = training_run(tuned.output_dir)["options"]
        assert options["mixed_precision"] == "bf16"
        assert options["gradient_accumulation_steps"] == 4
        assert options["seed"] == 42
        assert options["cache_latents"] and options["gradient_checkpointing"] and options["center_crop"]

    def test_the_log_has_the_command_and_what_was_said(self, tuned: Tuned) -> None:
        log = (tuned.output_dir / "train.log").read_text()
        assert log.startswith("--- 20")
        assert str(OWN_SCRIPT) in log.splitlines()[0]
        assert "step 3/3, loss " in log
        assert "Traceback" not in log

    def test_no_file_has_the_token(self, tuned: Tuned) -> None:
        assert not [name for name, content in tree(tuned.output_dir).items() if SECRET.encode() in content]
        assert SECRET not in tuned.outcome.stdout + tuned.outcome.stderr


class TestExisting:
    def test_a_complete_one_is_kept(self, tuned: Tuned) -> None:
        before = tree(tuned.folder)
        outcome = run(WRAPPER, tuned.words, cwd=tuned.folder)
        assert outcome.returncode == 0, outcome.stderr
        assert outcome.stdout.startswith("complete: data/style_mimicry/models/")
        assert tree(tuned.folder) == before

    def test_a_stale_one_is_kept_and_said_to_be(self, tuned: Tuned) -> None:
        before = tree(tuned.folder)
        outcome = run(WRAPPER, [*tuned.words, "--seed=43"], cwd=tuned.folder)
        assert outcome.returncode == 3, outcome.stderr
        assert "stale: data/" in outcome.stdout
        assert "seed 42 -> 43" in outcome.stdout
        assert "type --overwrite" in outcome.stdout
        assert tree(tuned.folder) == before

    def test_overwrite_trains_again_and_sets_the_old_one_aside(self, own_copy: Tuned, tmp_path: Path) -> None:
        """With a stand-in for the diffusers example, which is quicker, yet through the launcher."""
        before = tree(own_copy.output_dir)
        script = write_stand_in(tmp_path)
        outcome = run(
            WRAPPER, [*own_copy.words, "--overwrite", "--train-script", script], cwd=own_copy.folder
        )
        assert outcome.returncode == 0, outcome.stderr
        assert "warning: train_dreambooth_lora_sd3.py may fail" in outcome.stderr
        assert "--no-cache-latents" in outcome.stderr
        check_adapter(own_copy.output_dir, rank=4)
        assert PeftConfig.from_pretrained(str(own_copy.output_dir)).r == 4
        run_record = training_run(own_copy.output_dir)
        assert run_record["recipe"]["trainer"].startswith("train_dreambooth_lora_sd3.py sha256:")
        assert "--no-cache-latents" in run_record["warnings"][0]
        assert given_flags(own_copy.output_dir / "train.log")["resolution"] == 32

        after = tree(own_copy.output_dir)
        assert after[WEIGHTS] != before[WEIGHTS]
        (aside,) = (own_copy.output_dir / "set_aside").iterdir()
        assert tree(aside) == {name: before[name] for name in before if name != "train.log"}
        assert after["train.log"].startswith(before["train.log"])

    def test_a_broken_one_is_set_aside_and_trained_again(
        self, own_copy: Tuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        weights = own_copy.output_dir / WEIGHTS
        torn = weights.read_bytes()[:-100]
        weights.write_bytes(torn)
        monkeypatch.setenv("STAND_IN", "truncated")
        outcome = run(
            WRAPPER, [*own_copy.words, "--train-script", write_stand_in(tmp_path)], cwd=own_copy.folder
        )
        # The new one is broken, too: nothing lies under the final name, and neither is lost.
        assert outcome.returncode == 1
        assert "error: " in outcome.stderr
        assert "Traceback" not in outcome.stderr
        assert not weights.exists()
        (aside,) = (own_copy.output_dir / "set_aside").iterdir()
        assert aside.name.endswith("-broken")
        assert (aside / WEIGHTS).read_bytes() == torn


class TestRefusal:
    def refused(self, folder: Path, *words: str | Path, code: int = 2) -> list[str]:
        """Return the lines of the complaint about `words`; nothing must have been written."""
        before = tree(folder)
        outcome = run(WRAPPER, words, cwd=folder)
        assert outcome.returncode == code, outcome.stderr
        assert "Traceback" not in outcome.stderr
        assert tree(folder) == before
        return outcome.stderr.splitlines()

    def test_all_bad_values_come_at_once(self, studio: Studio, tmp_path: Path) -> None:
        errors = self.refused(
            tmp_path,
            *("--input-dir", studio.images, "--output-dir", "out", "--no-push-to-hub"),
            *("--rank=0", "--learning-rate=nan", "--mixed-precision=fp8", "--max-train-steps=many"),
            *("--seed=-1", "--instance-prompt= "),
        )
        named = ("rank", "learning-rate", "mixed-precision", "max-train-steps", "seed", "instance-prompt")
        assert len(errors) == len(named)
        for name in named:
            assert sum(line.startswith(f"error: --{name} is ") for line in errors) == 1, name

    def test_an_unknown_option_is_named(self, tmp_path: Path) -> None:
        errors = self.refused(tmp_path, "--input-dir=in", "--output-dir=out", "--leaning-rate=1")
        assert "--leaning-rate" in errors[-1]
        assert "--learning-rate" in errors[-1]

    def test_missing_images_are_a_usage_error(self, tmp_path: Path) -> None:
        (error,) = self.refused(tmp_path, "--input-dir=none", "--output-dir=out", "--no-push-to-hub")
        assert error.startswith("error: --input-dir: there is no image in none")

    def test_a_folder_to_evaluate_on_has_images(self, studio: Studio, tmp_path: Path) -> None:
        (error,) = self.refused(
            tmp_path,
            *("--input-dir", studio.images, "--output-dir=out", "--no-push-to-hub", "--eval-data-dir=none"),
        )
        assert error.startswith("error: --eval-data-dir: there is no image in none")

    def test_images_that_cannot_be_read_are_all_named(self, studio: Studio, tmp_path: Path) -> None:
        shutil.copytree(studio.images, tmp_path / "images")
        for name in ("x.png", "y.jpg"):
            (tmp_path / "images" / name).write_text("no image")
        errors = self.refused(tmp_path, "--input-dir=images", "--output-dir=out", "--no-push-to-hub", code=1)
        assert ["x.png" in errors[0], "y.jpg" in errors[1], len(errors)] == [True, True, 2]

    def test_a_missing_base_model_and_a_bad_resolution_are_faults_of_the_batch(
        self, studio: Studio, tmp_path: Path
    ) -> None:
        words: list[Any] = ["--input-dir", studio.images, "--output-dir=out", "--no-push-to-hub"]
        (error,) = self.refused(tmp_path, *words, "--pretrained-model-name-or-path=./nowhere")
        assert "./nowhere: there is no such folder" in error
        (error,) = self.refused(
            tmp_path, *words, f"--pretrained-model-name-or-path={studio.base_model}", "--resolution=37"
        )
        assert "type --resolution 40" in error

    def test_an_output_that_names_no_repository_says_what_to_type(
        self, studio: Studio, tmp_path: Path
    ) -> None:
        (error,) = self.refused(tmp_path, "--input-dir", studio.images, "--output-dir=out")
        assert "--hub-model-id NAME or --no-push-to-hub" in error

    def test_a_train_script_that_is_none_is_named(self, studio: Studio, tmp_path: Path) -> None:
        (error,) = self.refused(
            tmp_path,
            *("--input-dir", studio.images, "--output-dir=out", "--no-push-to-hub"),
            "--train-script=nowhere.py",
        )
        assert "--train-script nowhere.py cannot be read" in error

    def test_names_for_the_hub_and_images_to_leave_out_are_checked(
        self, studio: Studio, tmp_path: Path
    ) -> None:
        script = write_stand_in(tmp_path)
        errors = self.refused(
            tmp_path,
            *("--input-dir", studio.images, "--output-dir=out", f"--train-script={script}", "--leave-out=x"),
            *(f"--hub-model-id={'n' * 97}", "--hub-namespace=Musée", "--base-model-id=/home/x"),
        )
        assert len(errors) == 4
        for words in (
            "--leave-out x: train_dreambooth_lora_sd3.py takes every image",
            "--hub-model-id '" + 97 * "n" + "' is not a name on the Hub",
            "--hub-namespace 'Musée' is not a name on the Hub",
            "--base-model-id '/home/x' is not the id of a model",
        ):
            assert sum(words in error for error in errors) == 1, words

    def test_what_another_script_cannot_be_told_is_refused(self, studio: Studio, tmp_path: Path) -> None:
        script = write_stand_in(tmp_path)
        errors = self.refused(
            tmp_path,
            *("--input-dir", studio.images, "--output-dir=out", f"--train-script={script}"),
            *("--no-push-to-hub", "--hold-out=1", "--source-resolution=64"),
        )
        assert len(errors) == 2
        for flag in ("--hold-out 1", "--source-resolution 64"):
            assert sum(f"{flag}: {script.name} cannot be told so" in error for error in errors) == 1, flag

    def test_holding_out_every_image_is_refused(self, studio: Studio, tmp_path: Path) -> None:
        (error,) = self.refused(
            tmp_path,
            *("--input-dir", studio.images, "--output-dir=out", "--no-push-to-hub", "--hold-out=4"),
        )
        assert f"--hold-out 4 leaves no image to train on, of 4 in {studio.images}" in error
        assert not (tmp_path / "out").exists()

    def test_a_hub_that_refuses_is_a_fault_before_training(self, studio: Studio, tmp_path: Path) -> None:
        with FakeHub() as hub:
            hub.account["auth"]["accessToken"]["role"] = "read"
            before = tree(tmp_path)
            outcome = run(
                WRAPPER,
                [
                    *("--input-dir", studio.images, "--output-dir=out", "--hub-model-id=x"),
                    *(f"--pretrained-model-name-or-path={studio.base_model}", "--resolution=32"),
                ],
                cwd=tmp_path,
                env=environment(**hub.environment()),
            )
        assert outcome.returncode == 2, outcome.stderr
        assert "the token in HF_TOKEN may only read" in outcome.stderr
        assert tree(tmp_path) == before


def test_a_dry_run_shows_the_command_and_writes_nothing(studio: Studio, tmp_path: Path) -> None:
    shutil.copytree(studio.images, tmp_path / "O'Keeffe; {x}")
    before = tree(tmp_path)
    outcome = run(
        WRAPPER,
        [
            *("--input-dir", "O'Keeffe; {x}", "--output-dir", "out dir", "--no-push-to-hub", "--dry-run"),
            *("--eval-data-dir=O'Keeffe; {x}", "--base-samples-dir=base {x}"),
            *("--captions", "--caption-data-dir=O'Keeffe; {x}"),
        ],
        cwd=tmp_path,
    )
    assert outcome.returncode == 0, outcome.stderr
    assert tree(tmp_path) == before
    assert not (tmp_path / "out dir").exists()
    words = shlex.split(outcome.stdout)
    assert Path(words[1]).name == "accelerate_launcher.py"
    assert str(OWN_SCRIPT) in words
    assert "--instance_data_dir=O'Keeffe; {x}" in words
    assert "--output_dir=out dir" in words
    assert "--eval_data_dir=O'Keeffe; {x}" in words
    assert "--base_samples_dir=base {x}" in words
    assert "--caption_data_dir=O'Keeffe; {x}" in words
    assert "--captions" in words


def test_captions_that_cannot_be_used_are_named_all_at_once(studio: Studio, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(studio.images, images)
    stems = sorted(path.stem for path in images.iterdir())
    (images / f"{stems[0]}.txt").write_bytes(b"\xff")
    (images / f"{stems[1]}.txt").write_text(" ")
    words = ["--input-dir=images", "--output-dir=out", "--no-push-to-hub", "--captions"]
    outcome = run(WRAPPER, words, cwd=tmp_path)
    assert outcome.returncode == 1
    errors = outcome.stderr.splitlines()
    assert [line.partition(" is ")[0] for line in errors] == [
        f"error: images/{stems[0]}.txt",
        f"error: the caption images/{stems[1]}.txt",
    ]
    assert not (tmp_path / "out").exists()


def test_a_folder_that_another_process_works_in_is_left_alone(studio: Studio, tmp_path: Path) -> None:
    with Claim.take_anew(tmp_path / "out"):
        outcome = run(
            WRAPPER,
            [
                *("--input-dir", studio.images, "--output-dir", tmp_path / "out", "--no-push-to-hub"),
                *("--pretrained-model-name-or-path", studio.base_model, "--resolution=32"),
            ],
            cwd=tmp_path,
        )
    assert outcome.returncode == 1
    (error,) = outcome.stderr.splitlines()
    assert f"out is in use by pid {os.getpid()} on" in error
    assert "wait for it, or end it, and type the same command again" in error
    assert not (tmp_path / "out").exists()


AROUND = {"WORLD_SIZE": "4", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "nowhere", "MASTER_PORT": "1"}


@needs_proc
@pytest.mark.parametrize(
    ("number", "around"),
    [(signal.SIGTERM, {}), (signal.SIGINT, AROUND)],
    ids=["SIGTERM", "SIGINT, within a launcher"],
)
def test_a_stop_signal_leaves_no_process_behind(
    number: signal.Signals,
    around: dict[str, str],
    studio: Studio,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in around.items():
        monkeypatch.setenv(name, value)
    log, output_dir = tmp_path / "log", tmp_path / "out"
    words: list[Any] = [
        *("--input-dir", studio.images, "--output-dir", output_dir, "--no-push-to-hub"),
        *("--pretrained-model-name-or-path", studio.base_model, "--resolution=32"),
        *("--max-train-steps=5000", "--gradient-accumulation-steps=1"),
    ]
    process = start(WRAPPER, words, tmp_path, log)
    try:
        await_step(process, output_dir, log)
        # Wrapper, launcher and trainer.
        assert len(processes_naming(str(output_dir))) >= 3
        process.send_signal(number)
        assert process.wait(DEADLINE_SECONDS) == 128 + number
    finally:
        end(process)
    deadline = time.monotonic() + 10
    while processes_naming(str(output_dir)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_naming(str(output_dir)) == []
    assert f"stopped by {number.name}" in log.read_text()
    assert "Traceback" not in log.read_text()
    said = (output_dir / "train.log").read_text()
    assert "Traceback" not in said
    assert said.splitlines()[-1] == f"stopped by {number.name}"
    assert ("left out of the environment" in said and "WORLD_SIZE=4" in said) == bool(around)
    assert training_run(output_dir)["status"] == "interrupted"
    assert not os.path.lexists(output_dir / WEIGHTS)
