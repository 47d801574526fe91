"""`mimicry verify`: every adapter that is there is read to its last value, and nothing is written."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mimicry.common.claims import Claim
from mimicry.common.errors import UsageError
from mimicry.common.files import write_json
from mimicry.study.matrix import Selection
from mimicry.study.tree import State, StudyTree
from mimicry.tuning.adapters.folder import ADAPTER_CONFIG, WEIGHTS
from mimicry.tuning.adapters.inspect import AdapterStatus
from mimicry.tuning.adapters.training_run import TRAINING_RUN
from tests.small_study import (
    ANNA,
    BORIS,
    CONFIG,
    MIST,
    ORIGINAL,
    listing,
    original,
    output_dir,
    put_adapter,
    write_images,
)
from tests.tuning.lora_files import lora_tensors
from tests.tuning.quick_studio import QuickStudio
from tests.tuning.status.study_states import status_of


def verdicts(tree: StudyTree, artists: tuple[str, ...] = ()) -> list[AdapterStatus]:
    """Return the cells in which something was begun, looked at in full."""
    status = status_of(tree, full=True, selection=Selection(artists=artists))
    return [cell for cell in status.cells if cell.state not in (State.WAITING, State.NO_DATA)]


def states(tree: StudyTree) -> list[tuple[str, str, str]]:
    return [
        (str(found.adapter.condition), found.adapter.artist.name, found.state) for found in verdicts(tree)
    ]


def spoil(folder: Path, value: float) -> None:
    """Put other values into the weights, and their hash into the record: only the values tell."""
    tensors = {name: torch.full_like(tensor, value) for name, tensor in lora_tensors(4).items()}
    save_file(tensors, folder / WEIGHTS)


def test_nothing_is_there(tree: StudyTree) -> None:
    assert verdicts(tree) == []


def test_all_conditions_are_checked_and_nothing_is_written(tree: StudyTree) -> None:
    put_adapter(tree)
    put_adapter(tree, MIST, BORIS)
    before = listing(tree.data_root)
    assert states(tree) == [("none__none", ANNA.name, "complete"), ("mist__none", BORIS.name, "complete")]
    assert listing(tree.data_root) == before


def test_only_what_the_filters_let_through(tree: StudyTree) -> None:
    put_adapter(tree)
    put_adapter(tree, ORIGINAL, BORIS)
    assert [found.adapter.artist for found in verdicts(tree, artists=(BORIS.name,))] == [BORIS]
    with pytest.raises(UsageError, match="--artist Bors matches no artist"):
        verdicts(tree, artists=("Bors",))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / WEIGHTS).write_bytes(b""), "not a readable safetensors file"),
        (
            lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1]),
            "not a readable",
        ),
        (lambda folder: spoil(folder, float("nan")), "not finite numbers"),
        (lambda folder: spoil(folder, 0.0), "every lora_B is zero"),
        (lambda folder: spoil(folder, 0.5), "is not the file whose sha256"),
        (lambda folder: (folder / TRAINING_RUN).write_text("{"), "cannot be read"),
        (lambda folder: (folder / ADAPTER_CONFIG).write_text(""), "not the one that was written"),
    ],
)
def test_what_is_broken_is_found_and_left_alone(damage: object, reason: str, tree: StudyTree) -> None:
    folder = put_adapter(tree, paths={"pretrained_model_name_or_path": "lab/tiny"})
    assert callable(damage)
    damage(folder)
    before = listing(tree.data_root)
    (found,) = verdicts(tree)
    assert found.state is State.BROKEN
    assert reason in found.reason
    assert listing(tree.data_root) == before


def test_what_is_in_training_or_was_begun_is_not_broken(tree: StudyTree) -> None:
    begun = output_dir(tree, ORIGINAL, ANNA)
    begun.mkdir(parents=True)
    write_json(begun / TRAINING_RUN, {"status": "interrupted"})
    with Claim.take_anew(output_dir(tree, ORIGINAL, BORIS)):
        assert [state for _, _, state in states(tree)] == ["interrupted", "running"]


def test_where_images_are_gone_there_is_nothing_to_compare_with(tree: StudyTree) -> None:
    put_adapter(tree, MIST)
    (tree.protected_art / "mist").rename(tree.data_root / "elsewhere")
    (found,) = verdicts(tree)
    assert found.state is State.COMPLETE
    assert "images are not there" in found.reason


def test_a_copied_adapter_is_told_from_its_own(tree: StudyTree) -> None:
    trained = put_adapter(tree, paths={"output_dir": str(output_dir(tree))})
    shutil.copytree(trained, output_dir(tree, MIST))

    ours, copied = verdicts(tree)

    assert (ours.state, ours.reason) == (State.COMPLETE, "")
    assert copied.state is State.STALE
    assert copied.reason.startswith(f"its record is of none__none/{ANNA}, other images: changed ")


class TestSisters:
    @pytest.fixture
    def compared(self, tree: StudyTree) -> list[AdapterStatus]:
        put_adapter(tree)
        put_adapter(tree, ORIGINAL, BORIS)
        put_adapter(tree, MIST, config=replace(CONFIG, rank=8))
        return verdicts(tree)

    def test_one_of_another_recipe_is_named_with_what_differs(self, compared: list[AdapterStatus]) -> None:
        assert [(str(one.adapter.condition), one.state, one.reason) for one in compared] == [
            ("none__none", State.COMPLETE, ""),
            ("mist__none", State.STALE, "another recipe than 2 of its series: rank 4 -> 8"),
            ("none__none", State.COMPLETE, ""),
        ]

    def test_the_program_says_so_and_ends_with_3(self, quick_studio: QuickStudio) -> None:
        quick_studio.tune("--artist=Anna_Berg")
        quick_studio.tune("--artist=Anna_Berg", "--protection=mist", "--seed=7", "--allow-mixed-recipes")

        found = quick_studio.verify()

        assert found.code == 3
        assert "the study has 2 recipes: 1 (none__none 1); 1 (mist__none 1)" in found.out
        # It asks for no options, and compares with none of their defaults.
        assert "max_train_steps" not in found.out

    def test_evaluation_losses_that_must_not_be_compared_are_said_and_no_fault(
        self, quick_studio: QuickStudio
    ) -> None:
        for condition, count in (("none", 4), ("mist", 8)):
            quick_studio.tune("--artist=Anna_Berg", f"--protection={condition}")
            folder = output_dir(quick_studio.tree, ORIGINAL if condition == "none" else MIST, ANNA, "quick")
            run = json.loads((folder / TRAINING_RUN).read_text())
            run["eval_loss"] = {"timesteps": list(range(100, 100 + count)), "on": "in-sample"}
            write_json(folder / TRAINING_RUN, run)

        found = quick_studio.verify()

        assert found.code == 0
        (line,) = [line for line in found.out.splitlines() if "must not be compared" in line]
        assert "4 timesteps, 100 to 103, in-sample (none__none 1)" in line
        assert "8 timesteps, 100 to 107, in-sample (mist__none 1)" in line


class TestProgram:
    def test_exit_codes_and_what_is_said(self, quick_studio: QuickStudio) -> None:
        assert quick_studio.tune("--style=baroque").code == 0
        well = quick_studio.verify()
        assert (well.code, well.out.splitlines()[-1]) == (0, "2 complete; 0 problems with images")
        weights = output_dir(quick_studio.tree, ORIGINAL, ANNA, "quick") / WEIGHTS
        weights.write_bytes(b"torn")
        broken = quick_studio.verify()
        assert (broken.code, broken.out.splitlines()[-1]) == (
            1,
            "1 complete, 1 broken; 0 problems with images",
        )
        assert weights.read_bytes() == b"torn"
        assert quick_studio.verify("--protection=mist").out.endswith(
            "there are no adapters; 0 problems with images\n"
        )
        assert len(quick_studio.trained()) == 2

    def test_what_rots_on_the_disk_is_found(self, quick_studio: QuickStudio) -> None:
        for _ in range(2):
            assert quick_studio.tune("--artist=Anna_Berg").code == 0
        weights = output_dir(quick_studio.tree, ORIGINAL, ANNA, "quick") / WEIGHTS
        image = original(quick_studio.tree) / "01_tree.png"
        for path, count in ((weights, 4), (image, 60)):
            before = path.stat()
            path.write_bytes(path.read_bytes()[:-count] + b"\xff" * count)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

        ended = quick_studio.verify()

        assert ended.code == 1
        assert "not finite numbers" in ended.out
        assert "1 broken; 1 problem with images" in ended.out

    def test_many_bad_images_of_a_folder_are_one_line_and_a_list(self, quick_studio: QuickStudio) -> None:
        folder = quick_studio.tree.images_of(quick_studio.tree.protected_art / "mist", ANNA)
        stems = [f"{number:02}" for number in range(20)]
        write_images(folder, stems)
        for stem in stems[1:]:
            (folder / f"{stem}.png").write_bytes(b"torn")
        (original(quick_studio.tree, BORIS) / "01_tree.png").write_bytes(b"torn")

        short, long = quick_studio.verify(), quick_studio.verify("-v")

        assert short.code == long.code == 1
        (many,) = [line for line in short.out.splitlines() if str(folder) in line]
        assert many.startswith(f"19 of 23 images in {folder} cannot be used: ")
        assert many.endswith("(all: -v)")
        assert short.out.count("01_tree.png") == 1
        assert "; 20 problems with images" in short.out
        assert long.out.startswith(short.out)
        heading, *listed = long.out.removeprefix(short.out).splitlines()
        assert heading in many
        assert len(listed) == 19
        assert all(f"{stem}.png" in line for stem, line in zip(stems[1:], listed, strict=True))

    def test_overwrite_makes_no_sense_with_it(self, quick_studio: QuickStudio) -> None:
        ended = quick_studio.verify("--overwrite")
        assert ended.code == 2
        assert "No such option" in ended.err and "--overwrite" in ended.err

    def test_options_that_are_not_the_defaults_make_nothing_stale(self, quick_studio: QuickStudio) -> None:
        words = ("--max-train-steps=7", "--learning-rate=0.5", "--seed=3", "--protection=mist")
        assert quick_studio.tune(*words, "--artist=Anna_Berg").code == 0
        ended = quick_studio.verify()
        assert (ended.code, ended.out.splitlines()[-1]) == (0, "1 complete; 0 problems with images")

    def test_images_that_were_changed_make_a_recorded_adapter_stale(self, quick_studio: QuickStudio) -> None:
        assert quick_studio.tune("--artist=Anna_Berg").code == 0
        write_images(original(quick_studio.tree), salt="another")
        ended = quick_studio.verify()
        assert (ended.code, ended.out.splitlines()[-1]) == (3, "1 stale; 0 problems with images")
        assert "other images: changed '01_tree.png'" in ended.out

    def test_no_wait_ends_with_exit_code_3(self, quick_studio: QuickStudio) -> None:
        with Claim.take_anew(output_dir(quick_studio.tree, ORIGINAL, ANNA, "quick")):
            ended = quick_studio.tune("--style=baroque", "--no-wait")
            shown = json.loads(quick_studio.tune("--style=baroque", "--dry-run", "--json").out)
        assert ended.code == 3
        assert ended.out.splitlines()[-1] == "1 trained, 1 claimed"
        assert [target["state"] for target in shown["cells"]] == ["running", "complete"]
