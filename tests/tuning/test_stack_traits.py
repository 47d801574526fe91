"""What a stack says of its adapters in a stack.py, and what holds where it says nothing."""

import json
from pathlib import Path

import pytest

from mimicry.common.errors import UsageError
from mimicry.tuning import stacks
from mimicry.tuning.adapters.format import ANY_LORA, AdapterFormat
from mimicry.tuning.adapters.judge import AdapterSpec
from mimicry.tuning.adapters.recipe import OWN_TRAINER, recipe
from mimicry.tuning.hf_diffusers.stack import TRAITS
from mimicry.tuning.options.config import TuningConfig
from mimicry.tuning.stack_traits import LOG_BYTES, StackTraits
from mimicry.tuning.stacks import RUNNER_CONFIG, STACK_MODULE, Stack
from tests.hostile_names import over_hostile_names

TEXT = """\
from mimicry.tuning.adapters.format import AdapterFormat
from mimicry.tuning.stack_traits import StackTraits

TRAITS = StackTraits(hub_prefix="sd15-lora", adapter_format=AdapterFormat(components=("unet",)))
"""
# As somebody may write it: with annotations as texts, and a value of its own.
SUBCLASS = """\
from __future__ import annotations

from dataclasses import dataclass

from mimicry.tuning.stack_traits import StackTraits


@dataclass(frozen=True, kw_only=True)
class Traits(StackTraits):
    size: int = 7

    def disk_bytes(self, config: object, adapter_count: int) -> int:
        return self.size * adapter_count


TRAITS = Traits(hub_prefix="mine")
"""


def make_stack(folder: Path, text: str | None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RUNNER_CONFIG).write_text(json.dumps({"command": "{python} x {input_dir} {output_dir}"}))
    if text is not None:
        (folder / STACK_MODULE).write_text(text)
    return folder


def problem_of(folder: Path) -> str:
    with pytest.raises(UsageError) as caught:
        Stack.read(folder)
    (problem,) = caught.value.problems
    return problem


class TestDefaults:
    traits = StackTraits(hub_prefix="x")

    def test_any_lora_of_the_recipe_that_is_asked_for(self) -> None:
        config = TuningConfig(rank=7)
        assert self.traits.adapter_format == ANY_LORA
        assert self.traits.adapter_spec(None, OWN_TRAINER) == AdapterSpec()
        spec = self.traits.adapter_spec(config, OWN_TRAINER)
        assert spec == AdapterSpec(recipe=recipe(config, None, OWN_TRAINER))
        assert spec.rank is None

    def test_nothing_is_forbidden_and_logs_take_their_place(self) -> None:
        assert self.traits.problems(None, network=True) == []
        assert self.traits.problems(TuningConfig(), network=False) == []
        assert self.traits.disk_bytes(TuningConfig(), 3) == 3 * LOG_BYTES


class TestLoading:
    def test_ours(self) -> None:
        assert Stack.find("hf_diffusers").traits is TRAITS
        assert TRAITS.hub_prefix == "sd35-lora"
        assert TRAITS.adapter_format.components == ("transformer",)

    @over_hostile_names
    def test_without_a_stack_py(self, hostile_name: str, tmp_path: Path) -> None:
        stack = Stack.read(make_stack(tmp_path / hostile_name, None))
        assert stack.traits == StackTraits(hub_prefix=f"{hostile_name}-lora")

    @over_hostile_names
    def test_from_a_stack_py(self, hostile_name: str, tmp_path: Path) -> None:
        stack = Stack.read(make_stack(tmp_path / hostile_name, TEXT))
        assert stack.traits.hub_prefix == "sd15-lora"
        assert stack.traits.adapter_format == AdapterFormat(components=("unet",))

    @pytest.mark.parametrize("name", ["second", "sd1.5", "my-stack"])
    def test_from_a_stack_beside_ours(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(stacks, "STACKS", tmp_path)
        make_stack(tmp_path / name, TEXT)
        assert Stack.find(name).traits.hub_prefix == "sd15-lora"

    def test_two_of_one_name_have_each_their_own(self, tmp_path: Path) -> None:
        first = Stack.read(make_stack(tmp_path / "a" / "same", TEXT))
        second = Stack.read(make_stack(tmp_path / "b" / "same", TEXT.replace("sd15", "sd21")))
        assert (first.traits.hub_prefix, second.traits.hub_prefix) == ("sd15-lora", "sd21-lora")

    def test_a_class_of_its_own(self, tmp_path: Path) -> None:
        traits = Stack.read(make_stack(tmp_path, SUBCLASS)).traits
        assert traits.hub_prefix == "mine"
        assert traits.disk_bytes(None, 3) == 21


class TestRefused:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("1 / 0", "ZeroDivisionError: division by zero"),
            ("raise RuntimeError('no GPU')", "RuntimeError: no GPU"),
            ("import not_a_module_of_anybody", "ModuleNotFoundError: "),
            ("TRAITS = (", "SyntaxError: "),
            ("", "AttributeError: "),
            ("traits = 1", "AttributeError: "),
        ],
    )
    def test_what_cannot_be_used(self, text: str, words: str, tmp_path: Path) -> None:
        problem = problem_of(make_stack(tmp_path, text))
        assert problem.startswith(f"{tmp_path / STACK_MODULE} cannot be used: {words}")
        assert problem.endswith("see docs/stacks.md for what it takes")

    @pytest.mark.parametrize("value", ["None", "{'hub_prefix': 'x'}", "'sd15-lora'"])
    def test_traits_of_another_type(self, value: str, tmp_path: Path) -> None:
        problem = problem_of(make_stack(tmp_path, f"TRAITS = {value}\n"))
        assert problem == (
            f"{tmp_path / STACK_MODULE}: TRAITS is {eval(value)!r}; "
            "it takes a StackTraits of mimicry.tuning.stack_traits"
        )

    def test_the_class_instead_of_an_object(self, tmp_path: Path) -> None:
        text = "from mimicry.tuning.stack_traits import StackTraits as TRAITS\n"
        assert "it takes a StackTraits" in problem_of(make_stack(tmp_path, text))
