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
from mimicry.tuning.options.click_options import DEFAULT_STACK, option_words
from mimicry.tuning.options.config import TuningConfig
from mimicry.tuning.stacks import RUNNER_CONFIG, Stack
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
