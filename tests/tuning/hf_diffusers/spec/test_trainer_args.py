"""The trainer's command line stands in for that of the diffusers example."""

import ast
from dataclasses import replace
from pathlib import Path

import pytest

import mimicry
from mimicry.common.errors import UsageError
from mimicry.tuning.hf_diffusers.spec.trainer_args import OUT_OF_SCOPE, TrainerArgs, parse_args
from mimicry.tuning.options.config import OPTIONS, TuningConfig
from mimicry.tuning.options.flags import TRAINER_OPTIONS
from tests.hostile_names import over_hostile_names

# The interface of the example, as of August 2026: a flag that is in none of our lists was forgotten.
EXAMPLE_FLAGS = """
    pretrained_model_name_or_path revision variant cache_dir instance_data_dir instance_prompt dataset_name
    dataset_config_name image_column caption_column repeats with_prior_preservation class_data_dir
    class_prompt prior_loss_weight num_class_images sample_batch_size prior_generation_precision
    max_sequence_length validation_prompt num_validation_images validation_epochs rank lora_dropout
    lora_layers lora_blocks output_dir seed resolution center_crop random_flip train_text_encoder
    text_encoder_lr adam_weight_decay_text_encoder train_batch_size gradient_accumulation_steps
    num_train_epochs max_train_steps checkpointing_steps checkpoints_total_limit resume_from_checkpoint
    gradient_checkpointing learning_rate scale_lr lr_scheduler lr_warmup_steps lr_num_cycles lr_power
    dataloader_num_workers weighting_scheme logit_mean logit_std mode_scale precondition_outputs optimizer
    use_8bit_adam adam_beta1 adam_beta2 adam_weight_decay adam_epsilon prodigy_beta3 prodigy_decouple
    prodigy_use_bias_correction prodigy_safeguard_warmup max_grad_norm push_to_hub hub_token hub_model_id
    logging_dir report_to allow_tf32 cache_latents upcast_before_saving mixed_precision local_rank
""".split()
OUR_OWN = {
    *("instance_data_dir", "output_dir", "eval_data_dir", "base_samples_dir", "caption_data_dir"),
    *("local_rank", *(option.name for option in TRAINER_OPTIONS)),
}
NEEDED = ("--instance_data_dir=images", "--output_dir=adapter")
BOOLEANS = [option.name for option in OPTIONS if option.type is bool and not option.facts.takes_word]
COMPANIONS = {"with_prior_preservation": ("--class_prompt=art", "--class_data_dir=class")}


def parse(*words: str) -> TrainerArgs:
    return parse_args([*NEEDED, *words])


def problems(*words: str) -> list[str]:
    with pytest.raises(UsageError) as caught:
        parse_args(words)
    return list(caught.value.problems)


def test_defaults_are_those_of_the_study_and_booleans_are_off() -> None:
    config, study = parse().config, TuningConfig()
    for option in OPTIONS:
        expected = False if option.name in BOOLEANS else getattr(study, option.name)
        assert getattr(config, option.name) == expected, option.name


@pytest.mark.parametrize("name", BOOLEANS)
@pytest.mark.parametrize("spell", [str, lambda name: name.replace("_", "-")], ids=["_", "-"])
def test_a_boolean_is_on_when_given(name: str, spell: type[str]) -> None:
    config = parse(f"--{spell(name)}", *COMPANIONS.get(name, ())).config
    assert [other for other in BOOLEANS if getattr(config, other)] == [name]


