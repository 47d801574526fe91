"""Captions and class images as a plan sees them: who is blocked, what is stale, what the stack is told."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mimicry.study.captions import Captions, image_records
from mimicry.study.drawn_images import SETTINGS, ClassImages, generated_name
from mimicry.study.images import ImageFolder
from mimicry.study.tree import Condition, State, StudyTree
from mimicry.tuning.adapters.judge import AdapterSpec
from mimicry.tuning.planning.target import Target
from tests.small_study import (
    ANNA,
    BORIS,
    CONFIG,
    MIST,
    ORIGINAL,
    STEMS,
    asked_for,
    original,
    plan_of,
    put_adapter,
    target_of,
    write_images,
)
from tests.tuning.companions import PRIOR
from tests.tuning.quick_studio import QuickStudio, quick_calls

CAPTIONED = replace(CONFIG, captions=True)


def write_captions(tree: StudyTree, condition: Condition = ORIGINAL, words: str = "") -> Path:
    """Caption every image of ANNA in `condition`; return their folder."""
    folder = tree.images_of(tree.source(condition).root, ANNA)
    for stem in STEMS:
        (folder / f"{stem}.txt").write_text(f"{stem} {words} in the style of sks")
    return folder


def captioned_adapter(tree: StudyTree, condition: Condition) -> None:
    """Write an adapter as if trained with the captions that there are now."""
    images = ImageFolder.read(tree.images_of(tree.source(condition).root, ANNA))
    captions = Captions.read(images, ImageFolder.read(original(tree)))
    put_adapter(
        tree,
        condition,
        recipe=dict(asked_for(captions=True).recipe or {}),
        images=image_records(images, captions),
    )


class TestCaptions:
    def plan(self, tree: StudyTree, condition: Condition = MIST, **more: Any) -> Target:
        asked = asked_for(captions=True)
        return target_of(plan_of(tree, condition, asked=asked, config=CAPTIONED, **more))

    def caption_words(self, target: Target) -> list[str]:
        return [word for word in target.command if word.startswith("--caption-data-dir")]

    def test_those_of_the_original_are_handed_on(self, tree: StudyTree) -> None:
        write_captions(tree)
        for condition in (ORIGINAL, MIST):
            target = self.plan(tree, condition)
            assert target.state is State.WAITING
            assert self.caption_words(target) == [f"--caption-data-dir={original(tree)}"]
            assert not [warning for warning in target.warnings if "caption" in warning]
        assert self.caption_words(target_of(plan_of(tree))) == []

    def test_those_that_differ_and_those_that_are_missing_are_warned_of(self, tree: StudyTree) -> None:
        folder = write_captions(tree, MIST)
        (folder / f"{STEMS[0]}.txt").unlink()
        warnings = self.plan(tree).warnings
        assert [warning for warning in warnings if "caption" in warning] == [
            "captions differ from those of the original art: '02_boat', '03_hills'",
            f"1 of 3 images have no caption and are trained with the instance prompt: '{STEMS[0]}'",
        ]

    def test_bad_ones_block_the_artist_alone(self, tree: StudyTree) -> None:
        folder = write_captions(tree)
        (folder / f"{STEMS[0]}.txt").write_bytes(b"\xff")
        (folder / "metadata.jsonl").write_text("{")
        target = self.plan(tree)
        assert target.state is State.BLOCKED
        assert f"{STEMS[0]}.txt is not UTF-8" in target.reason
        assert "metadata.jsonl, line 1" in target.reason
        plan = plan_of(tree, MIST, asked=asked_for(captions=True), config=CAPTIONED)
        assert target_of(plan, BORIS).state is State.WAITING
        assert target_of(plan_of(tree, MIST)).state is State.WAITING

    @pytest.mark.parametrize("full", [False, True])
    @pytest.mark.parametrize("condition", [ORIGINAL, MIST], ids=str)
    def test_changed_ones_make_an_adapter_stale(
        self, condition: Condition, full: bool, tree: StudyTree
    ) -> None:
        write_captions(tree)
        captioned_adapter(tree, condition)
        assert self.plan(tree, condition, full=full).existing is State.COMPLETE
        write_captions(tree, words="changed")
        target = self.plan(tree, condition, full=full)
        assert target.state is State.STALE
        assert target.reason.startswith("other captions; kept")
        without = target_of(plan_of(tree, condition, full=full))
        assert without.reason.startswith("captions True -> False, other captions; kept")

    def test_the_stack_is_told_where_they_are(self, quick_studio: QuickStudio) -> None:
        write_captions(quick_studio.tree)
        ended = quick_studio.tune("--captions", "--artist=Anna_Berg", "--protection=mist")
        assert ended.code == 0, ended.err
        (call,) = quick_calls(quick_studio.stack)
        assert f"--caption-data-dir={original(quick_studio.tree)}" in call["words"]
        assert "--captions" in call["words"]
        assert quick_studio.tune("--artist=Boris_Cole", "--variant=plain").code == 0
        assert not [word for word in quick_calls(quick_studio.stack)[1]["words"] if "caption-data" in word]

    def test_another_trainer_cannot_take_them(self, quick_studio: QuickStudio) -> None:
        ended = quick_studio.tune("--captions", "--train-script=their.py")
        assert ended.code == 2
        assert "error: --captions: their.py takes one prompt for all images" in ended.err


class TestClassImages:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "class"
        write_images(folder, [generated_name(index).removesuffix(".png") for index in range(3)])
        return folder

    def asked(self, folder: Path) -> AdapterSpec:
        prior = PRIOR | {"class_data_dir": str(folder), "num_class_images": 3}
        return AdapterSpec(4, asked_for(**prior).recipe, ClassImages(folder, 3))

    def state(self, tree: StudyTree, folder: Path, *, full: bool) -> tuple[State, str]:
        target = target_of(plan_of(tree, asked=self.asked(folder), full=full))
        return target.existing, target.reason

    @pytest.mark.parametrize("full", [False, True])
    def test_other_ones_make_an_adapter_stale(self, full: bool, folder: Path, tree: StudyTree) -> None:
        recipe = dict(self.asked(folder).recipe or {})
        put_adapter(tree, recipe=recipe, class_images=ClassImages(folder, 3).record())
        assert self.state(tree, folder, full=full)[0] is State.COMPLETE
        path = folder / generated_name(1)
        content = path.read_bytes()
        path.write_bytes(content + b"longer")
        state, reason = self.state(tree, folder, full=full)
        assert (state, reason.partition(";")[0]) == (State.STALE, "other class images")
        path.write_bytes(content[:-1] + b"x")
        assert self.state(tree, folder, full=full)[0] is (State.STALE if full else State.COMPLETE)
        # Those that are gone will be generated as they were.
        path.unlink()
        assert self.state(tree, folder, full=full)[0] is State.COMPLETE

    def test_what_is_missing_is_a_problem_of_the_call(self, quick_studio: QuickStudio) -> None:
        ended = quick_studio.tune("--with-prior-preservation", "--rank=0")
        assert ended.code == 2
        for flag in ("--class-prompt", "--class-data-dir"):
            assert f"error: --with-prior-preservation needs {flag}" in ended.err
        assert "error: --rank is 0" in ended.err

    def test_a_folder_of_other_settings_stops_the_batch(
        self, quick_studio: QuickStudio, folder: Path
    ) -> None:
        (folder / SETTINGS).write_text('{"prompt": "a drawing"}')
        words = ("--with-prior-preservation", f"--class-data-dir={folder}", "--class-prompt=a painting")
        ended = quick_studio.tune(*words)
        assert ended.code == 2
        assert "error: --class-data-dir: the images in" in ended.err
        assert "prompt 'a drawing' -> 'a painting'" in ended.err
        assert quick_calls(quick_studio.stack) == []
        shown = quick_studio.tune(*words, "--dry-run")
        assert shown.code == 0
        assert "would be refused: --class-data-dir" in shown.err

    def test_the_options_reach_the_stack(self, quick_studio: QuickStudio, folder: Path) -> None:
        words = ("--with-prior-preservation", f"--class-data-dir={folder}", "--class-prompt=a painting")
        ended = quick_studio.tune(*words, "--num-class-images=3", "--artist=Anna_Berg")
        assert ended.code == 0, ended.err
        assert set(words) | {"--num-class-images=3"} <= set(quick_calls(quick_studio.stack)[0]["words"])
