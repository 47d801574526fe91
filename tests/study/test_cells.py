"""The images of a study's cells, and which cells have some."""

import json
import shutil
from pathlib import Path

import pytest

from mimicry.study.cells import CellImages, conditions_of_adapters, keys_with_images
from mimicry.study.hold_out import held_out
from mimicry.study.selection import Selection
from mimicry.study.tree import Condition, StudyTree, folders_in
from tests.small_study import (
    ANNA,
    BORIS,
    COUNTERED,
    MIST,
    ORIGINAL,
    STEMS,
    original,
    output_dir,
    share_samples,
    write_images,
    write_study,
)


@pytest.fixture
def tree(tmp_path: Path) -> StudyTree:
    return write_study(tmp_path / "study", [ANNA, BORIS])


def begin(tree: StudyTree, series: str = "hf_diffusers", condition: Condition = ORIGINAL) -> None:
    output_dir(tree, condition, stack=series).mkdir(parents=True)


def keys(tree: StudyTree) -> set[str]:
    """Return the keys that have images, without the artists' split and style."""
    found = keys_with_images(tree, folders_in(tree.lora))
    return {key.replace("historical/baroque/", "") for key in found}


class TestImages:
    def test_each_is_paired_with_the_original_and_without_the_quarantine(self, tree: StudyTree) -> None:
        folder = tree.images_of(tree.protected_art / "mist", ANNA)
        for path in list(folder.iterdir()):
            path.rename(folder / f"50_noise_{path.name}")
        tree.quarantine.parent.mkdir()
        tree.quarantine.write_text(json.dumps({"images": {str(ANNA): {"02_boat": {}}}}))

        found = CellImages(tree).of(MIST, ANNA)

        assert found is not None
        assert found.images.names == ("50_noise_01_tree.png", "50_noise_03_hills.png")
        assert found.images.stems == ["01_tree", "03_hills"]
        assert found.problem == ""

    def test_there_are_none_without_files_or_without_a_folder(self, tree: StudyTree) -> None:
        shutil.rmtree(original(tree, BORIS))
        images = CellImages(tree)

        assert images.of(ORIGINAL, BORIS) is None
        assert images.of(Condition("glaze"), ANNA) is None
        assert images.source(Condition("glaze")) is None
        assert images.of(MIST, BORIS) is not None

    def test_they_are_listed_once(self, tree: StudyTree) -> None:
        images = CellImages(tree)
        sizes = [path.stat().st_size for path in sorted(original(tree).iterdir())]
        names = ["01_tree", "02_boat", "03_hills"]
        expected = [
            {"name": f"{name}.png", "size": size, "stem": name}
            for name, size in zip(names, sizes, strict=True)
        ]

        assert images.listed(ORIGINAL, ANNA) == expected
        shutil.rmtree(original(tree))
        assert images.listed(ORIGINAL, ANNA) == expected
        assert images.listed(Condition("glaze"), ANNA) is None

    def test_one_that_is_gone_is_not_listed(self, tree: StudyTree) -> None:
        (original(tree) / "04_dangling.png").symlink_to("nowhere.png")

        assert CellImages(tree).listed(ORIGINAL, ANNA) is None

    def test_held_out_paintings_are_not_among_them(self, tree: StudyTree) -> None:
        images = CellImages(tree)
        (held,) = held_out(STEMS, 1)
        found = images.of(MIST, ANNA, 1)
        assert found is not None
        assert set(found.images.stems) == set(STEMS) - {held}
        assert [image["stem"] for image in images.listed(MIST, ANNA, 1) or []] == found.images.stems
        assert len(images.listed(MIST, ANNA) or []) == len(STEMS)

    def test_artists_are_those_of_the_original_art_and_of_the_sources(self, tree: StudyTree) -> None:
        shutil.rmtree(original(tree, BORIS))

        assert CellImages(tree).artists([ORIGINAL]) == {ANNA}
        assert CellImages(tree).artists([MIST, Condition("glaze")]) == {ANNA, BORIS}


def test_conditions_of_adapters_are_folders_with_the_name_of_one(tree: StudyTree) -> None:
    begin(tree, condition=COUNTERED)
    tree.base_samples("hf_diffusers").mkdir()

    assert conditions_of_adapters(tree, "hf_diffusers") == {COUNTERED}
    assert conditions_of_adapters(tree, "other") == set()


class TestKeys:
    def test_a_study_that_was_not_begun_has_none(self, tree: StudyTree) -> None:
        assert keys(tree) == set()

    def test_every_series_has_all_cells_with_images(self, tree: StudyTree) -> None:
        shutil.rmtree(tree.images_of(tree.protected_art / "mist", BORIS))
        begin(tree)
        begin(tree, "hf_diffusers@seed-43")

        cells = {
            f"{condition}/{name}"
            for condition in ("none/none", "mist/none", "mist/noisy_upscaling")
            for name in ("Anna_Berg", "Boris_Cole")
        } - {"mist/none/Boris_Cole"}
        assert keys(tree) == {
            f"{series}/{cell}" for series in ("hf_diffusers", "hf_diffusers@seed-43") for cell in cells
        }

    def test_samples_that_two_protections_share_count_where_they_were_trained_on(
        self, tree: StudyTree
    ) -> None:
        share_samples(tree)
        begin(tree)
        assert not any("noisy_upscaling" in key for key in keys(tree))
        begin(tree, condition=COUNTERED)

        assert {key for key in keys(tree) if "noisy_upscaling" in key} == {
            "hf_diffusers/mist/noisy_upscaling/Anna_Berg",
            "hf_diffusers/mist/noisy_upscaling/Boris_Cole",
        }

    def test_a_folder_of_other_files_has_no_images(self, tree: StudyTree) -> None:
        begin(tree)
        for path in original(tree).iterdir():
            path.rename(path.with_suffix(".heic"))

        assert "hf_diffusers/none/none/Anna_Berg" not in keys(tree)
        write_images(original(tree))
        assert "hf_diffusers/none/none/Anna_Berg" in keys(tree)

    def test_names_choose(self, tree: StudyTree) -> None:
        begin(tree)
        begin(tree, condition=COUNTERED)

        assert keys_with_images(
            tree,
            ["hf_diffusers"],
            protections=["none", "mist"],
            countermeasures=["none"],
            selection=Selection(artists=("Anna_Berg",)),
        ) == {f"hf_diffusers/{names}/none/{ANNA}" for names in ("none", "mist")}