@pytest.mark.parametrize("name", BOOLEANS)
def test_a_boolean_takes_no_value(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`--x False` would mean True where booleans are declared as type=bool."""
    with pytest.raises(SystemExit) as stop:
        parse(f"--{name}=False")
    assert stop.value.code == 2
    assert f"--{name}" in capsys.readouterr().err
    words = [*NEEDED, *COMPANIONS.get(name, ()), f"--{name}", "False"]
    assert problems(*words) == ["'False' belongs to no flag"]


def test_a_boolean_of_the_example_that_takes_a_word_is_taken_by_it() -> None:
    config = parse("--prodigy-decouple", "False", "--prodigy_safeguard_warmup=False").config
    assert (config.prodigy_decouple, config.prodigy_safeguard_warmup) == (False, False)
    assert config.prodigy_use_bias_correction


@pytest.mark.parametrize("word", ["adamw", "AdamW", "ADAMW"])
def test_the_case_of_a_choice_does_not_matter(word: str) -> None:
    assert parse(f"--optimizer={word}").config == parse().config


def test_nothing_is_declared_with_type_bool() -> None:
    files = list(Path(mimicry.__file__).parent.rglob("*.py"))
    assert len(files) > 30
    for path in files:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "type":
                assert not (isinstance(node.value, ast.Name) and node.value.id == "bool"), (path, node.lineno)


def test_dashes_and_underscores_are_one_flag() -> None:
    words = ["--train-batch-size=2", "--max_train-steps", "7", "--instance-prompt=well-known_name"]
    config = parse(*words).config
    assert (config.train_batch_size, config.max_train_steps) == (2, 7)
    assert config.instance_prompt == "well-known_name"


@over_hostile_names
def test_values_are_taken_as_they_are(hostile_name: str) -> None:
    args = parse_args(
        [f"--instance-data-dir={hostile_name}", f"--output_dir={hostile_name}", f"--note={hostile_name}"]
    )
    assert args.inputs.input_dir == args.inputs.output_dir == Path(hostile_name)
    assert args.inputs.notes == (hostile_name,)


@pytest.mark.parametrize("value", ["--a-b --c", "-x", "a=b=c", "100 %"])
def test_a_value_may_look_like_a_flag(value: str) -> None:
    assert parse(f"--instance_prompt={value}").config.instance_prompt == value


def test_the_last_value_counts_and_notes_add_up() -> None:
    args = parse("--rank=4", "--rank=8", "--note=one", "--note", "two")
    assert args.config.rank == 8
    assert args.inputs.notes == ("one", "two")


def test_the_rank_of_a_process_is_taken_and_not_read() -> None:
    assert parse("--local_rank=-1") == replace(parse(), command=parse("--local_rank=-1").command)


def test_the_command_is_kept_as_typed() -> None:
    words = [*NEEDED, "--max-train-steps", "3"]
    assert parse_args(words).command[1:] == tuple(words)


def test_abbreviations_are_not_guessed() -> None:
    (problem,) = problems(*NEEDED, "--resol=64")
    assert problem.startswith("--resol is not a flag of this trainer; did you mean 'resolution' or ")


def test_every_flag_of_the_example_has_its_place_and_one_only() -> None:
    assert len(EXAMPLE_FLAGS) == len(set(EXAMPLE_FLAGS)) == 75
    for name in EXAMPLE_FLAGS:
        assert [name in names for names in (OUR_OWN, OUT_OF_SCOPE)].count(True) == 1, name
    assert set(OUT_OF_SCOPE) <= set(EXAMPLE_FLAGS)


@pytest.mark.parametrize("name", sorted(OUT_OF_SCOPE))
@pytest.mark.parametrize("value", [[], ["some value"]], ids=["alone", "with value"])
def test_a_flag_of_the_example_that_we_refuse_is_explained_once(name: str, value: list[str]) -> None:
    (problem,) = problems(*NEEDED, f"--{name.replace('_', '-')}", *value, "--rank=4")
    assert problem.startswith(f"--{name} ")
    assert OUT_OF_SCOPE[name] in problem


def test_the_number_of_processes_comes_from_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse("--local-rank", "3").config.num_processes == 1
    (problem,) = problems(*NEEDED, "--num-processes=2")
    assert problem.startswith("--num_processes is told to the launcher: accelerate launch --multi_gpu ")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert parse().config.num_processes == 4


def test_all_problems_come_at_once() -> None:
    found = problems(
        *("--push_to_hub", "--leaning-rate=1", "--rank=0", "stray"),
        *("--resolution=1", "--learning_rate=nan"),
    )
    assert len(found) == 8
    for part in (
        *("--push_to_hub is not a flag",),
        *("did you mean 'learning_rate'", "'stray' belongs to no flag"),
        *("--instance_data_dir is missing", "--output_dir is missing"),
        *("--rank is 0", "--resolution is 1", "--learning-rate is nan"),
    ):
        assert sum(part in problem for problem in found) == 1, part


def test_values_of_the_wrong_kind_are_problems_like_others() -> None:
    found = problems(*NEEDED, "--rank=many", "--mixed_precision=bf17", "--learning_rate=x", "--resolution=1")
    assert len(found) == 4
    for name, value in (("rank", "many"), ("mixed", "bf17"), ("learning", "x"), ("resolution", "1")):
        assert any(problem.startswith(f"--{name}") and value in problem for problem in found)
