"""What is odd about a set, in words."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mimicry.study.image_checks import BadImage, Examined, examine, remembered, stated_sizes
from mimicry.study.image_sets import (
    Dose,
    colours,
    crop_loss,
    described_images,
    geometry,
    ignored,
    marks,
    unchanged,
    uncompared,
    unlike,
    unusable,
)
from mimicry.study.images import AS_THEY_ARE, ImageFolder, Reading
from mimicry.study.pairing import Pairing
from tests.study.test_colour import STEEP
from tests.study.test_comparison import painting, perturbed

STEMS = [f"{number:02}" for number in range(6)]


@pytest.fixture(autouse=True)
def _memory_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(folder: Path, pictures: dict[str, Image.Image], suffix: str = ".png") -> ImageFolder:
    folder.mkdir(parents=True, exist_ok=True)
    for stem, picture in pictures.items():
        picture.save(folder / f"{stem}{suffix}")
    return ImageFolder.read(folder)


def test_bad_images_are_named_where_they_are_few_and_counted_where_they_are_many() -> None:
    images = ImageFolder(Path("mist"), tuple(f"{number}.png" for number in range(6)))
    bad = [BadImage(path, f"{path} is torn", True, path.stem) for path in images.paths]

    few, many = (unusable(images, bad[:count]) for count in (3, 4))

    assert few.line("-v") == "mist/0.png is torn; mist/1.png is torn; mist/2.png is torn"
    assert few.full_list() == ""
    assert many.line("-v").startswith("4 of 6 images in mist cannot be used: ")
    assert many.line("-v").endswith("; the first one: mist/0.png is torn (all: -v)")
    heading, *listed = many.full_list("Anna").splitlines()
    assert heading == f"Anna: {many.text}"
    assert listed == [f"    mist/{number}.png is torn" for number in range(4)]


@pytest.fixture
def paintings() -> dict[str, Image.Image]:
    return {stem: painting(number) for number, stem in enumerate(STEMS)}


@pytest.fixture
def original(tmp_path: Path, paintings: dict[str, Image.Image]) -> ImageFolder:
    return write(tmp_path / "original", paintings)


def found_in(pairing: Pairing) -> dict[str, Examined]:
    result = examine([pairing])
    assert result.bad == []
    return result.found[0]


def texts(pairing: Pairing, reading: Reading = AS_THEY_ARE) -> list[str]:
    sizes = stated_sizes(pairing.images.path, pairing.images.names)
    assert pairing.original is not None
    original = stated_sizes(pairing.original.path, pairing.original.names)
    return [finding.text for finding in geometry(pairing, sizes, original, reading)]


class TestGeometry:
    def test_equal_sizes_are_not_worth_a_word(
        self, original: ImageFolder, paintings: dict[str, Image.Image], tmp_path: Path
    ) -> None:
        assert texts(Pairing.of(write(tmp_path / "set", paintings, ".webp"), original)) == []

    @pytest.mark.parametrize("size", [(80, 60), (320, 240), (161, 121)])
    def test_another_size(
        self, size: tuple[int, int], original: ImageFolder, paintings: dict[str, Image.Image], tmp_path: Path
    ) -> None:
        images = write(tmp_path / "set", {stem: image.resize(size) for stem, image in paintings.items()})
        (text,) = texts(Pairing.of(images, original))
        assert text.startswith("another size than the originals: 6 of 6 images have ")
        assert f"{size[0]}x{size[1]} where the original has 160x120" in text

    def test_another_size_that_is_evened_out(
        self, original: ImageFolder, paintings: dict[str, Image.Image], tmp_path: Path
    ) -> None:
        images = write(tmp_path / "set", {stem: image.resize((80, 60)) for stem, image in paintings.items()})
        pairing = Pairing.of(images, original)
        (text,) = texts(pairing)
        assert text.endswith("; --source-resolution 60 evens that out")
        assert texts(pairing, Reading(source_resolution=60)) == []
        (text,) = texts(pairing, Reading(source_resolution=61))
        assert text.startswith(
            "another size than the originals, and less than --source-resolution 61: 6 of 6"
        )

    def test_one_that_is_smaller_is_named(
        self, original: ImageFolder, paintings: dict[str, Image.Image], tmp_path: Path
    ) -> None:
        sizes = {"00": (80, 60), "01": (40, 30)}
        images = write(
            tmp_path / "set",
            {stem: image.resize(sizes.get(stem, image.size)) for stem, image in paintings.items()},
        )
        (text,) = texts(Pairing.of(images, original), Reading(source_resolution=60))
        assert "1 of 6 images have 40x30 where the original has 160x120" in text

    def test_another_shape_is_never_evened_out(
        self, original: ImageFolder, paintings: dict[str, Image.Image], tmp_path: Path
    ) -> None:
        images = write(tmp_path / "set", paintings | {"03": paintings["03"].resize((120, 120))})
        (text,) = texts(Pairing.of(images, original), Reading(source_resolution=60))
        assert text.startswith("another shape than the originals")
        assert "--source-resolution" not in text

    def test_another_shape_of_one_of_them(
        self, original: ImageFolder, paintings: dict[str, Image.Image], tmp_path: Path
    ) -> None:
        images = write(tmp_path / "set", paintings | {"03": paintings["03"].resize((120, 120))})
        (text,) = texts(Pairing.of(images, original))
        assert text.startswith(
            "another shape than the originals, squeezed or cropped: 1 of 6 images have 120x120"
        )

    def test_one_that_is_turned_by_exif_is_not_of_another_shape(
        self, original: ImageFolder, paintings: dict[str, Image.Image], tmp_path: Path
    ) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        images = write(tmp_path / "set", paintings, ".jpg")
        paintings["00"].rotate(90, expand=True).save(tmp_path / "set" / "00.jpg", exif=exif)
        assert texts(Pairing.of(images, original)) == []

    def test_many_of_a_kind_are_one_line_and_a_list(
        self, original: ImageFolder, paintings: dict[str, Image.Image], tmp_path: Path
    ) -> None:
        images = write(
            tmp_path / "set",
            {stem: image.resize((80 + number, 60)) for number, (stem, image) in enumerate(paintings.items())},
        )
        pairing = Pairing.of(images, original)
        sizes = stated_sizes(images.path, images.names)
        findings = geometry(pairing, sizes, stated_sizes(original.path, original.names), AS_THEY_ARE)
        (line,) = [finding.line("LIST") for finding in findings if len(finding.items) > 3]
        assert "4 of 6 images: '02.png' has 82x60" in line
        assert " and 1 more; " in line
        assert line.endswith("(all: LIST)")


class TestCropLoss:
    @pytest.mark.parametrize(
        ("size", "said"), [((160, 120), False), ((150, 100), False), ((160, 100), True), ((90, 300), True)]
    )
    def test_more_than_a_third(self, size: tuple[int, int], said: bool, tmp_path: Path) -> None:
        images = write(tmp_path / "set", {"a": Image.new("RGB", size), "b": Image.new("RGB", (60, 60))})
        found = crop_loss(images, stated_sizes(images.path, images.names))
        assert len(found) == said
        assert not said or f"1 of 2 images: 'a.png' loses {1 - min(size) / max(size):.0%}" in found[0].text


class TestIgnored:
    def test_counted_by_suffix_with_what_would_read_them(self, tmp_path: Path) -> None:
        for name in (
            "a.png",
            "a.heic",
            "b.HEIC",
            "c.jxl",
            "d.gif",
            "README",
            ".hidden.jxl",
            "n.txt",
            "a.txt",
        ):
            (tmp_path / name).touch()
        (finding,) = ignored(ImageFolder.read(tmp_path), captions=False)
        assert finding.text.startswith(
            "files that are not used: 1 .gif, 2 .heic, 1 .jxl, 2 .txt, 1 without suffix; heif-convert"
        )
        assert "djxl" in finding.text
        assert len(finding.items) == 7
        # With captions the one that belongs to an image is used.
        assert "1 .txt" in ignored(ImageFolder.read(tmp_path), captions=True)[0].text

    def test_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").touch()
        (tmp_path / "metadata.csv").touch()
        assert ignored(ImageFolder.read(tmp_path), captions=True) == []


class TestExamined:
    def test_dose_by_image_and_by_artist(
        self, original: ImageFolder, paintings: dict[str, Image.Image], tmp_path: Path
    ) -> None:
        strengths = dict(zip(STEMS, (2, 4, 4, 4, 8, 16), strict=True))
        gray = {stem: Image.fromarray(np.asarray(image) // 2 + 50) for stem, image in paintings.items()}
        pairing = Pairing.of(
            write(
                tmp_path / "set", {stem: perturbed(image, strengths[stem]) for stem, image in gray.items()}
            ),
            write(tmp_path / "gray", gray),
        )
        found = found_in(pairing)
        comparisons = {name: each.comparison for name, each in found.items()}
        assert [each.linf for each in comparisons.values() if each] == list(strengths.values())
        dose = Dose.of(found.values())
        assert dose is not None
        assert (dose.linf, dose.largest, dose.images) == (4, 16, 6)
        assert dose.psnr == pytest.approx(20 * np.log10(255 / 4), abs=0.01)

    @pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
    def test_unprotected_ones_whatever_their_bytes(
        self, suffix: str, original: ImageFolder, paintings: dict[str, Image.Image], tmp_path: Path
    ) -> None:
        changed = {stem: perturbed(image, 8) for stem, image in paintings.items()}
        write(tmp_path / "set", {stem: changed[stem] for stem in STEMS[2:]})
        images = write(tmp_path / "set", {stem: paintings[stem] for stem in STEMS[:2]}, suffix)
        pairing = Pairing.of(images, original)
        assert unchanged(pairing, found_in(pairing)) == [f"{stem}{suffix}" for stem in STEMS[:2]]

    def test_what_is_not_the_same_picture_is_a_mark(
        self, original: ImageFolder, paintings: dict[str, Image.Image], tmp_path: Path
    ) -> None:
        wrong = paintings | {"00": paintings["01"], "01": paintings["00"], "02": paintings["02"].rotate(180)}
        pairing = Pairing.of(write(tmp_path / "set", wrong), original)
        (finding,) = unlike(pairing, found_in(pairing))
        assert finding.items == (
            "'00.png' looks like '01'",
            "'01.png' looks like '00'",
            "'02.png' is mirrored or turned",
        )
        assert marks(pairing, found_in(pairing)) == (finding.text,)

    def test_an_original_that_cannot_be_read(
        self, original: ImageFolder, paintings: dict[str, Image.Image], tmp_path: Path
    ) -> None:
        original.paths[0].write_bytes(b"")
        pairing = Pairing.of(write(tmp_path / "set", paintings), original)
        (finding,) = uncompared(pairing, found_in(pairing))
        assert "'00.png'" in finding.text

    def test_profiles_here_and_there(
        self, original: ImageFolder, paintings: dict[str, Image.Image], tmp_path: Path
    ) -> None:
        images = write(tmp_path / "set", paintings)
        paintings["01"].save(images.paths[1], icc_profile=STEEP)
        paintings["02"].save(original.paths[2], icc_profile=STEEP)
        pairing = Pairing.of(images, original)
        found = found_in(pairing)
        own, *others = [finding.text for finding in colours(pairing, found, convert_profiles=False)]
        assert "'Steep Profile', which is not sRGB and is ignored, in 1 of 6 images: '01.png'" in own
        assert any("'none' in original_art and 'Steep Profile' here" in text for text in others)
        assert any("'Steep Profile' in original_art and 'none' here" in text for text in others)
        # What was brought to sRGB is not warned of; what a tool has dropped still is.
        assert len(colours(pairing, found, convert_profiles=True)) == 2

    def test_it_is_remembered_until_something_changes(
        self, original: ImageFolder, paintings: dict[str, Image.Image], tmp_path: Path
    ) -> None:
        pairing = Pairing.of(write(tmp_path / "set", paintings), original)
        assert remembered(pairing) == {}
        found = found_in(pairing)
        assert remembered(pairing) == found
        for reading in (Reading(convert_profiles=True), Reading(source_resolution=60)):
            assert remembered(pairing, reading) == {}
        perturbed(paintings["05"], 3).save(original.paths[5])
        assert remembered(Pairing.of(pairing.images, original)) == {}

    def test_what_is_compared_is_what_is_trained_on(
        self, original: ImageFolder, paintings: dict[str, Image.Image], tmp_path: Path
    ) -> None:
        small = {stem: image.resize((80, 60), Image.Resampling.LANCZOS) for stem, image in paintings.items()}
        pairing = Pairing.of(write(tmp_path / "set", small), original)
        records, _ = described_images(pairing, None, Reading(source_resolution=60))
        for record in records:
            # The file's own size, and the dose of what is left of both.
            assert (record["width"], record["height"]) == (80, 60)
            assert (record["psnr"], record["linf"], record["original_fit"]) == (None, 0, "as it is")
        assert {record["original_fit"] for record in described_images(pairing, None, AS_THEY_ARE)[0]} == {
            "scaled"
        }

    def test_the_record(
        self, original: ImageFolder, paintings: dict[str, Image.Image], tmp_path: Path
    ) -> None:
        named = {f"50_noise_{stem}": perturbed(image, 8) for stem, image in paintings.items() if stem != "05"}
        pairing = Pairing.of(write(tmp_path / "set", named), original)
        records, unpaired = described_images(pairing, None, AS_THEY_ARE)
        assert unpaired == ["lacks '05' of original_art"]
        first = records[0]
        assert (first["name"], first["stem"], first["original"]) == ("50_noise_00.png", "00", "00.png")
        assert first["paired_by"] == "prefix '50_noise_'"
        assert (first["width"], first["height"], first["mode"], first["format"]) == (160, 120, "RGB", "PNG")
        assert first["linf"] == 8
        assert 25 < first["psnr"] < 32
        alone, none = described_images(Pairing(original), None, AS_THEY_ARE)
        assert none == []
        assert (alone[0]["original"], alone[0]["psnr"], alone[0]["width"]) == (None, None, 160)
