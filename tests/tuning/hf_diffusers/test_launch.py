"""The command that starts a trainer."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mimicry.tuning.hf_diffusers.launch import OWN_SCRIPT, TrainScript, cpu_threads, launch_words
from mimicry.tuning.hf_diffusers.spec.trainer_args import parse_args
from mimicry.tuning.options.config import TuningConfig
from mimicry.tuning.options.flags import TRAINER_OPTIONS, TrainingInputs
from tests.hostile_names import over_hostile_names

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
