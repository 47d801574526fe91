"""Stacks: templates filled without harm to names, validation, and a second stack made of a folder."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mimicry.common.errors import UsageError
from mimicry.tuning import stacks
from mimicry.tuning.adapters.judge import AdapterSpec
from mimicry.tuning.adapters.recipe import OWN_TRAINER, recipe
from mimicry.tuning.adapters.weights import ANY_LORA, AdapterFormat
from mimicry.tuning.hf_diffusers.stack import TRAITS
from mimicry.tuning.options.click_options import DEFAULT_STACK, option_words
from mimicry.tuning.options.config import TuningConfig
from mimicry.tuning.stacks import LOG_BYTES, RUNNER_CONFIG, STACK_MODULE, Stack, StackTraits
from tests.hostile_names import HOSTILE_NAMES, over_hostile_names

ROOT = Path(__file__).parents[2]
RUN_TUNING = ROOT / "mimicry" / "tuning" / "hf_diffusers" / "run_tuning.py"
GOOD = "{python} {stack_dir}/train.py {input_dir} {output_dir} {options}"
# Says what it was given, the way json can carry it.
ECHO = "import json, sys; print(json.dumps(sys.argv[1:]))"


def make_stack(folder: Path, command: Any = GOOD, *, script: str | None = ECHO) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RUNNER_CONFIG).write_text(json.dumps({"command": command}))
    if script is not None:
        (folder / "train.py").write_text(script)
    return folder


def make_shim(folder: Path) -> Path:
    """Add the stack's run_tuning.py: a copy of ours, with another way to this checkout."""
    shim = folder / "run_tuning.py"
    shim.write_text(
        RUN_TUNING.read_text().replace("str(Path(__file__).resolve().parents[3])", repr(str(ROOT)))
    )
    return shim


def problems_of(folder: Path) -> tuple[str, ...]:
    with pytest.raises(UsageError) as caught:
        Stack.read(folder)
    return caught.value.problems


class TestWords:
    @over_hostile_names
    def test_names_are_just_names(self, hostile_name: str, tmp_path: Path) -> None:
        stack = Stack.read(make_stack(tmp_path / hostile_name))
        images, adapter = Path("in") / hostile_name, Path(hostile_name)
        words = stack.words(images, adapter, [hostile_name, "{output_dir}"])
        script = str(tmp_path / hostile_name / "train.py")
        assert words == [
            sys.executable,
            script,
            f"in/{hostile_name}",
            hostile_name,
            hostile_name,
            "{output_dir}",
        ]

    def test_placeholders_inside_words(self, tmp_path: Path) -> None:
        command = "{python} '{stack_dir}/train.py' --io={input_dir}:{output_dir} 'a b' {options} end"
        stack = Stack.read(make_stack(tmp_path, command))
        assert stack.words(Path("{output_dir}"), Path("o"), ["x", "y z"])[2:] == [
            "--io={output_dir}:o",
            "a b",
            "x",
            "y z",
            "end",
        ]

    def test_a_stack_that_takes_no_options(self, tmp_path: Path) -> None:
        stack = Stack.read(make_stack(tmp_path, "{python} x {input_dir} {output_dir}"))
        assert not stack.takes_options
        assert stack.words(Path("i"), Path("o"), ["lost"]) == [sys.executable, "x", "i", "o"]

    def test_braces_that_are_no_placeholder_stay(self, tmp_path: Path) -> None:
        stack = Stack.read(make_stack(tmp_path, "{python} '{ a b }' {input_dir} {output_dir}"))
        assert stack.words(Path("i"), Path("o"), [])[1] == "{ a b }"


