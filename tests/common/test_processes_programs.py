"""A program's end: exit codes and messages, never a traceback."""

import gc
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import click
import pytest

from mimicry.common.errors import BatchFault, MimicryError, UsageError
from mimicry.common.processes import quick_imports, run_command

ROOT = Path(__file__).parents[2]


@click.command()
@click.option("--number", type=int)
@click.option("--fail", type=click.Choice(["usage", "batch", "plain"]))
def command(number: int | None, fail: str | None) -> int | None:
    """Do as told."""
    if fail is not None:
        kind = {"usage": UsageError, "batch": BatchFault, "plain": MimicryError}[fail]
        raise kind("first problem", "second problem")
    return number


@pytest.fixture(autouse=True)
def no_env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("words", "code"), [([], 0), (["--number", "0"], 0), (["--number", "5"], 5)])
def test_the_exit_code_of_the_command(words: list[str], code: int) -> None:
    assert run_command(command, words) == code


def test_help_is_not_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(command, ["--help"]) == 0
    assert "Do as told." in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [["--nonsense"], ["--number", "x"], ["--fail", "no choice"], ["surplus"], ["--number"]]
)
def test_wrong_words(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(command, words) == 2
    captured = capsys.readouterr()
    assert "Error: " in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(("fail", "code"), [("usage", 2), ("batch", 2), ("plain", 1)])
def test_our_errors(fail: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(command, ["--fail", fail]) == code
    assert capsys.readouterr().err == "error: first problem\nerror: second problem\n"


def test_a_broken_env_file_is_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".env").write_bytes(b"HF_TOKEN=\xff\n")
    assert run_command(command, []) == 2
    assert ".env" in capsys.readouterr().err


def test_a_bug_is_not_hidden() -> None:
    @click.command()
    def faulty() -> None:
        raise ZeroDivisionError("a fault in the code")

    with pytest.raises(ZeroDivisionError):
        run_command(faulty, [])


PROGRAM = """
import sys, time, click
from mimicry.common.processes import run_command

@click.command()
def command():
    print("ready", flush=True)
    sys.stdin.read()
    print("went on", flush=True)

sys.exit(run_command(command))
"""


class TestAsProcess:
    @staticmethod
    def start(tmp_path: Path, *, ignoring: signal.Signals | None = None) -> "subprocess.Popen[str]":
        script = tmp_path / "program.py"
        script.write_text(textwrap.dedent(PROGRAM))
        ignore = ["env", f"--ignore-signal={ignoring.name[3:]}"] if ignoring else []
        process = subprocess.Popen(
            [*ignore, sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    @pytest.mark.parametrize(
        ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
    )
    def test_signals_become_exit_codes(self, number: signal.Signals, code: int, tmp_path: Path) -> None:
        with self.start(tmp_path) as process:
            process.send_signal(number)
            out, err = process.communicate(timeout=20)
        assert process.returncode == code
        assert (out, err) == ("", f"\nstopped by {number.name}\n")

    def test_under_nohup_sighup_stays_ignored(self, tmp_path: Path) -> None:
        with self.start(tmp_path, ignoring=signal.SIGHUP) as process:
            process.send_signal(signal.SIGHUP)
            time.sleep(0.2)
            out, err = process.communicate("go on", timeout=20)
        assert (process.returncode, out, err) == (0, "went on\n", "")

    @staticmethod
    def run(text: str, *words: str, **changes: str) -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(
            [sys.executable, "-c", text, *words],
            capture_output=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), **changes},
            timeout=20,
        )

    def test_names_that_the_terminal_cannot_show(self) -> None:
        done = self.run(
            "import sys, click\n"
            "from mimicry.common.processes import run_command\n"
            "command = click.command()(lambda: print('caf\\udce9 \\u00e9 \\u4e2d'))\n"
            "sys.exit(run_command(command))\n",
            PYTHONIOENCODING="ascii",
        )
        assert done.returncode == 0
        assert done.stdout == b"caf\\udce9 \\xe9 \\u4e2d\n"

    def test_no_garbage_is_collected_at_exit(self) -> None:
        program = (
            "import sys, click\n"
            "from mimicry.common.processes import run_command\n"
            "class Ring:\n"
            "    def __init__(self): self.itself = self\n"
            "    def __del__(self): print('collected')\n"
            "code = run_command(click.command()(lambda: None), []) if sys.argv[1:] else 0\n"
            "Ring()\n"
            "sys.exit(code)\n"
        )
        assert self.run(program).stdout == b"collected\n"
        assert self.run(program, "run").stdout == b""


def test_imports_are_not_collected_meanwhile_nor_later() -> None:
    frozen = gc.get_freeze_count()
    try:
        with quick_imports():
            assert not gc.isenabled()
            made = [[number] for number in range(1000)]
        assert gc.isenabled()
        assert gc.get_freeze_count() >= frozen + len(made)
        assert not any(one is made for one in gc.get_objects())
    finally:
        gc.unfreeze()
