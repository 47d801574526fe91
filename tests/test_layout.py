"""The rules between the rooms, told from the imports: one way only, and nothing slow for --help."""

import ast
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.small_study import write_study

ROOT = Path(__file__).resolve().parent.parent
TUNING = "mimicry.tuning"
STACK = "mimicry.tuning.hf_diffusers"
DEMO = "mimicry.demo"
SAMPLING = "mimicry.sampling"
PROGRAMS = {
    f"{TUNING}.apply_tuning",
    f"{TUNING}.hub.preflight_child",
    f"{TUNING}.hub.upload_child",
    f"{STACK}.local_dreambooth_lora_sd3_wrapper",
    f"{STACK}.run_tuning",
    f"{STACK}.train_dreambooth_lora_sd3",
    f"{DEMO}.draw_demo",
    f"{SAMPLING}.draw_samples",
}
HEAVY = {"torch", "diffusers", "transformers", "peft", "accelerate"}
MOST_LINES = 400


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def imported(source: str) -> set[str]:
    """Return all that `source` imports anywhere: `from a import b` may mean a.b, so both are there."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"a relative import in line {node.lineno}"
            names |= {f"{node.module}", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def is_in(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


MODULES = {
    module_name(path): imported(path.read_text("utf-8")) for path in sorted((ROOT / "mimicry").rglob("*.py"))
}


def offenders(room: str, forbidden: str, but: str | None = None) -> list[str]:
    """Return the imports of `forbidden` by modules in `room`, those in its part `but` left out."""
    return [
        f"{module} imports {name}"
        for module, names in MODULES.items()
        if is_in(module, room) and not (but and is_in(module, but))
        for name in sorted(names)
        if is_in(name, forbidden)
    ]


def test_the_reader_of_imports_misses_none() -> None:
    source = "import a.b, c\nfrom d import e as f\ndef g():\n    if h:\n        from i.j import k\n"

    assert imported(source) == {"a.b", "c", "d", "d.e", "i.j", "i.j.k"}
    assert offenders("mimicry.tuning", "mimicry.common")


def test_nothing_imports_a_program() -> None:
    assert MODULES.keys() >= PROGRAMS
    assert [line for program in sorted(PROGRAMS) for line in offenders("mimicry", program)] == []


@pytest.mark.parametrize(
    ("room", "forbidden", "but"),
    [
        ("mimicry.common", TUNING, None),
        ("mimicry.common", DEMO, None),
        ("mimicry.common", SAMPLING, None),
        (TUNING, STACK, STACK),
        (TUNING, DEMO, None),
        (TUNING, SAMPLING, None),
        ("mimicry", DEMO, DEMO),
        ("mimicry", "tests", None),
        ("mimicry", "benchmarks", None),
    ],
)
def test_imports_run_one_way(room: str, forbidden: str, but: str | None) -> None:
    assert offenders(room, forbidden, but) == []


def loaded_by(code: str, *words: str) -> set[str]:
    """Return the top-level modules that are loaded after `code` in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint('loaded', *sys.modules)", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    names = done.stdout.splitlines()[-1].split()
    assert names[0] == "loaded"
    return {name.partition(".")[0] for name in names[1:]}


def test_apply_tuning_imports_nothing_heavy() -> None:
    loaded = loaded_by("import mimicry.tuning.apply_tuning")

    assert "mimicry" in loaded
    assert loaded & HEAVY == set()


def test_the_program_of_samples_imports_nothing_heavy() -> None:
    loaded = loaded_by("import mimicry.sampling.draw_samples")

    assert "mimicry" in loaded
    assert loaded & HEAVY == set()


def test_a_plan_loads_nothing_heavy(tmp_path: Path, demo_dir: Path) -> None:
    study = write_study(tmp_path / "study")
    code = "import sys, mimicry.tuning.apply_tuning as program\nassert program.main() == 0"

    loaded = loaded_by(
        code,
        f"--data-root={study.data_root}",
        f"--pretrained-model-name-or-path={demo_dir / 'tiny_sd3'}",
        *("--dry-run", "--no-push-to-hub"),
    )

    assert loaded & HEAVY == set()


def test_console_scripts_lead_to_functions() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]

    assert scripts.keys() == {"apply_tuning", "mimicry-demo", "mimicry-samples"}
    for target in scripts.values():
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_files_are_short() -> None:
    lines = {
        path.relative_to(ROOT).as_posix(): len(path.read_text("utf-8").splitlines())
        for room in ("mimicry", "tests", "benchmarks")
        for path in (ROOT / room).rglob("*.py")
    }

    assert len(lines) > 50
    assert {name: count for name, count in lines.items() if count >= MOST_LINES} == {}
