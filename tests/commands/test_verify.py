"""Which images `mimicry verify` decodes."""

import shutil
from pathlib import Path
from typing import Any

from mimicry.commands.verify import image_folders
from mimicry.study.cells import CellImages
from mimicry.study.matrix import CellFilter, Matrix
from mimicry.study.selection import Selection
from mimicry.study.tree import Artist, StudyTree
from tests.small_study import ANNA, BORIS, CLARA, DORA, EVERYBODY, write_images


def folders_of(tree: StudyTree, **names: Any) -> list[Path]:
    chosen = CellFilter(**names)
    return image_folders(tree, Matrix.choose(CellImages(tree), {}, ["hf_diffusers"], chosen), chosen)


class TestImageFolders:
    def test_of_every_condition(self, tree: StudyTree) -> None:
        roots = (
            tree.original_art,
            tree.protected_art / "mist",
            tree.robust_samples / "noisy_upscaling" / "mist",
        )
        assert folders_of(tree) == [tree.images_of(root, artist) for root in roots for artist in EVERYBODY]

    def test_of_some_conditions_and_artists(self, tree: StudyTree) -> None:
        anna = Selection(artists=(ANNA.name,))
        mist = {"protections": ("mist",), "selection": anna}
        assert folders_of(tree, **mist) == [
            tree.images_of(root, ANNA)
            for root in (tree.protected_art / "mist", tree.robust_samples / "noisy_upscaling" / "mist")
        ]
        unprotected = {"protections": ("none",), "selection": anna}
        assert folders_of(tree, **unprotected) == [tree.images_of(tree.original_art, ANNA)]
        countered = {"countermeasures": ("noisy_upscaling",), "selection": anna}
        assert folders_of(tree, **countered) == [
            tree.images_of(tree.robust_samples / "noisy_upscaling" / "mist", ANNA)
        ]

    def test_samples_of_any_protection_are_named_once(self, shared_samples: StudyTree) -> None:
        meant = {"countermeasures": ("noisy_upscaling",), "selection": Selection(artists=(ANNA.name,))}
        assert folders_of(shared_samples, **meant) == [
            shared_samples.images_of(shared_samples.robust_samples / "noisy_upscaling", ANNA)
        ]

    def test_a_set_that_is_missing_is_passed_over(self, tree: StudyTree) -> None:
        shutil.rmtree(tree.images_of(tree.protected_art / "mist", ANNA))
        stranger = Artist("historical", "baroque", "Aaron_Aal")
        write_images(tree.images_of(tree.protected_art / "mist", stranger))
        folders = folders_of(tree, protections=("mist",), countermeasures=("none",))
        assert folders == [
            tree.images_of(tree.protected_art / "mist", artist) for artist in (DORA, stranger, BORIS, CLARA)
        ]
