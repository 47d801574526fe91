"""A small study in a folder of its own, what a test may put into it, and what is expected of its cells."""

import contextlib
import json
import os
import subprocess
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from mimicry.common.claims import CLAIM, this_host
from mimicry.common.files import sha256_file
from mimicry.common.processes import process_start
from mimicry.study.captions import Captions, image_records
from mimicry.study.images import ImageFolder
from mimicry.study.tree import AdapterId, Artist, Condition, StudyTree
from mimicry.tuning.adapters.bookmark import open_tracker
from mimicry.tuning.adapters.checkpoint_facts import PARTS, SCHEMA
from mimicry.tuning.adapters.folder import AdapterFolder
from mimicry.tuning.adapters.recipe import OWN_TRAINER, recipe, recipe_hash
from mimicry.tuning.hf_diffusers.spec.base_model import BaseModel
from mimicry.tuning.hf_diffusers.spec.lora_modules import ADAPTER_FORMAT
from mimicry.tuning.options.config import TuningConfig
from tests.agreement.trainer import weights
from tests.small_study import ANNA, BORIS, MIST, ORIGINAL, write_study
from tests.tuning.model_files import make_model

STACK = "hf_diffusers"
CELLS = [(condition, artist) for condition in (ORIGINAL, MIST) for artist in (ANNA, BORIS)]
TRAINER = Path(__file__).with_name("trainer.py")


@dataclass(frozen=True)
class Expected:
    """What every program should say of a cell; `light` is what is said before anybody has looked in full.

    `says` is the value in the reason that decides, and `numbers` are other fields of the cell.
    """

    state: str
    says: str = ""
    light: str = ""
    action: str = ""
    numbers: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Study:
    """A study of two artists in two conditions, and the calls that its user would type.

    Attributes:
        typed: the options that apply_tuning is called with; `filters` are those of all programs.
        asked: the hyper-parameters that new adapters should have, by variant.
        expected: by key; all other cells are as `others` says.
        other_reasons: why the plan words its reasons otherwise; empty where it does not.
        no_report: no adapter is there to report on.
        answer: the exit code of the next command; None where it does not matter.
    """

    folder: Path
    tree: StudyTree
    stack: Path
    config: TuningConfig
    cleanup: contextlib.ExitStack
    typed: list[str] = field(default_factory=list)
    filters: list[str] = field(default_factory=list)
    asked: dict[str | None, TuningConfig] = field(default_factory=dict)
    expected: dict[str, Expected] = field(default_factory=dict)
    others: str = "complete"
    other_reasons: str = ""
    no_report: bool = False
    answer: int | None = None

    @property
    def words(self) -> list[str]:
        """The options that say which study it is, for all programs."""
        stack = [] if self.tree.study_file.exists() else [f"--stack={self.stack}"]
        return [f"--data-root={self.tree.data_root}", *stack]

    @property
    def base_model(self) -> Path:
        return Path(self.config.pretrained_model_name_or_path)

    def expect(
        self,
        state: str,
        says: str = "",
        condition: Condition = ORIGINAL,
        artist: Artist = ANNA,
        *,
        variant: str | None = None,
        light: str = "",
        action: str = "",
        **numbers: Any,
    ) -> None:
        key = AdapterId(STACK, condition, artist, variant).key
        self.expected[key] = Expected(state, says, light or state, action, numbers)

    def images(self, condition: Condition = ORIGINAL, artist: Artist = ANNA) -> Path:
        return self.tree.images_of(self.tree.source(condition).root, artist)

    def output(
        self, condition: Condition = ORIGINAL, artist: Artist = ANNA, variant: str | None = None
    ) -> AdapterFolder:
        path = self.tree.adapter_dir(AdapterId(STACK, condition, artist, variant))
        path.mkdir(parents=True, exist_ok=True)
        return AdapterFolder(path, ADAPTER_FORMAT)

    def record(
        self, condition: Condition, artist: Artist, config: TuningConfig | None = None
    ) -> dict[str, Any]:
        """Return what a training of our own would write down as it begins."""
        config = config or self.config
        pairing = ImageFolder.read(self.images(condition, artist))
        captions = Captions.read(pairing, ImageFolder.read(self.images(ORIGINAL, artist)))
        used = self.recipe(config)
        return {
            "recipe": used,
            "recipe_hash": recipe_hash(used),
            "options": asdict(config) | {"pretrained_model_name_or_path": None, "class_data_dir": None},
            "paths": {
                "pretrained_model_name_or_path": config.pretrained_model_name_or_path,
                "class_data_dir": config.class_data_dir,
                "output_dir": str(self.output(condition, artist).path),
            },
            "images": image_records(pairing, captions if config.captions else None, hashed=True),
        }

    def recipe(self, config: TuningConfig) -> dict[str, Any]:
        model = BaseModel.find(config)
        assert model is not None
        return recipe(config, model.identity(), OWN_TRAINER)

    def put_adapter(
        self,
        condition: Condition = ORIGINAL,
        artist: Artist = ANNA,
        config: TuningConfig | None = None,
        *,
        variant: str | None = None,
        **fields: Any,
    ) -> AdapterFolder:
        """Write a complete adapter as a training of our own would; `fields` go into its record."""
        config = config or self.config
        folder = self.output(condition, artist, variant)
        run = self.record(condition, artist, config) | {
            "status": "complete",
            "steps": config.max_train_steps,
            "finished_at": "2026-01-02T03:04:05+00:00",
        }
        run["paths"] |= {"output_dir": str(folder.path)}
        saved = folder.path / "saved.safetensors"
        saved.write_bytes(weights(config.rank, zlib.crc32(str(folder.path).encode()) % 1000))
        folder.publish(saved, run | fields, config.pretrained_model_name_or_path)
        saved.unlink()
        return AdapterFolder(folder.path, ADAPTER_FORMAT)

    def put_all(self, config: TuningConfig | None = None, variant: str | None = None) -> None:
        for condition, artist in CELLS:
            self.put_adapter(condition, artist, config, variant=variant)

    def put_record(
        self,
        condition: Condition = ORIGINAL,
        artist: Artist = ANNA,
        config: TuningConfig | None = None,
        *,
        variant: str | None = None,
        **fields: Any,
    ) -> AdapterFolder:
        """Write the record of a training that has left no adapter, in the place of the adapter."""
        folder = self.remove_adapter(condition, artist, variant)
        folder.record.write_text(json.dumps(self.record(condition, artist, config) | fields))
        folder.log.write_text("it began\n")
        return folder

    def remove_adapter(
        self, condition: Condition = ORIGINAL, artist: Artist = ANNA, variant: str | None = None
    ) -> AdapterFolder:
        folder = self.output(condition, artist, variant)
        for path in (folder.weights, folder.config, folder.record):
            path.unlink(missing_ok=True)
        return folder

    def put_checkpoint(
        self,
        step: int,
        condition: Condition = ORIGINAL,
        artist: Artist = ANNA,
        config: TuningConfig | None = None,
        *,
        variant: str | None = None,
    ) -> None:
        folder = self.output(condition, artist, variant).path / f"checkpoint-{step}"
        folder.mkdir()
        for name in PARTS:
            (folder / name).write_bytes(b"x")
        facts = {
            "schema": SCHEMA,
            "step": step,
            "sha256": {name: sha256_file(folder / name) for name in PARTS},
            "recipe": self.recipe(config or self.config),
            "images": self.record(condition, artist, config)["images"],
        }
        (folder / "checkpoint.json").write_text(json.dumps(facts))

    def put_bookmark(self, condition: Condition = ORIGINAL, artist: Artist = ANNA, **fields: Any) -> None:
        open_tracker(self.tree).record(AdapterId(STACK, condition, artist).key, **fields)

    def hold(self, folder: AdapterFolder) -> None:
        """Let another process that lives hold the claim of a folder."""
        process = subprocess.Popen(["sleep", "600"])
        self.cleanup.callback(process.wait)
        self.cleanup.callback(process.kill)
        holder = {"pid": process.pid, "started": process_start(process.pid)}
        self.put_claim(folder, holder)

    def put_claim(self, folder: AdapterFolder, holder: Mapping[str, Any]) -> None:
        claim = {"token": "x", "host": this_host(), "since": "2026-01-02T03:04:05Z", "holders": [holder]}
        (folder.path / CLAIM).write_text(json.dumps(claim))

    def write_file(self, *, study: str = "", variants: str = "", **recipe: Any) -> None:
        """Write a study.toml of the recipe of this study; then nothing of it need be typed."""
        written = {"rank": 4, "resolution": 64, "max_train_steps": 60} | recipe
        self.tree.study_file.write_text(
            f'[study]\nstack = "{self.stack}"\npush_to_hub = false\nprotections = "all"\n{study}\n[recipe]\n'
            f'pretrained_model_name_or_path = "{self.config.pretrained_model_name_or_path}"\n'
            + "".join(f"{name} = {json.dumps(value)}\n" for name, value in written.items())
            + variants
        )
        self.typed = []


