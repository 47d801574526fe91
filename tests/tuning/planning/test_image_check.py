"""Bad images before training: artists are blocked, or the images left out of all conditions."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from mimicry.cli import program
from mimicry.common.programs import run_command
from mimicry.study import image_checks
from mimicry.study.images import ImageFacts, check_image
from mimicry.study.tree import Artist
from mimicry.tuning.adapters.folder import AdapterFolder
from tests.small_study import (
    ANNA,
    BORIS,
    CLARA,
    EVERYBODY,
    ORIGINAL,
    listing,
    original,
    output_dir,
)
from tests.tuning.quick_studio import Ended, QuickStudio, quick_calls, write_quick_stack


@pytest.fixture(autouse=True)
def _memory_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def mist(studio: QuickStudio, artist: Artist = ANNA) -> Path:
    return studio.tree.images_of(studio.tree.protected_art / "mist", artist)


def damage(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-30])
    return path


def verify(studio: QuickStudio, *words: str) -> Ended:
    """Run `mimicry verify` on the study."""
    studio.capsys.readouterr()
    where = (f"--data-root={studio.tree.data_root}", f"--stack={studio.stack}")
    code = run_command(program, ["verify", *where, *words])
    said = studio.capsys.readouterr()
    return Ended(code, said.out, said.err)


class TestBlocked:
    def test_every_bad_image_is_named_before_anybody_is_trained(self, quick_studio: QuickStudio) -> None:
        first, second = sorted(original(quick_studio.tree, ANNA).iterdir())[:2]
        third = sorted(original(quick_studio.tree, CLARA).iterdir())[0]
        for path in (first, second, third):
            damage(path)

        ended = quick_studio.tune()

        assert ended.code == 1
        table = ended.out[: ended.out.index("training on")]
        assert all(f"{path} cannot be read as an image" in table for path in (first, second, third))
        assert "type --quarantine-unpaired" in table
        assert quick_studio.trained() == [EVERYBODY[0].name, BORIS.name]

    def test_the_next_call_decodes_nothing_again(
        self, quick_studio: QuickStudio, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        decoded: list[Path] = []

        def check(path: Path, *, convert_profile: bool) -> tuple[Image.Image, ImageFacts]:
            decoded.append(path)
            return check_image(path, convert_profile=convert_profile)

        monkeypatch.setattr(image_checks, "check_image", check)
        quick_studio.tune("--artist=Anna_Berg")
        quick_studio.tune("--artist=Anna_Berg", "--overwrite")

        assert len(decoded) == 3

    def test_a_link_out_of_the_tree_is_a_warning(self, quick_studio: QuickStudio, tmp_path: Path) -> None:
        path = sorted(original(quick_studio.tree, ANNA).iterdir())[0]
        path.rename(tmp_path / "elsewhere.png")
        path.symlink_to(tmp_path / "elsewhere.png")

        ended = quick_studio.tune("--artist=Anna_Berg")

        assert ended.code == 0
        assert "links to files outside of the tree: '01_tree.png'" in ended.out
        (call,) = quick_calls(quick_studio.stack)
        assert "--note=links to files outside of the tree: '01_tree.png'" in call["words"]


class TestVerify:
    def test_all_is_well(self, quick_studio: QuickStudio) -> None:
        quick_studio.tune("--artist=Anna_Berg")
        before = listing(quick_studio.tree.data_root)

        ended = verify(quick_studio)

        assert (ended.code, ended.err) == (0, "")
        assert ended.out.splitlines()[-1] == "1 complete; 0 problems with images"
        assert listing(quick_studio.tree.data_root) == before

    def test_bad_images_count_whether_trained_or_not(self, quick_studio: QuickStudio) -> None:
        quick_studio.tune("--artist=Anna_Berg")
        trained, other = (sorted(original(quick_studio.tree, each).iterdir())[0] for each in (ANNA, BORIS))
        for path in (trained, other):
            damage(path)

        ended = verify(quick_studio, "--style=baroque")

        assert ended.code == 1
        assert all(f"{path} cannot be read" in ended.out for path in (trained, other))
        # The record of the training names the image as it was.
        assert "other images" in ended.out
        assert ended.out.splitlines()[-1] == "1 stale; 2 problems with images"
        assert quick_studio.trained() == [ANNA.name]

    def test_names_that_forbid_training_count_and_missing_sets_do_not(
        self, quick_studio: QuickStudio
    ) -> None:
        folder = original(quick_studio.tree, BORIS)
        shutil.copy(folder / "01_tree.png", folder / "01_tree.jpg")
        shutil.rmtree(quick_studio.tree.images_of(quick_studio.tree.protected_art / "mist", ANNA))

        ended = verify(quick_studio, "--style=baroque")

        assert ended.code == 1
        assert f"two files in {folder} share the stem '01_tree'; keep one of them" in ended.out
        assert ended.out.splitlines()[-1] == "there are no adapters; 1 problem with images"

    def test_a_broken_adapter(self, quick_studio: QuickStudio) -> None:
        quick_studio.tune("--artist=Anna_Berg")
        output = output_dir(quick_studio.tree, ORIGINAL, ANNA, quick_studio.stack.name)
        (output / "pytorch_lora_weights.safetensors").write_bytes(b"torn")

        ended = verify(quick_studio)

        assert ended.code == 1
        assert ended.out.splitlines()[-1] == "1 broken; 0 problems with images"
        assert (output / "pytorch_lora_weights.safetensors").read_bytes() == b"torn"

    def test_a_dry_run_decodes_nothing(
        self, quick_studio: QuickStudio, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        damage(sorted(original(quick_studio.tree, ANNA).iterdir())[0])
        monkeypatch.setattr(image_checks, "check_image", None)

        assert "4 train" in quick_studio.tune("--dry-run").out


class TestQuarantine:
    def test_an_image_that_is_bad_in_one_condition_is_left_out_of_all(
        self, quick_studio: QuickStudio
    ) -> None:
        damage(mist(quick_studio) / "02_boat.png")

        ended = quick_studio.tune("--quarantine-unpaired", "--style=baroque")

        assert ended.code == 0, ended.err
        assert f"{ANNA}: left out of all conditions: {mist(quick_studio) / '02_boat.png'}" in ended.out
        anna, boris = quick_calls(quick_studio.stack)
        assert "--leave-out=02_boat" in anna["words"]
        assert "--note=left out of all conditions, as bad in one: '02_boat'" in anna["words"]
        assert not any(word.startswith("--leave-out") for word in boris["words"])
        assert f"{ANNA}: training on 2 images" in ended.out
        record = json.loads(quick_studio.tree.quarantine.read_text())["images"]
        assert record[str(ANNA)].keys() == {"02_boat"}
        # What was recorded holds for every later call, without the option, and for every condition.
        ended = quick_studio.tune("--protection=mist", "--artist=Anna_Berg")
        assert (ended.code, ended.err) == (0, "")
        assert "--leave-out=02_boat" in quick_calls(quick_studio.stack)[-1]["words"]

    def test_the_files_stay_where_they_are(self, quick_studio: QuickStudio) -> None:
        damage(mist(quick_studio) / "02_boat.png")
        images = [quick_studio.tree.original_art, quick_studio.tree.protected_art]
        before = [listing(root) for root in images]

        quick_studio.tune("--quarantine-unpaired")

        assert [listing(root) for root in images] == before

    def test_an_adapter_that_was_trained_with_it_is_stale(self, quick_studio: QuickStudio) -> None:
        assert quick_studio.tune("--artist=Anna_Berg").code == 0
        images = [
            {"name": path.name, "size": path.stat().st_size, "sha256": "0"}
            for path in sorted(original(quick_studio.tree, ANNA).iterdir())
        ]
        folder = AdapterFolder(output_dir(quick_studio.tree, stack=quick_studio.stack.name))
        weights = {"sha256": hashlib.sha256(folder.weights.read_bytes()).hexdigest()}
        folder.record.write_text(json.dumps({"weights": weights, "images": images}))
        damage(mist(quick_studio) / "02_boat.png")

        ended = quick_studio.tune("--quarantine-unpaired", "--artist=Anna_Berg")

        assert "other images; kept, type --overwrite" in ended.out

    def test_what_cannot_be_read_for_now_is_not_left_out(
        self, quick_studio: QuickStudio, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(path: Path, *, convert_profile: bool) -> tuple[Image.Image, ImageFacts]:
            if path.name == "02_boat.png":
                raise PermissionError(13, f"{path} cannot be read as an image: Permission denied")
            return check_image(path, convert_profile=convert_profile)

        monkeypatch.setattr(image_checks, "check_image", refuse)

        ended = quick_studio.tune("--quarantine-unpaired", "--artist=Anna_Berg")

        assert ended.code == 1
        assert "Permission denied" in ended.out
        assert not quick_studio.tree.quarantine.exists()

    def test_a_stack_without_options_cannot_be_told(self, quick_studio: QuickStudio, tmp_path: Path) -> None:
        deaf = write_quick_stack(tmp_path / "deaf", options=False)
        damage(mist(quick_studio) / "02_boat.png")

        ended = quick_studio.tune_bare(
            f"--data-root={quick_studio.tree.data_root}",
            f"--stack={deaf}",
            "--quarantine-unpaired",
            "--style=baroque",
        )

        assert ended.code == 1
        assert "cannot be told to a stack without options" in ended.out
        assert [Path(call["words"][0]).name for call in quick_calls(deaf)] == [BORIS.name]

    def test_a_broken_record_trains_nobody(self, quick_studio: QuickStudio) -> None:
        quick_studio.tree.quarantine.parent.mkdir(parents=True)
        quick_studio.tree.quarantine.write_text("{")

        ended = quick_studio.tune()

        assert ended.code == 2
        assert "quarantine.json cannot be used" in ended.err
        assert quick_studio.trained() == []

    def test_it_goes_with_training(self, quick_studio: QuickStudio) -> None:
        ended = quick_studio.tune("--quarantine-unpaired", "--dry-run")

        assert ended.code == 2
        assert "--quarantine-unpaired" in ended.err

    @pytest.mark.parametrize("command", ["verify", "upload"])
    def test_it_goes_with_no_other_command(self, quick_studio: QuickStudio, command: str) -> None:
        code = run_command(program, [command, "--quarantine-unpaired"])

        assert code == 2
        assert "--quarantine-unpaired" in quick_studio.capsys.readouterr().err
