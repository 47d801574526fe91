"""What the documents say is so: commands, options, files, links, tables, and the programs in them.

`python -m tests.test_documents` writes the generated tables again.
"""

import importlib
import json
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from safetensors.torch import load_file

import mimicry
from mimicry.cli import program
from mimicry.common.processes import run_command
from mimicry.report.columns import (
    ADAPTER_COLUMNS,
    CONDITION_COLUMNS,
    EFFECT_COLUMNS,
)
from mimicry.study.tree import State
from mimicry.tuning.adapters import (
    ADAPTER_CONFIG,
    METRICS,
    TRAIN_LOG,
    TRAINING_RUN,
    WEIGHTS,
    AdapterFolder,
)
from mimicry.tuning.apply_tuning import apply_tuning
from mimicry.tuning.hf_diffusers.local_dreambooth_lora_sd3_wrapper import wrapper
from mimicry.tuning.options.config import TuningConfig
from mimicry.tuning.options.study_file import StudyFile, all_series
from tests.option_tables import columns_document, options_document, readme_table, study_file_table
from tests.small_study import ANNA, original, output_dir, write_study

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = (
    *("README.md", "CONTRIBUTING.md", "data/README.md"),
    *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").glob("*.md"))),
)
MOST_LINES_OF_README = 140
WRAPPER = "mimicry/tuning/hf_diffusers/local_dreambooth_lora_sd3_wrapper.py"


def subcommands() -> dict[str, click.Command]:
    """Return the subcommands of `mimicry`, as they are typed."""
    context = click.Context(program)
    found = {name: program.get_command(context, name) for name in program.list_commands(context)}
    return {f"mimicry {name}": command for name, command in found.items() if command is not None}


PROGRAMS: dict[str, click.Command] = {
    "apply_tuning": apply_tuning,
    "python mimicry/tuning/apply_tuning.py": apply_tuning,
    f"python {WRAPPER}": wrapper,
    **subcommands(),
}
# Commands that are not ours.
FOREIGN = ("pip", "python -c", "python3", ".", "wait", "for", "done")
# Shell scripts of ours.
SCRIPTS = {path.relative_to(ROOT).as_posix() for path in (ROOT / "benchmarks").glob("*.sh")}
# What is in an adapter's folder, and not in the checkout.
OUTPUTS = {WEIGHTS, ADAPTER_CONFIG, TRAINING_RUN, METRICS, TRAIN_LOG}
# Files that are named and are not in the checkout: of the user, of another project, or made by a program.
ELSEWHERE = {
    *("metadata.jsonl", "quarantine.json", "progress/progress_tracker.json", ".claim.json", "stack.py"),
    *("study.toml", "sd15/runner_config.json", "sd15/train.py", "sd15/stack.py"),
    "report.json",
}
FOLDERS = ("mimicry", "tests", "benchmarks", "tools", "docs", "data")
# The tables that are written from the code.
GENERATED: dict[tuple[str, str], Callable[[], str]] = {
    ("README.md", "from mimicry/tuning/options/config.py"): readme_table,
    ("docs/options.md", "from mimicry/tuning/options,"): lambda: f"{options_document()}\n",
    ("docs/study_file.md", "from mimicry/tuning/options/study_file.py"): study_file_table,
    ("docs/report.md", "columns of adapters.csv"): lambda: columns_document(ADAPTER_COLUMNS),
    ("docs/report.md", "columns of effects.csv"): lambda: columns_document(EFFECT_COLUMNS),
    ("docs/report.md", "columns of conditions.csv"): lambda: columns_document(CONDITION_COLUMNS),
}
TINY_MODEL = ROOT / "mimicry" / "demo" / "weights" / "tiny_sd3"

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
_LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def read(document: str) -> str:
    return (ROOT / document).read_text("utf-8")


def blocks(document: str, kind: str) -> list[str]:
    """Return the fenced blocks of this language."""
    return [block for language, block in _FENCE.findall(read(document)) if language == kind]


def spans(document: str) -> list[str]:
    """Return the inline code of a document."""
    return _SPAN.findall(_FENCE.sub("", read(document)))


def marked(document: str, title: str) -> str:
    """Return what lies between the marker comment that begins with `title` and its end."""
    (found,) = re.findall(rf"<!-- {re.escape(title)}[^>]*-->\n(.*?)<!-- end -->", read(document), re.DOTALL)
    return str(found)


def first_column(table: str) -> list[str]:
    """Return the code in the first column of a table."""
    return re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)


def commands(document: str) -> Iterator[list[str]]:
    """Yield the words of every command: those in shell blocks, and the programs of ours in inline code."""
    lines = "\n".join(blocks(document, "bash")).replace("\\\n", " ").splitlines()
    for line in lines:
        words = shlex.split(line.rstrip(" &"), comments=True)
        if words:
            yield words
    for span in spans(document):
        if span in PROGRAMS:
            continue  # a name, and not a command
        if span.startswith((".venv/bin/python -m", "OMP_NUM_THREADS", "make ", "mimicry ", "apply_tuning -")):
            yield shlex.split(span)


