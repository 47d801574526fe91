"""Checking every adapter, value by value, and every image, without training or writing to the study.

An adapter is compared with its own record. What earlier checks remember is not trusted: a disk that rots
changes no time of a file.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from mimicry.common.claims import claimed_by
from mimicry.common.errors import UsageError
from mimicry.study import AdapterId, Artist, Captions, Condition, ImageFolder, State, StudyTree, training_set
from mimicry.study.class_images import ClassImages
from mimicry.study.image_checks import BadImage, bad_images
from mimicry.study.image_sets import Finding, unusable
from mimicry.study.quarantine import left_out
from mimicry.tuning.adapters import (
    AdapterFolder,
    AdapterFormat,
    AdapterSpec,
    AdapterState,
    TrainingRun,
    judge_adapter,
)
from mimicry.tuning.planning.display import checking_bar, is_terminal
from mimicry.tuning.planning.recipes import StudyRecipes

# Reading and hashing leave Python free for other threads.
_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was found in the folder of one adapter: a state, and words for it."""

    adapter: AdapterId
    state: State
    reason: str = ""


def verify_adapters(tree: StudyTree, adapters: Sequence[AdapterId], form: AdapterFormat) -> list[Verdict]:
    """Judge adapters in full; a folder in which no training was begun gets no verdict.

    Args:
        form: the format of the stack's adapters.
    """
    sources = {condition: _source(tree, condition) for condition in {one.condition for one in adapters}}
    stems = left_out(tree)

    def verdict(adapter: AdapterId) -> Verdict | None:
        images, original = (
            ImageFolder.read(tree.images_of(root, adapter.artist))
            for root in (sources[adapter.condition], tree.original_art)
        )
        left = stems.get(str(adapter.artist), frozenset[str]())
        folder = AdapterFolder(tree.adapter_dir(adapter), form)
        images = training_set(images, original, left, folder.readable_run.hold_out).images
        found = _judge(folder, images, original.without(left))
        if found.state is State.PENDING:
            return None
        return Verdict(adapter=adapter, state=found.state, reason=found.reason)

    with ThreadPoolExecutor(_THREADS) as pool:
        judged = pool.map(verdict, adapters)
        bar = tqdm(judged, total=len(adapters), desc="verify", unit="adapter", disable=not is_terminal())
        return [verdict for verdict in bar if verdict is not None]


def with_sisters(verdicts: Sequence[Verdict], recipes: Mapping[str, StudyRecipes]) -> list[Verdict]:
    """Return the verdicts, each with what its recipe differs in from that of most adapters of its series.

    Args:
        recipes: by series.
    """
    return [_with_sisters(verdict, recipes[verdict.adapter.series]) for verdict in verdicts]


def _with_sisters(verdict: Verdict, recipes: StudyRecipes) -> Verdict:
    group = next((group for group in recipes.groups[1:] if verdict.adapter in group.adapters), None)
    if group is None:
        return verdict
    most = recipes.groups[0]
    sisters = f"another recipe than {most.places()}: {', '.join(most.changes_to(group))}"
    return replace(verdict, reason=", ".join(filter(None, (verdict.reason, sisters))))


def recorded_spec(run: TrainingRun) -> AdapterSpec:
    """Return what the record of an adapter says that it should be, beside its images."""
    options, paths = run.options or {}, run.paths or {}
    folder, count = paths.get("class_data_dir"), options.get("num_class_images")
    class_images = ClassImages(Path(folder).absolute(), count) if folder and isinstance(count, int) else None
    return AdapterSpec(class_images=class_images)


def _judge(folder: AdapterFolder, images: ImageFolder, original: ImageFolder) -> AdapterState:
    holder = claimed_by(folder.path)
    if holder:
        return AdapterState(State.CLAIMED, holder)
    run = folder.readable_run
    captions = Captions.read(images, original) if (run.options or {}).get("captions") else None
    found = judge_adapter(folder, recorded_spec(run), images, captions=captions, full=True, anew=True)
    if found.state is State.PENDING:
        begun = folder.record.exists() or bool(folder.checkpoint_names())
        return AdapterState(State.INTERRUPTED, "apply_tuning takes it up") if begun else found
    if found.state is State.BROKEN:
        return AdapterState(found.state, f"{found.reason}; the next training sets it aside")
    fault = folder.config_fault()
    if fault:
        return AdapterState(State.BROKEN, f"{fault}; the next call of apply_tuning writes it again")
    return found


def image_problems(tree: StudyTree, folders: Sequence[Path]) -> list[Finding]:
    """Decode the images in an artist's `folders`, and return what is wrong with them and their names.

    Images that are left out of all conditions already are not looked at.
    """
    stems = left_out(tree)
    images = [ImageFolder.read(folder).without(stems.get(_artist(folder), ())) for folder in folders]
    # That an artist has no images in a condition is for the plan to say.
    names = [folder.problem() for folder in images if folder.names or folder.fault]
    with checking_bar() as progress:
        bad = bad_images(images, progress, anew=True)
    by_folder: dict[Path, list[BadImage]] = defaultdict(list)
    for image in bad:
        by_folder[image.path.parent].append(image)
    found = [unusable(folder, by_folder[folder.path]) for folder in images if folder.path in by_folder]
    return [*(Finding(name) for name in names if name), *found]


def _artist(folder: Path) -> str:
    return str(Artist(*folder.parts[-3:]))


def _source(tree: StudyTree, condition: Condition) -> Path:
    """Return where the images of a condition lie; where nothing lies, when they are not there any more."""
    try:
        return tree.source(condition).root
    except UsageError:
        return tree.robust_samples / str(condition)
