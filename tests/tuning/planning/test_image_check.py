"""Bad images before training: artists are blocked, or the images left out of all conditions."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mimicry.cli import program
from mimicry.common.files import read_json
from mimicry.common.programs import run_command
from mimicry.study import image_checks
from mimicry.study.images import ImageFacts, Reading, check_image
from mimicry.study.tree import Artist, Condition
from mimicry.tuning.adapters.folder import AdapterFolder
from tests.small_study import (
    ANNA,
    BORIS,
    CLARA,
    EVERYBODY,
    MIST,
    ORIGINAL,
    listing,
    original,
    output_dir,
    write_images,
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

        def check(path: Path, reading: Reading) -> tuple[Image.Image, ImageFacts]:
            decoded.append(path)
            return check_image(path, reading)

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
        assert ended.out.splitlines()[-1] == "1 blocked; 1 problem with images"

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

        assert "gone '02_boat.png'; kept: --retrain-stale" in ended.out

    def test_what_cannot_be_read_for_now_is_not_left_out(
        self, quick_studio: QuickStudio, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(path: Path, reading: Reading) -> tuple[Image.Image, ImageFacts]:
            if path.name == "02_boat.png":
                raise PermissionError(13, f"{path} cannot be read as an image: Permission denied")
            return check_image(path, reading)

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


def record_of(studio: QuickStudio, condition: Condition = MIST) -> dict[str, Any]:
    record: dict[str, Any] = read_json(
        output_dir(studio.tree, condition, ANNA, studio.stack.name) / "training_run.json"
    )
    return record


class TestReallyProtected:
    WORDS = ("--protection=mist", "--artist=Anna_Berg")

    @pytest.mark.parametrize("how", ["the same bytes", "saved anew", "under another name"])
    def test_a_set_of_originals_is_blocked(self, how: str, quick_studio: QuickStudio) -> None:
        for path in sorted(original(quick_studio.tree, ANNA).iterdir()):
            copy = mist(quick_studio) / path.name
            if how == "the same bytes":
                shutil.copy(path, copy)
            elif how == "saved anew":
                copy.unlink()
                Image.open(path).save(copy.with_suffix(".bmp"))
            else:
                copy.unlink()
                shutil.copy(path, copy.with_name(f"50_noise_{path.name}"))

        for extra in ((), ("--allow-unpaired",)):
            ended = quick_studio.tune(*self.WORDS, *extra)
            assert ended.code == 1
            assert "all 3 images are those of original_art, pixel by pixel" in ended.out
        assert quick_studio.trained() == []

    def test_some_of_them_are_named(self, quick_studio: QuickStudio) -> None:
        path = original(quick_studio.tree, ANNA) / "02_boat.png"
        shutil.copy(path, mist(quick_studio) / path.name)

        ended = quick_studio.tune(*self.WORDS)

        assert ended.code == 0
        said = "1 of 3 images are those of original_art, pixel by pixel: '02_boat.png'"
        assert said in ended.out
        assert f"--note={said}" in quick_calls(quick_studio.stack)[0]["words"]

    def test_a_countermeasure_that_gives_the_originals_back(self, quick_studio: QuickStudio) -> None:
        root = quick_studio.tree.robust_samples / "noisy_upscaling" / "mist"
        shutil.rmtree(quick_studio.tree.images_of(root, ANNA))
        shutil.copytree(original(quick_studio.tree, ANNA), quick_studio.tree.images_of(root, ANNA))

        ended = quick_studio.tune(*self.WORDS, "--countermeasure=noisy_upscaling")

        assert "all 3 images are those of original_art" in ended.out
        assert quick_studio.trained() == []

    @pytest.mark.parametrize("name", ["{}.png", "50_noise_{}.png"])
    def test_a_countermeasure_that_did_nothing(self, name: str, quick_studio: QuickStudio) -> None:
        root = quick_studio.tree.robust_samples / "noisy_upscaling" / "mist"
        countered = quick_studio.tree.images_of(root, ANNA)
        shutil.rmtree(countered)
        countered.mkdir()
        for path in mist(quick_studio).iterdir():
            shutil.copy(path, countered / name.format(path.stem))

        ended = quick_studio.tune(*self.WORDS, "--countermeasure=noisy_upscaling")

        assert ended.code == 1
        assert "all 3 images are those that were to be countered, byte by byte" in ended.out
        assert quick_studio.trained() == []


class TestTheSamePicture:
    WORDS = ("--protection=mist", "--artist=Anna_Berg")

    def swap(self, studio: QuickStudio) -> None:
        one, other = mist(studio) / "01_tree.png", mist(studio) / "03_hills.png"
        first, second = one.read_bytes(), other.read_bytes()
        one.write_bytes(second)
        other.write_bytes(first)

    def test_it_blocks_and_names_the_image(self, quick_studio: QuickStudio) -> None:
        self.swap(quick_studio)
        ended = quick_studio.tune(*self.WORDS)
        assert ended.code == 1
        assert "'01_tree.png' looks like '03_hills', '03_hills.png' looks like '01_tree'" in ended.out
        assert "--allow-unpaired" in ended.out
        assert quick_studio.trained() == []

    def test_allowed_it_is_marked_for_good(self, quick_studio: QuickStudio) -> None:
        self.swap(quick_studio)
        assert quick_studio.tune(*self.WORDS, "--allow-unpaired").code == 0
        (mark,) = record_of(quick_studio)["unpaired"]
        assert "'01_tree.png' looks like '03_hills'" in mark
        # Without the option, and when the images are right at last.
        for _ in range(2):
            table = quick_studio.tune(*self.WORDS, "--dry-run").out
            assert "unpaired: not the picture of its original" in table
            self.swap(quick_studio)
        assert "unpaired: not the picture" in verify(quick_studio).out
        bookmark = read_json(quick_studio.tree.tracker)["bookmarks"]["step_3_fine_tune_sd35"]
        assert [mark] in [entry.get("unpaired") for entry in bookmark.values()]


class TestUnpaired:
    WORDS = ("--protection=mist", "--artist=Anna_Berg")

    def test_an_unfinished_set(self, quick_studio: QuickStudio) -> None:
        (mist(quick_studio) / "03_hills.png").unlink()

        ended = quick_studio.tune(*self.WORDS)
        assert ended.code == 1
        assert "unpaired: lacks '03_hills' of original_art; complete the set, or use" in ended.out
        assert quick_studio.trained() == []

        assert quick_studio.tune(*self.WORDS, "--allow-unpaired").code == 0
        assert record_of(quick_studio)["unpaired"] == ["lacks '03_hills' of original_art"]
        write_images(mist(quick_studio), ["03_hills"], salt=f"protected_art/mist/{ANNA}")
        for words in ((*self.WORDS, "--dry-run"), self.WORDS):
            assert "unpaired: lacks '03_hills'" in quick_studio.tune(*words).out

    def test_files_of_other_names(self, quick_studio: QuickStudio) -> None:
        for path in list(mist(quick_studio).iterdir()):
            path.rename(path.with_name(f"100_noise_{path.name}"))

        ended = quick_studio.tune(*self.WORDS)

        assert ended.code == 0
        assert "prefix '100_noise_' (3 of 3)" in ended.out
        (call,) = quick_calls(quick_studio.stack)
        assert f"--pair-with-dir={original(quick_studio.tree, ANNA)}" in call["words"]
        images = record_of(quick_studio)["images"]
        assert [image["original"] for image in images] == ["01_tree.png", "02_boat.png", "03_hills.png"]
        assert {image["paired_by"] for image in images} == {"prefix '100_noise_'"}
        assert all(image["linf"] <= 8 and image["psnr"] > 30 for image in images)

    def test_one_that_is_left_out_goes_by_the_name_of_its_original(self, quick_studio: QuickStudio) -> None:
        for path in list(mist(quick_studio).iterdir()):
            path.rename(path.with_name(f"100_noise_{path.name}"))
        damage(mist(quick_studio) / "100_noise_02_boat.png")

        ended = quick_studio.tune("--quarantine-unpaired", "--artist=Anna_Berg")

        assert ended.code == 0
        assert "--leave-out=02_boat" in quick_calls(quick_studio.stack)[0]["words"]
        assert quick_studio.tune(*self.WORDS).code == 0
        assert len(record_of(quick_studio)["images"]) == 2


class TestLists:
    STEMS = tuple(f"{number:02}" for number in range(20))

    @pytest.fixture
    def many(self, quick_studio: QuickStudio) -> QuickStudio:
        for folder in (original(quick_studio.tree, ANNA), mist(quick_studio)):
            shutil.rmtree(folder)
            write_images(folder, self.STEMS, salt=folder.parts[-5])
        return quick_studio

    def test_twenty_bad_images_are_one_line_and_a_list(self, many: QuickStudio) -> None:
        for path in original(many.tree, ANNA).iterdir():
            damage(path)

        ended = many.tune("--artist=Anna_Berg")

        # One in the plan, and one in the summary.
        line, again = [line for line in ended.out.splitlines() if "cannot be used" in line]
        assert again.count("cannot be read as an image") == 1
        assert "20 of 20 images" in line
        assert "'00.png', '01.png', '02.png' and 17 more" in line
        assert "(all: progress/images_none__none.txt)" in line
        assert line.count("cannot be read as an image") == 1
        listed = (many.tree.data_root / "progress" / "images_none__none.txt").read_text()
        assert listed.count("cannot be read as an image") == 20 + 1
        assert all(f"{stem}.png" in listed for stem in self.STEMS)
        assert many.tune("--artist=Anna_Berg", "-v").out.count("cannot be read as an image") == 20 + 3

    def test_twenty_bad_captions_are_one_line_and_a_list(self, many: QuickStudio) -> None:
        for stem in self.STEMS:
            (original(many.tree, ANNA) / f"{stem}.txt").write_text(" ")

        ended = many.tune("--artist=Anna_Berg", "--captions", "--dry-run")

        (line,) = [line for line in ended.out.splitlines() if "blocked" in line and ANNA.name in line]
        assert "and 17 more problems with captions (all: -v)" in line
        ended = many.tune("--artist=Anna_Berg", "--captions", "--dry-run", "-v")
        assert all(f"{stem}.txt is " in ended.out for stem in self.STEMS)

    def test_a_dry_run_writes_no_list(self, many: QuickStudio) -> None:
        for path in mist(many).iterdir():
            Image.open(path).resize((16, 16)).save(path)
        words = ("--artist=Anna_Berg", "--protection=mist", "--dry-run")

        ended = many.tune(*words)

        assert "another size than the originals: 20 of 20 images have 16x16" in ended.out
        assert "(all: -v)" in ended.out
        assert not (many.tree.data_root / "progress").exists()
        assert many.tune(*words, "-v").out.count("has 16x16 where the original has 8x8") == 20


class TestJson:
    def target(self, studio: QuickStudio) -> dict[str, Any]:
        words = ("--artist=Anna_Berg", "--protection=mist", "--dry-run", "--json")
        (target,) = json.loads(studio.tune(*words).out)["cells"]
        found: dict[str, Any] = target
        return found

    def test_names_and_sizes_before_and_pixels_after_the_images_were_decoded(
        self, quick_studio: QuickStudio
    ) -> None:
        (mist(quick_studio) / "notes.pdf").touch()
        before = self.target(quick_studio)
        assert before["dose"] is None
        assert before["ignored"] == ["notes.pdf"]
        assert before["files"][0] | {"likeness": 0} == {
            "name": "01_tree.png",
            "stem": "01_tree",
            "original": "01_tree.png",
            "paired_by": "same name",
            "width": 8,
            "height": 8,
            "mode": None,
            "format": None,
            "profile": None,
            "psnr": None,
            "linf": None,
            "likeness": 0,
            "original_fit": None,
        }
        quick_studio.tune("--artist=Anna_Berg", "--protection=mist")
        shutil.rmtree(output_dir(quick_studio.tree, MIST, ANNA, quick_studio.stack.name))

        after = self.target(quick_studio)

        assert after["dose"]["images"] == 3
        assert 0 < after["dose"]["linf"] <= after["dose"]["largest"] <= 8
        assert [file["mode"] for file in after["files"]] == ["RGB"] * 3
        assert after["unpaired"] == []
