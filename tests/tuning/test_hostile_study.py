"""A study of hostile names: each is one artist, one key, one folder, one repository, and one line."""

import json
import os
import unicodedata
from pathlib import Path

import pytest

from mimicry.study.tree import Artist, StudyTree
from mimicry.tuning.hf_diffusers.launch import ForeignScript
from tests.fake_hub import FakeHub
from tests.hostile_names import HOSTILE_NAMES
from tests.shells import shell_words
from tests.small_study import ORIGINAL, original, output_dir, write_images
from tests.tuning.hf_diffusers.stand_in import given_flags, write_stand_in
from tests.tuning.hf_diffusers.studio import WRAPPER, run
from tests.tuning.quick_studio import QuickStudio, quick_calls

NAMES = [name for name in HOSTILE_NAMES if not name.startswith(".")]  # the others are hidden
FORGED = "Mia\nerror: forged\n{options} '--overwrite' \x1b[2K"
NO_UTF8 = os.fsdecode(b"caf\xe9")
TWINS = [unicodedata.normalize(form, "Andr\u00e9") for form in ("NFC", "NFD")]


@pytest.fixture
def artists(quick_studio: QuickStudio) -> list[Artist]:
    """Every name as an artist, and nobody else; the style is hostile too."""
    names = [*NAMES, FORGED, NO_UTF8]
    found = [Artist("historical", "O'Style; {x}\n--style", name) for name in names]
    tree = StudyTree(quick_studio.folder / "hostile")
    for artist in found:
        write_images(original(tree, artist), ["1"])
    quick_studio.tree = tree
    return found


def test_all_are_trained_under_their_own_names(quick_studio: QuickStudio, artists: list[Artist]) -> None:
    ended = quick_studio.tune()

    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines()[-1] == f"{len(artists)} trained"
    tree, stack = quick_studio.tree, quick_studio.stack.name
    outputs = [str(output_dir(tree, ORIGINAL, artist, stack)) for artist in sorted(artists)]
    assert [call["words"][:2] for call in quick_calls(quick_studio.stack)] == [
        [str(original(tree, artist)), output] for artist, output in zip(sorted(artists), outputs, strict=True)
    ]
    assert all((Path(output) / "pytorch_lora_weights.safetensors").is_file() for output in outputs)
    document = json.loads(tree.tracker.read_bytes())
    marks = document["bookmarks"]["step_3_fine_tune_sd35"]
    assert marks.keys() == {f"{stack}/none/none/{artist}" for artist in artists}
    assert {mark["status"] for mark in marks.values()} == {"complete"}
    # The forms of an accent are two folders on this disk, and stay two.
    assert len({mark["log"] for mark in marks.values()}) == len(artists)
    assert quick_studio.tune().out.splitlines()[-1] == f"{len(artists)} skipped"


def test_no_name_makes_a_line_of_its_own(quick_studio: QuickStudio, artists: list[Artist]) -> None:
    (original(quick_studio.tree, artists[NAMES.index("two\nlines")]) / "1.png").write_bytes(b"")
    shown = quick_studio.tune("--dry-run", "-v").out
    plan = json.loads(quick_studio.tune("--dry-run", "--json").out)
    trained = quick_studio.tune().out

    lines = (shown + trained).split("\n")
    assert all(line.isprintable() for line in lines)
    assert not [line for line in lines if line.startswith(("error:", "lines", "--style"))]
    commands = [line for line in shown.splitlines() if "train.py" in line]
    assert [shell_words(line) for line in commands] == [target["command"] for target in plan["cells"]]


def test_repositories_have_valid_names_and_twins_are_refused(
    quick_studio: QuickStudio, artists: list[Artist], fake_hub: FakeHub
) -> None:
    plan = json.loads(quick_studio.tune("--dry-run", "--json", "--push-to-hub").out)
    repositories = [target["repository"] for target in plan["cells"]]
    assert all(name.isascii() and len(name) <= 96 for name in repositories)
    # Both forms of an accent make one name on the Hub, which is said before anything is trained.
    assert len({name.lower() for name in repositories}) == len(artists) - 1

    ended = quick_studio.tune("--push-to-hub")

    assert ended.code == 2
    assert len(ended.err.splitlines()) == 1
    assert "would be uploaded to one repository" in ended.err
    assert quick_studio.trained() == []


@pytest.mark.parametrize("name", TWINS, ids=["NFC", "NFD"])
def test_an_artist_is_found_in_either_form_of_an_accent(quick_studio: QuickStudio, name: str) -> None:
    write_images(original(quick_studio.tree, Artist("historical", "baroque", TWINS[1])))

    assert quick_studio.tune(f"--artist={name}").code == 0
    assert quick_studio.trained() == [TWINS[1]]


def test_with_both_forms_each_is_itself(quick_studio: QuickStudio) -> None:
    for name in TWINS:
        write_images(original(quick_studio.tree, Artist("historical", "baroque", name)))

    assert quick_studio.tune(f"--artist={TWINS[0]}").code == 0
    assert quick_studio.trained() == [TWINS[0]]


def test_the_wrapper_and_the_launcher_hand_a_hostile_name_on(demo_dir: Path, tmp_path: Path) -> None:
    write_images(tmp_path / FORGED, ["1"])
    words = [
        *(f"--input-dir={FORGED}", f"--output-dir=none__none/a/b/{FORGED}", "--no-push-to-hub"),
        *(f"--pretrained-model-name-or-path={demo_dir / 'tiny_sd3'}", "--resolution=64", "--rank=4"),
        f"--train-script={write_stand_in(tmp_path)}",
    ]

    outcome = run(WRAPPER, words, cwd=tmp_path)

    assert outcome.returncode == 0, outcome.stderr
    output = tmp_path / "none__none" / "a" / "b" / FORGED
    log = output / "train.log"
    assert given_flags(log)["instance_data_dir"] == FORGED
    lines = log.read_text().splitlines()
    assert not [line for line in lines if line.startswith("error:")]
    assert shell_words(lines[0].partition(" ")[2].partition(" ")[2])[-1].startswith("--")
    (complete,) = outcome.stdout.splitlines()
    assert complete.startswith("complete: none__none/a/b/Mia\\nerror: forged\\n")


def test_a_script_of_that_name_is_read_and_not_run(tmp_path: Path) -> None:
    script = write_stand_in(tmp_path)
    script.write_text("raise SystemExit('it was run')\n" + script.read_text())

    assert ForeignScript.read(script).known_flags
