"""The inputs of a training as options of the wrapper and as flags of the trainer."""

import argparse
from pathlib import Path

import click

from mimicry.tuning.options.flags import TrainingInputs, add_input_flags, input_options
from tests.hostile_names import over_hostile_names

NEEDED = TrainingInputs(input_dir=Path("images"), output_dir=Path("adapter"))


def from_wrapper(inputs: TrainingInputs) -> TrainingInputs:
    """Return `inputs` as the wrapper reads them off its words."""
    found: list[TrainingInputs] = []

    @click.command
    @input_options
    def command(**parameters: object) -> None:
        found.append(TrainingInputs.take(parameters))

    words = [f"--input-dir={inputs.input_dir}", f"--output-dir={inputs.output_dir}", *inputs.wrapper_words()]
    command.main(words, standalone_mode=False)
    return found[0]


def from_trainer(inputs: TrainingInputs) -> TrainingInputs:
    parser = argparse.ArgumentParser()
    add_input_flags(parser)
    words = [word for words in inputs.trainer_flags().values() for word in words]
    return TrainingInputs.take(vars(parser.parse_args(words)))


@over_hostile_names
def test_words_come_back_as_the_same_inputs(hostile_name: str) -> None:
    inputs = TrainingInputs(
        input_dir=Path(hostile_name),
        output_dir=Path("out", hostile_name),
        eval_data_dir=Path(hostile_name),
        base_samples_dir=Path("base", hostile_name),
        caption_data_dir=Path("captions", hostile_name),
        leave_out=(hostile_name, "--flag"),
        notes=("a note", hostile_name),
    )
    assert from_wrapper(inputs) == from_trainer(inputs) == inputs


def test_what_was_not_given_has_no_word() -> None:
    assert NEEDED.wrapper_words() == []
    assert from_wrapper(NEEDED) == from_trainer(NEEDED) == NEEDED


def test_the_wrappers_words_come_in_a_fixed_order() -> None:
    inputs = TrainingInputs(
        input_dir=Path("images"),
        output_dir=Path("adapter"),
        notes=("18 images",),
        leave_out=("01", "02"),
        caption_data_dir=Path("art"),
        base_samples_dir=Path("base"),
        eval_data_dir=Path("art"),
    )
    assert inputs.wrapper_words() == [
        *("--eval-data-dir=art", "--base-samples-dir=base", "--caption-data-dir=art"),
        *("--leave-out=01", "--leave-out=02", "--note=18 images"),
    ]
