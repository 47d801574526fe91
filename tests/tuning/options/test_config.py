"""TuningConfig: defaults, bounds, types, and all problems at once."""

import dataclasses
import math
from typing import Any

import pytest

from mimicry.common.errors import UsageError
from mimicry.tuning.options.config import OPTIONS, TuningConfig
from tests.tuning.companions import PRIOR, with_companions

# As the user's own text has them.
STUDY_DEFAULTS = {
    "resolution": 1024,
    "rank": 16,
    "max_train_steps": 500,
    "learning_rate": 1e-4,
    "train_batch_size": 1,
    "gradient_accumulation_steps": 4,
    "mixed_precision": "bf16",
    "gradient_checkpointing": True,
    "cache_latents": True,
    "seed": 42,
    "instance_prompt": "a painting in the style of sks",
    "pretrained_model_name_or_path": "stabilityai/stable-diffusion-3.5-large",
}

NUMBERS = [option for option in OPTIONS if option.type in (int, float)]
TEXTS = [option for option in OPTIONS if option.type is str]


def problems_of(**values: Any) -> tuple[str, ...]:
    with pytest.raises(UsageError) as caught:
        TuningConfig(**values)
    return caught.value.problems


def test_defaults_are_those_of_the_study() -> None:
    config = TuningConfig()
    assert {name: getattr(config, name) for name in STUDY_DEFAULTS} == STUDY_DEFAULTS


def test_every_field_is_an_option_with_a_help_text() -> None:
    assert [option.name for option in OPTIONS] == [item.name for item in dataclasses.fields(TuningConfig)]
    for option in OPTIONS:
        assert option.facts.help.endswith("."), option.name
        assert option.problem(option.default) is None, option.name


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TuningConfig().rank = 4  # type: ignore[misc]


def test_all_problems_are_collected() -> None:
    problems = problems_of(resolution=8, rank=0, learning_rate=-1.0, mixed_precision="fp8", seed=-1)
    assert [problem.split()[0] for problem in problems] == [
        "--resolution",
        "--rank",
        "--learning-rate",
        "--mixed-precision",
        "--seed",
    ]


@pytest.mark.parametrize("option", NUMBERS, ids=lambda option: option.name)
def test_bounds_hold_at_their_edges(option: Any) -> None:
    facts, step = option.facts, 1 if option.type is int else 1e-9
    for edge in (facts.minimum, facts.maximum):
        if edge is not None:
            value = option.type(edge)
            assert getattr(TuningConfig(**{option.name: value}), option.name) == value
    beyond = [facts.above] if facts.above is not None else []
    beyond += [facts.minimum - step] if facts.minimum is not None else []
    if facts.maximum is not None:
        beyond.append(facts.maximum + step if option.type is int else math.nextafter(facts.maximum, math.inf))
    assert beyond, f"{option.name} has no bounds at all"
    for number in beyond:
        (problem,) = problems_of(**{option.name: option.type(number)})
        assert problem.startswith(f"{option.flag} is ")
        assert option.bounds in problem


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, 10**400], ids=["nan", "inf", "-inf", "huge"]
)
@pytest.mark.parametrize(
    "name", [option.name for option in OPTIONS if option.type is float and option.facts.minimum is None]
)
def test_no_number_without_an_end_or_a_value(name: str, value: float) -> None:
    (problem,) = problems_of(**{name: value})
    assert "it takes" in problem


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rank", True),
        ("rank", 16.0),
        ("rank", "16"),
        ("rank", None),
        ("learning_rate", True),
        ("learning_rate", "1e-4"),
        ("gradient_checkpointing", 1),
        ("gradient_checkpointing", "true"),
        ("instance_prompt", 7),
        ("instance_prompt", None),
        ("revision", 7),
    ],
)
def test_types_are_exact(name: str, value: Any) -> None:
    (problem,) = problems_of(**{name: value})
    assert repr(value) in problem


@pytest.mark.parametrize("option", TEXTS, ids=lambda option: option.name)
@pytest.mark.parametrize("value", ["", "  \n", "null\0byte"], ids=["empty", "blank", "nul"])
def test_text_is_not_blank(option: Any, value: str) -> None:
    (problem,) = problems_of(**with_companions(**{option.name: value}))
    assert problem.startswith(option.flag)


class TestPriorPreservation:
    def test_what_it_needs_is_named_all_at_once(self) -> None:
        prompt, folder = problems_of(with_prior_preservation=True)
        assert prompt.startswith("--with-prior-preservation needs --class-prompt; type it too")
        assert folder.startswith("--with-prior-preservation needs --class-data-dir; type it too")
        assert problems_of(**PRIOR | {"class_prompt": None}) == (prompt,)

    def test_what_would_have_no_effect_is_refused(self) -> None:
        prompt, folder = problems_of(
            class_prompt="a painting", class_data_dir="x", with_prior_preservation=False
        )
        assert prompt.startswith("--class-prompt is 'a painting' and has no effect without --with-prior-")
        assert folder.startswith("--class-data-dir is 'x' and has no effect")

    def test_all_three_together_are_right(self) -> None:
        assert TuningConfig(**PRIOR).prior_loss_weight == 1.0


def test_a_wrong_choice_names_the_choices() -> None:
    (problem,) = problems_of(weighting_scheme="normal")
    assert problem == ("--weighting-scheme is 'normal'; choose one of logit_normal, sigma_sqrt, mode, cosmap")


def test_a_choice_in_another_case_is_the_same_config() -> None:
    assert TuningConfig(optimizer="ADAMW", mixed_precision="BF16") == TuningConfig()
    assert TuningConfig(optimizer="Prodigy").optimizer == "prodigy"


@pytest.mark.parametrize(
    ("values", "images", "count"),
    [
        ({}, 20, 500),
        ({"max_train_steps": 7, "repeats": 3, "num_processes": 2}, 20, 7),
        ({"num_train_epochs": 100}, 20, 500),
        ({"num_train_epochs": 1}, 20, 5),
        ({"num_train_epochs": 1}, 21, 6),
        ({"num_train_epochs": 1}, 1, 1),
        ({"num_train_epochs": 2, "repeats": 3, "train_batch_size": 5}, 20, 6),
        ({"num_train_epochs": 2, "repeats": 3, "train_batch_size": 5, "num_processes": 4}, 20, 2),
        ({"num_train_epochs": 10, "max_train_steps": 3, "gradient_accumulation_steps": 1}, 7, 70),
    ],
)
def test_epochs_become_steps(values: dict[str, Any], images: int, count: int) -> None:
    assert TuningConfig(**values).step_count(images) == count


def test_whole_numbers_for_a_float_are_the_same_config() -> None:
    config = TuningConfig(max_grad_norm=1, logit_mean=0)
    assert config == TuningConfig()
    assert type(config.max_grad_norm) is float
    assert type(config.logit_mean) is float


def test_bounds_in_words() -> None:
    words = {option.name: option.bounds for option in OPTIONS}
    assert words["resolution"] == "at least 16, at most 4096"
    assert words["learning_rate"] == "above 0, at most 1"
    assert words["seed"] == f"at least 0, at most {2**63 - 1}"
    assert words["max_grad_norm"] == "above 0"