@contextlib.contextmanager
def new_study(folder: Path) -> Iterator[Study]:
    """Yield a study in `folder`, the working directory meanwhile, and a stack that trains at once."""
    tree = write_study(folder / "study", (ANNA, BORIS))
    for path in sorted(tree.robust_samples.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    tree.robust_samples.rmdir()
    stack = folder / "stacks" / STACK
    stack.mkdir(parents=True)
    command = f"{{python}} {TRAINER} {{input_dir}} {{output_dir}} {{options}}"
    (stack / "runner_config.json").write_text(json.dumps({"command": command}))
    (stack / "stack.py").write_text("from mimicry.tuning.hf_diffusers.stack import TRAITS\n")
    base_model = make_model(folder / "base")
    config = TuningConfig(
        pretrained_model_name_or_path=str(base_model), rank=4, resolution=64, max_train_steps=60
    )
    environment = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
    environment |= {"XDG_CACHE_HOME": str(folder / "cache"), "HF_ENDPOINT": "http://127.0.0.1:1"}
    environment |= {"HF_HOME": str(folder / "hf"), "COLUMNS": "200"}
    with contextlib.ExitStack() as cleanup:
        cleanup.enter_context(mock.patch.dict(os.environ, environment, clear=True))
        cleanup.enter_context(contextlib.chdir(folder))
        study = Study(folder=folder, tree=tree, stack=stack, config=config, cleanup=cleanup)
        study.typed = typed_words(config)
        yield study


def typed_words(config: TuningConfig) -> list[str]:
    """Return what is typed for the recipes of these studies, without uploads."""
    return [
        f"--pretrained-model-name-or-path={config.pretrained_model_name_or_path}",
        f"--rank={config.rank}",
        f"--resolution={config.resolution}",
        f"--max-train-steps={config.max_train_steps}",
        "--no-push-to-hub",
    ]
