"""Captions: where they are looked for, what is wrong with them, and what is kept of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mimicry.study.captions import (
    Captions,
    describe_other_images,
    image_records,
    rare_token,
    record_differences,
    template_hint,
)
from mimicry.study.images import ImageFolder
from mimicry.study.pairing import Pairing
from tests.small_study import STEMS, write_images

TREE, BOAT, HILLS = STEMS


@pytest.fixture
def images(tmp_path: Path) -> ImageFolder:
    return write_images(tmp_path / "images")


@pytest.fixture
def original(tmp_path: Path) -> ImageFolder:
    return write_images(tmp_path / "original")


def write_texts(images: ImageFolder, **texts: str) -> None:
    """Write the captions of images by the letter that their subject begins with."""
    for stem in STEMS:
        if stem[3] in texts:
            (images.path / f"{stem}.txt").write_text(texts[stem[3]])


def write_metadata(images: ImageFolder, *lines: object) -> None:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (images.path / "metadata.jsonl").write_text(text)


def entry(stem: str, text: object, key: str = "text") -> dict[str, object]:
    return {"file_name": f"{stem}.png", key: text}


class TestSources:
    def test_text_files_go_before_metadata(self, images: ImageFolder) -> None:
        write_texts(images, b="from its file")
        write_metadata(images, entry(TREE, "a tree"), entry(BOAT, "a boat"), "", entry(HILLS, "hills"))
        assert Captions.read(images) == Captions(("a tree", "from its file", "hills"))

    @pytest.mark.parametrize("key", ["text", "caption", "prompt"])
    def test_metadata_names_the_caption_in_one_of_three_ways(self, key: str, images: ImageFolder) -> None:
        write_metadata(images, *(entry(stem, "some", key) | {"width": 8} for stem in STEMS))
        assert Captions.read(images) == Captions(("some",) * 3)

    @pytest.mark.parametrize(
        "content",
        [
            b"two lines,\r\n  one caption\n",
            "\ufefftwo lines, one caption".encode(),
            b"two lines, one\tcaption",
        ],
        ids=["line ends", "byte order mark", "tab"],
    )
    def test_however_it_is_written_a_caption_is_the_same(self, content: bytes, images: ImageFolder) -> None:
        for stem in STEMS:
            (images.path / f"{stem}.txt").write_bytes(content)
        assert set(Captions.read(images).texts) == {"two lines, one caption"}

    def test_names_are_compared_as_those_of_images_are(self, tmp_path: Path) -> None:
        images = write_images(tmp_path / "images", ["caf\u00e9"])
        (images.path / "cafe\u0301.TXT").write_text("composed or not")
        assert Captions.read(images).texts == ("composed or not",)

    def test_other_files_are_nobodys_captions(self, images: ImageFolder) -> None:
        write_texts(images, t="a", b="b", h="c")
        for name in ("readme.txt", "04_lake.txt", ".hidden.txt", "metadata.json"):
            (images.path / name).write_bytes(b"\xff")
        assert Captions.read(images) == Captions(("a", "b", "c"))

    def test_an_image_without_is_counted(self, images: ImageFolder) -> None:
        write_texts(images, b="a boat")
        captions = Captions.read(images)
        assert captions.texts == (None, "a boat", None)
        assert captions.warnings == (
            f"2 of 3 images have no caption and are trained with the instance prompt: '{TREE}', '{HILLS}'",
        )
        assert captions.problems == ()


class TestOriginal:
    def test_holds_for_a_set_without_any(self, images: ImageFolder, original: ImageFolder) -> None:
        write_texts(original, t="a tree", b="a boat", h="hills")
        jpgs = [path.rename(path.with_suffix(".jpg")) for path in images.paths]
        assert len(jpgs) == 3
        captions = Captions.read(ImageFolder.read(images.path), original)
        assert captions == Captions(("a tree", "a boat", "hills"))

    def test_does_not_mix_with_captions_of_the_set(self, images: ImageFolder, original: ImageFolder) -> None:
        write_texts(original, t="a tree", b="a boat", h="hills")
        write_texts(images, t="a tree")
        captions = Captions.read(images, original)
        assert captions.texts == ("a tree", None, None)
        assert captions.warnings == (
            f"captions differ from those of the original art: '{BOAT}', '{HILLS}'",
            f"2 of 3 images have no caption and are trained with the instance prompt: '{BOAT}', '{HILLS}'",
        )

    def test_equal_captions_are_no_difference(self, images: ImageFolder, original: ImageFolder) -> None:
        write_texts(original, t="a tree\n", b="a boat", h="hills")
        write_metadata(images, entry(TREE, "a  tree"), entry(BOAT, "a boat"), entry(HILLS, "hills"))
        assert Captions.read(images, original) == Captions(("a tree", "a boat", "hills"))

    def test_of_the_original_itself_there_is_no_other(self, original: ImageFolder) -> None:
        write_texts(original, t="a tree", b="a boat", h="hills")
        assert Captions.read(original, ImageFolder.read(original.path)).warnings == ()


BAD_LINES = [
    ("{", "is not {"),
    ("[1]", "is not {"),
    ('"text"', "is not {"),
    ('{"text": "a"}', "is not {"),
    ('{"file_name": 7, "text": "a"}', "is not {"),
    (entry("05_lake", "a lake"), "'05_lake.png' is not an image of this folder"),
    (entry(f"sub/{TREE}", "a tree"), "is not an image of this folder"),
    ({"file_name": f"{TREE}.png", "title": "a"}, "has no caption; it takes one of"),
    (entry(TREE, "a") | {"caption": "b"}, "has text and caption; it takes one of"),
    (entry(TREE, " \n"), "it takes a caption, text that is not blank"),
    (entry(TREE, None), "is None; it takes a caption"),
    (entry(TREE, 7), "is 7; it takes a caption"),
    (entry(TREE, "half a letter: \ud800"), "it takes a caption"),
    (entry(TREE, "null\0"), "it takes a caption"),
]


class TestProblems:
    @pytest.mark.parametrize(("line", "words"), BAD_LINES, ids=repr)
    def test_a_bad_line_is_named(self, line: object, words: str, images: ImageFolder) -> None:
        write_metadata(images, entry(BOAT, "a boat"), line)
        (problem,) = Captions.read(images).problems
        assert str(images.path / "metadata.jsonl") in problem
        assert "line 2" in problem
        assert words in problem

    @pytest.mark.parametrize(
        ("damage", "words"),
        [
            (lambda path: path.write_bytes(b"caf\xe9"), "is not UTF-8, at byte 3; save it as UTF-8"),
            (lambda path: path.mkdir(), "cannot be read: Is a directory"),
            (lambda path: path.symlink_to("nowhere"), "cannot be read: No such file"),
        ],
        ids=["other encoding", "folder", "dangling"],
    )
    @pytest.mark.parametrize("name", [f"{TREE}.txt", "metadata.jsonl"])
    def test_a_bad_file_is_named(
        self, damage: Callable[[Path], object], words: str, name: str, images: ImageFolder
    ) -> None:
        damage(images.path / name)
        (problem,) = Captions.read(images).problems
        assert str(images.path / name) in problem
        assert words in problem

    def test_a_blank_caption_is_named(self, images: ImageFolder) -> None:
        write_texts(images, t=" \n")
        (problem,) = Captions.read(images).problems
        assert problem == (
            f"the caption {images.path / TREE}.txt is ' \\n'; it takes a caption, text that is not blank"
        )

    def test_all_come_at_once(self, images: ImageFolder, original: ImageFolder) -> None:
        write_texts(images, t="", b="\0")
        write_metadata(images, "{", entry(HILLS, "a"), entry(HILLS, "a"))
        write_texts(original, t="")
        (images.path / f"{TREE}.TXT").write_text("two of one stem")
        problems = Captions.read(images, original).problems
        assert len(problems) == 5
        assert "already has a caption in line 2; keep one" in problems[1]
        assert sum("are captions of the same image; keep one of them" in problem for problem in problems) == 1
        assert str(original.path) in problems[-1]


class TestTable:
    def write(self, images: ImageFolder, text: str) -> None:
        (images.path / "metadata.csv").write_text(text, "utf-8-sig", newline="")

    @pytest.mark.parametrize(
        "text",
        [
            'file_name,text\n01_tree.png,"a tree, tall"\n02_boat.png,a boat\n',
            'file_name,text\r\n01_tree.png,"a tree, tall"\r\n\r\n02_boat.png,a boat\r\n',
            'split,file_name,prompt\ntrain,01_tree.jpg,"a tree,\n tall"\ntrain,02_boat.png,a boat',
        ],
    )
    def test_it_is_read(self, text: str, images: ImageFolder) -> None:
        self.write(images, text)
        captions = Captions.read(images)
        assert captions.texts == ("a tree, tall", "a boat", None)
        assert captions.problems == ()

    def test_a_text_file_goes_first(self, images: ImageFolder) -> None:
        self.write(images, "file_name,text\n01_tree.png,of the table\n")
        (images.path / f"{TREE}.txt").write_text("of the file")
        assert Captions.read(images).texts[0] == "of the file"

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            (
                "name,text\n01_tree.png,a tree\n",
                "begins with 'name,text'; it takes a first line file_name,text",
            ),
            ("file_name;text\n01_tree.png;a tree\n", "begins with 'file_name;text'"),
            ("", "begins with ''"),
            ("file_name,text\n01_tree.png,a tree, tall\n", "line 2 is not"),
            ("file_name,text\n09_sun.png,a sun\n", "'09_sun.png' is not an image of this folder"),
            ("file_name,text\n01_tree.png,a\n01_tree.jpg,b\n", "already has a caption in line 2"),
            ('file_name,text\n01_tree.png,"a tree\n', "is no row of a table"),
            ("file_name,text\n01_tree.png,\n", "takes a caption, text that is not blank"),
        ],
    )
    def test_what_is_wrong_is_told(self, text: str, said: str, images: ImageFolder) -> None:
        self.write(images, text)
        (problem,) = Captions.read(images).problems
        assert said in problem
        assert "metadata.csv" in problem

    def test_two_kinds_of_metadata(self, images: ImageFolder) -> None:
        self.write(images, "file_name,text\n01_tree.png,a\n")
        (images.path / "metadata.jsonl").write_text("")
        (problem,) = Captions.read(images).problems
        assert problem.endswith("metadata.csv both hold captions; keep one of them")


class TestPairs:
    def test_captions_may_name_the_file_or_its_original(self, images: ImageFolder, tmp_path: Path) -> None:
        made = write_images(tmp_path / "set", [f"50_noise_{stem}" for stem in STEMS])
        (made.path / f"50_noise_{TREE}.txt").write_text("by its file")
        (made.path / f"{BOAT}.txt").write_text("by its original")
        pairing = Pairing.of(made, images)
        captions = Captions.read(pairing.images, images)
        assert captions.texts == ("by its file", "by its original", None)

    def test_those_of_the_original_hold_for_the_set(self, images: ImageFolder, tmp_path: Path) -> None:
        (images.path / f"{HILLS}.txt").write_text("hills")
        made = write_images(tmp_path / "set", [f"{stem}_glazed" for stem in STEMS])
        pairing = Pairing.of(made, images)
        assert Captions.read(pairing.images, images).texts == (None, None, "hills")


class TestRareToken:
    @pytest.mark.parametrize(
        ("prompt", "token"),
        [
            ("a painting in the style of sks", "sks"),
            ("a sks painting", "sks"),
            ("photo of SKS tower", "sks"),
            ("a painting by <van-gogh>", "<van-gogh>"),
            ("an oil painting in the style of ohwx7, on canvas", "ohwx7"),
            ("a picture in the style of monetto", "monetto"),
            ("a painting", None),
        ],
    )
    def test_it_is_the_word_that_is_not_ordinary(self, prompt: str, token: str | None) -> None:
        assert rare_token(prompt) == token

    @pytest.mark.parametrize(
        ("caption", "template", "lacks"),
        [
            ("a tree", None, True),
            ("a tree in the style of sks", None, False),
            ("A tree, SKS.", None, False),
            ("a tree with asks and tasks", None, True),
            ("a tree", "{caption} in the style of sks", False),
            ("a tree", "a picture of {caption}", True),
        ],
    )
    def test_captions_without_it_are_refused(
        self, caption: str, template: str | None, lacks: bool, images: ImageFolder
    ) -> None:
        (images.path / f"{TREE}.txt").write_text(caption)
        captions = Captions.read(images).checked("a painting in the style of sks", template)
        assert bool(captions.problems) == lacks
        if lacks:
            (problem,) = captions.problems
            assert problem.startswith("1 of 1 captions lack the rare token 'sks'")
            assert "--caption-template '{caption} in the style of sks'" in problem

    def test_prompts_are_made_by_the_template(self, images: ImageFolder) -> None:
        (images.path / f"{BOAT}.txt").write_text("a {caption} {0} boat")
        captions = Captions.read(images)
        assert captions.prompts("{caption}, sks") == [None, "a {caption} {0} boat, sks", None]
        assert captions.prompts(None) == [None, "a {caption} {0} boat", None]

    @pytest.mark.parametrize(
        ("prompt", "hint"),
        [
            ("a painting in the style of sks", "{caption} in the style of sks"),
            ("a painting by sks", "{caption} by sks"),
            ("sks painting", "{caption}, sks"),
        ],
    )
    def test_the_hint_is_a_template_that_helps(self, prompt: str, hint: str) -> None:
        token = rare_token(prompt)
        assert token is not None
        assert template_hint(prompt, token) == hint


def test_another_pairing_is_a_difference(images: ImageFolder) -> None:
    """Its draws would be others, though the files are the same."""
    recorded = image_records(images, None)
    now = images.with_aliases({"01_tree.png": "02_boat", "02_boat.png": "01_tree"})
    swapped = [{**record, "stem": now.stem(record["name"])} for record in recorded]
    assert record_differences(recorded, swapped) == ["paired with other originals"]
    older = [{key: value for key, value in record.items() if key != "stem"} for record in recorded]
    assert record_differences(older, recorded) == []


def with_stems(images: ImageFolder) -> list[dict[str, Any]]:
    return [{**record, "stem": record["name"].removesuffix(".png")} for record in images.records()]


class TestRecords:
    def test_without_captions_they_are_those_of_the_images(self, images: ImageFolder) -> None:
        assert image_records(images, None) == with_stems(images)

    def test_captions_are_kept(self, images: ImageFolder) -> None:
        write_texts(images, t="a tree")
        records = image_records(images, Captions.read(images))
        assert [record.pop("caption") for record in records] == ["a tree", None, None]
        assert records == with_stems(images)

    @pytest.mark.parametrize("hashed", [False, True])
    def test_differences_are_told_apart(self, hashed: bool, images: ImageFolder) -> None:
        write_texts(images, t="a tree")
        recorded = image_records(images, Captions.read(images))

        def differences(captions: Captions | None) -> list[str]:
            now = ImageFolder.read(images.path)
            return record_differences(recorded, image_records(now, captions, hashed=hashed))

        assert differences(Captions.read(images)) == []
        assert differences(None) == []
        write_texts(images, t="another")
        assert differences(Captions.read(images)) == ["other captions"]
        images.paths[1].write_bytes(b"other")
        assert differences(Captions.read(images)) == [
            f"other images: changed {images.names[1]!r}",
            "other captions",
        ]
        images.paths[0].unlink()
        left = ImageFolder.read(images.path)
        (words,) = differences(Captions.read(left))
        assert words == f"other images: changed {images.names[1]!r}; gone {images.names[0]!r}"


KEYS = ("name", "size")


def image(name: str, size: int = 1) -> dict[str, Any]:
    return {"name": name, "size": size}


def test_each_kind_of_difference_names_its_images() -> None:
    recorded = [image("a.png"), image("b.png"), image("c.png")]
    present = [image("a.png"), image("b.png", 2), image("d.png")]
    assert describe_other_images(recorded, present, KEYS) == (
        "other images: changed 'b.png'; new 'd.png'; gone 'c.png'"
    )


def test_many_are_counted() -> None:
    present = [image(f"{number:02}.png") for number in range(20)]
    assert describe_other_images([], present, KEYS) == (
        "other images: new '00.png', '01.png', '02.png' and 17 more"
    )


def test_the_same_images_in_another_order() -> None:
    recorded = [image("a.png"), image("b.png")]
    assert describe_other_images(recorded, recorded[::-1], KEYS) == "other images: in another order"