class TestRead:
    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{",
            "[]",
            "{}",
            "7",
            '{"command": null}',
            '{"command": 7}',
            '{"command": ["{python}"]}',
            '{"command": "un\'closed"}',
            "[" * 100_000,
        ],
        ids=lambda text: text[:20],
    )
    def test_what_is_no_configuration(self, text: str, tmp_path: Path) -> None:
        (tmp_path / RUNNER_CONFIG).write_text(text)
        (problem,) = problems_of(tmp_path)
        assert problem.startswith(f"{tmp_path / RUNNER_CONFIG} cannot be used")
        assert '{"command": "{python} ..."}' in problem

    def test_no_words(self, tmp_path: Path) -> None:
        assert problems_of(make_stack(tmp_path, " ")) == (
            f"{tmp_path / RUNNER_CONFIG}: command has no words",
        )

    def test_all_problems_at_once(self, tmp_path: Path) -> None:
        problems = problems_of(make_stack(tmp_path, "{pyton} x--{options} {inputdir} {}"))
        assert [problem.partition(": ")[2] for problem in problems] == [
            "command has {pyton}, which is not a placeholder; did you mean 'python' or 'options'?",
            "command has {options} inside a word; it takes a word by itself",
            "command has {inputdir}, which is not a placeholder; did you mean 'input_dir' or 'output_dir'?",
            "command has {}, which is not a placeholder; "
            "available: input_dir, options, output_dir, python, stack_dir",
            "command has no {input_dir}",
            "command has no {output_dir}",
        ]

    def test_missing_program_and_scripts(self, tmp_path: Path) -> None:
        command = "no-such-program {stack_dir}/a.py {stack_dir}/b.py {input_dir} {output_dir}"
        problems = problems_of(make_stack(tmp_path, command))
        assert [problem.partition(": ")[2] for problem in problems] == [
            "command starts with no-such-program, which cannot be run",
            f"there is no {tmp_path / 'a.py'}",
            f"there is no {tmp_path / 'b.py'}",
        ]

    def test_a_missing_script(self, tmp_path: Path) -> None:
        (problem,) = problems_of(make_stack(tmp_path, script=None))
        assert f"there is no {tmp_path / 'train.py'}" in problem


