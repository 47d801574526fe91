"""What training_run.json says of a run, and what makes two adapters one recipe."""

import dataclasses
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mimicry.common.files import canonical_json, sha256_file, sha256_text
from mimicry.study.tree import Condition, StudyTree
from mimicry.tuning.adapters.folder import (
    WEIGHTS,
    describe_differences,
    numerics_differences,
    sister_differences,
)
from mimicry.tuning.adapters.recipe import (
    OWN_TRAINER,
    recipe,
    recipe_differences,
    recipe_hash,
    recorded_step_count,
    trainer_identity,
)
from mimicry.tuning.adapters.training_run import TRAINING_RUN, Trained
from mimicry.tuning.hf_diffusers.spec.base_model import BaseModel
from mimicry.tuning.options.config import OPTIONS, TuningConfig
from tests.small_study import ANNA, BASE, BORIS, CONFIG, ORIGINAL, output_dir, put_adapter
from tests.tuning.companions import PRIOR, with_companions

# What does not define the adapter: where things lie, and how the same result is reached.
NOT_IN_RECIPE: dict[str, Any] = {
    "gradient_checkpointing": False,
    "cache_latents": False,
    "pretrained_model_name_or_path": "some/other",
    "revision": "main",
    "cache_dir": "/somewhere",
    "deterministic": True,
    "dataloader_num_workers": 2,
    "allow_tf32": True,
    "prompt_cache_dir": "/somewhere",
    "validation_prompt": "a boat by sks",
    "num_validation_images": 2,
    "validation_epochs": 3,
    "report_to": "wandb",
    "logging_dir": "/somewhere",
    "eval_timesteps": 8,
    "checkpointing_steps": 7,
    "checkpoints_total_limit": 3,
    "resume_from_checkpoint": "/somewhere/checkpoint-7",
    "conditioning_table": False,
    "checkpointed_blocks": 3,
    "compile_blocks": True,
    "attention_backend": "math",
    "require_same_numerics": True,
    "class_data_dir": "/somewhere",
    "sample_batch_size": 8,
    "prior_generation_precision": "fp32",
}
MODEL = BaseModel(folder=Path("/nowhere"), name="lab/model", revision="c" * 40)


