"""One artist through a script that is not ours: what it leaves is verified before it counts."""

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from peft import PeftConfig

from mimicry.common.claims import Claim
from mimicry.common.errors import TrainingFailed
from mimicry.common.processes import PARENT_PIPE
from mimicry.study.images import ImageFolder
from mimicry.study.tree import State, StudyTree
from mimicry.tuning.adapters.bookmark import open_tracker
from mimicry.tuning.hf_diffusers import one_artist
from mimicry.tuning.hf_diffusers.launch import ForeignScript, TrainScript
from mimicry.tuning.hf_diffusers.one_artist import ArtistJob, Standalone, Supervised, caller, train_artist
from mimicry.tuning.options.config import TuningConfig
from mimicry.tuning.options.flags import TrainingInputs
from tests.hostile_names import over_hostile_names
from tests.small_study import ANNA, bookmarks_in, output_dir
from tests.tuning.hf_diffusers.stand_in import given_flags, write_stand_in, write_weights
from tests.tuning.hf_diffusers.studio import SECRET, Studio, training_run
from tests.tuning.lora_files import adapter_spec, check_adapter, judge

WEIGHTS = "pytorch_lora_weights.safetensors"
COMPLETE = ["adapter_config.json", WEIGHTS, "train.log", "training_run.json"]


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start the script itself: the launcher takes seconds, and the wrapper's own test has it."""

    def launch_words(script: TrainScript, words: Sequence[str], config: TuningConfig) -> list[str]:
        return [sys.executable, str(script.path), *words]

    monkeypatch.setattr(one_artist, "launch_words", launch_words)


def make_job(studio: Studio, folder: Path, output_dir: Path | None = None, **values: Any) -> ArtistJob:
    return ArtistJob(
        config=TuningConfig(rank=4, pretrained_model_name_or_path=str(studio.base_model), **values),
        inputs=TrainingInputs(
            input_dir=studio.images, output_dir=output_dir or folder / "adapter", notes=("a note",)
        ),
        script=ForeignScript.read(write_stand_in(folder)),
        stall_seconds=60,
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "set_aside")


def state(job: ArtistJob) -> State:
    asked = adapter_spec(job.config, job.script.identity)
    return judge(job.inputs.output_dir, asked, ImageFolder.read(job.inputs.input_dir), full=True).state


def test_a_whole_adapter_is_published_with_its_records(studio: Studio, tmp_path: Path) -> None:
    job = make_job(studio, tmp_path)
    train_artist(job, Standalone())
    assert names(job.inputs.output_dir) == COMPLETE
    adapter = check_adapter(job.inputs.output_dir, rank=4)
    assert adapter.modules == ("transformer_blocks.0.attn.to_q",)
    config = PeftConfig.from_pretrained(str(job.inputs.output_dir))
    assert (config.r, config.lora_alpha, config.target_modules) == (4, 4, set(adapter.modules))

    run = training_run(job.inputs.output_dir)
    assert run["status"] == "complete"
    assert run["eval_loss"]["skipped"].endswith("makes no evaluation")
    assert run["weights"]["sha256"] == adapter.sha256
    assert run["recipe"]["trainer"] == job.script.identity
    assert [image["name"] for image in run["images"]] == [
        path.name for path in sorted(studio.images.iterdir())
    ]
    assert run["warnings"][0] == "a note"
    assert "--no-cache-latents" in run["warnings"][1]
    assert run["paths"]["output_dir"] == str(job.inputs.output_dir)
    assert state(job) is State.COMPLETE


def test_it_is_given_what_it_knows_and_another_folder_to_write_to(studio: Studio, tmp_path: Path) -> None:
    job = make_job(studio, tmp_path, seed=7, cache_latents=False)
    train_artist(job, Standalone())
    assert given_flags(job.inputs.output_dir / "train.log") == {
        "pretrained_model_name_or_path": str(studio.base_model),
        "instance_data_dir": str(studio.images),
        "instance_prompt": "a painting in the style of sks",
        "output_dir": str(job.inputs.output_dir / ".training"),
        "resolution": 1024,
        "rank": 4,
        "max_train_steps": 500,
        "mixed_precision": "bf16",
        "cache_latents": False,
    }


def test_epochs_are_given_to_it_as_steps(studio: Studio, tmp_path: Path) -> None:
    """The diffusers example does not look at epochs when it is given steps."""
    job = make_job(studio, tmp_path, num_train_epochs=7, cache_latents=False)
    train_artist(job, Standalone())
    assert given_flags(job.inputs.output_dir / "train.log")["max_train_steps"] == 7  # of four images each
    assert training_run(job.inputs.output_dir)["steps"] == 7


