"""The program `mimicry demo`: draws the demo study, paintings and tiny base model, into a folder."""

import hashlib
import shlex
import shutil
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import click
from filelock import FileLock

from mimicry.common.environment import quiet_libraries
from mimicry.common.errors import BatchFault, UsageError
from mimicry.common.files import read_json, write_bytes, write_json
from mimicry.study.tree import StudyTree

STUDY_TOML = """\
# What the demo trains, and what mimicry samples draws. docs/study_file.md explains every key.

[study]
protections = ["none", "mist"]
countermeasures = ["none", "noisy_upscaling"]
pilot = true                # the first artist of each style
hold_out = 4                # paintings that are not trained on: the evaluation loss is measured on them
push_to_hub = false

[recipe]
pretrained_model_name_or_path = "../tiny_sd3"
resolution = 64
learning_rate = 3e-3
max_train_steps = 120
train_batch_size = 4
gradient_accumulation_steps = 1
max_sequence_length = 24
mixed_precision = "no"
gradient_checkpointing = false

[samples]
prompts = [
    "a painting in the style of sks",
    "a painting of a boat in the style of sks",
    "a painting of a house in the style of sks",
    "a painting of a tree in the style of sks",
]
seeds = [3]
steps = 15
guidance = 3
"""


MANIFEST_NAME = "demo_manifest.json"

# The libraries that draw. Another version of one of them may write other bytes.
_LIBRARIES = ("numpy", "pillow", "torch", "diffusers")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What was drawn into a folder, by which code and seed, so that a second call draws nothing.

    `files` maps each path below the folder to its size in bytes. While files are moved into place the
    manifest is marked as unfinished.
    """

    seed: int
    drawn_by: str
    finished: bool
    files: dict[str, int]

    def write(self, folder: Path) -> None:
        write_json(folder / MANIFEST_NAME, asdict(self))


def read_manifest(folder: Path) -> Manifest | None:
    try:
        return Manifest(**read_json(folder / MANIFEST_NAME))
    except (OSError, ValueError, TypeError):
        return None


def drawing_code() -> str:
    """Return a hash of the demo's sources and weights and of the versions of the libraries that draw."""
    digest = hashlib.sha256()
    package = Path(__file__).parent
    for source in (*sorted(package.glob("*.py")), *sorted((package / "weights").rglob("*.*"))):
        digest.update(source.read_bytes())
    for library in _LIBRARIES:
        digest.update(f"{library} {version(library)}\n".encode())
    return digest.hexdigest()


