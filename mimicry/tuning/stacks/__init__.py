"""Stacks: folders with a runner_config.json that says which command trains one artist.

    {"description": "...", "command": "{python} {stack_dir}/train.py {input_dir} {output_dir} {options}"}

The command is split into words as a shell would, and only then are names put in, so that a folder called
`O'Keeffe; {x}` is just a name. {options} is a word by itself and becomes the options of the wrapper of
hf_diffusers; a stack without it is trained with its own settings. What a stack knows of its adapters stands
in its `stack.py`, if it has one, as `TRAITS = StackTraits(hub_prefix="sd15-lora")` or a subclass. See
docs/stacks.md.
"""

import importlib
import importlib.util
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from mimicry.common.errors import MimicryError, UsageError, nearest
from mimicry.common.files import read_json
from mimicry.common.processes import run_command, running_child, stop_with_parent
from mimicry.tuning.adapters import ANY_LORA, AdapterFormat, AdapterSpec
from mimicry.tuning.adapters.recipe import recipe, trainer_identity
from mimicry.tuning.options.config import TuningConfig

# What an artist's log and records take on disk.
LOG_BYTES = 4 << 20


@dataclass(frozen=True, kw_only=True)
class StackTraits:
    """The adapters of a stack: how they are called on the Hub, what they hold, and what they need.

    Methods are given the hyper-parameters, or None where the stack's command takes no {options}.
    """

    hub_prefix: str
    adapter_format: AdapterFormat = ANY_LORA

    def trainer(self, script: Path | None, train_script: Path | None) -> str:
        """Return what tells the trainer from others in a recipe.

        `script` is the first file of the stack's folder in its command, `train_script` is --train-script.
        """
        return trainer_identity(train_script or script)

    def adapter_spec(self, config: TuningConfig | None, trainer: str) -> AdapterSpec:
        """Return what an adapter of `trainer` and `config` should be: rank, and recipe to compare."""
        if config is None:
            return AdapterSpec()
        rank = config.rank if self.adapter_format.one_rank else None
        return AdapterSpec(rank, recipe(config, None, trainer))

    def problems(self, config: TuningConfig | None, *, network: bool) -> list[str]:
        """Return messages, such as that a base model is missing; if there are any, nothing is trained.

        It is not asked when there is nothing to train; a dry run shows the messages as warnings. Without
        `network` only what is quick is checked: no network is asked, no images are decoded.
        """
        return []

    def warnings(self, config: TuningConfig | None) -> list[str]:
        """Return what is allowed on this machine and most likely not meant; shown with the plan, and kept."""
        return []

    def disk_bytes(self, config: TuningConfig | None, adapter_count: int) -> int:
        """Return about how much so many adapters take on disk, with the checkpoints of one in training."""
        return adapter_count * LOG_BYTES

    def host_bytes(self, config: TuningConfig | None) -> int:
        """Return about how much host memory a training takes when it reads its model; 0: not known.

        Where trainings run side by side, the next one begins when that much is free.
        """
        return 0


RUNNER_CONFIG = "runner_config.json"
STACK_MODULE = "stack.py"
# Stacks lie beside this package.
STACKS = Path(__file__).resolve().parent.parent
_OPTIONS = "{options}"
_PLACEHOLDER = re.compile(r"\{(\w*)\}")
_NEEDED = ("input_dir", "output_dir")
_KNOWN = ("python", "stack_dir", *_NEEDED)
_GRACE_SECONDS = 20.0


