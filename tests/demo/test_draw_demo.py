"""The program mimicry demo: draws once, the same each time, never half, and over nobody's files."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import mimicry
from mimicry.common.errors import UsageError
from mimicry.common.processes import run_command
from mimicry.demo import draw_demo as program
from mimicry.demo.draw_demo import MANIFEST_NAME, demo, draw_demo, file_sizes, read_manifest
from mimicry.demo.variants import TINY_SD3
from mimicry.sampling.draw_samples import draw_samples
from mimicry.tuning.apply_tuning import apply_tuning
from mimicry.tuning.options.config import TuningConfig
from mimicry.tuning.options.study_file import StudyFile


@pytest.fixture
def quick_draw(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Replaces the drawing by that of three small files; returns the seeds drawn from."""
    drawn: list[int] = []

    def draw(staging: Path, seed: int) -> None:
        drawn.append(seed)
        for name in (f"style_mimicry/seed_{seed}/one.png", "style_mimicry/two.png", "tiny_sd3/weights"):
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            (staging / name).write_text(f"{name} {seed}")

    monkeypatch.setattr(program, "draw_files", draw)
    return drawn


def test_the_same_bytes_under_another_hash_seed(true_demo: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from mimicry.study.tree import StudyTree\n"
        "from mimicry.demo.study import PAINTERS\n"
        "from mimicry.demo.study import draw_painting\n"
        "from mimicry.demo.variants import VariantMaker\n"
        "draw_painting(StudyTree(Path(sys.argv[1])), PAINTERS[1], 4, 7, VariantMaker.load())\n"
    )
    environment = os.environ | {"PYTHONHASHSEED": "4242"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, check=True)

    drawn = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.*")}
    assert len(drawn) == 3
    assert drawn == {name: (true_demo / "style_mimicry" / name).read_bytes() for name in drawn}


def test_the_whole_demo_is_there(true_demo: Path) -> None:
    names = file_sizes(true_demo)

    assert len([name for name in names if name.startswith("style_mimicry/")]) == 361
    assert program.is_whole(true_demo, 7)
    for path in (path for path in TINY_SD3.rglob("*") if path.is_file()):
        assert path.read_bytes() == (true_demo / "tiny_sd3" / path.relative_to(TINY_SD3)).read_bytes()


def test_a_second_call_draws_nothing(
    true_demo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "draw_files", _fail)
    before = {path: path.stat().st_mtime_ns for path in true_demo.rglob("*")}

    result = _run(capsys, str(true_demo))

    assert result.exit_code == 0
    assert "nothing drawn" in result.stdout
    assert {path: path.stat().st_mtime_ns for path in true_demo.rglob("*")} == before


def test_the_summary_ends_with_the_next_command(
    tmp_path: Path, quick_draw: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "it's here"

    result = _run(capsys, str(folder))

    assert result.exit_code == 0
    assert quick_draw == [7]
    quoted = str(folder).replace("'", "'\"'\"'")
    assert result.stdout.splitlines()[-1].split(maxsplit=1)[1] == (
        f"apply_tuning --data-root '{quoted}/style_mimicry'"
    )


def test_the_study_file_says_all_that_is_needed(tmp_path: Path, quick_draw: list[int]) -> None:
    draw_demo(tmp_path)
    path = tmp_path / "style_mimicry" / "study.toml"

    said = StudyFile.read(path)

    assert said.recipe["pretrained_model_name_or_path"] == str(tmp_path / "tiny_sd3")
    assert TuningConfig(**said.recipe).max_train_steps == 120
    context = apply_tuning.make_context("apply_tuning", [f"--data-root={path.parent}"])
    assert (context.params["pilot"], context.params["push_to_hub"]) == (True, False)
    assert context.params["protections"] == ("none", "mist")
    prompts = draw_samples.make_context("samples", [f"--data-root={path.parent}"]).params["prompts"]
    assert prompts == said.samples["prompts"]


def test_a_study_file_that_was_changed_is_kept(tmp_path: Path, quick_draw: list[int]) -> None:
    draw_demo(tmp_path)
    path = tmp_path / "style_mimicry" / "study.toml"
    drawn = path.read_text()
    path.write_text("[recipe]\nrank = 4\n")

    assert not draw_demo(tmp_path)
    assert draw_demo(tmp_path, force=True)
    assert path.read_text() == "[recipe]\nrank = 4\n"
    path.unlink()
    assert not draw_demo(tmp_path)
    assert path.read_text() == drawn
    assert quick_draw == [7, 7]


def test_the_commands_of_the_makefile_are_short(tmp_path: Path, quick_draw: list[int]) -> None:
    makefile = Path(mimicry.__file__).parents[1].joinpath("Makefile").read_text().replace("\\\n", " ")
    draw_demo(tmp_path)
    (tune,) = re.findall(r"^\t\$\(BIN\)/apply_tuning (.*)$", makefile, re.MULTILINE)
    assert tune == "$(STUDY)"

    words = ["--data-root", str(tmp_path / "style_mimicry")]
    found = apply_tuning.make_context("apply_tuning", words).params  # raises what the program would say

    assert found["protections"] == ("none", "mist")
    assert found["countermeasures"] == ("none", "noisy_upscaling")
    assert (found["pilot"], found["push_to_hub"], found["hold_out"], found["max_train_steps"]) == (
        *(True, False, 4, 120),
    )


def test_force_and_another_seed_draw_again(tmp_path: Path, quick_draw: list[int]) -> None:
    assert draw_demo(tmp_path)
    assert not draw_demo(tmp_path)
    assert draw_demo(tmp_path, force=True)
    assert draw_demo(tmp_path, seed=8)
    assert not draw_demo(tmp_path, seed=8)

    assert quick_draw == [7, 7, 8]


def test_other_drawing_code_draws_again(
    tmp_path: Path, quick_draw: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_demo(tmp_path)
    for module in ("mimicry.demo.draw_demo", "mimicry.demo.draw_demo"):
        monkeypatch.setattr(f"{module}.drawing_code", lambda: "other")

    assert draw_demo(tmp_path)
    assert quick_draw == [7, 7]


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("cut")], ids=["gone", "cut"])
def test_a_damaged_file_is_drawn_again(
    tmp_path: Path, quick_draw: list[int], damage: Callable[[Path], object]
) -> None:
    draw_demo(tmp_path)
    damage(tmp_path / "style_mimicry" / "two.png")

    assert draw_demo(tmp_path)
    assert (tmp_path / "style_mimicry" / "two.png").read_text() == "style_mimicry/two.png 7"
    assert quick_draw == [7, 7]