def file_sizes(folder: Path) -> dict[str, int]:
    """Return the size in bytes of every file below `folder`, by its path from there, sorted."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


DATA_ROOT = "style_mimicry"
BASE_MODEL = "tiny_sd3"
DEFAULT_SEED = 7
STAGING = ".demo_drawing"
LOCK = ".demo_lock"


def draw_demo(folder: Path, seed: int = DEFAULT_SEED, *, force: bool = False) -> bool:
    """Draw the study into `folder`/style_mimicry and the base model into `folder`/tiny_sd3.

    A complete demo is not drawn again, unless `force` is given. Return whether anything was drawn.

    Raises:
        UsageError: `folder` has a study or a model that this program did not draw.
        OSError: `folder` cannot be written.
    """
    drawn = (force or not is_whole(folder, seed)) and _draw(folder, seed, force=force)
    study_file = StudyTree(folder / DATA_ROOT).study_file
    if not study_file.exists() and not study_file.is_symlink():  # people change it to play
        write_bytes(study_file, STUDY_TOML.encode())
    return drawn


def _draw(folder: Path, seed: int, *, force: bool) -> bool:
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LOCK):
        # Another call may have drawn it while this one waited.
        if not force and is_whole(folder, seed):
            return False
        former = read_manifest(folder)
        foreign = [name for name in (DATA_ROOT, BASE_MODEL) if (folder / name).exists()]
        if former is None and foreign:
            raise UsageError(
                f"{folder} has {' and '.join(foreign)}, and no readable {MANIFEST_NAME} says that mimicry "
                "demo drew it; nothing was changed. Name a folder without these, for example: "
                f"mimicry demo {shlex.quote(str(folder / 'demo'))}"
            )
        staging = folder / STAGING
        shutil.rmtree(staging, ignore_errors=True)
        try:
            draw_files(staging, seed)
            _put_in_place(staging, folder, seed, former.files if former else {})
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return True


def is_whole(folder: Path, seed: int) -> bool:
    """Return whether `folder` has what `draw_demo` would draw from `seed`, judged by names and sizes."""
    found = read_manifest(folder)
    return (
        found is not None
        and (found.seed, found.drawn_by, found.finished) == (seed, drawing_code(), True)
        and all(_size(folder / name) == size for name, size in found.files.items())
    )


def draw_files(staging: Path, seed: int) -> None:
    quiet_libraries()
    from mimicry.demo.study import draw_study
    from mimicry.demo.variants import TINY_SD3

    draw_study(StudyTree(staging / DATA_ROOT), seed)
    shutil.copytree(TINY_SD3, staging / BASE_MODEL, copy_function=shutil.copyfile)


def _put_in_place(staging: Path, folder: Path, seed: int, former: dict[str, int]) -> None:
    drawn = file_sizes(staging)
    code = drawing_code()
    Manifest(seed=seed, drawn_by=code, finished=False, files=former | drawn).write(folder)
    for name in former.keys() - drawn.keys():
        _remove_with_empty_folders(folder, name)
    for name in drawn:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (staging / name).replace(folder / name)
    Manifest(seed=seed, drawn_by=code, finished=True, files=drawn).write(folder)


def _remove_with_empty_folders(folder: Path, name: str) -> None:
    path = folder / name
    path.unlink(missing_ok=True)
    for parent in path.parents:
        if parent == folder:
            return
        try:
            parent.rmdir()
        except FileNotFoundError:
            continue
        except OSError:  # the folder has other files in it
            return


def _summary(folder: Path, seed: int) -> str:
    data_root, base_model = folder / DATA_ROOT, folder / BASE_MODEL
    megabytes = sum(file_sizes(base_model).values()) / 1e6
    return (
        f"paintings   {data_root}: by invented artists, seed {seed}, each also with a\n"
        "            miniature of mist and of noisy_upscaling, no evidence about the real methods\n"
        f"base model  {base_model}: Stable Diffusion 3 in {megabytes:.1f} MB, trained on drawn scenes\n"
        f"study       {StudyTree(data_root).study_file}: conditions and hyper-parameters\n"
        f"next        {shlex.join(['apply_tuning', '--data-root', str(data_root)])}"
    )


@click.command("demo", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--seed", type=int, default=DEFAULT_SEED, show_default=True, help="Another seed gives other pictures."
)
@click.option("--force", is_flag=True, help="Draw again even if the demo is complete.")
def demo(folder: Path, seed: int, force: bool) -> None:
    """Draw the demo study into DIR: paintings for apply_tuning, and a base model to tune.

    DIR/style_mimicry is a data tree as described in the README: three styles, two invented artists each,
    twenty paintings each, all drawn by code. DIR/tiny_sd3 is a complete Stable Diffusion 3 pipeline of eight
    megabytes, trained on other drawn scenes; it is part of this program.

    The pictures in protected_art/mist and robust_samples/noisy_upscaling are MINIATURES of Mist and of noisy
    upscaling: perturbations against the tiny model's own VAE, and a small network that upscales. They work on
    this model, and are no evidence about the real methods.

    DIR/style_mimicry/study.toml has the conditions and hyper-parameters of the demo. It is written where
    there is none, and is yours to change.

    A second call draws nothing. Only files that mimicry demo drew are ever replaced.
    """
    try:
        if not force and is_whole(folder, seed):
            click.echo("the demo is complete, nothing drawn (--force draws it again)")
        else:
            click.echo(f"drawing into {folder}: about twenty seconds")
        draw_demo(folder, seed, force=force)
    except OSError as error:
        raise BatchFault(
            f"cannot draw into {folder}: {error}. Name a folder that can be written, with 60 MB free, "
            "for example: mimicry demo ./demo"
        ) from error
    click.echo(_summary(folder, seed))
