"""What the contracts in pyproject.toml cannot say: what is loaded by whom, and who writes names on disk."""

import ast
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.small_study import write_study
from tools.import_graph import read_modules

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"torch", "diffusers", "transformers", "peft", "accelerate"}
# Names on disk, and the only package that may write them out. Everybody else asks it for paths.
NAMES_ON_DISK = {
    "mimicry.study.tree": {
        *("original_art", "protected_art", "robust_samples", "mimic_art"),
        *("study.toml", "progress_tracker.json", "quarantine.json", "base_samples", "__"),
    },
    "mimicry.tuning.adapters": {
        *("pytorch_lora_weights.safetensors", "adapter_config.json", "training_run.json"),
        *("metrics.jsonl", "train.log"),
    },
}


@pytest.mark.parametrize("place", NAMES_ON_DISK)
def test_a_name_on_disk_has_its_place(place: str) -> None:
    found = [
        f"{name}, line {node.lineno} writes out {node.value!r}"
        for folder in ("mimicry", "benchmarks")
        for name, module in read_modules(ROOT, folder).items()
        if not f"{name}.".startswith(f"{place}.")
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Constant) and node.value in NAMES_ON_DISK[place]
    ]
    assert found == []


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


@pytest.mark.parametrize("program", ["mimicry.tuning.apply_tuning", "mimicry.sampling.draw_samples"])
def test_a_program_imports_nothing_heavy(program: str) -> None:
    loaded = loaded_by(f"import {program}")

    assert "mimicry" in loaded
    assert loaded & HEAVY == set()


def test_the_help_of_apply_tuning_loads_no_numpy() -> None:
    code = (
        "import sys, mimicry.tuning.apply_tuning as program\n"
        "try:\n    program.main()\nexcept SystemExit as end:\n    assert not end.code"
    )

    loaded = loaded_by(code, "--help")

    assert "mimicry" in loaded
    assert loaded & {*HEAVY, "numpy", "PIL", "huggingface_hub", "safetensors"} == set()


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

    assert scripts.keys() == {"apply_tuning", "mimicry"}
    for target in scripts.values():
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function))
