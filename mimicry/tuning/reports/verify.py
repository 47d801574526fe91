"""Checking every adapter, value by value, and every image, without training or writing to the study.

What earlier checks remember is not trusted: a disk that rots changes no time of a file.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from mimicry.common.claims import claimed_by
from mimicry.common.errors import UsageError
from mimicry.study.captions import Captions
from mimicry.study.image_checks import bad_images
from mimicry.study.images import ImageFolder
from mimicry.study.quarantine import left_out
from mimicry.study.selection import Selection
from mimicry.study.tree import Artist, Condition, StudyTree, folders_in
from mimicry.tuning.adapters.folder import TRAINING_RUN, checkpoint_names, config_fault
from mimicry.tuning.adapters.state import Asked, State, judge_existing
from mimicry.tuning.reports.progress import checking_bar, is_terminal

# Reading and hashing leave Python free for other threads.
_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was found in the folder of one adapter: a state, and words for it."""

    condition: Condition
    artist: Artist
    state: str
    reason: str

    @property
    def is_broken(self) -> bool:
        return self.state == State.BROKEN.value


def conditions_on_disk(tree: StudyTree, stack: str) -> list[Condition]:
    """Return the conditions that a stack has folders for."""
    names = [name.partition("__") for name in folders_in(tree.stack_outputs(stack))]
    return [Condition(protection, countermeasure) for protection, sign, countermeasure in names if sign]


def verify(
    tree: StudyTree,
    stack: str,
    conditions: Sequence[Condition],
    selection: Selection,
    asked: Asked,
    *,
    captioned: bool = False,
) -> list[Verdict]:
    """Judge all adapters of `conditions` that `selection` lets through, in full.

    Args:
        captioned: captions are asked for.

    Raises:
        UsageError: a name in `selection` matches nothing.
    """
    places = [(condition, artist) for condition in conditions for artist in _artists(tree, stack, condition)]
    known = sorted({artist for _, artist in places} | set(tree.artists(tree.original_art)))
    if not known:
        return []
    chosen = _chosen(tree, selection, known)
    sources = {condition: _source(tree, condition) for condition in conditions}
    stems = left_out(tree)

    def judge(place: tuple[Condition, Artist]) -> Verdict | None:
        condition, artist = place
        images, original = (
            ImageFolder.read(tree.images_of(root, artist)).without(stems.get(str(artist), ()))
            for root in (sources[condition], tree.original_art)
        )
        captions = Captions.read(images, original) if captioned else None
        state, reason = _judge(tree.output_dir(stack, condition, artist), asked, images, captions)
        return Verdict(condition=condition, artist=artist, state=state, reason=reason) if state else None

    wanted = [place for place in places if place[1] in chosen]
    with ThreadPoolExecutor(_THREADS) as pool:
        judged = pool.map(judge, wanted)
        bar = tqdm(judged, total=len(wanted), desc="verify", unit="adapter", disable=not is_terminal())
        return [verdict for verdict in bar if verdict is not None]


def image_problems(tree: StudyTree, condition: Condition | None, selection: Selection) -> list[str]:
    """Look at the images of the artists that `selection` lets through, of one condition or of all.

    Images that are left out of all conditions already are not looked at, the others are decoded.

    Raises:
        UsageError: a name in `selection` matches nothing.
    """
    roots = tree.image_roots() if condition is None else [_source(tree, condition)]
    known = sorted({artist for root in (*roots, tree.original_art) for artist in tree.artists(root)})
    if not known:
        return []
    stems = left_out(tree)
    folders = [
        ImageFolder.read(tree.images_of(root, artist)).without(stems.get(str(artist), ()))
        for root in roots
        for artist in sorted(_chosen(tree, selection, known))
    ]
    # That an artist has no images in a condition is for the plan to say.
    names = [folder.problem() for folder in folders if folder.names or folder.fault]
    with checking_bar() as progress:
        bad = bad_images(folders, progress, anew=True)
    return [*filter(None, names), *(image.problem for image in bad)]


def _chosen(tree: StudyTree, selection: Selection, known: Sequence[Artist]) -> set[Artist]:
    def has_images(artist: Artist) -> bool:
        return bool(ImageFolder.read(tree.images_of(tree.original_art, artist)).names)

    return set(selection.choose(known, has_images))


def _judge(output_dir: Path, asked: Asked, images: ImageFolder, captions: Captions | None) -> tuple[str, str]:
    holder = claimed_by(output_dir)
    if holder:
        return "claimed", holder
    found = judge_existing(output_dir, asked, images, captions=captions, full=True, anew=True)
    if found.state is State.ABSENT:
        begun = (output_dir / TRAINING_RUN).exists() or bool(checkpoint_names(output_dir))
        return ("unfinished", "the same command without --verify takes it up") if begun else ("", "")
    if found.state is State.BROKEN:
        return found.state.value, f"{found.reason}; the next training sets it aside"
    fault = config_fault(output_dir)
    if fault:
        return State.BROKEN.value, f"{fault}; the next call without --verify writes it again"
    return found.state.value, found.reason


def _artists(tree: StudyTree, stack: str, condition: Condition) -> Iterator[Artist]:
    yield from tree.artists(tree.stack_outputs(stack) / str(condition))


def _source(tree: StudyTree, condition: Condition) -> Path:
    """Return where the images of a condition lie; where nothing lies, when they are not there any more."""
    try:
        return tree.source(condition).root
    except UsageError:
        return tree.robust_samples / str(condition)