def without_variables(words: list[str]) -> list[str]:
    """Return a command without what is set before it, as in NAME=value command."""
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    return words


def options_of(command: click.Command) -> set[str]:
    return {
        flag for option in command.params for flag in (*option.opts, *option.secondary_opts) if flag[0] == "-"
    }


def foreign_options() -> set[str]:
    """Return the options of programs that are not click commands, as their sources have them."""
    sources = [
        *(path for room in ("benchmarks", "tools", "tests/chaos") for path in (ROOT / room).rglob("*.py")),
        *(ROOT / script for script in SCRIPTS),
    ]
    stacks = ROOT / "mimicry" / "tuning" / "stacks" / "__init__.py"
    return set(_FLAG.findall("\n".join(path.read_text("utf-8") for path in (*sources, stacks))))


def make_targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):", read("Makefile"), re.MULTILINE))


def refuse_command(words: list[str]) -> None:
    """Make sure that a command would be understood."""
    words = without_variables(words)
    count = 2 if words[0] in ("python", "mimicry") else 1
    name = " ".join(words[:count])
    if words == ["mimicry", "--version"]:
        return
    if words[0] == "make":
        assert {word for word in words[1:] if "=" not in word} <= make_targets(), words
    elif words[:2] == [".venv/bin/python", "-m"]:
        assert words[2] == "pytest" or importlib.util.find_spec(words[2]), words
    elif name in PROGRAMS:
        if "--help" not in words:
            PROGRAMS[name].make_context(name, words[count:])  # raises what the program would say
    else:
        assert name in FOREIGN or words[0] in SCRIPTS, f"a command of another program: {shlex.join(words)}"


@pytest.mark.parametrize(("document", "title"), GENERATED)
def test_generated_tables_are_those_of_the_code(document: str, title: str) -> None:
    wanted = GENERATED[document, title]().strip()

    assert marked(document, title).strip() == wanted, "type .venv/bin/python -m tests.test_documents"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_can_be_parsed(document: str) -> None:
    for words in commands(document):
        refuse_command(words)


def test_the_documents_show_every_program() -> None:
    shown = {
        " ".join(words[: 2 if words[0] in ("python", "mimicry") else 1])
        for document in DOCUMENTS
        for words in map(without_variables, commands(document))
    }

    assert set(PROGRAMS) - {"mimicry tune"} <= shown


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_option_that_is_named_exists(document: str) -> None:
    text = "\n".join(line for line in read(document).splitlines() if "pip install" not in line)
    known = {"--help", "--version", "--x", "--no-x"}.union(*map(options_of, PROGRAMS.values()))

    assert set(_FLAG.findall(text)) - known - foreign_options() == set()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_and_package_that_is_named_exists(document: str) -> None:
    files = [path.as_posix() for name in FOLDERS for path in (ROOT / name).rglob("*.*")]
    missing = []
    for name in spans(document):
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*/?", name) or name in OUTPUTS | ELSEWHERE or "NAME" in name:
            continue
        is_folder = name.endswith("/") and name.partition("/")[0] in FOLDERS and not name.startswith("data/")
        is_file = re.search(r"\.(py|json|jsonl|yaml|toml|txt|example|md)$", name)
        found = (ROOT / name).exists() or any(path.endswith(f"/{name}") for path in files)
        if (is_folder or (is_file and not name.startswith("data/"))) and not found:
            missing.append(name)

    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_leads_somewhere(document: str) -> None:
    links = _LINK.findall(_FENCE.sub("", read(document)))

    assert [link for link in links if not (ROOT / document).parent.joinpath(link).exists()] == []


def test_every_document_is_linked_from_the_readme() -> None:
    links = set(_LINK.findall(read("README.md")))

    assert {document for document in DOCUMENTS if document.startswith("docs/")} <= links


def test_the_readme_is_short() -> None:
    assert len(read("README.md").splitlines()) <= MOST_LINES_OF_README


def test_the_readme_names_every_file_of_an_adapter() -> None:
    (block,) = (block for _, block in _FENCE.findall(read("README.md")) if WEIGHTS in block)

    assert sorted(name for name in OUTPUTS if name not in block) == []


def test_every_package_has_a_row() -> None:
    listed = re.findall(r"^\| `(mimicry/[\w/]*)` \|", read("CONTRIBUTING.md"), re.MULTILINE)
    packages = {
        path.parent.relative_to(ROOT).as_posix() + "/" for path in (ROOT / "mimicry").rglob("__init__.py")
    }

    assert sorted(listed) == sorted(packages - {"mimicry/"})


def test_every_state_has_a_row() -> None:
    assert first_column(marked("docs/adapters.md", "states from")) == [state.value for state in State]