class TestFind:
    def test_ours(self) -> None:
        stack = Stack.find(DEFAULT_STACK)
        assert (stack.name, stack.takes_options) == ("hf_diffusers", True)
        assert stack.folder == RUN_TUNING.parent

    def test_one_beside_it_needs_a_folder_only(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stacks, "STACKS", tmp_path)
        make_stack(tmp_path / "second")
        stack = Stack.find("second")
        assert (stack.name, stack.folder) == ("second", tmp_path / "second")

    @pytest.mark.parametrize("name", [name for name in HOSTILE_NAMES if name != "..."])
    def test_one_elsewhere_is_named_by_its_path(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_stack(tmp_path / name)
        monkeypatch.chdir(tmp_path)
        for path in (str(tmp_path / name), f"./{name}", f"{name}/"):
            assert Stack.find(path).folder == tmp_path / name
        with pytest.raises(UsageError, match="type its path, with a"):
            Stack.find(name)

    def test_misspelt(self) -> None:
        with pytest.raises(UsageError, match=r"--stack hf_difusers: .*did you mean 'hf_diffusers'\?"):
            Stack.find("hf_difusers")

    @pytest.mark.parametrize("name", ["", ".", "..", "/", "/nowhere/at/all", "x" * 300])
    def test_nothing_there(self, name: str) -> None:
        with pytest.raises(UsageError, match=RUNNER_CONFIG):
            Stack.find(name)


def run(shim: Path, *words: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(shim), *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )


class TestAsProgram:
    def test_ours_is_valid_from_anywhere(self, tmp_path: Path) -> None:
        for shim, cwd in ((RUN_TUNING, tmp_path), (Path(os.path.relpath(RUN_TUNING, ROOT)), ROOT)):
            done = run(shim, "--check-only", cwd=cwd)
            assert (done.returncode, done.stderr) == (0, "")
            assert str(RUN_TUNING.parent / RUNNER_CONFIG) in done.stdout
        assert list(tmp_path.iterdir()) == []

    def test_check_only_names_every_problem(self, tmp_path: Path) -> None:
        shim = make_shim(make_stack(tmp_path, "{pyhton} {input_dir}"))
        done = run(shim, "--check-only", cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.count("error: ") == 2
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize("name", ["O'Keeffe; {x}", "-leading-dash", "two\nlines", "--output-dir"])
    def test_a_second_stack_gets_everything_unharmed(self, name: str, tmp_path: Path) -> None:
        shim = make_shim(make_stack(tmp_path / "stack"))
        config = TuningConfig(instance_prompt="--check-only 'x' {y}\n", cache_dir="-h")
        words = [f"--input-dir={name}", f"--output-dir={name}/x", *option_words(config)]
        done = run(shim, *words, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout) == [name, f"{name}/x", *option_words(config)]

    def test_the_exit_code_is_that_of_the_command(self, tmp_path: Path) -> None:
        shim = make_shim(make_stack(tmp_path, script="import sys; print('no', file=sys.stderr); sys.exit(3)"))
        done = run(shim, "--input-dir=i", "--output-dir=o", cwd=tmp_path)
        assert (done.returncode, done.stderr) == (3, "no\n")

    def test_wrong_words(self, tmp_path: Path) -> None:
        shim = make_shim(make_stack(tmp_path, "{python} {stack_dir}/train.py {input_dir} {output_dir}"))
        done = run(shim, "--input-dir=i", cwd=tmp_path)
        assert done.returncode == 2
        assert "--input-dir and --output-dir are needed" in done.stderr
        done = run(shim, "--input-dir=i", "--output-dir=o", "--rank=4", "surplus", cwd=tmp_path)
        assert done.returncode == 2
        assert "takes no options, and got --rank=4 surplus" in done.stderr

    def test_a_stop_signal_reaches_the_command(self, tmp_path: Path) -> None:
        script = (
            "import os, signal, sys, time\n"
            "def stop(number, frame):\n"
            "    open('stopped', 'w').write(str(number)); os._exit(0)\n"
            "signal.signal(signal.SIGTERM, stop)\n"
            "print('ready', flush=True)\n"
            "time.sleep(60)\n"
        )
        shim = make_shim(make_stack(tmp_path, script=script))
        words = [sys.executable, str(shim), "--input-dir=i", "--output-dir=o"]
        with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=40)
        assert process.returncode == 143
        assert (tmp_path / "stopped").read_text() == str(int(signal.SIGTERM))


TEXT = """\
from mimicry.tuning.adapters.weights import AdapterFormat
from mimicry.tuning.stacks import StackTraits

TRAITS = StackTraits(hub_prefix="sd15-lora", adapter_format=AdapterFormat(components=("unet",)))
"""
# As somebody may write it: with annotations as texts, and a value of its own.
SUBCLASS = """\
from __future__ import annotations

from dataclasses import dataclass

from mimicry.tuning.stacks import StackTraits


@dataclass(frozen=True, kw_only=True)
class Traits(StackTraits):
    size: int = 7

    def disk_bytes(self, config: object, adapter_count: int) -> int:
        return self.size * adapter_count


TRAITS = Traits(hub_prefix="mine")
"""


def with_stack_module(folder: Path, text: str | None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RUNNER_CONFIG).write_text(json.dumps({"command": "{python} x {input_dir} {output_dir}"}))
    if text is not None:
        (folder / STACK_MODULE).write_text(text)
    return folder


def problem_of(folder: Path) -> str:
    with pytest.raises(UsageError) as caught:
        Stack.read(folder)
    (problem,) = caught.value.problems
    return problem


class TestDefaults:
    traits = StackTraits(hub_prefix="x")

    def test_any_lora_of_the_recipe_that_is_asked_for(self) -> None:
        config = TuningConfig(rank=7)
        assert self.traits.adapter_format == ANY_LORA
        assert self.traits.adapter_spec(None, OWN_TRAINER) == AdapterSpec()
        spec = self.traits.adapter_spec(config, OWN_TRAINER)
        assert spec == AdapterSpec(recipe=recipe(config, None, OWN_TRAINER))
        assert spec.rank is None

    def test_nothing_is_forbidden_and_logs_take_their_place(self) -> None:
        assert self.traits.problems(None, network=True) == []
        assert self.traits.problems(TuningConfig(), network=False) == []
        assert self.traits.disk_bytes(TuningConfig(), 3) == 3 * LOG_BYTES


class TestLoading:
    def test_ours(self) -> None:
        assert Stack.find("hf_diffusers").traits is TRAITS
        assert TRAITS.hub_prefix == "sd35-lora"
        assert TRAITS.adapter_format.components == ("transformer",)

    @over_hostile_names
    def test_without_a_stack_py(self, hostile_name: str, tmp_path: Path) -> None:
        stack = Stack.read(with_stack_module(tmp_path / hostile_name, None))
        assert stack.traits == StackTraits(hub_prefix=f"{hostile_name}-lora")

    @over_hostile_names
    def test_from_a_stack_py(self, hostile_name: str, tmp_path: Path) -> None:
        stack = Stack.read(with_stack_module(tmp_path / hostile_name, TEXT))
        assert stack.traits.hub_prefix == "sd15-lora"
        assert stack.traits.adapter_format == AdapterFormat(components=("unet",))

    @pytest.mark.parametrize("name", ["second", "sd1.5", "my-stack"])
    def test_from_a_stack_beside_ours(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(stacks, "STACKS", tmp_path)
        with_stack_module(tmp_path / name, TEXT)
        assert Stack.find(name).traits.hub_prefix == "sd15-lora"

    def test_two_of_one_name_have_each_their_own(self, tmp_path: Path) -> None:
        first = Stack.read(with_stack_module(tmp_path / "a" / "same", TEXT))
        second = Stack.read(with_stack_module(tmp_path / "b" / "same", TEXT.replace("sd15", "sd21")))
        assert (first.traits.hub_prefix, second.traits.hub_prefix) == ("sd15-lora", "sd21-lora")

    def test_a_class_of_its_own(self, tmp_path: Path) -> None:
        traits = Stack.read(with_stack_module(tmp_path, SUBCLASS)).traits
        assert traits.hub_prefix == "mine"
        assert traits.disk_bytes(None, 3) == 21


class TestRefused:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("1 / 0", "ZeroDivisionError: division by zero"),
            ("raise RuntimeError('no GPU')", "RuntimeError: no GPU"),
            ("import not_a_module_of_anybody", "ModuleNotFoundError: "),
            ("TRAITS = (", "SyntaxError: "),
            ("", "AttributeError: "),
            ("traits = 1", "AttributeError: "),
        ],
    )
    def test_what_cannot_be_used(self, text: str, words: str, tmp_path: Path) -> None:
        problem = problem_of(with_stack_module(tmp_path, text))
        assert problem.startswith(f"{tmp_path / STACK_MODULE} cannot be used: {words}")
        assert problem.endswith("see docs/stacks.md for what it takes")

    @pytest.mark.parametrize("value", ["None", "{'hub_prefix': 'x'}", "'sd15-lora'"])
    def test_traits_of_another_type(self, value: str, tmp_path: Path) -> None:
        problem = problem_of(with_stack_module(tmp_path, f"TRAITS = {value}\n"))
        assert problem == (
            f"{tmp_path / STACK_MODULE}: TRAITS is {eval(value)!r}; "
            "it takes a StackTraits of mimicry.tuning.stacks"
        )

    def test_the_class_instead_of_an_object(self, tmp_path: Path) -> None:
        text = "from mimicry.tuning.stacks import StackTraits as TRAITS\n"
        assert "it takes a StackTraits" in problem_of(with_stack_module(tmp_path, text))
