"""What the documents say is so: the table of defaults, options, commands, paths."""

import re
import shlex
from pathlib import Path

import click
import pytest

from mimicry.sampling.draw_samples import draw_samples
from mimicry.tuning.adapters import folder
from mimicry.tuning.apply_tuning import apply_tuning
from mimicry.tuning.hf_diffusers.local_dreambooth_lora_sd3_wrapper import wrapper
from mimicry.tuning.options.documents import readme_table

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "data/README.md")
WRAPPER = "mimicry/tuning/hf_diffusers/local_dreambooth_lora_sd3_wrapper.py"
PROGRAMS: dict[str, click.Command] = {
    "apply_tuning": apply_tuning,
    "python mimicry/tuning/apply_tuning.py": apply_tuning,
    f"python {WRAPPER}": wrapper,
    "mimicry samples": draw_samples,
}
# What is in an adapter's folder, and not in the checkout.
OUTPUTS = {
    folder.WEIGHTS,
    folder.ADAPTER_CONFIG,
    folder.TRAINING_RUN,
    folder.METRICS,
    folder.TRAIN_LOG,
}

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")


def read(document: str) -> str:
    return (ROOT / document).read_text("utf-8")


def spans(document: str) -> list[str]:
    """Return the inline code of a document."""
    return _SPAN.findall(_FENCE.sub("", read(document)))


def commands(document: str) -> list[list[str]]:
    """Return the words of every command line in the document's shell blocks."""
    lines = "\n".join(block for kind, block in _FENCE.findall(read(document)) if kind == "bash")
    split = (shlex.split(line, comments=True) for line in lines.replace("\\\n", " ").splitlines())
    return [words for words in split if words]


def options_of(command: click.Command) -> set[str]:
    return {
        flag for option in command.params for flag in (*option.opts, *option.secondary_opts) if flag[0] == "-"
    }


def make_targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):", read("Makefile"), re.MULTILINE))


def test_the_table_of_hyper_parameters_is_that_of_the_code() -> None:
    (shown,) = re.findall(r"<!-- from [^>]*-->\n(.*?)\n<!-- end -->", read("README.md"), re.DOTALL)

    assert shown == readme_table(), f"the README's table should be:\n\n{readme_table()}\n"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_option_that_is_named_exists(document: str) -> None:
    known = {"--help"}.union(*map(options_of, PROGRAMS.values()))
    named = set(_FLAG.findall(read(document)))

    assert named - known == set()
    assert document != "README.md" or {"--rank", "--hub-namespace", "--overwrite"} <= named


def test_every_command_of_the_readme_can_be_parsed() -> None:
    tried = dict.fromkeys(PROGRAMS, 0)
    for words in commands("README.md"):
        program = words[0] if words[0] != "python" else " ".join(words[:2])
        if program in PROGRAMS:
            rest = words[1 if words[0] != "python" else 2 :]
            PROGRAMS[program].make_context(program, rest)  # raises what the program would say
            tried[program] += 1
        else:
            assert program == "make", f"a command of another program: {shlex.join(words)}"
            assert words[1] in make_targets()

    assert all(tried.values()), tried


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_target_of_make_that_is_named_exists(document: str) -> None:
    named = {words[1] for span in spans(document) if (words := span.split())[0] == "make"}

    assert named <= make_targets()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_and_room_that_is_named_exists(document: str) -> None:
    files = [path for room in ("mimicry", "tests", "benchmarks") for path in (ROOT / room).rglob("*.*")]
    missing = []
    for name in spans(document):
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*/?", name) or name in OUTPUTS or name.startswith("data/"):
            continue
        is_room = name.endswith("/") and name.partition("/")[0] in ("mimicry", "tests", "benchmarks")
        is_file = re.search(r"\.(py|json|yaml|toml|txt|example|md)$", name)
        found = (ROOT / name).exists() or any(path.as_posix().endswith(f"/{name}") for path in files)
        if (is_room or is_file) and not found:
            missing.append(name)
    links = re.findall(r"\]\(([^)#:]+)\)", read(document))
    missing += [link for link in links if not (ROOT / document).parent.joinpath(link).exists()]

    assert missing == []


def test_the_rooms_are_all_listed() -> None:
    listed = set(re.findall(r"^\| `(mimicry/[\w/]*)` \|", read("CONTRIBUTING.md"), re.MULTILINE))
    rooms = {
        path.parent.relative_to(ROOT).as_posix() + "/" for path in (ROOT / "mimicry").rglob("__init__.py")
    }

    assert rooms - {"mimicry/"} == listed


def test_the_readme_names_every_file_of_an_adapter() -> None:
    (block,) = (block for _, block in _FENCE.findall(read("README.md")) if folder.WEIGHTS in block)

    assert sorted(name for name in OUTPUTS if name not in block) == []