@dataclass(frozen=True)
class Trained:
    """An adapter that the wrapper has trained on the demo's model, and the model."""

    adapter: Path
    base_model: Path

    def scope(self, code: str) -> dict[str, Any]:
        """Run a program of the documents on this adapter and model, and return its variables."""
        for name, path in (("adapter", self.adapter), ("base_model", self.base_model)):
            code, count = re.subn(rf'^{name} = ".*"$', f"{name} = {str(path)!r}", code, flags=re.MULTILINE)
            assert count == 1
        scope: dict[str, Any] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries, about their own future
            exec(code, scope)
        return scope


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    tree = write_study(tmp_path_factory.mktemp("documents") / "study", artists=[ANNA])
    adapter = output_dir(tree)
    words = (
        *(f"--input-dir={original(tree)}", f"--output-dir={adapter}", f"--eval-data-dir={original(tree)}"),
        *(f"--pretrained-model-name-or-path={TINY_MODEL}", "--no-push-to-hub"),
        *("--resolution=32", "--rank=4", "--max-train-steps=2", "--learning-rate=0.01"),
        *("--mixed-precision=no", "--max-sequence-length=24"),
    )
    done = subprocess.run(
        [sys.executable, ROOT / WRAPPER, *words], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Trained(adapter, TINY_MODEL)


def test_every_key_of_a_record_has_a_row(trained: Trained) -> None:
    record = json.loads((trained.adapter / TRAINING_RUN).read_text("utf-8"))

    assert sorted(first_column(marked("docs/adapters.md", "keys of a record"))) == sorted(record)


def test_every_stage_of_a_run_has_a_row() -> None:
    """Those of the code, since no run has all of them."""
    named = {
        name
        for path in (ROOT / "mimicry/tuning/hf_diffusers").rglob("*.py")
        for name in re.findall(r'\.stage\("(\w+)"\)', path.read_text("utf-8"))
    }

    assert sorted(first_column(marked("docs/adapters.md", "stages of a run"))) == sorted(named)


def test_the_program_for_diffusers_runs(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = (block for block in blocks("docs/adapters.md", "python") if "load_lora_weights" in block)

    scope = trained.scope(code)

    assert scope["image"].size == (32, 32)
    assert (tmp_path / "sample.png").exists()
    loaded = {name for name, _ in scope["pipeline"].transformer.named_parameters() if ".lora_" in name}
    assert len(loaded) == len(load_file(trained.adapter / WEIGHTS))


def test_the_program_for_peft_runs(trained: Trained) -> None:
    (code,) = (block for block in blocks("docs/adapters.md", "python") if "get_peft_model" in block)

    scope = trained.scope(code)

    saved = load_file(trained.adapter / WEIGHTS)
    loaded = {
        name.replace(".default.", ".").replace("base_model.model.", "transformer.", 1): value
        for name, value in scope["model"].named_parameters()
        if ".lora_" in name
    }
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[name].to(value.dtype), value) for name, value in saved.items())


def test_the_example_of_a_stack_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, kind, sign in (
        ("runner_config.json", "json", '"command"'),
        ("train.py", "python", "sys.argv"),
        ("stack.py", "python", "TRAITS ="),
    ):
        (content,) = (block for block in blocks("docs/stacks.md", kind) if sign in block)
        (tmp_path / "sd15").mkdir(exist_ok=True)
        (tmp_path / "sd15" / name).write_text(content)
    tree = write_study(tmp_path / "data" / "style_mimicry", artists=[ANNA])

    (shell,) = (block for block in blocks("docs/stacks.md", "bash") if "./sd15" in block)
    for line in shell.splitlines():
        words = shlex.split(line)
        count = 2 if words[0] == "mimicry" else 1
        assert run_command(PROGRAMS[" ".join(words[:count])], words[count:]) == 0

    said = capsys.readouterr().out
    assert "1 trained" in said
    assert "1 complete; 0 problems with images" in said
    assert "sd15-lora-none-none-Anna_Berg" in said
    record = AdapterFolder(output_dir(tree, stack="sd15")).run
    assert record is not None
    assert record.steps == 10


def test_the_example_of_a_study_file_is_one(tmp_path: Path) -> None:
    (text,) = blocks("docs/study_file.md", "toml")
    path = tmp_path / "study.toml"
    path.write_text(text, "utf-8")

    said = StudyFile.read(path)

    (table,) = re.findall(r"^\| series .*?\n\n", read("docs/study_file.md"), re.MULTILINE | re.DOTALL)
    named = [name for row in table.strip().splitlines()[2:] for name in _SPAN.findall(row.split("|")[1])]
    assert [one.name for one in all_series(TuningConfig(), (), said)] == named


def write_generated_tables() -> None:
    """Write the generated tables into their documents."""
    for (document, title), make in GENERATED.items():
        text = read(document)
        old = marked(document, title)
        begin = text.index(old or "<!-- end -->", text.index(f"<!-- {title}"))
        (ROOT / document).write_text(f"{text[:begin]}{make()}\n{text[begin + len(old) :]}", "utf-8")


if __name__ == "__main__":
    write_generated_tables()
    documents = dict.fromkeys(document for document, _ in GENERATED)
    print(f"written: {', '.join(documents)} of mimicry {mimicry.__version__}")
