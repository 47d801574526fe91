"""The trainer's command line: the flags of the diffusers example of the same name, from our options."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mimicry.common.environment import process_count
from mimicry.common.errors import UsageError, nearest
from mimicry.tuning.options.config import TuningConfig
from mimicry.tuning.options.flags import (
    INPUTS,
    TRAINER_OPTIONS,
    TrainingInputs,
    add_input_flags,
    add_trainer_flags,
    config_from_flags,
)

# What the diffusers example takes and this trainer does not, with the reason.
_FROM_FOLDERS = "images come from a folder, named by --instance_data_dir"
_BY_WRAPPER = "the wrapper uploads, see local_dreambooth_lora_sd3_wrapper.py --help"
_TRANSFORMER_ONLY = "only the transformer is trained"
OUT_OF_SCOPE = {
    "dataset_name": _FROM_FOLDERS,
    "dataset_config_name": _FROM_FOLDERS,
    "image_column": _FROM_FOLDERS,
    "caption_column": _FROM_FOLDERS,
    "push_to_hub": _BY_WRAPPER,
    "hub_token": _BY_WRAPPER,
    "hub_model_id": _BY_WRAPPER,
    "train_text_encoder": _TRANSFORMER_ONLY,
    "text_encoder_lr": _TRANSFORMER_ONLY,
    "adam_weight_decay_text_encoder": _TRANSFORMER_ONLY,
}


@dataclass(frozen=True, kw_only=True)
class TrainerArgs:
    """What the trainer is asked to do: hyper-parameters, inputs, and the command that said so."""

    config: TuningConfig
    inputs: TrainingInputs
    command: tuple[str, ...]


def parse_args(words: Sequence[str] | None = None) -> TrainerArgs:
    """Return what the command line asks for; raises UsageError for all flags and values that are wrong."""
    words = sys.argv[1:] if words is None else list(words)
    parsed, unknown = _parser().parse_known_args(_with_underscores(words))
    values = vars(parsed)
    problems = _unknown_problems(unknown)
    problems += [
        f"--{item.flag} is missing; it takes a folder"
        for item in INPUTS
        if item.required and values[item.field] is None
    ]
    try:
        config = config_from_flags(values, num_processes=process_count())
    except UsageError as error:
        raise UsageError(*problems, *error.problems) from error
    if problems:
        raise UsageError(*problems)
    command = (Path(sys.argv[0]).name, *words)
    return TrainerArgs(config=config, inputs=TrainingInputs.take(values), command=command)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train_dreambooth_lora_sd3.py",
        description="Train one DreamBooth LoRA adapter of a Stable Diffusion 3 model. The flags are those of "
        "the diffusers example of this name; dashes stand for underscores too. A boolean is off "
        "unless given.",
        allow_abbrev=False,
    )
    add_input_flags(parser)
    parser.add_argument(
        "--local_rank",
        metavar="INTEGER",
        help="Accepted, as the example does, and ignored: launchers set the variable LOCAL_RANK.",
    )
    add_trainer_flags(parser)
    return parser


def _with_underscores(words: Sequence[str]) -> list[str]:
    # The names of flags, not their values.
    spelt = []
    for word in words:
        name, equals, value = word.partition("=")
        is_flag = name.startswith("--") and len(name) > 2
        spelt.append("--" + name[2:].replace("-", "_") + equals + value if is_flag else word)
    return spelt


def _unknown_problems(words: Sequence[str]) -> list[str]:
    problems = []
    for before, word in zip(["", *words], words, strict=False):
        if word.startswith("--"):
            problems.append(_unknown_flag_problem(word.partition("=")[0].removeprefix("--")))
        # The value of an unknown flag is nothing to complain of, nor to print: it may be a token.
        elif not before.startswith("--") or "=" in before:
            problems.append(f"{word!r} belongs to no flag")
    return problems


def _unknown_flag_problem(name: str) -> str:
    if name in OUT_OF_SCOPE:
        return f"--{name} is not a flag of this trainer: {OUT_OF_SCOPE[name]}"
    if name == "num_processes":
        return f"--{name} is told to the launcher: accelerate launch --multi_gpu --{name} ..."
    known = [item.flag for item in INPUTS] + [option.name for option in TRAINER_OPTIONS]
    return f"--{name} is not a flag of this trainer; {nearest(name, known)}"
