"""One call: the commands that it makes, what it plans with, and its exit code."""

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mimicry.common.claims import Claim
from mimicry.common.errors import BatchFault
from mimicry.study.matrix import Selection
from mimicry.study.tree import Artist, Condition, StudyTree
from mimicry.tuning.hub.upload import HubOptions
from mimicry.tuning.options.click_options import option_words
from mimicry.tuning.options.config import TuningConfig
from mimicry.tuning.orchestrator import Orchestrator
from mimicry.tuning.planning.planner import make_plan
from mimicry.tuning.planning.target import Request
from mimicry.tuning.stacks import Stack
from tests.hostile_names import over_hostile_names
from tests.small_study import (
    ANNA,
    BORIS,
    MIST,
    ORIGINAL,
    STEMS,
    bookmarks_in,
    listing,
    target_of,
    write_images,
    write_study,
)
from tests.tuning.quick_studio import change_behaviours, quick_calls, write_quick_stack

REPOSITORY = "sd35-lora-none-none-Anna_Berg"


@pytest.fixture
def tree(tmp_path: Path) -> StudyTree:
    return write_study(tmp_path / "study", [ANNA, BORIS])


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    return write_quick_stack(tmp_path / "quick")


@pytest.fixture
def config(demo_dir: Path) -> TuningConfig:
    return TuningConfig(
        pretrained_model_name_or_path=str(demo_dir / "tiny_sd3"), resolution=64, rank=1, max_train_steps=2
    )


def make_call(
    tree: StudyTree, stack: Path, config: TuningConfig, condition: Condition = ORIGINAL, **typed: Any
) -> Orchestrator:
    request = Request(tree=tree, stack=Stack.read(stack), config=config, condition=condition, **typed)
    return Orchestrator(requests=(request,))


def command_for(call: Orchestrator, artist: Artist = ANNA) -> list[str]:
    return target_of(make_plan(call.requests, {}), artist).command


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ({}, ["--no-push-to-hub"]),
        ({"hub": HubOptions()}, ["--push-to-hub", f"--hub-model-id={REPOSITORY}"]),
        (
            {"hub": HubOptions(namespace="lab", base_model_id="a/b")},
            [
                "--push-to-hub",
                f"--hub-model-id={REPOSITORY}",
                "--hub-namespace=lab",
                "--base-model-id=a/b",
            ],
        ),
        ({"train_script": Path(__file__)}, ["--no-push-to-hub", f"--train-script={__file__}"]),
    ],
    ids=["alone", "pushed", "pushed elsewhere", "another script"],
)
def test_a_command_has_every_choice_made(
    typed: dict[str, Any], words: list[str], tree: StudyTree, stack: Path, config: TuningConfig
) -> None:
    assert command_for(make_call(tree, stack, config, stall_minutes=0.5, **typed)) == [
        sys.executable,
        str(stack / "train.py"),
        str(tree.original_art / str(ANNA)),
        str(tree.data_root / "models/lora/quick/none__none" / str(ANNA)),
        *option_words(config),
        "--stall-minutes=0.5",
        *words,
        f"--eval-data-dir={tree.original_art / str(ANNA)}",
        "--note=3 images; the defaults are meant for 20",
    ]


def test_every_condition_is_shown_beside_the_same_base(
    tree: StudyTree, stack: Path, config: TuningConfig
) -> None:
    def shown(config: TuningConfig) -> list[str]:
        words = command_for(make_call(tree, stack, config, MIST))
        return [word for word in words if word.startswith("--base-samples-dir")]

    folder = tree.data_root / "models/lora/quick/base_samples"
    assert shown(replace(config, validation_prompt="a boat by sks")) == [f"--base-samples-dir={folder}"]
    assert shown(config) == []


def test_every_condition_is_evaluated_on_the_original_art(
    tree: StudyTree, stack: Path, config: TuningConfig
) -> None:
    def evaluated() -> list[str]:
        words = command_for(make_call(tree, stack, config, MIST))
        return [word for word in words if word.startswith("--eval-data-dir")]

    original = tree.original_art / str(ANNA)
    assert evaluated() == [f"--eval-data-dir={original}"]

    twin = original / f"{STEMS[0]}.jpg"
    twin.write_bytes(b"a second file of one stem")
    assert evaluated() == []
    for path in original.iterdir():
        path.unlink()
    assert evaluated() == []
    original.rmdir()
    assert evaluated() == []