def described(
    config: TuningConfig, model: BaseModel, command: Sequence[str] = (), notes: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the content of a record before its training begins."""
    facts = Trained.describe(
        config, model.identity(), model.folder, trainer=OWN_TRAINER, command=command, notes=notes
    )
    return facts.content()


def hash_of(model: BaseModel = MODEL, trainer: str = OWN_TRAINER, **values: Any) -> str:
    return recipe_hash(recipe(TuningConfig(**values), model.identity(), trainer))


def another(option: Any) -> Any:
    """Return an allowed value that is not the default."""
    if option.type is bool:
        return not option.default
    if option.facts.choices:
        return next(choice for choice in option.facts.choices if choice != option.default)
    if option.name == "caption_template":
        return "{caption} in another way"
    if option.type is str:
        return "something else"
    if option.name == "precondition_outputs":
        return 0
    if option.name == "source_resolution":
        return 512
    default = option.default or 0
    return default + 1 if option.type is int else default * 0.5 + 0.01


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_what_the_hash_covers(option: Any) -> None:
    value = NOT_IN_RECIPE[option.name] if option.name in NOT_IN_RECIPE else another(option)
    assert value != option.default
    plain: dict[str, Any] = PRIOR if option.name in ("class_prompt", "class_data_dir") else {}
    if option.name == "caption_template":
        plain = {"captions": True}
    changed = with_companions(**{option.name: value})
    assert (hash_of(**changed) == hash_of(**plain)) == (option.name in NOT_IN_RECIPE)


def test_what_was_added_later_leaves_the_hash_of_a_study_without_it() -> None:
    added = {option.name for option in OPTIONS if option.facts.added_later}
    options = recipe(TuningConfig(), MODEL.identity(), OWN_TRAINER)["options"]
    assert added == {"source_resolution", "hold_out"}
    assert added.isdisjoint(options)
    assert set(options) | added == {option.name for option in OPTIONS if option.facts.in_recipe}
    # Golden: of the options as they were before.
    assert sha256_text(canonical_json(options)) == (
        "c6642da3ea718a9c7ba9f465d35a5f2998304c5e113f15b91b83c400007cddac"
    )


def test_the_hash_covers_model_and_trainer() -> None:
    others = [
        hash_of(),
        hash_of(dataclasses.replace(MODEL, revision="d" * 40)),
        hash_of(dataclasses.replace(MODEL, name="lab/other")),
        hash_of(trainer="train.py sha256:00"),
    ]
    assert len(set(others)) == len(others)
    assert hash_of(dataclasses.replace(MODEL, folder=Path("/elsewhere"))) == hash_of()


def test_the_hash_is_the_same_in_another_process_and_after_json() -> None:
    used = recipe(TuningConfig(instance_prompt="André\ud800"), MODEL.identity(), OWN_TRAINER)
    assert recipe_hash(json.loads(json.dumps(used))) == recipe_hash(used)
    assert recipe_hash(dict(reversed(used.items()))) == recipe_hash(used)
    # Golden: a change of the recipe's form would call all adapters of a running study stale.
    assert recipe_hash({"a": [1, 1e-4, "é", None]}) == (
        "60fd5ff32562ce5cc9a027ce6b2c2d6873b756e4d512ddd2a9abe395f66d80d0"
    )


class TestLocalModel:
    @pytest.fixture
    def model_dir(self, demo_dir: Path) -> Path:
        return demo_dir / "tiny_sd3"

    def test_a_copy_elsewhere_is_the_same_model(self, model_dir: Path, tmp_path: Path) -> None:
        copy = tmp_path / "another name"
        shutil.copytree(model_dir, copy)
        (copy / "README.md").write_text("not read by anybody")
        (copy / "vae" / ".hidden").write_text("nor this")
        assert hash_of(BaseModel(folder=copy)) == hash_of(BaseModel(folder=model_dir))

    def test_one_weight_byte_is_another_model(self, model_dir: Path, tmp_path: Path) -> None:
        shutil.copytree(model_dir, tmp_path / "copy")
        weights = next((tmp_path / "copy" / "transformer").glob("*.safetensors"))
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        assert hash_of(BaseModel(folder=tmp_path / "copy")) != hash_of(BaseModel(folder=model_dir))

    def test_a_missing_encoder_is_another_model(self, model_dir: Path, tmp_path: Path) -> None:
        shutil.copytree(model_dir, tmp_path / "copy")
        shutil.rmtree(tmp_path / "copy" / "text_encoder_3")
        assert hash_of(BaseModel(folder=tmp_path / "copy")) != hash_of(BaseModel(folder=model_dir))

    def test_no_machine_path_outside_the_keys_for_them(self, model_dir: Path, tmp_path: Path) -> None:
        link = tmp_path / "a link"
        link.symlink_to(model_dir)
        config = TuningConfig(
            pretrained_model_name_or_path=str(link),
            cache_dir=str(tmp_path / "cache"),
            prompt_cache_dir=str(tmp_path / "prompts"),
            logging_dir=str(tmp_path / "logs"),
            **PRIOR | {"class_data_dir": str(tmp_path / "class")},
        )
        model = BaseModel.find(config)
        assert model is not None
        run = described(config, model, command=[str(tmp_path), "x"], notes=["careful"])
        assert run.pop("command") == [str(tmp_path), "x"]
        assert run.pop("paths") == {
            "base_model": str(model_dir.resolve()),
            "pretrained_model_name_or_path": str(link),
            "cache_dir": str(tmp_path / "cache"),
            "prompt_cache_dir": str(tmp_path / "prompts"),
            "logging_dir": str(tmp_path / "logs"),
            "class_data_dir": str(tmp_path / "class"),
        }
        assert run.pop("host")["name"]
        text = json.dumps(run)
        for private in (tmp_path, model_dir, model_dir.resolve(), Path(sys.prefix), Path.home()):
            assert f"{private}/" not in text
            assert f'{private}"' not in text
        assert run["options"]["pretrained_model_name_or_path"] is None
        assert run["base_model"]["name"] is None
        assert len(run["base_model"]["fingerprint"]) == 64
        assert run["warnings"] == ["careful"]


def test_a_hub_model_is_told_by_name_and_commit() -> None:
    config = TuningConfig(pretrained_model_name_or_path="lab/model")
    run = described(config, MODEL)
    assert run["base_model"] == {"name": "lab/model", "revision": "c" * 40}
    assert run["options"]["pretrained_model_name_or_path"] == "lab/model"
    assert run["recipe_hash"] == recipe_hash(run["recipe"])
    assert run["options"] | {"logging_dir": "logs"} == dataclasses.asdict(config)
    json.dumps(run)


class TestDifferences:
    def test_what_was_added_later_differs_both_ways(self) -> None:
        without = recipe(TuningConfig(), MODEL.identity(), OWN_TRAINER)
        held = recipe(TuningConfig(hold_out=4, source_resolution=512), MODEL.identity(), OWN_TRAINER)

        assert recipe_differences(without, held) == ["source_resolution None -> 512", "hold_out 0 -> 4"]
        assert recipe_differences(held, without) == ["source_resolution 512 -> None", "hold_out 4 -> 0"]
        assert recipe_differences(held, held) == []

    asked = recipe(TuningConfig(rank=32, learning_rate=5e-5), MODEL.identity(), OWN_TRAINER)

    def test_none(self) -> None:
        assert recipe_differences(json.loads(json.dumps(self.asked)), self.asked) == []

    def test_options_in_words(self) -> None:
        recorded = recipe(TuningConfig(instance_prompt="old"), MODEL.identity(), OWN_TRAINER)
        assert recipe_differences(recorded, self.asked) == [
            "rank 16 -> 32",
            "learning_rate 0.0001 -> 5e-05",
            "instance_prompt 'old' -> 'a painting in the style of sks'",
        ]

    def test_model_and_trainer_in_words(self) -> None:
        model = dataclasses.replace(MODEL, revision="d" * 40)
        recorded = recipe(TuningConfig(rank=32, learning_rate=5e-5), model.identity(), "foreign")
        assert recipe_differences(recorded, self.asked) == ["another base model", "another trainer"]

    def test_of_a_model_that_is_not_here_yet_the_name_is_compared(self) -> None:
        config = TuningConfig(pretrained_model_name_or_path="lab/a-model")
        asked = recipe(config, None, OWN_TRAINER)
        for name, words in (
            ("lab/a-model", []),
            ("lab/b-model", ["another base model"]),
            (None, ["another base model"]),
        ):
            model = dataclasses.replace(MODEL, name=name)
            assert recipe_differences(recipe(config, model.identity(), OWN_TRAINER), asked) == words

    def test_an_older_record_without_an_option(self) -> None:
        recorded = json.loads(json.dumps(self.asked))
        del recorded["options"]["rank"]
        del recorded["options"]["logit_std"]
        assert recipe_differences(recorded, self.asked) == ["rank 16 -> 32"]

    @pytest.mark.parametrize("recorded", [{}, {"options": None}, {"options": []}])
    def test_a_record_of_another_form(self, recorded: dict[str, Any]) -> None:
        words = recipe_differences(recorded, self.asked)
        assert "rank None -> 32" in words
        assert words[-2:] == ["another base model", "another trainer"]


def test_trainer_identity(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("1")
    assert trainer_identity(None) == OWN_TRAINER
    assert trainer_identity(script) == f"train.py sha256:{sha256_file(script)}"


@pytest.mark.parametrize(("value", "shown"), [("latest", "latest"), ("none", "none"), ("/a/b", None)])
def test_the_path_of_a_checkpoint_is_no_option_to_publish(value: str, shown: str | None) -> None:
    config = TuningConfig(resume_from_checkpoint=value)
    run = described(config, MODEL)
    assert run["options"]["resume_from_checkpoint"] == shown


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"max_train_steps": 60}, 60),
        ({"num_train_epochs": 3, "gradient_accumulation_steps": 2, "of another version": 1}, 15),
        ({"max_train_steps": 60, "logging_dir": None}, 60),
        ({"max_train_steps": "many"}, None),
        ({"max_train_steps": -1}, None),
        ({}, None),
        (None, None),
    ],
)
def test_the_steps_of_recorded_options(options: dict[str, Any] | None, steps: int | None) -> None:
    assert recorded_step_count(options, 10) == steps


MIST = Condition("mist", "none")
HERE = {"device": "cpu", "torch": "2.13"}
THERE = {"device": "H200", "torch": "2.13"}


def differences(tree: StudyTree, **values: Any) -> dict[str, list[str]]:
    """Return those of Anna's adapter for mist, which is to be trained here."""
    asked = recipe(dataclasses.replace(CONFIG, **values), BASE.identity(), OWN_TRAINER)
    return sister_differences(output_dir(tree, MIST), asked, HERE)


def test_what_is_told_by_one_alone_is_no_difference() -> None:
    assert numerics_differences({"torch": "2.12", "old": 1}, {"torch": "2.13", "new": 2}) == [
        "torch '2.12' -> '2.13'"
    ]
    assert numerics_differences(HERE, HERE) == []


def test_sisters_are_compared_and_named(tree: StudyTree) -> None:
    put_adapter(tree, ORIGINAL, numerics=THERE)
    assert differences(tree) == {"none__none": ["device 'H200' -> 'cpu'"]}
    words = describe_differences(differences(tree))
    assert words == "other numerics than none__none (device 'H200' -> 'cpu')"


def test_alike_is_no_difference(tree: StudyTree) -> None:
    put_adapter(tree, ORIGINAL, numerics=HERE)
    assert differences(tree) == {}
    assert describe_differences({}) == ""


def test_who_is_no_sister(tree: StudyTree) -> None:
    put_adapter(tree, ORIGINAL, BORIS, numerics=THERE)
    put_adapter(tree, MIST, ANNA, numerics=THERE)  # itself, before it is trained again
    assert differences(tree) == {}
    put_adapter(tree, ORIGINAL, numerics=THERE)
    assert differences(tree, rank=7) == {}
    assert differences(tree) != {}


@pytest.mark.parametrize("spoil", ["no weights", "no record", "no numerics", "not JSON"])
def test_an_adapter_that_tells_nothing_is_passed_over(spoil: str, tree: StudyTree) -> None:
    folder = put_adapter(tree, ORIGINAL, numerics=None if spoil == "no numerics" else THERE)
    if spoil == "no weights":
        (folder / WEIGHTS).unlink()
    elif spoil == "no record":
        (folder / TRAINING_RUN).unlink()
    elif spoil == "not JSON":
        (folder / TRAINING_RUN).write_text("{")
    assert differences(tree) == {}


def test_an_adapter_elsewhere_has_no_sisters(tmp_path: Path) -> None:
    (tmp_path / "x" / TRAINING_RUN).parent.mkdir()
    (tmp_path / "x" / TRAINING_RUN).write_text(json.dumps({"numerics": THERE}))
    assert sister_differences(tmp_path / "out", {"options": {}}, HERE) == {}
