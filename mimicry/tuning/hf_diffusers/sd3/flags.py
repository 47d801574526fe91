"""The trainer's command line: the flags of the diffusers example of the same name, from our options."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mimicry.common.environment import process_count
from mimicry.common.errors import UsageError, nearest
from mimicry.tuning.hf_diffusers.sd3.job import Job
from mimicry.tuning.options.trainer_flags import TRAINER_OPTIONS, add_trainer_flags, config_from_flags

# What the diffusers example understands and this trainer never will, with the reason.
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
_FOLDERS = ("instance_data_dir", "output_dir", "eval_data_dir", "base_samples_dir", "caption_data_dir")


def parse_job(words: Sequence[str] | None = None) -> Job:
    """Return the job that the command line asks for.

    Raises:
        UsageError: flags that are unknown, out of scope or not there yet, and values out of bounds; all
            problems at once.
    """
    words = sys.argv[1:] if words is None else list(words)
    parsed, unknown = _parser().parse_known_args(_with_underscores(words))
    problems = _unknown_problems(unknown)
    for name in ("instance_data_dir", "output_dir"):
        if getattr(parsed, name) is None:
            problems.append(f"--{name} is missing; it takes a folder")
    try:
        config = config_from_flags(vars(parsed), num_processes=process_count())
    except UsageError as error:
        raise UsageError(*problems, *error.problems) from error
    if problems:
        raise UsageError(*problems)
    return Job(
        config=config,
        instance_data_dir=Path(parsed.instance_data_dir),
        output_dir=Path(parsed.output_dir),
        notes=tuple(parsed.note),
        command=(Path(sys.argv[0]).name, *words),
        eval_data_dir=None if parsed.eval_data_dir is None else Path(parsed.eval_data_dir),
        base_samples_dir=None if parsed.base_samples_dir is None else Path(parsed.base_samples_dir),
        caption_data_dir=None if parsed.caption_data_dir is None else Path(parsed.caption_data_dir),
        leave_out=tuple(parsed.leave_out),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train_dreambooth_lora_sd3.py",
        description="Train one DreamBooth LoRA adapter of a Stable Diffusion 3 model. The flags are those of "
        "the diffusers example of this name; dashes stand for underscores too. A boolean is off "
        "unless given.",
        allow_abbrev=False,
    )
    parser.add_argument("--instance_data_dir", metavar="DIR", help="Folder of the images to train on.")
    parser.add_argument("--output_dir", metavar="DIR", help="Folder of the adapter.")
    parser.add_argument(
        "--eval_data_dir",
        metavar="DIR",
        help="Folder of the images to measure the loss on, before and after.",
    )
    parser.add_argument(
        "--base_samples_dir",
        metavar="DIR",
        help="Folder of what the base model draws of validation prompts, for many artists; by default each "
        "has them in its own samples/.",
    )
    parser.add_argument(
        "--caption_data_dir",
        metavar="DIR",
        help="With --captions: folder of the original art, whose captions hold for images without any.",
    )
    parser.add_argument(
        "--leave_out",
        action="append",
        default=[],
        metavar="STEM",
        help="Leave out the images of this stem, of all these folders.",
    )
    parser.add_argument(
        "--local_rank",
        metavar="INTEGER",
        help="Taken for the example's sake, and not read: launchers say it by the variable LOCAL_RANK.",
    )
    parser.add_argument(
        "--note", action="append", default=[], metavar="TEXT", help="A warning to keep in training_run.json."
    )
    add_trainer_flags(parser)
    return parser


def _with_underscores(words: Sequence[str]) -> list[str]:
    """Return `words` with the names of flags, not their values, spelt with underscores."""
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
        return f"--{name} is no flag of this trainer: {OUT_OF_SCOPE[name]}"
    if name == "num_processes":
        return f"--{name} is told to the launcher: accelerate launch --multi_gpu --{name} ..."
    known = [*_FOLDERS, "leave_out", *(option.name for option in TRAINER_OPTIONS)]
    return f"--{name} is no flag of this trainer; {nearest(name, known)}"
