"""What a training is told on command lines: hyper-parameters as flags of the trainer, and its inputs.

Inputs are folders, images that are left out, and notes for the record. The options of the wrapper, the flags
of the trainer, and the argument lists between apply_tuning, wrapper and trainer all come from the fields of
`TrainingInputs`, as those of hyper-parameters come from the fields of `TuningConfig`. Flags are named as in
the diffusers example.
"""

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from mimicry.study import Captions, ImageFolder, Pairing, held_out, hold_out_problem, training_set
from mimicry.tuning.options.config import OPTIONS, TuningConfig
from mimicry.tuning.options.declarations import declare_input

# The other options go to the launcher; the trainer finds them in its environment.
TRAINER_OPTIONS = tuple(option for option in OPTIONS if not option.facts.for_launcher)


def trainer_flags(config: TuningConfig) -> dict[str, list[str]]:
    """Return the words for each flag of the trainer, by option name; a boolean that is off has none.

    Options that go to the launcher are not flags of the trainer.

    A boolean that takes a word is "True", or empty for false: a script that declares it with type=bool, as
    the diffusers example does, takes every other word for true.
    """
    flags = {}
    for option in TRAINER_OPTIONS:
        value = getattr(config, option.name)
        if option.facts.takes_word:
            flags[option.name] = [f"{option.trainer_flag}={value or ''}"]
        elif option.type is bool:
            flags[option.name] = [option.trainer_flag] if value else []
        else:
            flags[option.name] = [] if value is None else [f"{option.trainer_flag}={value}"]
    return flags