@over_hostile_names
def test_the_stack_gets_hostile_names_as_they_are(
    hostile_name: str, tmp_path: Path, stack: Path, config: TuningConfig
) -> None:
    tree, artist = StudyTree(tmp_path / f"s {hostile_name[:60]}"), Artist("a", "b", hostile_name)
    write_images(tree.images_of(tree.original_art, artist))
    call = make_call(tree, stack, config)
    if hostile_name.startswith("."):
        with pytest.raises(Exception, match="there is no artist"):
            call.train(verbose=False)
        return

    assert call.train(verbose=False) == 0

    (received,) = quick_calls(stack)
    assert received["words"][:2] == [
        str(tree.original_art / str(artist)),
        str(tree.data_root / "models/lora/quick/none__none" / str(artist)),
    ]
    assert bookmarks_in(tree)[f"quick/none/none/{artist}"]["status"] == "complete"
    assert call.train(verbose=False) == 0
    assert len(quick_calls(stack)) == 1


def test_shown_and_executed_commands_are_the_same(
    tree: StudyTree, stack: Path, config: TuningConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    call = make_call(tree, stack, config)
    assert call.show(verbose=True) == 0
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith(sys.executable)]

    assert call.train(verbose=True) == 0

    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith(sys.executable)] == shown
    assert [shlex.split(line)[2:] for line in shown] == [called["words"] for called in quick_calls(stack)]
    assert len(shown) == 2


