"""What the chaos program disturbs: a pilot of three artists on the tiny model, or a matrix, both short."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mimicry.common.files import read_json, sha256_file, write_json
from mimicry.study.tree import AdapterId, Condition, StudyTree
from mimicry.tuning.adapters.bookmark import STEP
from mimicry.tuning.adapters.folder import ADAPTER_CONFIG, METRICS, TRAIN_LOG, WEIGHTS
from mimicry.tuning.adapters.training_run import TRAINING_RUN
from mimicry.tuning.adapters.weights import lora_arguments

_IMAGES = 3
_WORDS = (
    *("--no-push-to-hub", "--resolution=32", "--rank=2", "--gradient-accumulation-steps=1"),
    *("--checkpointing-steps=1", "--eval-timesteps=1"),
)
# Entries of other steps and later versions in the tracker.
_FOREIGN: dict[str, Any] = {
    "metadata": {"created_at": "2026-01-01T00:00:00+00:00", "lab": "Zürich"},
    "step_status": {"step_2_protect": "complete"},
    "bookmarks": {"step_2_protect": {"mist/Zoé": {"status": "done", "tries": [1, 2]}}},
    "snapshot": {"note": "of another step"},
    "of_tomorrow": [1, {"2": None}],
}
_LEFT = {WEIGHTS, ADAPTER_CONFIG, TRAINING_RUN, METRICS, TRAIN_LOG, "set_aside"}
# With the submissions to a cluster, where there were any.
_TRACKER_LEFT = {"progress_tracker.json", ".progress_tracker.json.lock", "slurm"}


def add_demo_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--demo", type=Path, default=Path("data/demo"), help="The folder that `make demo` made."
    )


@dataclass
class TinyPilot:
    """A study to copy for each round, the base model, and the results of an undisturbed pilot."""

    template: Path
    base_model: Path
    cache: Path
    stack: str = "hf_diffusers"
    conditions: tuple[Condition, ...] = (Condition(),)
    variants: tuple[str | None, ...] = (None,)
    words: tuple[str, ...] = ("--pilot",)
    steps: int = 4
    seconds: float = 0.0
    sha256s: dict[AdapterId, str] | None = None
    config: bytes = b""

    @classmethod
    def prepare(
        cls, demo: Path, folder: Path, *, matrix: bool = False, steps: int = 4, parallel: int = 1
    ) -> "TinyPilot":
        """Copy a few paintings of the demo study into `folder`, and train their pilot once.

        Args:
            matrix: not a pilot, but two artists in three conditions, each trained with two seeds.
            parallel: trainings at a time.

        Raises:
            SystemExit: there is no demo study, or the training failed; the message is its output.
        """
        pilot = cls.copied(demo, folder, matrix=matrix)
        pilot.steps = steps
        pilot.train_undisturbed(folder / "undisturbed", parallel)
        return pilot

    @classmethod
    def copied(cls, demo: Path, folder: Path, *, matrix: bool = False) -> "TinyPilot":
        """Copy a few paintings of the demo study into `folder`, without training; see `prepare`.

        Raises:
            SystemExit: there is no demo study.
        """
        source = StudyTree(demo / "style_mimicry")
        if not source.original_art.is_dir():
            raise SystemExit(f"there is no demo study in {demo}; type `make demo`, or mimicry demo {demo}")
        pilot = cls(folder / "template", demo.absolute() / "tiny_sd3", folder / "cache")
        template = StudyTree(pilot.template)
        first = {artist.style: artist for artist in reversed(source.artists(source.original_art))}
        artists = sorted(first.values())
        if matrix:
            artists = artists[:2]
            pilot.conditions = (Condition(), Condition("mist"), Condition("mist", "noisy_upscaling"))
            pilot.variants = (None, "seed-43")
            pilot.words = ("--protection=all", "--countermeasure=all", "--replicates=2")
        for root in (source.source(condition).root for condition in pilot.conditions):
            for artist in artists:
                images = template.images_of(template.data_root / root.relative_to(source.data_root), artist)
                images.mkdir(parents=True)
                for path in sorted(source.images_of(root, artist).iterdir())[:_IMAGES]:
                    shutil.copyfile(path, images / path.name)
        write_json(template.tracker, _FOREIGN)
        return pilot

    def train_undisturbed(self, folder: Path, parallel: int) -> None:
        tree, self.seconds = self.train(folder, f"--parallel={parallel}")
        outputs = self.output_dirs(tree)
        self.sha256s = {adapter: sha256_file(path / WEIGHTS) for adapter, path in outputs.items()}
        self.config = (next(iter(outputs.values())) / ADAPTER_CONFIG).read_bytes()
        faults = faults_of(self, tree)
        if faults:
            raise SystemExit(f"the undisturbed pilot has faults: {faults}")

    def train(self, folder: Path, *words: str) -> tuple[StudyTree, float]:
        """Train a new copy of the study in `folder`, with more options; return it, and the seconds it took.

        Raises:
            SystemExit: it failed; the message is its output.
        """
        tree = self.new_tree(folder)
        begin = time.monotonic()
        if start_pilot(replace(self, words=(*self.words, *words)), folder).wait(600) != 0:
            raise SystemExit((folder / "output.log").read_text("utf-8", "replace"))
        return tree, time.monotonic() - begin

    def options(self, folder: Path) -> list[str]:
        """Return the options of apply_tuning for the copy of the study in `folder`."""
        return [
            *(*_WORDS, *self.words, f"--max-train-steps={self.steps}"),
            f"--data-root={folder / 'study'}",
            f"--pretrained-model-name-or-path={self.base_model}",
        ]

    def new_tree(self, folder: Path) -> StudyTree:
        """Return a new copy of the study in `folder`."""
        shutil.copytree(self.template, folder / "study")
        return StudyTree(folder / "study")

    def output_dirs(self, tree: StudyTree) -> dict[AdapterId, Path]:
        """Return the folders of all adapters."""
        adapters = [
            AdapterId(self.stack, condition, artist, variant)
            for variant in self.variants
            for artist in tree.artists(tree.original_art)
            for condition in self.conditions
        ]
        return {adapter: tree.adapter_dir(adapter) for adapter in adapters}


@dataclass
class Run:
    """A call of apply_tuning on the study in `folder`, and all processes that it starts."""

    process: subprocess.Popen[bytes]
    folder: Path

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def wait(self, seconds: float) -> int | None:
        """Return its exit code, or None if it has not ended after `seconds`."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def processes(self) -> dict[int, str]:
        """Return the role of each living process of this run, by pid."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                words = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                state = (path / "stat").read_bytes().rpartition(b")")[2].split()[0]
            except OSError:
                continue
            if str(self.folder) in words and state not in b"ZX":
                found[int(path.name)] = _role(words)
        return found

    def await_no_process(self, seconds: float) -> list[str]:
        """Wait until all processes are gone, and return the roles of those that are left."""
        deadline = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return sorted(left.values())


def _role(words: str) -> str:
    if "accelerate_launcher" in words:
        return "launcher"
    if "local_dreambooth_lora_sd3_wrapper" in words:
        return "wrapper"
    return "trainer" if "train_dreambooth_lora_sd3" in words else "orchestrator"


def start_pilot(pilot: TinyPilot, folder: Path) -> Run:
    """Start the pilot on the study in `folder`, with its output in a log there."""
    words = [sys.executable, "-m", "mimicry.tuning.apply_tuning", *pilot.options(folder)]
    # One thread gives the same bits however busy the machine is.
    changes = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(pilot.cache)}
    with (folder / "output.log").open("ab") as log:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | changes,
            start_new_session=True,
        )
    return Run(process, folder)


def faults_of(pilot: TinyPilot, tree: StudyTree) -> list[str]:
    """Return all differences between a disturbed pilot and an undisturbed one."""
    faults = []
    for adapter, folder in pilot.output_dirs(tree).items():
        expected = (pilot.sha256s or {}).get(adapter)
        faults += [f"{adapter.key}: {fault}" for fault in _adapter_faults(pilot, folder, expected)]
    return faults + _tracker_faults(pilot, tree)


def _adapter_faults(pilot: TinyPilot, output_dir: Path, sha256: str | None) -> list[str]:
    names = {path.name for path in output_dir.iterdir()} if output_dir.exists() else set()
    faults = [f"{name} was left behind" for name in sorted(names - _LEFT)]
    faults += [f"there is no {name}" for name in (WEIGHTS, ADAPTER_CONFIG) if name not in names]
    if not faults and sha256_file(output_dir / WEIGHTS) != sha256:
        faults.append("not the adapter of an undisturbed run")
    # Without its record, an adapter counts as made by another tool and as complete. It is then unknown which
    # base model its adapter_config.json should name.
    recorded = TRAINING_RUN in names
    if not faults and not _is_same_config(output_dir / ADAPTER_CONFIG, pilot.config, whole=recorded):
        faults.append(f"not the {ADAPTER_CONFIG} of an undisturbed run")
    if not faults and recorded:
        run = read_json(output_dir / TRAINING_RUN)
        if run["status"] != "complete" or run["weights"]["sha256"] != sha256 or run["steps"] != pilot.steps:
            faults.append(f"{TRAINING_RUN} describes another training")
    return faults


def _is_same_config(path: Path, expected: bytes, *, whole: bool) -> bool:
    """Return whether `path` has the `expected` bytes; unless `whole`, whether it describes the same LoRA."""
    if whole:
        return path.read_bytes() == expected
    found, wanted = read_json(path), json.loads(expected)
    return all(found.get(name) == wanted[name] for name in lora_arguments(0, ()))


def _tracker_faults(pilot: TinyPilot, tree: StudyTree) -> list[str]:
    names = {path.name for path in tree.tracker.parent.iterdir()}
    faults = [f"{name} was left beside the tracker" for name in sorted(names - _TRACKER_LEFT)]
    document = json.loads(tree.tracker.read_text("utf-8"))
    ours = document["bookmarks"].pop(STEP, {})
    status = document["step_status"].pop(STEP, None)
    metadata = document["metadata"]
    document["metadata"] = {name: metadata.get(name) for name in _FOREIGN["metadata"]}
    if document != _FOREIGN:
        faults.append("the tracker has lost what others wrote")
    keys = {adapter.key for adapter in pilot.output_dirs(tree)}
    if set(ours) != keys or {mark["status"] for mark in ours.values()} != {"complete"}:
        faults.append(f"the tracker says { ({key: mark['status'] for key, mark in ours.items()}) }")
    if status != "complete":
        faults.append(f"the tracker calls the step {status}")
    return faults
