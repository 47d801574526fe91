"""The architecture as rules: a list of layers, who may use which library, and how large things may get.

Each failure lists every place that breaks the rule. Change the code, not the rule.
"""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.small_study import write_study
from tools.import_graph import Module, circles, module_graph, read_modules

ROOT = Path(__file__).resolve().parent.parent
STACK = "mimicry.tuning.hf_diffusers"

# Lowest first. A module belongs to the layer that names it, or the closest package around it. It imports only
# from its own layer and lower ones. A new module outside these packages is added here.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("mimicry.common",),
    ("mimicry.study",),
    ("mimicry.tuning.options",),
    ("mimicry.tuning.adapters",),
    ("mimicry.tuning.hub",),
    ("mimicry.tuning.stack_traits", "mimicry.tuning.stacks"),
    ("mimicry.tuning.progress",),
    ("mimicry.tuning.planning",),
    ("mimicry.tuning.execution",),
    ("mimicry.tuning.reports",),
    ("mimicry.report",),
    ("mimicry.tuning.orchestrator",),
    ("mimicry.tuning.apply_tuning", "mimicry.commands"),
    # What the orchestrator asks of the stack, without torch. It loads this by name, from the stack's folder.
    (
        f"{STACK}.spec.base_model",
        f"{STACK}.spec.trainer_args",
        f"{STACK}.spec.lora_modules",
        f"{STACK}.spec.preflight",
        f"{STACK}.stack",
    ),
    (f"{STACK}.training",),
    (f"{STACK}.sd3",),
    (
        f"{STACK}.accelerate_launcher",
        f"{STACK}.foreign_script",
        f"{STACK}.launch",
        f"{STACK}.one_artist",
        f"{STACK}.local_dreambooth_lora_sd3_wrapper",
        f"{STACK}.run_tuning",
        f"{STACK}.train_dreambooth_lora_sd3",
    ),
    ("mimicry.sampling",),
    ("mimicry.demo",),
    ("mimicry.cli",),
)
# Packages that have no use for each other, although their layers would allow it.
STRANGERS = (
    (STACK, "mimicry.tuning.orchestrator"),
    (STACK, "mimicry.tuning.reports.tables"),
    ("mimicry.report", STACK),
    ("mimicry.demo", "mimicry.tuning"),
    ("mimicry.demo", "mimicry.sampling"),
)
# Which modules may name a library at all, inside a function too.
LIBRARIES = {
    **dict.fromkeys(
        ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors.torch"),
        (STACK, "mimicry.sampling", "mimicry.demo"),
    ),
    "submitit": ("mimicry.tuning.execution.slurm", "mimicry.tuning.execution.slurm_task"),
    "huggingface_hub": ("mimicry.tuning.hub", f"{STACK}.spec.base_model"),
}
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
HEAVY = {"torch", "diffusers", "transformers", "peft", "accelerate"}
MOST_LINES_OF_A_FUNCTION = 60
MOST_PROJECT_IMPORTS = 25

FOLDERS = ("mimicry", "tools", "benchmarks", "tests")
# As monkeypatch takes it.
_PRIVATE_PATH = re.compile(r"(mimicry|tools|tests)\.[\w.]*\b_[a-z]\w*", re.IGNORECASE)


@cache
def modules_of(folder: str) -> dict[str, Module]:
    return read_modules(ROOT, folder)


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def layer_of(name: str) -> int | None:
    """Return the number of the layer that names the module, or the closest package around it."""
    found = [
        (len(place), number) for number, layer in enumerate(LAYERS) for place in layer if is_in(name, place)
    ]
    return max(found)[1] if found else None


def named_modules(module: Module) -> set[str]:
    """Return what a module imports, by statement or by a call such as import_module("torch")."""
    names = {f"{imported}.{member}" if member else imported for imported, member in module.imports}
    for node in ast.walk(module.tree):
        match node:
            case ast.Call(
                func=ast.Attribute(attr="import_module" | "find_spec") | ast.Name(id="__import__"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                names.add(name)
    return names


def imports_of(package: str, forbidden: str) -> list[str]:
    """Return the imports of `forbidden` by the modules in `package`, itself left out."""
    return [
        f"{name} imports {imported}"
        for name, module in modules_of(package.partition(".")[0]).items()
        if is_in(name, package) and not is_in(name, forbidden)
        for imported in sorted(named_modules(module))
        if is_in(imported, forbidden)
    ]


def functions_of(folder: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for name, module in modules_of(folder).items():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{name}.{node.name}", node


def none_of(offenders: Iterable[str]) -> None:
    """Fail with every offender on a line of its own."""
    found = sorted(set(offenders))
    if found:
        pytest.fail(f"{len(found)} break this rule:\n  " + "\n  ".join(found), pytrace=False)


def test_every_module_belongs_to_one_layer() -> None:
    modules = modules_of("mimicry")
    places = [place for layer in LAYERS for place in layer]

    assert len(places) == len(set(places))
    none_of(
        f"{place} is a layer without a module"
        for place in places
        if not any(is_in(m, place) for m in modules)
    )
    # A package around several layers is in none of them, and so it is empty.
    none_of(
        f"{name} is in no layer; add it to LAYERS"
        for name, module in modules.items()
        if layer_of(name) is None and not (name == module.package and not module.imports)
    )


def test_imports_point_downwards() -> None:
    none_of(
        f"{name} imports {imported} from a higher layer"
        for name, imports in module_graph(modules_of("mimicry")).items()
        for imported in imports
        if (layer_of(imported) or 0) > (layer_of(name) or 0)
    )


def test_no_modules_import_each_other() -> None:
    none_of(" and ".join(group) for group in circles(module_graph(modules_of("mimicry"))))


@pytest.mark.parametrize(("package", "forbidden"), STRANGERS)
def test_strangers_do_not_meet(package: str, forbidden: str) -> None:
    none_of(imports_of(package, forbidden))


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_has_its_place(library: str) -> None:
    none_of(
        line
        for line in imports_of("mimicry", library)
        if not any(is_in(line.partition(" ")[0], place) for place in LIBRARIES[library])
    )


@pytest.mark.parametrize("place", NAMES_ON_DISK)
def test_a_name_on_disk_has_its_place(place: str) -> None:
    none_of(
        f"{name}, line {node.lineno} writes out {node.value!r}"
        for folder in ("mimicry", "benchmarks")
        for name, module in modules_of(folder).items()
        if not is_in(name, place)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Constant) and node.value in NAMES_ON_DISK[place]
    )


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        *(("mimicry", folder) for folder in ("tests", "benchmarks", "tools")),
        *(("tools", folder) for folder in ("tests", "benchmarks")),
    ],
)
def test_what_is_shipped_needs_nothing_else(package: str, forbidden: str) -> None:
    none_of(imports_of(package, forbidden))


