"""What `mimicry samples` would draw, told from the tree."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mimicry.common.errors import UsageError
from mimicry.sampling.plan import (
    SampleRequest,
    SampleSet,
    conditions_of,
    file_name,
    pairs_for_sheet,
    plan_samples,
)
from mimicry.study.drawn_images import default_prompts, save_sample
from mimicry.study.matrix import Selection
from mimicry.study.tree import AdapterId, State, StudyTree
from mimicry.tuning.adapters.folder import WEIGHTS
from mimicry.tuning.hf_diffusers.spec.base_model import BaseModel
from mimicry.tuning.options.study_file import StudyFile
from mimicry.tuning.status.study_status import read_status
from tests.hostile_names import over_hostile_names
from tests.small_study import (
    ANNA,
    BASE,
    BORIS,
    CLARA,
    CONFIG,
    COUNTERED,
    DORA,
    MIST,
    ORIGINAL,
    output_dir,
    put_adapter,
    write_adapter,
    write_images,
    write_study,
)
from tests.tuning.status.study_states import parameters_of


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyTree:
    """A study with adapters of one base model, which is there."""
    monkeypatch.setattr(BaseModel, "find", lambda config: BASE)
    study = write_study(tmp_path / "study")
    for condition, artist in ((COUNTERED, ANNA), (ORIGINAL, ANNA), (MIST, ANNA), (ORIGINAL, CLARA)):
        put_adapter(study, condition, artist)
    return study


def plan(tree: StudyTree, **changes: Any) -> list[SampleSet]:
    filters = changes.pop("filters", {})
    words: dict[str, Any] = {
        "study": read_status(parameters_of(tree, **filters), StudyFile()),
        "prompts": ("a boat", "a tree"),
        "seeds": (0, 1),
        "steps": 2,
        "changes": {},
    }
    return plan_samples(SampleRequest(**words | changes))


def only(**filters: Any) -> dict[str, Any]:
    """Return the part of a request that chooses adapters."""
    return {"filters": filters}


def shown(sets: list[SampleSet]) -> list[str]:
    return [found.name for found in sets]


def test_all_conditions_with_adapters_are_drawn_artist_by_artist(tree: StudyTree) -> None:
    sets = plan(tree)

    assert shown(sets) == [
        *(f"{condition}/{ANNA}" for condition in (ORIGINAL, MIST, COUNTERED)),
        f"{ORIGINAL}/{CLARA}",
    ]
    assert conditions_of(reversed(sets)) == [ORIGINAL, MIST, COUNTERED]
    assert not any(found.problem for found in sets)
    folder = tree.data_root / "mimic_art/hf_diffusers/mist__none" / str(ANNA)
    assert [picture.path for picture in sets[1].pictures] == [
        folder / name for name in ("a_boat_0.png", "a_boat_1.png", "a_tree_0.png", "a_tree_1.png")
    ]
    assert {picture.state for found in sets for picture in found.pictures} == {State.WAITING}


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        (only(protections=("mist",)), [f"{MIST}/{ANNA}", f"{COUNTERED}/{ANNA}"]),
        (only(protections=("mist",), countermeasures=("none",)), [f"{MIST}/{ANNA}"]),
        (only(selection=Selection(artists=(CLARA.name,))), [f"{ORIGINAL}/{CLARA}"]),
        (only(selection=Selection(pilot=True, styles=("cubism",))), [f"{ORIGINAL}/{CLARA}"]),
        (
            {**only(selection=Selection(artists=(CLARA.name,))), "base": True},
            ["the base model", f"{ORIGINAL}/{CLARA}"],
        ),
    ],
)
def test_filters_are_those_of_apply_tuning(
    changes: dict[str, Any], names: list[str], tree: StudyTree
) -> None:
    assert shown(plan(tree, **changes)) == names


def test_names_that_match_nothing_are_told_all_at_once(tree: StudyTree) -> None:
    with pytest.raises(UsageError) as caught:
        plan(
            tree,
            **only(
                protections=("mits",),
                countermeasures=("x",),
                selection=Selection(artists=("Anna_Burg",)),
            ),
        )
    first, second, third = caught.value.problems
    assert "--protection mits" in first
    assert "did you mean 'mist'" in first
    assert "--countermeasure x" in second
    assert "did you mean 'Anna_Berg'" in third


def test_artists_without_an_adapter_are_said(tree: StudyTree) -> None:
    with pytest.raises(UsageError, match="there is no adapter of these artists"):
        plan(tree, **only(selection=Selection(artists=(BORIS.name,))))


def test_a_broken_or_foreign_adapter_is_a_problem_of_its_own(tree: StudyTree) -> None:
    (output_dir(tree, MIST, ANNA) / WEIGHTS).write_bytes(b"no weights")
    put_adapter(tree, ORIGINAL, CLARA, recipe={"base_model": {"name": "lab/other", "revision": "1" * 40}})

    sets = {found.name: found for found in plan(tree, base=True)}

    assert WEIGHTS in sets[f"{MIST}/{ANNA}"].problem
    assert "trained on another base model" in sets[f"{ORIGINAL}/{CLARA}"].problem
    assert not sets[f"{MIST}/{ANNA}"].pictures
    assert not sets[f"{ORIGINAL}/{ANNA}"].problem


def test_what_lies_there_is_told_by_its_settings(tree: StudyTree, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = plan(tree)[0].pictures
    image = Image.new("RGB", (4, 4))
    save_sample(pictures[0].path, image, pictures[0].settings)
    save_sample(pictures[1].path, image, {**pictures[1].settings, "steps": 3})
    pictures[2].path.write_bytes(b"half a file")

    def states(**changes: Any) -> list[State]:
        return [picture.state for picture in plan(tree, **changes)[0].pictures]

    assert states() == [State.COMPLETE, State.STALE, State.STALE, State.WAITING]
    assert states(overwrite=True) == [State.COMPLETE, State.WAITING, State.WAITING, State.WAITING]
    # A dry run, on a machine that has not downloaded the model.
    monkeypatch.setattr(BaseModel, "find", lambda config: None)
    assert states()[:2] == [State.COMPLETE, State.STALE]
    monkeypatch.setattr(BaseModel, "find", lambda config: replace(BASE, name="lab/other"))
    assert states(**only(selection=Selection(artists=(ANNA.name,)))) == []


def test_an_adapter_that_was_trained_again_makes_its_samples_stale(tree: StudyTree) -> None:
    picture = plan(tree)[0].pictures[0]
    save_sample(picture.path, Image.new("RGB", (4, 4)), {**picture.settings, "adapter": "0" * 64})

    assert plan(tree)[0].pictures[0].state is State.STALE


def test_each_adapter_has_its_own_prompts_by_default(tree: StudyTree) -> None:
    put_adapter(tree, ORIGINAL, CLARA, options={"rank": 4, "instance_prompt": "zwx"})
    base, *sets = plan(tree, prompts=(), seeds=(5,), base=True)

    def prompts(found: SampleSet) -> list[str]:
        return [picture.prompt for picture in found.pictures]

    assert prompts(sets[0]) == [
        "a painting in the style of sks",
        *(f"a painting of a {what} in the style of sks" for what in ("boat", "house", "tree")),
    ]
    assert (
        prompts(sets[-1]) == default_prompts("zwx") == ["zwx", "a boat, zwx", "a house, zwx", "a tree, zwx"]
    )
    assert prompts(base) == prompts(sets[0]) + prompts(sets[-1])


def test_each_adapter_is_drawn_as_its_record_says(tree: StudyTree) -> None:
    for artist, resolution, precision in ((ANNA, 64, "no"), (CLARA, 128, "bf16")):
        options = {"rank": 4, "resolution": resolution, "mixed_precision": precision}
        paths = {"pretrained_model_name_or_path": "lab/tiny"}
        put_adapter(tree, ORIGINAL, artist, options=options, paths=paths)

    def drawn(**changes: Any) -> list[tuple[int, str, str]]:
        sets = plan(tree, **only(protections=("none",)), **changes)
        return [
            (
                found.config.resolution,
                found.config.mixed_precision,
                found.config.pretrained_model_name_or_path,
            )
            for found in sets
        ]

    assert drawn() == [(64, "no", "lab/tiny"), (128, "bf16", "lab/tiny")]
    assert drawn(changes={"resolution": 32}) == [(32, "no", "lab/tiny"), (32, "bf16", "lab/tiny")]
    sets = plan(tree, **only(protections=("none",)))
    assert [{picture.settings["resolution"] for picture in found.pictures} for found in sets] == [{64}, {128}]


def test_a_model_that_was_moved_needs_its_new_place(tree: StudyTree, monkeypatch: pytest.MonkeyPatch) -> None:
    put_adapter(
        tree,
        options={"pretrained_model_name_or_path": None},
        paths={"pretrained_model_name_or_path": "old", "base_model": "./old"},
    )
    monkeypatch.setattr(
        BaseModel,
        "find",
        lambda config: BASE if config.pretrained_model_name_or_path == "./new" else None,
    )
    chosen = only(protections=("none",), selection=Selection(artists=(ANNA.name,)))

    (lost,) = plan(tree, **chosen)
    (found,) = plan(tree, **chosen, changes={"pretrained_model_name_or_path": "./new"})

    assert lost.config.pretrained_model_name_or_path == "./old"
    assert {picture.settings["base_model"] is None for picture in lost.pictures} == {True}
    assert {picture.settings["base_model"] == BASE.identity() for picture in found.pictures} == {True}


def test_a_sheet_shows_all_prompts_before_a_second_seed(tree: StudyTree) -> None:
    sets = plan(tree)

    assert pairs_for_sheet(sets, ANNA, 3) == [("a boat", 0), ("a tree", 0), ("a boat", 1)]
    assert pairs_for_sheet(sets, BORIS, 3) == []


@over_hostile_names
def test_any_prompt_makes_a_name_of_a_file(hostile_name: str, tmp_path: Path) -> None:
    name = file_name(hostile_name, 3)

    assert name.endswith("_3.png")
    assert "/" not in name
    assert not name.startswith((".", "-", "_"))
    (tmp_path / name).write_bytes(b"")


def test_no_two_prompts_share_a_name() -> None:
    prompts = [
        "a boat",
        "a_boat",
        "a  boat",
        "a boat.",
        "a/boat",
        "é",
        "è",
        "x" * 300,
        "x" * 301,
        "-",
        "..",
        "_",
    ]

    assert len({file_name(prompt, 0) for prompt in prompts}) == len(prompts)
    assert file_name("a boat", 0) == "a_boat_0.png"


class TestWhatBelongsTogether:
    def test_an_adapter_copied_from_another_condition_draws_nothing(self, tree: StudyTree) -> None:
        trained = put_adapter(
            tree, ORIGINAL, BORIS, paths={"output_dir": str(output_dir(tree, artist=BORIS))}
        )
        shutil.copytree(trained, output_dir(tree, MIST, BORIS))

        sets = plan(tree, **only(selection=Selection(artists=(BORIS.name,))))

        assert [bool(found.pictures) for found in sets] == [True, False]
        assert f"its record is of {ORIGINAL}/{BORIS}" in sets[1].problem
        assert "other images: changed '01_tree.png'" in sets[1].problem

    def test_an_artist_of_another_name_and_the_same_images_draws(self, tree: StudyTree) -> None:
        put_adapter(tree, ORIGINAL, BORIS, paths={"output_dir": str(output_dir(tree, artist=DORA))})

        (found,) = plan(tree, **only(selection=Selection(artists=(BORIS.name,))))

        assert found.problem == ""

    def test_an_adapter_of_other_images_than_lie_there_draws_nothing(self, tree: StudyTree) -> None:
        write_images(tree.images_of(tree.protected_art / "mist", ANNA), ("04_new",))

        problems = {str(found.condition): found.problem for found in plan(tree)}

        assert "other images: new '04_new.png'" in problems["mist__none"]
        assert problems["none__none"] == ""

    def test_where_the_images_are_not_on_this_machine_it_draws(self, tree: StudyTree) -> None:
        shutil.rmtree(tree.protected_art)

        assert not any(found.problem for found in plan(tree))

    def test_several_recipes_are_told_apart(self, tree: StudyTree) -> None:
        assert {found.recipe for found in plan(tree)} == {""}
        put_adapter(tree, ORIGINAL, BORIS, config=replace(CONFIG, seed=7))

        assert {found.name: found.recipe for found in plan(tree, base=True)} == {
            "the base model": "",
            **{f"{condition}/{ANNA}": "recipe 1" for condition in (ORIGINAL, MIST, COUNTERED)},
            f"{ORIGINAL}/{CLARA}": "recipe 1",
            f"{ORIGINAL}/{BORIS}": "recipe 2: seed 42 -> 7",
        }

    def test_an_unpaired_adapter_is_marked(self, tree: StudyTree) -> None:
        assert {found.unpaired for found in plan(tree)} == {""}
        put_adapter(tree, MIST, ANNA, unpaired=["no image for 'lake'", "1 of 3 is another picture"])

        assert {found.name: found.unpaired for found in plan(tree, base=True) if found.unpaired} == {
            f"{MIST}/{ANNA}": "no image for 'lake'; 1 of 3 is another picture"
        }

    def test_a_variant_draws_into_a_folder_of_its_own(self, tree: StudyTree) -> None:
        folder = tree.adapter_dir(AdapterId("hf_diffusers", ORIGINAL, ANNA, "big"))
        write_adapter(folder, tree.images_of(tree.original_art, ANNA))

        base, found = plan(tree, base=True, **only(variants=("big",)))

        root = tree.data_root / "mimic_art/hf_diffusers@big"
        assert found.pictures[0].path.parent == root / "none__none" / str(ANNA)
        assert base.pictures[0].path.parent == root / "base"

    def test_all_series_are_drawn_and_the_base_model_once(self, tree: StudyTree) -> None:
        folder = tree.adapter_dir(AdapterId("hf_diffusers", ORIGINAL, ANNA, "seed-43"))
        write_adapter(folder, tree.images_of(tree.original_art, ANNA))

        names = shown(plan(tree, base=True))
        usual = shown(plan(tree, base=True, **only(variants=("none",))))

        assert names == [*usual, f"seed-43 none__none/{ANNA}"]
        assert names.count("the base model") == 1