def test_redrawing_removes_its_own_files_and_keeps_others(tmp_path: Path, quick_draw: list[int]) -> None:
    draw_demo(tmp_path)
    adapter = tmp_path / "style_mimicry" / "models" / "adapter"
    adapter.parent.mkdir()
    adapter.write_text("trained")
    draw_demo(tmp_path, seed=8)

    assert adapter.read_text() == "trained"
    assert not (tmp_path / "style_mimicry" / "seed_7").exists()
    assert (tmp_path / "style_mimicry" / "seed_8" / "one.png").exists()
    assert quick_draw == [7, 8]


@pytest.mark.parametrize("name", ["style_mimicry", "tiny_sd3"])
def test_a_study_that_was_not_drawn_here_is_left_alone(
    tmp_path: Path, quick_draw: list[int], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine").write_text("precious")

    with pytest.raises(UsageError, match=name):
        draw_demo(tmp_path, force=True)
    result = _run(capsys, str(tmp_path))

    assert result.exit_code == 2
    assert f"mimicry demo {tmp_path}/demo" in result.stderr
    assert file_sizes(tmp_path / name) == {"mine": len("precious")}
    assert quick_draw == []


def test_drawing_interrupted_at_first_leaves_nothing_behind(
    tmp_path: Path, quick_draw: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = program.draw_files

    def interrupted(staging: Path, seed: int) -> None:
        draw(staging, seed)
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "draw_files", interrupted)
    with pytest.raises(KeyboardInterrupt):
        draw_demo(tmp_path)

    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    assert read_manifest(tmp_path) is None
    monkeypatch.setattr(program, "draw_files", draw)
    assert draw_demo(tmp_path)
    assert quick_draw == [7, 7]


def test_killed_while_drawing_is_drawn_again(tmp_path: Path, quick_draw: list[int]) -> None:
    left_over = tmp_path / program.STAGING / "style_mimicry"
    left_over.mkdir(parents=True)
    (left_over / "half.png").write_text("half")

    assert draw_demo(tmp_path)
    assert set(file_sizes(tmp_path)) - {program.LOCK, MANIFEST_NAME} == {
        "style_mimicry/seed_7/one.png",
        "style_mimicry/study.toml",
        "style_mimicry/two.png",
        "tiny_sd3/weights",
    }
    assert quick_draw == [7]


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_interrupted_between_moves_is_not_whole_and_drawn_again(
    tmp_path: Path, quick_draw: list[int], monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    draw_demo(tmp_path)
    replace, left = Path.replace, moved

    def interrupted(source: Path, target: Path) -> Path:
        nonlocal left
        if program.STAGING in source.parts:
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
        return replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            draw_demo(tmp_path, seed=8)

    assert not program.is_whole(tmp_path, 7)
    assert not program.is_whole(tmp_path, 8)
    assert draw_demo(tmp_path)
    assert not (tmp_path / "style_mimicry" / "seed_8").exists()
    assert program.is_whole(tmp_path, 7)
    assert quick_draw == [7, 8, 7]


def test_a_folder_that_cannot_be_written_is_an_error_with_advice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()

    result = _run(capsys, str(tmp_path / "file" / "demo"))

    assert result.exit_code == 2
    assert "can be written" in result.stderr


def test_help_says_miniature_and_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from mimicry.cli import main\n"
        "sys.argv[1:] = ['demo', '--help']\n"
        "main()\n"
        "print(sorted({'torch', 'diffusers', 'transformers', 'numpy', 'PIL'} & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "MINIATURES" in result.stdout
    assert "no evidence" in " ".join(result.stdout.split())
    assert result.stdout.splitlines()[-1] == "[]"


def _fail(staging: Path, seed: int) -> None:
    raise AssertionError("drawn again")


@dataclass(frozen=True)
class _Result:
    exit_code: int
    stdout: str
    stderr: str


def _run(capsys: pytest.CaptureFixture[str], *words: str) -> _Result:
    code = run_command(demo, words)
    return _Result(code, *capsys.readouterr())
