"""The program `mimicry`: its subcommands, and how little it imports to name them."""

import subprocess
import sys

import pytest

import mimicry
from mimicry.cli import program
from mimicry.common.processes import run_command

SUBCOMMANDS = ("init", "tune", "status", "verify", "upload", "samples", "report", "demo")


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(program, ["--version"]) == 0
    assert capsys.readouterr().out == f"mimicry {mimicry.__version__}\n"


def test_help_lists_the_subcommands_and_imports_none_of_them() -> None:
    code = (
        "import sys; from mimicry.cli import main; sys.argv = ['mimicry', '--help']; code = main(); "
        "heavy = {'torch', 'diffusers', 'numpy', 'PIL', 'mimicry.tuning', 'mimicry.demo'}; "
        "print(sorted(heavy & {*sys.modules})); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stderr) == (0, "")
    *shown, imported = done.stdout.splitlines()
    listed = [line.split()[0] for line in shown[shown.index("Commands:") + 1 :] if line[2:3].isalpha()]
    assert listed == list(SUBCOMMANDS)
    assert imported == "[]"


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_subcommand_has_help_of_its_own(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(program, [name, "--help"]) == 0
    assert f" {name} [OPTIONS]" in capsys.readouterr().out


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(program, ["tuna"]) == 2
    assert "No such command" in capsys.readouterr().err
