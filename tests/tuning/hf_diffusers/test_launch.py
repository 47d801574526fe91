"""The command that starts a trainer, and a script for --train-script, which is read without running it."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mimicry.common.errors import UsageError
from mimicry.tuning.hf_diffusers.launch import (
    OWN_SCRIPT,
    ForeignScript,
    TrainScript,
    cpu_threads,
    launch_words,
)
from mimicry.tuning.hf_diffusers.spec.trainer_args import parse_args
from mimicry.tuning.options.config import TuningConfig
from mimicry.tuning.options.flags import TRAINER_OPTIONS, TrainingInputs
from tests.hostile_names import over_hostile_names
from tests.tuning.hf_diffusers.stand_in import KNOWN, write_stand_in

INPUTS = TrainingInputs(input_dir=Path("images"), output_dir=Path("adapter"))


class TestOwnScript:
    def test_every_value_is_passed_explicitly(self) -> None:
        words = TrainScript().words(TuningConfig(), INPUTS)
        names = [word.partition("=")[0].removeprefix("--") for word in words]
        config = TuningConfig()
        assert names == [
            *("instance_data_dir", "output_dir"),
            *(
                option.name
                for option in TRAINER_OPTIONS
                if (value := getattr(config, option.name)) is not None and value is not False
            ),
        ]

    @over_hostile_names
    def test_the_trainer_understands_them(self, hostile_name: str) -> None:
        config = TuningConfig(
            instance_prompt=f"in the style of {hostile_name}",
            pretrained_model_name_or_path=hostile_name,
            learning_rate=3e-5,
            center_crop=False,
            random_flip=True,
            variant="fp16",
        )
        inputs = replace(INPUTS, input_dir=Path(hostile_name), notes=(hostile_name, "another note"))
        args = parse_args(TrainScript().words(config, inputs))
        assert args.config == config
        assert args.inputs == inputs
        folders = [Path(hostile_name), Path(f"{hostile_name}2"), Path(f"{hostile_name}3")]
        inputs = replace(
            INPUTS,
            eval_data_dir=folders[0],
            base_samples_dir=folders[1],
            caption_data_dir=folders[2],
            leave_out=(hostile_name, "--x"),
        )
        words = TrainScript().words(config, inputs)
        assert words[-2:] == [f"--leave_out={hostile_name}", "--leave_out=--x"]
        assert parse_args(words).inputs == inputs

    def test_it_has_nothing_to_warn_of(self) -> None:
        script = TrainScript()
        assert script.path == OWN_SCRIPT
        assert script.path.is_file()
        assert script.warnings(TuningConfig(deterministic=True)) == []
        assert script.identity == "mimicry"


class TestLaunch:
    def test_every_choice_of_the_launcher_is_made(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        words = launch_words(TrainScript(), ["--rank=4", "--", "x y"], TuningConfig(mixed_precision="fp16"))
        config = next(word for word in words if word.startswith("--config_file="))
        assert words == [
            *(sys.executable, str(OWN_SCRIPT.with_name("accelerate_launcher.py")), "--quiet", config),
            *("--num_processes=1", "--num_machines=1", "--dynamo_backend=no"),
            *("--mixed_precision=fp16", "--num_cpu_threads_per_process=3"),
            *(str(OWN_SCRIPT), "--rank=4", "--", "x y"),
        ]
        assert Path(config.partition("=")[2]).is_file()

    def test_several_processes_share_the_processors(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(7)), raising=False)
        words = launch_words(TrainScript(), [], TuningConfig(num_processes=3))
        assert words[4:7] == ["--multi_gpu", "--main_process_port=0", "--num_processes=3"]
        assert "--num_cpu_threads_per_process=2" in words
        assert cpu_threads(9) == 1
        monkeypatch.setenv("OMP_NUM_THREADS", "7")
        assert cpu_threads(3) == 7

    @pytest.mark.parametrize("asked", ["", "0", "-2", "many", "²"])
    def test_a_senseless_thread_count_is_that_of_the_processors(
        self, asked: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5, 9}, raising=False)
        assert cpu_threads() == 3

    def test_an_asked_thread_count_is_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OMP_NUM_THREADS", "7")
        assert cpu_threads() == 7


@pytest.fixture
def foreign(tmp_path: Path) -> ForeignScript:
    return ForeignScript.read(write_stand_in(tmp_path))


def test_its_flags_are_read_and_not_run(foreign: ForeignScript, tmp_path: Path) -> None:
    assert foreign.known_flags == KNOWN
    assert not foreign.is_own
    assert [path.name for path in tmp_path.iterdir()] == [foreign.path.name]


def test_no_flag_goes_to_it_that_it_does_not_know(foreign: ForeignScript) -> None:
    words = foreign.words(
        TuningConfig(random_flip=True), replace(INPUTS, notes=("a note",), eval_data_dir=Path("art"))
    )
    assert words == [
        "--instance_data_dir=images",
        "--output_dir=adapter",
        "--resolution=1024",
        "--rank=16",
        "--max_train_steps=500",
        "--mixed_precision=bf16",
        "--cache_latents",
        "--instance_prompt=a painting in the style of sks",
        "--pretrained_model_name_or_path=stabilityai/stable-diffusion-3.5-large",
    ]


def test_a_boolean_that_is_off_is_left_out(foreign: ForeignScript) -> None:
    words = foreign.words(TuningConfig(cache_latents=False), INPUTS)
    assert not [word for word in words if "cache_latents" in word]


def test_cached_latents_in_low_precision_are_warned_of(foreign: ForeignScript) -> None:
    (warning,) = foreign.warnings(TuningConfig())
    assert "--no-cache-latents" in warning
    assert "bf16" in warning
    assert foreign.warnings(TuningConfig(cache_latents=False)) == []
    assert foreign.warnings(TuningConfig(mixed_precision="no")) == []


def test_what_it_cannot_be_told_is_warned_of(foreign: ForeignScript) -> None:
    config = TuningConfig(cache_latents=False, seed=7, random_flip=True)
    assert foreign.warnings(config) == [
        "train_dreambooth_lora_sd3.py does not know --seed, which is left out",
        "train_dreambooth_lora_sd3.py does not know --random-flip, which is left out",
    ]


def test_the_number_of_processes_is_the_launchers_affair(foreign: ForeignScript) -> None:
    config = TuningConfig(cache_latents=False, num_processes=2)
    assert not [word for word in foreign.words(config, INPUTS) if "num_processes" in word]
    assert foreign.warnings(config) == []


def test_it_is_never_told_to_resume(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    flags = ("instance_data_dir", "output_dir", "instance_prompt", "resume_from_checkpoint", "seed")
    path.write_text("".join(f"parser.add_argument('--{name}')\n" for name in flags))
    script = ForeignScript.read(path)
    config = TuningConfig()
    assert not [word for word in script.words(config, INPUTS) if "resume" in word]
    assert not [warning for warning in script.warnings(config) if "resume" in warning]
    assert "--resume_from_checkpoint=latest" in TrainScript().words(config, INPUTS)


def test_it_hears_of_trackers_only_where_there_is_one(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    flags = ("instance_data_dir", "output_dir", "instance_prompt", "report_to", "logging_dir")
    path.write_text("".join(f"parser.add_argument('--{name}')\n" for name in flags))
    script = ForeignScript.read(path)
    for value, words in (("none", []), ("wandb", ["--report_to=wandb"])):
        given = script.words(TuningConfig(report_to=value), INPUTS)
        assert [word for word in given if word.startswith("--report_to")] == words


def test_it_is_told_from_others_by_its_content(foreign: ForeignScript, tmp_path: Path) -> None:
    before = foreign.identity
    foreign.path.write_text(foreign.path.read_text() + "\n# a change\n")
    assert before.startswith("train_dreambooth_lora_sd3.py sha256:")
    assert ForeignScript.read(foreign.path).identity != before


def test_it_is_found_from_any_working_directory(
    foreign: ForeignScript, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ForeignScript.read(Path(foreign.path.name)).path == foreign.path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read as Python"),
        (b"def broken(:", "cannot be read as Python"),
        (b"\xff\xfe", "cannot be read as Python"),
        (b"print()\0", "cannot be read as Python"),
        (b"print('no flags')", "knows no --instance_data_dir, --output_dir, --instance_prompt"),
        (
            b"parser.add_argument('--instance_data_dir'); x.add_argument('--output_dir')",
            "knows no --instance_prompt",
        ),
    ],
)
def test_another_file_is_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "script.py").write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        ForeignScript.read(tmp_path / "script.py")
    assert f"--train-script {tmp_path / 'script.py'}" in str(caught.value)
