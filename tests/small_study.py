"""A small study for the tests of the orchestrator: images, and adapters that nobody trained."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from mimicry.study.images import ImageFolder
from mimicry.study.selection import Selection
from mimicry.study.states import State
from mimicry.study.tracker import Bookmarks
from mimicry.study.tree import AdapterId, Artist, Condition, StudyTree
from mimicry.tuning.adapters.folder import AdapterFolder
from mimicry.tuning.adapters.judge import AdapterSpec
from mimicry.tuning.adapters.recipe import OWN_TRAINER, recipe
from mimicry.tuning.hf_diffusers.adapter_format import ADAPTER_FORMAT
from mimicry.tuning.hf_diffusers.base_model import BaseModel
from mimicry.tuning.options.config import TuningConfig
from mimicry.tuning.planning.plan import Plan
from mimicry.tuning.planning.planner import make_plan
from mimicry.tuning.planning.request import Request
from mimicry.tuning.planning.target import Target
from mimicry.tuning.stack_traits import StackTraits
from mimicry.tuning.stacks import Stack
from tests.tuning.lora_files import save_lora

ANNA = Artist("historical", "baroque", "Anna_Berg")
BORIS = Artist("historical", "baroque", "Boris_Cole")
CLARA = Artist("historical", "cubism", "Clara_Dunn")
DORA = Artist("contemporary", "cubism", "Dora_Eik")
# In the order of a plan.
EVERYBODY = (DORA, ANNA, BORIS, CLARA)
STEMS = ("01_tree", "02_boat", "03_hills")

ORIGINAL = Condition()
MIST = Condition("mist")
COUNTERED = Condition("mist", "noisy_upscaling")

CONFIG = TuningConfig(rank=4)
BASE = BaseModel(folder=Path("nowhere"), name="lab/tiny", revision="0" * 40)

GLAZE_COUNTERED = Condition("glaze", "noisy_upscaling")


def original(tree: StudyTree, artist: Artist = ANNA) -> Path:
    return tree.images_of(tree.original_art, artist)


def judged(target: Target) -> tuple[State, State]:
    return target.state, target.existing


def write_images(folder: Path, stems: Sequence[str] = STEMS, salt: str = "") -> ImageFolder:
    """Write a tiny PNG for each stem: its picture depends on the stem, and a little on `salt`."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem in stems:
        picture = hashlib.shake_256(stem.encode()).digest(192)
        change = hashlib.shake_256(f"{salt}/{stem}".encode()).digest(192)
        pixels = bytes(value * 247 // 255 + extra % 9 for value, extra in zip(picture, change, strict=True))
        Image.frombytes("RGB", (8, 8), pixels).save(folder / f"{stem}.png")
    return ImageFolder.read(folder)


def write_study(data_root: Path, artists: Sequence[Artist] = EVERYBODY) -> StudyTree:
    """Write original art, art protected by mist, and its upscaled samples in the layout that names mist."""
    tree = StudyTree(data_root)
    for artist in artists:
        for root in (
            tree.original_art,
            tree.protected_art / "mist",
            tree.robust_samples / "noisy_upscaling" / "mist",
        ):
            write_images(tree.images_of(root, artist), salt=f"{root.relative_to(data_root)}/{artist}")
    return tree


def share_samples(tree: StudyTree) -> StudyTree:
    """Lay the robust samples out without naming the protection, and add art protected by glaze."""
    named = tree.robust_samples / "noisy_upscaling" / "mist"
    for split in list(named.iterdir()):
        split.rename(named.parent / split.name)
    named.rmdir()
    shutil.copytree(tree.protected_art / "mist", tree.protected_art / "glaze")
    return tree


def asked_for(config: TuningConfig = CONFIG, base: BaseModel = BASE, **options: Any) -> AdapterSpec:
    """Return what adapters of `config`, with `options` changed, should be."""
    changed = replace(config, **options)
    return AdapterSpec(changed.rank, recipe(changed, base.identity(), OWN_TRAINER))


def write_adapter(
    output_dir: Path, images: Path, /, config: TuningConfig = CONFIG, base: BaseModel = BASE, **fields: Any
) -> Path:
    """Write a complete adapter, as if trained on `images`; `fields` go into its training_run.json."""
    run = {
        "recipe": recipe(config, base.identity(), OWN_TRAINER),
        "options": asdict(config),
        "images": ImageFolder.read(images).records(),
        "status": "complete",
        "started_at": "2026-01-02T03:04:05+00:00",
        "seconds": 61.5,
        "steps": config.max_train_steps,
        "mean_loss": 0.25,
        "resumed_from": None,
    }
    saved = save_lora(output_dir / "saved.safetensors", config.rank)
    AdapterFolder(output_dir, ADAPTER_FORMAT).publish(saved, run | fields, "lab/tiny")
    saved.unlink()
    return output_dir


def put_adapter(
    tree: StudyTree, condition: Condition = ORIGINAL, artist: Artist = ANNA, **fields: Any
) -> Path:
    """Write a complete adapter where the training of `artist` would put it; return its folder."""
    images = tree.images_of(tree.source(condition).root, artist)
    return write_adapter(output_dir(tree, condition, artist), images, **fields)


def output_dir(
    tree: StudyTree, condition: Condition = ORIGINAL, artist: Artist = ANNA, stack: str = "hf_diffusers"
) -> Path:
    """Return the folder of an adapter."""
    return tree.adapter_dir(AdapterId(stack, condition, artist))


@dataclass(frozen=True, kw_only=True)
class AskedTraits(StackTraits):
    """Traits that ask for a given specification, whatever the hyper-parameters."""

    spec: AdapterSpec

    def adapter_spec(self, config: TuningConfig | None, trainer: str) -> AdapterSpec:
        return self.spec


def request_of(
    tree: StudyTree,
    condition: Condition = ORIGINAL,
    *,
    spec: AdapterSpec | None = None,
    config: TuningConfig = CONFIG,
    **request: Any,
) -> Request:
    """Return a call on `tree` for the stack hf_diffusers, whose base model is not looked for."""
    traits = AskedTraits(
        hub_prefix="sd35-lora", adapter_format=ADAPTER_FORMAT, spec=spec or asked_for(config)
    )
    stack = replace(Stack.find("hf_diffusers"), traits=traits)
    return Request(tree=tree, stack=stack, condition=condition, config=config, **request)


def plan_of(
    tree: StudyTree,
    condition: Condition = ORIGINAL,
    *,
    asked: AdapterSpec | None = None,
    bookmarks: Bookmarks | None = None,
    full: bool = False,
    artists: tuple[str, ...] = (),
    pilot: bool = False,
    **request: Any,
) -> Plan:
    """Plan a call on `tree` for the stack hf_diffusers."""
    return make_plan(
        [
            request_of(
                tree, condition, spec=asked, selection=Selection(artists=artists, pilot=pilot), **request
            )
        ],
        bookmarks or {},
        full=full,
    )


def target_of(plan: Plan, artist: Artist = ANNA) -> Target:
    """Return the one target for `artist`."""
    (target,) = (target for target in plan.targets if target.artist == artist)
    return target


def listing(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Return size, mode and time of change of everything below `folder`, and of itself."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        stat = path.lstat()
        found[str(path)] = (stat.st_size, stat.st_mode, stat.st_mtime_ns)
    return found


def bookmarks_in(tree: StudyTree) -> dict[str, dict[str, Any]]:
    """Return this step's bookmarks by artist and condition, read from the file without our own code."""
    document = json.loads(tree.tracker.read_text("utf-8"))
    return {
        key.removeprefix("hf_diffusers/"): bookmark
        for key, bookmark in document["bookmarks"]["step_3_fine_tune_sd35"].items()
    }