def test_benchmarks_are_imported_by_their_own_tests_alone() -> None:
    found = imports_of("tests", "benchmarks")
    none_of(line for line in found if not line.startswith("tests.benchmarks."))


def programs() -> set[str]:
    """Return the modules that are run: console scripts, and those that say so at their end."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    return {target.partition(":")[0] for target in scripts.values()} | {
        name
        for name, module in modules_of("mimicry").items()
        for node in module.tree.body
        if isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)
    }


def test_nothing_imports_a_program() -> None:
    found = programs()

    assert found >= {"mimicry.cli", "mimicry.tuning.apply_tuning", f"{STACK}.run_tuning"}
    none_of(line for program in found for line in imports_of("mimicry", program))


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_import_is_relative(folder: str) -> None:
    none_of(
        f"{name} imports {imported}"
        for name, module in modules_of(folder).items()
        for imported, _ in module.imports
        if imported.startswith(".")
    )


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_tests_import_no_private_name() -> None:
    none_of(
        f"{name} imports {member} from {imported}"
        for name, module in modules_of("tests").items()
        for imported, member in module.imports
        if imported.partition(".")[0] in FOLDERS and (is_private(member) or "._" in imported)
    )


def private_names(tree: ast.Module) -> set[str]:
    """Return the private names that a module defines: functions, classes, variables, attributes."""
    names = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                names.add(name)
    return set(filter(is_private, names))


def private_uses(tree: ast.Module, private: set[str]) -> Iterator[str]:
    """Yield where one of the `private` names is used on another object than self, or named in a string."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=owner, attr=name) if name in private and ast.unparse(owner) != "self":
                yield f"line {node.lineno} uses {ast.unparse(node)}"
            case ast.Call(
                func=ast.Attribute(attr="setattr" | "delattr")
                | ast.Name(id="getattr" | "setattr" | "delattr"),
                args=[_, ast.Constant(value=str(name)), *_],
            ) if name in private:
                yield f"line {node.lineno} sets or reads {name!r}"
            case ast.Constant(value=str(text)) if _PRIVATE_PATH.fullmatch(text):
                yield f"line {node.lineno} names {text!r}"


def test_the_reader_of_private_uses_misses_none() -> None:
    ours = "_A = 1\ndef _f(): ...\nclass _C:\n    _field: int = 0\n    def __init__(self): self._x = 1\n"
    private = private_names(ast.parse(ours))
    source = (
        "a._f.b\nself._x\nos._exit(0)\nrow._replace()\nm.setattr(a, '_A', 1)\ngetattr(a, '_field')\n"
        "m.setattr('mimicry.g._h', 1)\n'mimicry.g.h'\n"
    )

    assert private == {"_A", "_f", "_C", "_field", "_x"}
    assert sorted(use.split()[1] for use in private_uses(ast.parse(source), private)) == ["1", "5", "6", "7"]


def test_tests_reach_into_nothing_private() -> None:
    ours = (module for folder in ("mimicry", "tools") for module in modules_of(folder).values())
    private = {name for module in ours for name in private_names(module.tree)}
    none_of(
        f"{name}, {use}"
        for name, module in modules_of("tests").items()
        # A test may have a private name of its own that happens to be called like one of ours.
        for use in private_uses(module.tree, private - private_names(module.tree))
    )


@pytest.mark.parametrize("folder", ["mimicry", "tools", "benchmarks"])
def test_functions_are_short(folder: str) -> None:
    none_of(
        f"{name} has {count} lines; a function has at most {MOST_LINES_OF_A_FUNCTION}"
        for name, node in functions_of(folder)
        if (count := (node.end_lineno or 0) - node.lineno + 1) > MOST_LINES_OF_A_FUNCTION
    )


@pytest.mark.parametrize("folder", ["mimicry", "tools", "benchmarks"])
def test_modules_import_few_others(folder: str) -> None:
    known = {name: module for other in FOLDERS for name, module in modules_of(other).items()}
    graph = module_graph(known)
    none_of(
        f"{name} imports {len(graph[name])} modules of the project; at most {MOST_PROJECT_IMPORTS}"
        for name in modules_of(folder)
        if len(graph[name]) > MOST_PROJECT_IMPORTS
    )


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