def add_trainer_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of all hyper-parameters to the trainer's `parser`.

    A boolean is off unless given; one that takes a word has its default, and is on when given without.
    """
    group = parser.add_argument_group("hyper-parameters")
    for option in TRAINER_OPTIONS:
        facts = option.facts
        text = facts.help.replace("%", "%%")
        if facts.takes_word:
            group.add_argument(
                option.trainer_flag,
                type=_truth,
                nargs="?",
                const=True,
                default=option.default,
                metavar="{true|false}",
                help=f"{text} [default: {option.default}]",
            )
        elif option.type is bool:
            group.add_argument(option.trainer_flag, action="store_true", help=text)
        else:
            group.add_argument(
                option.trainer_flag,
                type=option.convert,
                default=option.default,
                # argparse cannot fold a usage that has brackets in it.
                metavar=option.metavar.replace("[", "{").replace("]", "}"),
                help=text if option.default is None else f"{text} [default: {option.default}]",
            )


def config_from_flags(values: Mapping[str, Any], **launched: Any) -> TuningConfig:
    """Return the configuration for the parsed flags in `values`, and for what the launcher was given."""
    return TuningConfig(**{option.name: values[option.name] for option in TRAINER_OPTIONS}, **launched)


def _truth(word: str) -> Any:
    """Return what `word` says; one that says neither is left for TuningConfig to refuse."""
    return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False, "": False}.get(
        word.casefold(), word
    )


Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Input:
    """One input: its field, the wrapper's option, the trainer's flag, and its help.

    One that `repeats` is text and may be given several times; any other is a folder.
    """

    field: str
    option: str
    flag: str
    help: str
    required: bool
    repeats: bool

    def value(self, parsed: Any) -> Any:
        """Return the field's value for what a command line's parser has found."""
        return tuple(parsed) if self.repeats else parsed

    def words(self, value: Any) -> list[Any]:
        """Return the words that say `value`: one, several where it repeats, or none."""
        if self.repeats:
            return list(value)
        return [] if value is None else [value]


@dataclass(frozen=True, kw_only=True)
class TrainingInputs:
    """What one training works on, beside its hyper-parameters."""

    input_dir: Path = declare_input("--input-dir", "instance_data_dir", "Folder of the images to train on.")
    output_dir: Path = declare_input("--output-dir", "output_dir", "Folder of the adapter.")
    eval_data_dir: Path | None = declare_input(
        "--eval-data-dir",
        "eval_data_dir",
        "Folder of the images to measure the loss on, before and after: the original art.",
        default=None,
    )
    base_samples_dir: Path | None = declare_input(
        "--base-samples-dir",
        "base_samples_dir",
        "Folder of what the base model draws of validation prompts, for many artists; by default the "
        "adapter's own samples/.",
        default=None,
    )
    caption_data_dir: Path | None = declare_input(
        "--caption-data-dir",
        "caption_data_dir",
        "With --captions: folder of the original art, whose captions are used where the images' own "
        "folder has none.",
        default=None,
    )
    pair_with_dir: Path | None = declare_input(
        "--pair-with-dir",
        "pair_with_dir",
        "Folder of the original art that the images were made from: each is paired with its original by "
        "name, compared with it, and draws what it draws.",
        default=None,
    )
    leave_out: tuple[str, ...] = declare_input(
        "--leave-out", "leave_out", "Leave out the images with this stem; may be repeated.", default=()
    )
    notes: tuple[str, ...] = declare_input(
        "--note", "note", "A warning to keep in training_run.json; may be repeated.", default=()
    )

    @classmethod
    def take(cls, parameters: dict[str, Any]) -> "TrainingInputs":
        """Remove the inputs from the parsed `parameters` of a command line, and return them."""
        return cls(**{item.field: item.value(parameters.pop(item.field)) for item in INPUTS})

    def wrapper_words(self) -> list[str]:
        """Return the inputs as options of the wrapper, but for its folders of images and of the adapter.

        The command of a stack has a place of its own for these two.
        """
        return [
            f"{item.option}={word}"
            for item in INPUTS
            if not item.required
            for word in item.words(getattr(self, item.field))
        ]

    def trainer_flags(self) -> dict[str, list[str]]:
        """Return the words for each flag of the trainer, by the flag's name."""
        return {
            item.flag: [f"--{item.flag}={word}" for word in item.words(getattr(self, item.field))]
            for item in INPUTS
        }

    def recorded_paths(self) -> Mapping[str, str | None]:
        """Return the folders as training_run.json has them."""
        paths = {
            item.flag: getattr(self, item.field)
            for item in INPUTS
            if not item.repeats and item.field != "base_samples_dir"
        }
        return {name: None if path is None else str(path.absolute()) for name, path in paths.items()}

    def held_out(self, hold_out: int) -> tuple[str, ...]:
        """Return the stems of the `hold_out` originals that are held out of training in every condition.

        Images that are paired with no folder of originals are the original art themselves.
        """
        originals = self._originals().without(self.leave_out)
        return held_out(originals.stems, hold_out)

    def hold_out_problem(self, hold_out: int) -> str | None:
        """Return why so many paintings cannot be held out; None if they can."""
        originals = self._originals().without(self.leave_out)
        return hold_out_problem(originals, self.read_images(hold_out), hold_out)

    def _originals(self) -> ImageFolder:
        folder = self.input_dir if self.pair_with_dir is None else self.pair_with_dir
        return ImageFolder.read(folder)

    def read_pairing(self, hold_out: int) -> Pairing:
        """List the images to train on, paired with their originals where a folder of these was given.

        Args:
            hold_out: how many of the originals are held out of training.
        """
        return training_set(ImageFolder.read(self.input_dir), self._originals(), self.leave_out, hold_out)

    def read_images(self, hold_out: int) -> ImageFolder:
        """List the images to train on."""
        return self.read_pairing(hold_out).images

    def read_eval_images(self, hold_out: int) -> ImageFolder | None:
        """List the images to measure the loss on, those held out if any are; None when there is no folder."""
        images = self._read(self.eval_data_dir)
        return images if images is None or not hold_out else images.only(self.held_out(hold_out))

    def read_caption_images(self) -> ImageFolder | None:
        """List the original art, whose captions may be used; None when no folder was given."""
        return self._read(self.caption_data_dir)

    def read_captions(self, hold_out: int) -> Captions:
        """Read the captions of the images to train on."""
        return Captions.read(self.read_images(hold_out), self.read_caption_images())

    def _read(self, folder: Path | None) -> ImageFolder | None:
        return None if folder is None else ImageFolder.read(folder).without(self.leave_out)


INPUTS = tuple(
    Input(
        field=item.name,
        required=item.default is dataclasses.MISSING,
        repeats=item.default == (),
        **item.metadata,
    )
    for item in dataclasses.fields(TrainingInputs)
)


def input_options(command: Command) -> Command:
    """Decorate a click command with an option for each input."""
    for item in reversed(INPUTS):
        command = click.option(
            item.option,
            item.field,
            type=str if item.repeats else click.Path(path_type=Path),
            multiple=item.repeats,
            required=item.required,
            help=item.help,
        )(command)
    return command


def add_input_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each input to the trainer's `parser`.

    None is required: a parser stops at the first that is missing, where users are told of all errors at once.
    """
    for item in INPUTS:
        text = item.help.replace("%", "%%")
        if item.repeats:
            parser.add_argument(
                f"--{item.flag}", dest=item.field, action="append", default=[], metavar="TEXT", help=text
            )
        else:
            parser.add_argument(f"--{item.flag}", dest=item.field, type=Path, metavar="DIR", help=text)