@over_hostile_names
def test_any_name_of_a_folder_will_do(hostile_name: str, studio: Studio, tmp_path: Path) -> None:
    job = make_job(studio, tmp_path, tmp_path / "out" / hostile_name)
    train_artist(job, Standalone())
    assert names(tmp_path / "out" / hostile_name) == COMPLETE


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("crash", "exit code 1 and no adapter: the script has crashed"),
        ("nothing", "exit code 0 and no adapter"),
        ("truncated", "is not a readable safetensors file"),
        ("garbage", "is not a readable safetensors file"),
        ("untrained", "every lora_B is zero"),
        ("nan", "not finite numbers"),
        ("other rank", "has rank 5 where 4 was asked for"),
    ],
)
def test_a_result_that_is_no_adapter_is_refused(
    behaviour: str, message: str, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN", behaviour)
    job = make_job(studio, tmp_path)
    with pytest.raises(TrainingFailed, match=message):
        train_artist(job, Standalone())
    assert names(job.inputs.output_dir) in (["train.log"], [".training", "train.log"])
    assert state(job) is State.WAITING


def test_the_log_tells_what_the_script_said(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN", "crash")
    job = make_job(studio, tmp_path)
    with pytest.raises(TrainingFailed) as caught:
        train_artist(job, Standalone())
    assert f"the last lines of {job.inputs.output_dir / 'train.log'}" in str(caught.value)
    assert "  | the script was given" in str(caught.value)


def test_a_whole_adapter_counts_whatever_the_exit_code(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launcher makes 1 of many codes, and a script may fail in sampling once it has saved."""
    monkeypatch.setenv("STAND_IN", "saved, then crash")
    job = make_job(studio, tmp_path)
    train_artist(job, Standalone())
    assert state(job) is State.COMPLETE


@pytest.mark.parametrize("behaviour", ["whole", "crash"])
def test_leftovers_of_a_stopped_script_are_not_taken_for_its_result(
    behaviour: str, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN", behaviour)
    job = make_job(studio, tmp_path)
    leftover = job.inputs.output_dir / ".training" / WEIGHTS
    write_weights(leftover, rank=4)
    content = leftover.read_bytes()
    if behaviour == "whole":
        train_artist(job, Standalone())
        assert (job.inputs.output_dir / WEIGHTS).read_bytes() != content
    else:
        with pytest.raises(TrainingFailed, match="the script has crashed"):
            train_artist(job, Standalone())
        assert state(job) is State.WAITING
    (aside,) = (job.inputs.output_dir / "set_aside").iterdir()
    assert (aside / ".training" / WEIGHTS).read_bytes() == content


def test_a_log_goes_on_and_an_older_failure_is_not_told_again(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(studio, tmp_path)
    job.inputs.output_dir.mkdir()
    (job.inputs.output_dir / "train.log").write_text("error: an older failure\n")
    monkeypatch.setenv("STAND_IN", "nothing")
    with pytest.raises(TrainingFailed) as caught:
        train_artist(job, Standalone())
    assert "older failure" not in str(caught.value)
    assert (job.inputs.output_dir / "train.log").read_text().startswith("error: an older failure\n--- ")


def test_a_checkpoint_of_our_own_trainer_is_set_aside(studio: Studio, tmp_path: Path) -> None:
    job = make_job(studio, tmp_path)
    (job.inputs.output_dir / "checkpoint-100").mkdir(parents=True)
    (job.inputs.output_dir / "checkpoint-100" / "checkpoint.json").write_text("{}")
    train_artist(job, Standalone())
    assert names(job.inputs.output_dir) == COMPLETE
    (aside,) = (job.inputs.output_dir / "set_aside").iterdir()
    assert (aside / "checkpoint-100" / "checkpoint.json").read_text() == "{}"


def test_images_that_were_changed_meanwhile_make_no_adapter(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = Path(shutil.copytree(studio.images, tmp_path / "images"))
    job = make_job(studio, tmp_path)
    job = replace(job, inputs=replace(job.inputs, input_dir=images))
    real = one_artist.run_script

    def run(job: ArtistJob, called_by: Supervised, variable: Mapping[str, str]) -> int:
        code = real(job, called_by, variable)
        sorted(images.iterdir())[0].write_bytes(b"other")
        return code

    monkeypatch.setattr(one_artist, "run_script", run)
    with pytest.raises(TrainingFailed, match="images were changed while it was trained on them"):
        train_artist(job, Standalone())
    assert not (job.inputs.output_dir / WEIGHTS).exists()


def test_a_script_that_prints_the_token_leaves_none_in_the_log(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    job = make_job(studio, tmp_path)
    with job.script.path.open("a") as script:
        script.write("print('the token is', os.environ['HF_TOKEN'])\n")
    train_artist(job, Standalone())
    log = (job.inputs.output_dir / "train.log").read_text()
    assert f"the token is {'*' * len(SECRET)}\n" in log
    assert SECRET not in log


def leaves_record(folder: Path, record: str) -> str:
    """Return the beginning of a program that writes `record` as that of the adapter of `own_job`."""
    path = folder / "adapter" / "training_run.json"
    return f"import os, sys\nopen({str(path)!r}, 'w').write({record!r})\n"


def own_job(studio: Studio, folder: Path, program: str) -> ArtistJob:
    """Return a job whose script counts as our own trainer, and is `program`."""
    script = folder / "trainer.py"
    script.write_text(program)
    return replace(make_job(studio, folder), script=TrainScript(script))


def test_a_trainer_that_ends_before_it_begins_a_record_has_its_end_recorded(
    studio: Studio, tmp_path: Path
) -> None:
    job = own_job(studio, tmp_path, "import sys; sys.exit('error: no such GPU')")
    with pytest.raises(TrainingFailed, match="no such GPU"):
        train_artist(job, Standalone())
    run = training_run(job.inputs.output_dir)
    assert (run["status"], run["error"]) == ("failed", "no such GPU")


def test_a_trainer_that_is_killed_has_its_end_recorded(studio: Studio, tmp_path: Path) -> None:
    running = '{"status": "running", "steps": 3}'
    job = own_job(studio, tmp_path, leaves_record(tmp_path, running) + "os.kill(os.getpid(), 9)\n")
    with pytest.raises(TrainingFailed, match="was killed"):
        train_artist(job, Standalone())
    run = training_run(job.inputs.output_dir)
    assert (run["status"], run["steps"]) == ("failed", 3)
    assert run["error"].startswith("the trainer was killed")


def test_what_the_trainer_recorded_of_its_end_stays(studio: Studio, tmp_path: Path) -> None:
    ended = '{"status": "failed", "error": "training diverged"}'
    job = own_job(studio, tmp_path, leaves_record(tmp_path, ended) + "sys.exit(1)\n")
    with pytest.raises(TrainingFailed, match="training diverged"):
        train_artist(job, Standalone())
    assert training_run(job.inputs.output_dir) == {"status": "failed", "error": "training diverged"}


def test_a_launcher_around_it_is_left_out_of_its_environment(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"WORLD_SIZE": "4", "RANK": "1", "MASTER_ADDR": "nowhere"}.items():
        monkeypatch.setenv(name, value)
    job = make_job(studio, tmp_path)
    job.script.path.write_text(
        job.script.path.read_text() + "\nprint('it sees', sorted({'WORLD_SIZE', 'RANK'} & set(os.environ)))\n"
    )

    train_artist(job, Standalone())

    log = (job.inputs.output_dir / "train.log").read_text()
    assert "it sees []" in log
    assert log.count("MASTER_ADDR=nowhere, RANK=1, WORLD_SIZE=4") == 1


class TestTracker:
    """By hand on one artist of a study, as after a failure under apply_tuning."""

    @pytest.fixture
    def tree(self, tmp_path: Path) -> StudyTree:
        return StudyTree(tmp_path / "study")

    def job(self, studio: Studio, tree: StudyTree, tmp_path: Path) -> ArtistJob:
        return make_job(studio, tmp_path, output_dir(tree))

    def test_it_hears_of_a_training_that_went_well(
        self, studio: Studio, tree: StudyTree, tmp_path: Path
    ) -> None:
        open_tracker(tree).record(f"hf_diffusers/none/none/{ANNA}", status="failed", error="it burned")

        train_artist(self.job(studio, tree, tmp_path), Standalone())

        mark = bookmarks_in(tree)[f"none/none/{ANNA}"]
        assert (mark["status"], mark.get("error")) == ("complete", None)
        assert mark["log"].endswith("train.log")

    def test_it_hears_of_one_that_failed(
        self, studio: Studio, tree: StudyTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        open_tracker(tree).record(f"hf_diffusers/none/none/{ANNA}", status="waiting")
        job = self.job(studio, tree, tmp_path)

        def fail(job: ArtistJob, called_by: Supervised, variable: Mapping[str, str]) -> int:
            job.folder.record.write_text('{"status": "failed", "error": "it burned"}')
            return 1

        monkeypatch.setattr(one_artist, "run_script", fail)
        with pytest.raises(TrainingFailed, match="it burned"):
            train_artist(job, Standalone())

        mark = bookmarks_in(tree)[f"none/none/{ANNA}"]
        assert (mark["status"], mark["error"]) == ("failed", "it burned")

    def test_a_study_without_one_gets_none(self, studio: Studio, tree: StudyTree, tmp_path: Path) -> None:
        train_artist(self.job(studio, tree, tmp_path), Standalone())
        assert not tree.tracker.exists()

    def test_apply_tuning_tells_it_itself(self, studio: Studio, tree: StudyTree, tmp_path: Path) -> None:
        open_tracker(tree).record(f"hf_diffusers/none/none/{ANNA}", status="waiting")
        train_artist(self.job(studio, tree, tmp_path), Supervised())
        assert bookmarks_in(tree)[f"none/none/{ANNA}"]["status"] == "waiting"


def test_whoever_hands_its_claim_on_is_apply_tuning(tmp_path: Path) -> None:
    with Claim.take_anew(tmp_path) as claim:
        assert type(caller(claim.variable())) is Supervised
    assert type(caller({})) is Standalone
    # As under run_tuning.py, which people start.
    assert type(caller({PARENT_PIPE: "1"})) is Standalone


def test_under_apply_tuning_the_message_does_not_repeat_the_log(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN", "crash")
    job = make_job(studio, tmp_path)
    with pytest.raises(TrainingFailed) as caught:
        train_artist(job, Supervised())
    assert "the script has crashed" in str(caught.value)
    assert "the last lines of" not in str(caught.value)
