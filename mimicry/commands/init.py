"""`mimicry init`: write a study.toml from what is in the tree."""

import json
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimicry.common.errors import UsageError
from mimicry.common.files import write_bytes
from mimicry.common.text import printable, shell_line
from mimicry.study import (
    ALL,
    DEFAULT_DATA_ROOT,
    NONE,
    ChosenConditions,
    Condition,
    StudyTree,
    default_prompts,
    folders_in,
)
from mimicry.tuning.options.click_options import CALL, data_root_option, option, program
from mimicry.tuning.options.config import OPTIONS, TuningConfig

# Hyper-parameters that the file shows beside the main ones.
_ALSO_SHOWN = ("pretrained_model_name_or_path", "hold_out")
_WIDTH = 100


@dataclass(frozen=True)
class _Name:
    """A protection or countermeasure with a folder; `problem` says why it is written as a comment only."""

    name: str
    found: str
    problem: str = ""

    @property
    def line(self) -> str:
        """The name in a list of the file, with what was found."""
        if self.problem:
            return f"    # {printable(self.name)}: {printable(self.problem)}"
        return f"    {_toml(self.name)},  # {self.found}"


@dataclass(frozen=True)
class _Found:
    """What the tree has: artists of the original art, and names of both kinds."""

    artists: int
    groups: int
    protections: tuple[_Name, ...]
    countermeasures: tuple[_Name, ...]

    @classmethod
    def of(cls, tree: StudyTree) -> "_Found":
        """Look at the tree.

        Raises:
            UsageError: it has no original art.
        """
        root = tree.source(Condition()).root
        artists = tree.artists(root)
        if not artists:
            raise UsageError(
                f"there is no artist in {root}; put images there as SPLIT/STYLE/ARTIST/*.jpg, or name "
                f"another tree with --data-root"
            )
        conditions = ChosenConditions.choose(tree, needed=False)
        return cls(
            len(artists),
            len({(artist.split, artist.style) for artist in artists}),
            tuple(_protections(tree)),
            tuple(_countermeasures(tree, conditions)),
        )

    def lines(self) -> list[str]:
        """Return what was found, for people."""
        lines = [f"{_artists(self.artists)} of original art, in {self.groups} splits and styles"]
        for what, names in (("protection", self.protections), ("countermeasure", self.countermeasures)):
            lines += [f"{what} {printable(one.name)}: {printable(one.problem or one.found)}" for one in names]
        return lines


@program("init")
@data_root_option
@option("--dry-run", topic=CALL, is_flag=True, help="Print the file; write nothing.")
def init(data_root: Path, dry_run: bool) -> None:
    """Write study.toml into the data root: what is in the tree, and the defaults as comments.

    apply_tuning and the other programs take their defaults from this file. It is yours to change, and is
    never written over.
    """
    tree = StudyTree(data_root)
    path = tree.study_file
    if not dry_run and (path.exists() or path.is_symlink()):
        raise UsageError(
            f"{path} is there already, and was not changed; type mimicry init --dry-run to see what would be "
            f"written now"
        )
    found = _Found.of(tree)
    text = study_text(found.artists, found.protections, found.countermeasures)
    if dry_run:
        print(text, end="")
        return
    try:
        write_bytes(path, text.encode())
    except PermissionError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror}; get write permission for {data_root}, or type "
            f"mimicry init --dry-run and put what it prints elsewhere, for --study FILE"
        ) from error
    words = [] if data_root == DEFAULT_DATA_ROOT else ["--data-root", str(data_root)]
    print("\n".join(f"found    {line}" for line in found.lines()))
    print(f"written  {path}")
    print(f"next     {shell_line(['apply_tuning', *words, '--dry-run'])}")


def _protections(tree: StudyTree) -> Iterator[_Name]:
    for name in folders_in(tree.protected_art):
        found = _artists(len(tree.artists(tree.protected_art / name)))
        yield _Name(name, found, _name_problem(tree, Condition(protection=name)))


def _countermeasures(tree: StudyTree, conditions: ChosenConditions) -> Iterator[_Name]:
    for name in folders_in(tree.robust_samples):
        found = [
            f"{_artists(len(tree.artists(tree.source(one).root)))} of {printable(one.protection)}"
            for one in conditions.present
            if one.countermeasure == name
        ]
        reasons = [reason for one, reason in conditions.absent if one.countermeasure == name]
        problem = _name_problem(tree, Condition(countermeasure=name))
        yield _Name(name, ", ".join(found), problem or ("" if found else next(iter(reasons), "no images")))


def _name_problem(tree: StudyTree, condition: Condition) -> str:
    """Return why a folder's name cannot stand in the file; empty if it can."""
    if ALL in (condition.protection, condition.countermeasure):
        return f"{ALL} stands for every name; call the folder otherwise"
    try:
        str(condition).encode()
        tree.check_names(condition)
    except UnicodeEncodeError:
        return "its name is not text in UTF-8"
    except UsageError as error:
        return str(error)
    return ""


def _artists(count: int) -> str:
    return "1 artist" if count == 1 else f"{count} artists"


def study_text(artists: int, protections: Sequence[_Name], countermeasures: Sequence[_Name]) -> str:
    """Return a study.toml with these conditions; all else is a comment."""
    lines = [
        "# What this study trains. Every key may be left out; docs/study_file.md explains them all.",
        "",
        "[study]",
        *_list("protections", [_Name(NONE, _artists(artists)), *protections]),
        *_list("countermeasures", [_Name(NONE, "images as they are"), *countermeasures]),
        *_comment("Each cell again with the next seeds, for error bars."),
        "# replicates = 3",
        *_comment("Only the first artist of each split and style."),
        "# pilot = true",
        "# push_to_hub = false",
        "",
        "[recipe]",
        *_comment(
            "The same for all adapters, or they cannot be compared. These are the defaults; any "
            "hyper-parameter may be here. Folders that begin with ./ or ../ are relative to this file's."
        ),
    ]
    for declared in OPTIONS:
        if declared.facts.rationale or declared.name in _ALSO_SHOWN:
            lines.append(f"# {declared.name} = {_toml(declared.default)}")
    lines += [
        "",
        *_comment("A variant is the whole study once more, with what differs."),
        "# [variants.rank-32]",
        "# rank = 32",
        "",
        "[samples]",
        *_comment("What mimicry samples draws with each adapter."),
        "prompts = [",
        *(f"    {_toml(prompt)}," for prompt in default_prompts(TuningConfig().instance_prompt)),
        "]",
        "seeds = [0]",
    ]
    return "\n".join(lines) + "\n"


def _list(key: str, names: Sequence[_Name]) -> list[str]:
    # The word none is the first of the list, whatever has a folder of that name.
    first, *others = names
    return [f"{key} = [", first.line, *(one.line for one in others if one.name != NONE), "]"]


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ")


def _toml(value: Any) -> str:
    # JSON leaves the character 127 as it is, which TOML does not take.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
