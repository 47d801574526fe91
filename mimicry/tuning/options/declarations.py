"""What an option is: a field of a dataclass with its help, its range and its place in the recipe."""

import dataclasses
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args, get_type_hints


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of an option beside its name, type and default.

    `choices` may be spelt in any case. `takes_word` is for booleans that the diffusers example declares with
    a value: the trainer's flag takes true or false, and has the option's own default.
    `in_recipe` says whether the value defines the adapter: two adapters of one recipe differ in their
    images only. `added_later` is for what came after studies were trained: at its default a recipe does not
    have it, so that theirs keep their hash. `for_launcher` marks options of the launcher instead of the
    trainer, which finds them in its environment. `own_trainer` marks what is refused with another
    --train-script, which takes all images as they are. `rationale` is the README's reason for the default;
    only the main options have one. `option` is what apply_tuning and the wrapper call it, where that is not
    the name of the field.
    """

    help: str
    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    takes_word: bool = False
    in_recipe: bool = True
    for_launcher: bool = False
    added_later: bool = False
    own_trainer: bool = False
    rationale: str = ""
    option: str = ""


def declare(default: Any, help: str, **facts: Any) -> Any:
    """Declare a field that is an option; `facts` are those of `Facts`."""
    return field(default=default, metadata={"facts": Facts(help=help, **facts)})


def declare_input(option: str, flag: str, help: str, **default: Any) -> Any:
    """Declare a field that is an input: the wrapper's option, the trainer's flag, and help."""
    return field(**default, metadata={"option": option, "flag": flag, "help": help})


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option: its name with underscores, the type of a value, its default, its facts and its topic."""

    name: str
    type: type
    optional: bool
    default: Any
    facts: Facts
    topic: str

    @property
    def flag(self) -> str:
        """The option of apply_tuning and the wrapper: with dashes."""
        return self.facts.option or "--" + self.name.replace("_", "-")

    @property
    def negative(self) -> str:
        """The option that switches a boolean off."""
        return self.flag.replace("--", "--no-", 1)

    @property
    def trainer_flag(self) -> str:
        """The flag of the trainer: with underscores."""
        return "--" + self.name

    def problem(self, value: Any) -> str | None:
        """Return what is wrong with `value` for this option, or None."""
        if value is None and self.optional:
            return None
        if type(value) is not self.type:
            return f"{self.flag} is {value!r}; it takes {_ARTICLES[self.type]}"
        if isinstance(value, str) and (not value.strip() or "\0" in value):
            return f"{self.flag} is {value!r}; it takes text that is not blank"
        if self.facts.choices and str(value) not in self.facts.choices:
            return f"{self.flag} is {value!r}; choose one of {', '.join(self.facts.choices)}"
        return None if self._within_bounds(value) else f"{self.flag} is {value}; it takes {self.bounds}"

    def _within_bounds(self, value: Any) -> bool:
        facts = self.facts
        if not isinstance(value, (int, float)):
            return True
        return (
            math.isfinite(value)
            and (facts.minimum is None or value >= facts.minimum)
            and (facts.above is None or value > facts.above)
            and (facts.maximum is None or value <= facts.maximum)
        )

    @property
    def metavar(self) -> str:
        """What stands for the value in help."""
        if self.facts.choices:
            return "[" + "|".join(self.facts.choices) + "]"
        return {int: "INTEGER", float: "NUMBER", str: "TEXT"}[self.type]

    def convert(self, value: Any) -> Any:
        """Return `value` in the option's type, or as it is when that cannot be done.

        TuningConfig refuses it then, with all other problems at once, where a parser stops at the first.
        """
        try:
            return self.type(value)
        except ValueError:
            return value

    def canonical(self, value: Any) -> Any:
        """Return `value` in the one form that it has in a recipe: 1.0 for 1, AdamW for adamw."""
        # What is too large for a float is left for the check of types.
        if self.type is float and type(value) is int and abs(value) < 2**1000:
            return float(value)
        if self.facts.choices and isinstance(value, str):
            spelt = {choice.casefold(): choice for choice in self.facts.choices}
            return spelt.get(value.casefold(), value)
        return value

    @property
    def bounds(self) -> str:
        """The allowed range in words, for messages and help; empty when there is none."""
        facts, words = self.facts, []
        if facts.minimum is not None:
            words.append(
                f"at least {facts.minimum:g}" if abs(facts.minimum) < 1e6 else f"at least {facts.minimum}"
            )
        if facts.above is not None:
            words.append(f"above {facts.above:g}")
        if facts.maximum is not None:
            words.append(f"at most {facts.maximum}")
        return ", ".join(words) or "a finite number"


_ARTICLES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def declared_options(owner: type, topics: Mapping[str, str]) -> tuple[Option, ...]:
    """Return the options that are the fields of the dataclass `owner`.

    Args:
        topics: by the name of the first field that belongs to each; --help and documents group by them.
    """
    hints = get_type_hints(owner)
    options: list[Option] = []
    topic = ""
    for item in dataclasses.fields(owner):
        topic = topics.get(item.name, topic)
        hint = hints[item.name]
        optional = isinstance(hint, types.UnionType)
        kind = next(part for part in get_args(hint) if part is not types.NoneType) if optional else hint
        options.append(
            Option(
                name=item.name,
                type=kind,
                optional=optional,
                default=item.default,
                facts=item.metadata["facts"],
                topic=topic,
            )
        )
    return tuple(options)
