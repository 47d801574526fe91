"""Reading study.toml: what it says, and every complaint at once, with the file and the key."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import pytest

from mimicry.common.errors import UsageError
from mimicry.sampling.draw_samples import draw_samples
from mimicry.tuning.apply_tuning import apply_tuning
from mimicry.tuning.options.config import OPTIONS, TuningConfig
from mimicry.tuning.options.study_file import (
    HYPER_PARAMETERS,
    RECIPE_FIELDS,
    SAMPLE_KEYS,
    STUDY_KEYS,
    Key,
    Series,
    StudyFile,
    Variant,
    all_series,
    chosen_series,
    variant_and_seed,
)

Reads = Callable[[str], StudyFile]
Complains = Callable[[str], Sequence[str]]


@pytest.fixture
def read(tmp_path: Path) -> Reads:
    """Reads a file with the text that the test gives."""

    def read(text: str) -> StudyFile:
        path = tmp_path / "study.toml"
        path.write_text(text, "utf-8")
        return StudyFile.read(path)

    return read


@pytest.fixture
def complain(read: Reads, tmp_path: Path) -> Complains:
    """Returns what is wrong with a text, without the path of the file that begins each problem."""

    def complain(text: str) -> Sequence[str]:
        with pytest.raises(UsageError) as caught:
            read(text)
        begin = f"{tmp_path / 'study.toml'}: "
        assert all(problem.startswith(begin) for problem in caught.value.problems)
        return [problem.removeprefix(begin) for problem in caught.value.problems]

    return complain


def test_everything_is_optional(read: Reads) -> None:
    empty = read("")

    assert (empty.values, empty.variants, empty.replicates) == ({}, {}, 1)
    assert StudyFile().path is None


def test_what_a_file_says(read: Reads) -> None:
    said = read(
        '[study]\nprotections = ["none", "mist"]\ncountermeasures = "all"\nreplicates = 3\npilot = true\n'
        '[recipe]\nrank = 8\nlearning-rate = 1\noptimizer = "ADAMW"\nmodel-variant = "fp16"\n'
        "[variants.rank-32]\nrank = 32\nreplicates = 2\n"
        '[samples]\nprompts = ["a boat"]\nseeds = [3, 4]\nguidance = 3\nbase = true\n'
    )

    assert said.study == {
        "protections": ("none", "mist"),
        "countermeasures": ("all",),
        "replicates": 3,
        "pilot": True,
    }
    assert said.recipe == {"rank": 8, "learning_rate": 1.0, "optimizer": "AdamW", "variant": "fp16"}
    assert isinstance(said.recipe["learning_rate"], float)
    assert said.variants == {"rank-32": Variant("rank-32", {"rank": 32}, 2)}
    assert said.samples == {"prompts": ("a boat",), "seeds": (3, 4), "guidance": 3.0, "base": True}
    assert said.values == {**said.study, **said.recipe, **said.samples}


def test_a_byte_order_mark_is_no_key(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_bytes(b"\xef\xbb\xbf[recipe]\r\nrank = 8\r\n")

    assert StudyFile.read(path).recipe == {"rank": 8}


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: str(option.name))
@pytest.mark.parametrize("dashes", [False, True], ids=["underscores", "dashes"])
def test_every_hyper_parameter_has_a_key(option: Any, dashes: bool, read: Reads) -> None:
    value = option.default
    if value is None:
        numeric = option.type in (int, float)
        value = option.type(option.facts.minimum or 1) if numeric else (option.facts.choices or ("x",))[0]
    if option.type is float:
        value = min(value, 0.5)
    name = option.flag.removeprefix("--")
    shown = str(value).lower() if option.type is bool else repr(value)

    said = read(f"[recipe]\n{name if dashes else name.replace('-', '_')} = {shown}")

    assert said.recipe == {option.name: value}


class TestPaths:
    def test_dots_are_meant_from_the_files_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "lab" / "study").mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        path = Path("lab/study/study.toml")
        path.write_text(
            '[study]\nstack = "./quick"\n[recipe]\npretrained_model_name_or_path = "../tiny_sd3"\n'
            'cache_dir = "/models"\nlogging_dir = "../logs"\ninstance_prompt = "../ sks"\n'
            '[variants.medium]\npretrained_model_name_or_path = ".."\n'
        )

        said = StudyFile.read(path)

        assert said.study["stack"] == "lab/study/quick"
        assert said.recipe["pretrained_model_name_or_path"] == "lab/tiny_sd3"
        assert said.recipe["cache_dir"] == "/models"
        assert said.recipe["logging_dir"] == "../logs"  # relative to the adapter's folder
        assert said.recipe["instance_prompt"] == "../ sks"
        assert said.variants["medium"].values == {"pretrained_model_name_or_path": "./lab"}

    def test_a_name_stays_a_name(self, read: Reads) -> None:
        said = read(
            '[study]\nstack = "hf_diffusers"\n[recipe]\npretrained_model_name_or_path = "lab/large"\n'
        )

        assert said.values == {"stack": "hf_diffusers", "pretrained_model_name_or_path": "lab/large"}

    def test_through_a_link_the_dots_lead_where_the_link_leads(self, tmp_path: Path) -> None:
        (tmp_path / "scratch" / "study").mkdir(parents=True)
        (tmp_path / "study").symlink_to(tmp_path / "scratch" / "study")
        path = tmp_path / "study" / "study.toml"
        path.write_text('[recipe]\ncache_dir = "../cache"\n')

        located = Path(StudyFile.read(path).recipe["cache_dir"])

        assert located.resolve() == tmp_path / "scratch" / "cache"


class TestComplaints:
    def test_all_at_once_with_table_and_key(self, complain: Complains) -> None:
        found = complain(
            "rank = 3\nanswer = 42\nsamples = 1\n"
            '[study]\nreplicates = 0\norder = "style"\nprotections = []\nsplits = [1]\npilot = 1\n'
            '[recipe]\nranc = 8\nrank = 0\nlearning_rate = "high"\nprompts = ["a boat"]\nresolution = 64.0\n'
            "[recipes]\nrank = 4\n"
            '[variants.none]\nrank = 4\n[variants."a b"]\nrank = 4\n[variants.seed-43]\nrank = 4\n'
            "[variants.all]\nrank = 4\n[variants.x-SEED-1]\nrank = 4\n[variants.same]\nreplicates = 2\n"
            "[variants.typo]\nrnak = 4\n[variants]\nrank-64 = 64\n"
        )

        assert len(found) == 22
        text = "\n".join(found)
        for part in (
            "rank stands in no table; it is a key of [recipe]",
            "answer stands in no table; write it below [recipe]",
            "samples is 1; write it as a table: [samples]",
            "[recipes]: there is no such table; did you mean 'recipe'?",
            "[study] replicates is 0; it takes at least 1, at most 1000",
            "[study] order is 'style'; choose one of artist, condition",
            "[study] protections is []; it takes a list in [ ], with at least one value",
            "[study] splits is 1; it takes text",
            "[study] pilot is 1; it takes true or false",
            "[recipe] ranc: there is no such key; did you mean 'rank'?",
            "[recipe] rank is 0; it takes at least 1, at most 1024",
            "[recipe] learning_rate is 'high'; it takes a number",
            "[recipe] prompts: there is no such key; it is a key of [samples]",
            "[recipe] resolution is 64.0; it takes a whole number",
            "[variants.none]: 'none' is not a name",
            "[variants.all]: 'all' is not a name",
            "[variants.a b]: 'a b' is not a name",
            "[variants.seed-43]: 'seed-43' is what a replicate is called",
            "[variants.x-SEED-1]: 'x-SEED-1' is what a replicate is called",
            "[variants.same] has the recipe of the study",
            "[variants.typo] rnak: there is no such key; did you mean 'rank'",
            "[variants] rank-64 is 64; write the values of a variant below [variants.NAME]",
        ):
            assert part in text

    @pytest.mark.parametrize(
        ("text", "part"),
        [
            ("[recipe]\nlearning_rate = nan", "it takes above 0"),
            ("[recipe]\nrank = true", "it takes a whole number"),
            ("[recipe]\nrank = 2026-01-01", "it takes a whole number"),
            ('[recipe]\ninstance_prompt = "  "', "text that is not blank"),
            ('[recipe]\ninstance_prompt = "a\\u0000"', "text that is not blank"),
            ('[recipe]\noptimizer = "SGD"', "choose one of AdamW, prodigy"),
            ("[recipe]\nlearning_rate = 1" + "0" * 400, "it takes a number"),
            ("[recipe]\nlearning-rate = 1e-4\nlearning_rate = 1e-4", "is there twice"),
            ('[recipe]\nvariant = "fp16"', "there is no such key; did you mean 'model_variant'"),
            ('[samples]\nseeds = ["a"]', "it takes a whole number"),
            ("[samples]\nseeds = 3", "it takes a list"),
            ("[samples]\nsteps = 0", "it takes at least 1, at most 1000"),
            ("[study]\nrank = 8", "it is a key of [recipe]"),
        ],
    )
    def test_one(self, text: str, part: str, complain: Complains) -> None:
        (found,) = complain(text)
        assert part in found

    @pytest.mark.parametrize(
        ("content", "part"),
        [
            (b"[recipe]\nrank 8", "is not TOML"),
            (b"[recipe]\nrank = 1" + b"0" * 5000, "is not TOML"),
            (b"[recipe]\nx = " + b"[" * 20_000, "is not TOML"),
            (b"[recipe]\ninstance_prompt = '\xff'", "is not text in UTF-8"),
        ],
        ids=["no sign", "long number", "deep", "latin"],
    )
    def test_what_is_not_toml(self, content: bytes, part: str, tmp_path: Path) -> None:
        path = tmp_path / "study.toml"
        path.write_bytes(content)

        with pytest.raises(UsageError) as caught:
            StudyFile.read(path)
        (problem,) = caught.value.problems
        assert problem.startswith(f"{path} ")
        assert part in problem

    def test_what_cannot_be_read(self, tmp_path: Path) -> None:
        for path in (tmp_path, tmp_path / "absent.toml"):
            with pytest.raises(UsageError, match=r"cannot be read: .* --study none"):
                StudyFile.read(path)


class TestHoldOut:
    def test_it_may_stand_in_either_table(self, read: Reads) -> None:
        for text in (
            "[study]\nhold_out = 4",
            "[recipe]\nhold_out = 4",
            "[study]\nhold_out = 4\n[recipe]\nhold_out = 4",
        ):
            said = read(text)
            assert (said.study, said.recipe) == ({}, {"hold_out": 4})

    def test_not_with_two_values(self, complain: Complains) -> None:
        (found,) = complain("[study]\nhold_out = 4\n[recipe]\nhold_out = 5")
        assert "differs" in found


def bounds(parameter: click.Parameter) -> tuple[Any, Any]:
    kind = parameter.type
    return getattr(kind, "min", None), getattr(kind, "max", None)


@pytest.mark.parametrize(
    ("command", "keys"), [(apply_tuning, STUDY_KEYS), (draw_samples, SAMPLE_KEYS)], ids=["study", "samples"]
)
def test_keys_are_options_with_the_same_bounds(command: click.Command, keys: dict[str, Key]) -> None:
    options = {parameter.name: parameter for parameter in command.params}
    shared = [key for name, key in keys.items() if name in options and name not in HYPER_PARAMETERS]

    assert len(shared) >= len(SAMPLE_KEYS)
    for key in shared:
        parameter = options[key.option.name]
        facts = key.option.facts
        assert getattr(parameter, "from_file", False)
        assert bounds(parameter) == (facts.minimum, facts.maximum)
        assert key.is_list == getattr(parameter, "multiple", False)


FILE = Path("study.toml")


def said(
    recipe: Mapping[str, Any] | None = None, *variants: Variant, replicates: int | None = None
) -> StudyFile:
    study = {} if replicates is None else {"replicates": replicates}
    return StudyFile(FILE, study, recipe or {}, {variant.name: variant for variant in variants})


RANK_32 = Variant("rank-32", {"rank": 32}, 2)
SMALL = Variant("small", {"resolution": 512, "seed": 7}, 2)
STUDY = said({"rank": 8}, RANK_32, SMALL, replicates=3)
NAMES = ["none", "seed-43", "seed-44", "rank-32", "rank-32-seed-43", "small", "small-seed-8"]


def names(series: tuple[Series, ...]) -> list[str]:
    return [one.name for one in series]


def test_without_a_file_there_is_one() -> None:
    config = TuningConfig(rank=4)

    assert all_series(config, {"rank"}, StudyFile()) == (Series(None, config),)


def test_replicates_without_a_file_are_named_by_their_seed() -> None:
    config = TuningConfig(seed=5)

    series = all_series(config, {"seed"}, StudyFile(), 3)

    assert series == (
        Series(None, config),
        Series("seed-6", TuningConfig(seed=6)),
        Series("seed-7", TuningConfig(seed=7)),
    )


def test_the_plain_one_comes_first_then_each_variant_with_its_replicates() -> None:
    series = all_series(TuningConfig(rank=8), (), STUDY)

    assert names(series) == NAMES
    assert [one.variant for one in series][:2] == [None, "seed-43"]
    assert [(one.config.rank, one.config.resolution, one.config.seed) for one in series] == [
        (8, 1024, 42),
        (8, 1024, 43),
        (8, 1024, 44),
        (32, 1024, 42),
        (32, 1024, 43),
        (8, 512, 7),
        (8, 512, 8),
    ]


def test_replicates_of_the_call_are_those_of_the_plain_one() -> None:
    assert names(all_series(TuningConfig(), (), STUDY, 1)) == ["none", *NAMES[3:]]


def test_what_is_typed_and_not_in_the_recipe_holds_for_variants_too() -> None:
    variant = Variant("quick", {"rank": 4, "compile_blocks": True, "eval_timesteps": 1})
    typed = TuningConfig(eval_timesteps=9)

    plain, quick = all_series(typed, {"eval_timesteps"}, said({"eval_timesteps": 2}, variant))

    assert plain.config == typed
    assert quick.config == TuningConfig(rank=4, compile_blocks=True, eval_timesteps=9)


def test_what_is_typed_for_one_variant_leaves_the_others() -> None:
    """Typed with --variant rank-32, whose value it is."""
    series = all_series(TuningConfig(rank=32), {"rank"}, STUDY)

    assert [one.config.rank for one in series] == [8, 8, 8, 32, 32, 8, 8]


def test_the_base_model_is_part_of_a_recipe_though_by_another_name() -> None:
    assert {"rank", "seed", "pretrained_model_name_or_path", "revision", "variant"} <= RECIPE_FIELDS
    assert RECIPE_FIELDS.isdisjoint({"cache_dir", "compile_blocks", "class_data_dir", "eval_timesteps"})


def test_what_is_wrong_with_all_of_them_is_said_at_once() -> None:
    long = Variant("x" * 40, {"rank": 4}, 2)
    prior = Variant("prior", {"class_prompt": "a painting"})

    with pytest.raises(UsageError) as caught:
        all_series(TuningConfig(), (), said({}, long, prior))

    first, second = caught.value.problems
    assert first.startswith(f"study.toml: [variants.{long.name}]: the replicate with seed 43 needs a shorter")
    assert second.startswith("study.toml: [variants.prior]: --class-prompt is 'a painting'")


def test_a_seed_without_a_next_one() -> None:
    with pytest.raises(UsageError, match=re.escape(f"--seed is {2**63}")):
        all_series(TuningConfig(seed=2**63 - 1), (), StudyFile(), 2)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (None, (None, None)),
        ("rank-32", ("rank-32", None)),
        ("seed-43", (None, 43)),
        ("rank-32-seed-7", ("rank-32", 7)),
        ("seed-x", ("seed-x", None)),
        ("a-seed-1-seed-2", ("a-seed-1", 2)),
    ],
)
def test_the_name_of_a_replicate(name: str | None, parts: tuple[str | None, int | None]) -> None:
    assert variant_and_seed(name) == parts


class TestChoosing:
    series = all_series(TuningConfig(rank=8), (), STUDY)

    @pytest.mark.parametrize(
        ("asked", "chosen"),
        [
            ([], NAMES),
            (["all"], NAMES),
            (["rank-32", "all"], NAMES),
            (["none"], ["none"]),
            (["seed-44"], ["seed-44"]),
            (["rank-32"], ["rank-32", "rank-32-seed-43"]),
            (["rank-32-seed-43"], ["rank-32-seed-43"]),
            (["small", "none", "small"], ["none", "small", "small-seed-8"]),
        ],
    )
    def test_names(self, asked: list[str], chosen: list[str]) -> None:
        assert names(chosen_series(self.series, asked)) == chosen

    def test_unknown_names_are_refused_with_the_nearest(self) -> None:
        with pytest.raises(UsageError) as caught:
            chosen_series(self.series, ["rank-23", "none", "sead-43"])

        first, second = caught.value.problems
        assert "--variant rank-23: there is no such variant; did you mean 'rank-32'" in first
        assert "--variant sead-43: there is no such variant; did you mean 'seed-43'" in second

    def test_a_study_beside(self) -> None:
        config = TuningConfig(rank=64)

        assert chosen_series(self.series, ["rank-64"], config) == (Series("rank-64", config),)
        assert names(chosen_series(self.series, ["x", "none"], config)) == ["none", "x"]

    def test_a_replicate_that_its_variant_does_not_have_is_not_a_study_beside(self) -> None:
        with pytest.raises(UsageError, match="there is no such variant"):
            chosen_series(self.series, ["rank-32-seed-49"], TuningConfig(rank=64))
