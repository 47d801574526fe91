"""Typing what a status says to type next, and what becomes of the study then."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from PIL import Image

from mimicry.common.files import read_json, sha256_file
from mimicry.study.drawn_images import save_sample
from mimicry.study.tree import AdapterId, State, StudyTree
from mimicry.tuning.adapters.checkpoint_facts import CheckpointFacts, NotWholeError
from mimicry.tuning.adapters.folder import WEIGHTS
from tests.agreement.programs import Cells, Ended, cells, run, status_words
from tests.agreement.study import Expected, Study

PROGRAMS = ("apply_tuning", "mimicry")


@dataclass(frozen=True)
class Trace:
    """What a study has by its folders: the step of the newest whole checkpoint, and the sha256 of weights."""

    steps: dict[Path, int]
    weights: dict[Path, str]

    @classmethod
    def read(cls, tree: StudyTree) -> "Trace":
        steps: dict[Path, int] = {}
        for path in tree.lora.glob("*/*/*/*/*/checkpoint-*"):
            try:
                step = CheckpointFacts.read(path).step
            except NotWholeError:
                continue
            steps[path.parent] = max(step, steps.get(path.parent, 0))
        weights = {path.parent: sha256_file(path) for path in tree.lora.glob(f"*/*/*/*/*/{WEIGHTS}")}
        return cls(steps, weights)


@dataclass
class Followed:
    """A next line, how its call ended, the steps that were lost, what was trained, and what is wrong."""

    line: str
    ended: Ended | None
    lost: int = 0
    trained: dict[str, dict[str, Any]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def follow(study: Study) -> Followed:
    """Type what the status of a study says to type next."""
    states, before = cells(study, "status"), Trace.read(study.tree)
    line = run(status_words(study)).next
    words = shlex.split(line)
    if words[0] not in PROGRAMS:
        return Followed(line, None)
    followed = Followed(line, _type(study, words))
    after = Trace.read(study.tree)
    for folder, step in before.steps.items():
        kept = after.steps.get(folder, 0)
        if after.weights.get(folder) != before.weights.get(folder):
            kept = _record(folder).get("resumed_from") or 0
        followed.lost += max(0, step - kept)
    for folder, sha256 in after.weights.items():
        if before.weights.get(folder) != sha256:
            followed.trained[_key(folder)] = _record(folder)
    followed.wrong += _wrong(study, words, followed, states)
    followed.wrong += [
        f"{_key(folder)} was replaced, which was {states[_key(folder)]['state']}"
        for folder, sha256 in before.weights.items()
        if after.weights.get(folder) != sha256 and not _may_go(study, words, states, _key(folder))
    ]
    return followed


def _type(study: Study, words: Sequence[str]) -> Ended:
    """Run a next command, without what takes a network, a model or a lifetime."""
    more = []
    if words[0] == "apply_tuning":
        more = ["--no-wait", *([] if study.tree.study_file.exists() else ["--no-push-to-hub"])]
    if words[1] == "upload":
        more = ["--dry-run"]
    with drawing():
        return run([*(word for word in words if word != "--watch"), *more])


@contextmanager
def drawing() -> Iterator[None]:
    """Let `mimicry samples` draw grey pictures, without a model."""

    def draw(sets: Sequence[Any], *_: Any) -> Sequence[Any]:
        for picture in (picture for found in sets for picture in found.of(State.WAITING)):
            picture.path.parent.mkdir(parents=True, exist_ok=True)
            save_sample(picture.path, Image.new("RGB", (8, 8)), picture.settings)
        return sets

    program = "mimicry.sampling.draw_samples"
    with mock.patch(f"{program}.draw", draw), mock.patch(f"{program}.BaseModel.usable"):
        yield


def _wrong(study: Study, words: Sequence[str], followed: Followed, states: Cells) -> Iterator[str]:
    assert followed.ended is not None
    code = followed.ended.code
    if code != study.answer and (study.answer is not None or code not in (0, 3)):
        yield f"it ended with {code}: {followed.ended.err.strip()}"
    if followed.lost:
        yield f"{followed.lost} steps were lost"
    for key, record in followed.trained.items():
        asked = study.recipe(study.asked.get(_adapter(key).variant, study.config))
        if record["recipe"] != asked:
            changed = {
                name: value
                for name, value in record["recipe"]["options"].items()
                if asked["options"].get(name) != value
            }
            yield f"{key} was trained with {changed or record['recipe']}"
    if study.answer is None:
        for key, wanted in study.expected.items():
            if wanted.action == "train" and key in states and key not in followed.trained:
                yield f"{key} was not trained"


def _may_go(study: Study, words: Sequence[str], states: Cells, key: str) -> bool:
    """Return whether a next command may train a cell again whose weights are there."""
    wanted = study.expected.get(key, Expected(study.others))
    if wanted.action in ("repair", "wait"):
        return False
    state = states[key]["state"] if key in states else ""
    # A training looks in full, and may find what no status knows yet.
    return "broken" in (state, wanted.state) or (state == "stale" and "--retrain-stale" in words)


def _record(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = read_json(folder / "training_run.json")
    return content


def _key(folder: Path) -> str:
    adapter = AdapterId.parse(folder)
    assert adapter is not None
    return adapter.key


def _adapter(key: str) -> AdapterId:
    series, protection, countermeasure, *artist = key.split("/")
    found = AdapterId.parse(Path("/", series, f"{protection}__{countermeasure}", *artist))
    assert found is not None
    return found