def test_nothing_to_train_needs_neither_token_nor_model(
    tree: StudyTree, stack: Path, config: TuningConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    make_call(tree, stack, config).train(verbose=False)
    gone = TuningConfig(pretrained_model_name_or_path="./gone", rank=1)

    assert make_call(tree, stack, gone, hub=HubOptions()).train(verbose=False) == 3
    with pytest.raises(BatchFault) as caught:
        make_call(tree, stack, gone, MIST, hub=HubOptions()).train(verbose=False)
    recipe, token, model = caught.value.problems
    assert "have another recipe than this call" in recipe
    assert token.startswith("HF_TOKEN is not set")
    assert model == "--pretrained-model-name-or-path ./gone: there is no such folder"


def test_training_checks_the_values_of_what_is_there(
    tree: StudyTree, stack: Path, config: TuningConfig
) -> None:
    call = make_call(tree, stack, config)
    call.train(verbose=False)
    weights = tree.data_root / "models/lora/quick/none__none" / str(ANNA) / "pytorch_lora_weights.safetensors"
    sound = weights.read_bytes()
    weights.write_bytes(sound[:-8] + b"\xff" * 8)  # not a number

    assert call.train(verbose=False) == 0

    assert weights.read_bytes() == sound
    assert len(quick_calls(stack)) == 3
    assert len(list(weights.parent.glob("set_aside/*-broken/*.safetensors"))) == 1


def test_an_unreadable_image_blocks_its_artist_only_and_is_named(
    tree: StudyTree, stack: Path, config: TuningConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    painting = tree.original_art / str(ANNA) / f"{STEMS[1]}.png"
    painting.write_bytes(painting.read_bytes()[:60])
    (painting.parent / "99_lost.jpg").symlink_to("nowhere.jpg")

    assert make_call(tree, stack, config).train(verbose=False) == 1

    assert [Path(called["words"][0]).name for called in quick_calls(stack)] == [BORIS.name]
    mark = bookmarks_in(tree)[f"quick/none/none/{ANNA}"]
    assert mark["status"] == "blocked"
    assert f"{painting} cannot be read as an image" in mark["error"]
    assert "99_lost.jpg" in mark["error"]
    summary = capsys.readouterr().out.splitlines()[-4:]
    assert "blocked" in summary[1] and str(painting) in summary[1]
    assert summary[3] == "1 trained, 1 blocked"


@pytest.mark.parametrize(
    ("behaviour", "code", "status", "shown"),
    [
        ("train", 0, "complete", "2 trained"),
        ("fail: it burned", 1, "failed", "1 trained, 1 failed"),
        ("owe", 1, "complete", "upload owed: the Hub is away"),
    ],
)
def test_the_exit_code_says_whether_all_is_well(
    behaviour: str,
    code: int,
    status: str,
    shown: str,
    tree: StudyTree,
    stack: Path,
    config: TuningConfig,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change_behaviours(stack, **{ANNA.name: behaviour})

    assert make_call(tree, stack, config).train(verbose=False) == code

    marks = bookmarks_in(tree)
    assert marks[f"quick/none/none/{ANNA}"]["status"] == status
    assert marks[f"quick/none/none/{BORIS}"]["status"] == "complete"
    assert shown in capsys.readouterr().out


def test_artists_left_over_are_not_well(tmp_path: Path, config: TuningConfig) -> None:
    names = ["A1", "A2", "A3", "A4"]
    tree = write_study(tmp_path / "study", [Artist("a", "b", name) for name in names])
    stack = write_quick_stack(tmp_path / "stack")
    change_behaviours(stack, **dict.fromkeys(names[:3], "fail: no memory"))

    assert make_call(tree, stack, config).train(verbose=False) == 1

    assert len(quick_calls(stack)) == 3
    assert bookmarks_in(tree)["stack/none/none/a/b/A4"]["status"] == "waiting"


def test_showing_a_plan_writes_nothing(
    tree: StudyTree, stack: Path, config: TuningConfig, tmp_path: Path
) -> None:
    before = listing(tmp_path)

    calls: tuple[tuple[Condition, dict[str, Any]], ...] = (
        (ORIGINAL, {}),
        (ORIGINAL, {"overwrite": True}),
        (MIST, {"selection": Selection(pilot=True)}),
    )
    for condition, typed in calls:
        call = make_call(tree, stack, config, condition, **typed)
        assert call.show(verbose=True) == 0
        assert call.show_json() == 0

    assert listing(tmp_path) == before


def test_a_plan_in_full_finds_what_a_training_would(
    tree: StudyTree, stack: Path, config: TuningConfig, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    call = make_call(tree, stack, config)
    call.train(verbose=False)
    weights = (
        tree.data_root / "models/lora/quick/none__none" / str(BORIS) / "pytorch_lora_weights.safetensors"
    )
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    painting = tree.images_of(tree.protected_art / "mist", ANNA) / f"{STEMS[1]}.png"
    painting.write_bytes(painting.read_bytes()[:60])
    before = listing(tmp_path)
    capsys.readouterr()

    for condition, at_once, in_full in (
        (ORIGINAL, "2 complete", "1 train, 1 complete"),
        (MIST, "2 train", "1 train, 1 blocked"),
    ):
        asked = make_call(tree, stack, config, condition)
        assert asked.show(verbose=False) == 0
        assert capsys.readouterr().out.splitlines()[-1] == at_once
        assert asked.show(verbose=False, full=True) == 0
        assert capsys.readouterr().out.splitlines()[-1] == in_full
    assert listing(tmp_path) == before


def test_nothing_failed_and_not_all_is_as_asked_for(
    tree: StudyTree, stack: Path, config: TuningConfig
) -> None:
    make_call(tree, stack, config).train(verbose=False)
    other = replace(config, seed=7)

    assert make_call(tree, stack, other).train(verbose=False) == 3
    assert len(quick_calls(stack)) == 2
    assert make_call(tree, stack, other, retrain_stale=True).train(verbose=False) == 0
    with Claim.take_anew(tree.data_root / "models/lora/quick/mist__none" / str(ANNA)):
        claimed = replace(make_call(tree, stack, other, MIST), wait=False)
        assert claimed.train(verbose=False) == 3
    change_behaviours(stack, **{ANNA.name: "fail: it burned"})
    assert make_call(tree, stack, other, MIST).train(verbose=False) == 1