@dataclass(frozen=True)
class Stack:
    """A way of training: the words of its command, with placeholders."""

    name: str
    folder: Path
    template: tuple[str, ...]
    traits: StackTraits

    @property
    def takes_options(self) -> bool:
        return _OPTIONS in self.template

    @property
    def script(self) -> Path | None:
        """The first file of the stack's folder in its command; None when there is none."""
        return next(iter(self._scripts()), None)

    def problems(self, config: TuningConfig | None, *, network: bool) -> list[str]:
        """Return what the stack itself says that forbids training; see `StackTraits.problems`.

        Raises:
            UsageError: its stack.py failed, or returned something else than a list of messages.
        """
        try:
            found = self.traits.problems(config, network=network)
        except Exception as error:
            if isinstance(error, MimicryError) or self.folder.parent == STACKS:
                raise
            raise UsageError(
                f"{self.folder / STACK_MODULE}: problems() failed: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(found, list) or not all(isinstance(problem, str) for problem in found):
            raise UsageError(
                f"{self.folder / STACK_MODULE}: problems() returned {found!r}; it takes a list of messages"
            )
        return found

    @classmethod
    def find(cls, name: str) -> "Stack":
        """Return the stack of that name beside this module, or in the folder of that path.

        Raises:
            UsageError: there is none, or its runner_config.json is wrong.
        """
        folder = Path(name) if "/" in name else STACKS / name
        if not os.path.isfile(folder / RUNNER_CONFIG):  # noqa: PTH113 - a name may be too long for a file
            known = [path.parent.name for path in STACKS.glob(f"*/{RUNNER_CONFIG}")]
            raise UsageError(
                f"--stack {name}: there is no {folder / RUNNER_CONFIG}; {nearest(folder.name, known)}; "
                f"for a stack in another folder type its path, with a /"
            )
        return cls.read(folder.resolve())

    @classmethod
    def read(cls, folder: Path) -> "Stack":
        """Read and check the runner_config.json in `folder`.

        Raises:
            UsageError: everything that is wrong with it.
        """
        path = folder / RUNNER_CONFIG
        try:
            command = read_json(path)["command"]
            if not isinstance(command, str):
                raise TypeError(f"command is {command!r}")  # noqa: TRY301 - one message for all of these
            template = tuple(shlex.split(command))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UsageError(
                f'{path} cannot be used: {error!r}; it takes {{"command": "{{python}} ..."}}'
            ) from error
        stack = cls(folder.name, folder, template, _read_traits(folder))
        problems = [f"{path}: {problem}" for problem in stack._problems()]
        if problems:
            raise UsageError(*problems)
        return stack

    def words(self, input_dir: Path, output_dir: Path, options: Sequence[str]) -> list[str]:
        values = self._values() | {"input_dir": str(input_dir), "output_dir": str(output_dir)}
        words: list[str] = []
        for word in self.template:
            words += options if word == _OPTIONS else [_fill(word, values)]
        return words

    def _values(self) -> dict[str, str]:
        return {"python": sys.executable, "stack_dir": str(self.folder), **dict.fromkeys(_NEEDED, "")}

    def _problems(self) -> list[str]:
        if not self.template:
            return ["command has no words"]
        names = [name for word in self.template if word != _OPTIONS for name in _PLACEHOLDER.findall(word)]
        problems = [
            f"command has {{{name}}}, which is not a placeholder; {nearest(name, [*_KNOWN, 'options'])}"
            if name != "options"
            else "command has {options} inside a word; it takes a word by itself"
            for name in names
            if name not in _KNOWN
        ]
        problems += [f"command has no {{{name}}}" for name in _NEEDED if name not in names]
        return problems or self._missing_files()

    def _missing_files(self) -> list[str]:
        program = _fill(self.template[0], self._values())
        problems = [] if shutil.which(program) else [f"command starts with {program}, which cannot be run"]
        return problems + [f"there is no {script}" for script in self._scripts() if not script.exists()]

    def _scripts(self) -> list[Path]:
        # Only a script in the stack's own folder is known to be a file.
        values = self._values()
        words = [_fill(word, values) for word in self.template[1:] if word != _OPTIONS]
        return [Path(word) for word in words if word.startswith(values["stack_dir"] + "/")]


def _read_traits(folder: Path) -> StackTraits:
    path = folder / STACK_MODULE
    if not path.exists():
        return StackTraits(hub_prefix=f"{folder.name}-lora")
    try:
        traits = _import_stack_module(path).TRAITS
    # It is somebody's program: anything may come.
    except Exception as error:
        raise UsageError(
            f"{path} cannot be used: {type(error).__name__}: {error}; see docs/stacks.md for what it takes"
        ) from error
    if not isinstance(traits, StackTraits):
        raise UsageError(f"{path}: TRAITS is {traits!r}; it takes a StackTraits of mimicry.tuning.stacks")
    return traits


def _import_stack_module(path: Path) -> ModuleType:
    folder = path.parent
    if folder.parent == STACKS and (folder / "__init__.py").exists():
        return importlib.import_module(f"mimicry.tuning.{folder.name}.{path.stem}")
    spec = importlib.util.spec_from_file_location(f"stack of {folder}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # A dataclass looks its own module up here.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run_stack(folder: Path) -> int:
    """Be the program of the stack in `folder`: run its command for one artist, or check its configuration."""

    @click.command(context_settings={"help_option_names": ["-h", "--help"], "ignore_unknown_options": True})
    @click.option("--check-only", is_flag=True, help=f"Validate {RUNNER_CONFIG} and run nothing.")
    @click.option("--input-dir", type=click.Path(path_type=Path), help="Folder of the images.")
    @click.option("--output-dir", type=click.Path(path_type=Path), help="Folder of the adapter.")
    @click.argument("options", nargs=-1, type=click.UNPROCESSED)
    def run_tuning(
        check_only: bool, input_dir: Path | None, output_dir: Path | None, options: tuple[str, ...]
    ) -> int:
        """Run this stack's command for one artist. Other OPTIONS are handed on to that command."""
        stack = Stack.read(folder)
        if check_only:
            print(f"{stack.folder / RUNNER_CONFIG} is valid: {shlex.join(stack.template)}")
            return 0
        if input_dir is None or output_dir is None:
            raise UsageError("--input-dir and --output-dir are needed; or type --check-only")
        if options and not stack.takes_options:
            raise UsageError(f"stack {stack.name} takes no options, and got {shlex.join(options)}")
        words = stack.words(input_dir, output_dir, options)
        with running_child(words, output=None, environment=os.environ, grace_seconds=_GRACE_SECONDS) as child:
            while (code := child.wait(1.0)) is None:
                pass
            return code

    stop_with_parent()
    return run_command(run_tuning)


def _fill(word: str, values: Mapping[str, Any]) -> str:
    return _PLACEHOLDER.sub(lambda match: str(values[match[1]]), word)
