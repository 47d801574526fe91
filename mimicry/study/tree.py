"""The study's folder tree. No other module knows the names of its folders; data/README.md shows the tree."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from mimicry.common.errors import BatchFault, UsageError, nearest
from mimicry.common.files import is_folder

DEFAULT_DATA_ROOT = Path("data/style_mimicry")
NONE = "none"
# Stands for everything that there is: of protections, countermeasures, variants.
ALL = "all"
_VARIANT_MARK = "@"
# It becomes a part of names of folders, of keys in the tracker, and of repositories on the Hub.
_VARIANT_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,38}[A-Za-z0-9])?")
PROTECTIONS = ("glaze", "mist", "anti_dreambooth", "style_guard")
COUNTERMEASURES = ("diff_pure", "gaussian_noise", "noisy_upscaling", "impress")


@dataclass(frozen=True, order=True)
class Artist:
    """An artist of the study. Sorts by split, style and name."""

    split: str
    style: str
    name: str

    def __str__(self) -> str:
        return f"{self.split}/{self.style}/{self.name}"


@dataclass(frozen=True)
class Condition:
    """A protection and a countermeasure, each a name or `none`."""

    protection: str = NONE
    countermeasure: str = NONE

    def __str__(self) -> str:
        return f"{self.protection}__{self.countermeasure}"

    @classmethod
    def parse(cls, name: str) -> "Condition | None":
        protection, joint, countermeasure = name.partition("__")
        return cls(protection, countermeasure) if joint else None


@dataclass(frozen=True)
class AdapterId:
    """An adapter of the study; `variant` names another recipe of its stack, None is the usual one."""

    stack: str
    condition: Condition
    artist: Artist
    variant: str | None = None

    @property
    def key(self) -> str:
        """The adapter's key in the tracker."""
        return f"{self.series}/{self.condition.protection}/{self.condition.countermeasure}/{self.artist}"

    @property
    def folder(self) -> Path:
        """The adapter's folder, relative to models/lora."""
        artist = self.artist
        return Path(self.series, str(self.condition), artist.split, artist.style, artist.name)

    @property
    def series(self) -> str:
        """The folder of all adapters that are to have its recipe."""
        return series_name(self.stack, self.variant)

    @classmethod
    def parse(cls, output_dir: Path) -> "AdapterId | None":
        """Return the adapter of a path that ends like STACK/PROTECTION__COUNTERMEASURE/SPLIT/STYLE/ARTIST."""
        parts = Path(os.path.abspath(output_dir)).parts[1:][-5:]  # noqa: PTH100 - links stay as they are
        condition = Condition.parse(parts[1]) if len(parts) == 5 else None
        if condition is None:
            return None
        return cls.in_series(parts[0], condition, Artist(*parts[2:]))

    @classmethod
    def in_series(cls, series: str, condition: Condition, artist: Artist) -> "AdapterId":
        """Return the adapter in the folder `series`, which is called STACK or STACK@VARIANT."""
        stack, _, variant = series.partition(_VARIANT_MARK)
        # A mark with nothing behind it belongs to the name of the stack.
        return cls(stack, condition, artist, variant) if variant else cls(series, condition, artist)


@dataclass(frozen=True)
class Source:
    """The folder of images that a condition is trained on, by split, style and artist.

    `names_protection` is False in robust_samples/{countermeasure}/{split}, whose path does not tell it.
    """

    root: Path
    names_protection: bool


@dataclass(frozen=True)
class StudyTree:
    """All paths of the study below its data root."""

    data_root: Path

    @property
    def original_art(self) -> Path:
        return self.data_root / "original_art"

    @property
    def protected_art(self) -> Path:
        return self.data_root / "protected_art"

    @property
    def robust_samples(self) -> Path:
        return self.data_root / "robust_samples"

    @property
    def study_file(self) -> Path:
        """The file that says what the study trains, where there is one."""
        return self.data_root / "study.toml"

    @property
    def tracker(self) -> Path:
        return self.data_root / "progress" / "progress_tracker.json"

    @property
    def quarantine(self) -> Path:
        return self.data_root / "progress" / "quarantine.json"

    def queue(self, engine: str) -> Path:
        """Return the folder that says which job of a cluster, such as slurm, is for which adapter."""
        return self.data_root / "progress" / engine

    def image_lists(self, condition: Condition) -> Path:
        """Return the file with the lists that are too long for the plan of a condition."""
        return self.data_root / "progress" / f"images_{condition}.txt"

    def image_roots(self) -> list[Path]:
        """Return the root of the images of every condition on disk, original art first."""
        countered = []
        for name in folders_in(self.robust_samples):
            root = self.robust_samples / name
            protections = self._protections_in(root)
            countered += [root / protection for protection in protections] or [root]
        protected = [self.protected_art / name for name in folders_in(self.protected_art)]
        return [self.original_art, *protected, *countered]

    def images_of(self, root: Path, artist: Artist) -> Path:
        """Return an artist's folder below `root`, which is original_art or a source's root."""
        return root / artist.split / artist.style / artist.name

    @property
    def lora(self) -> Path:
        """The folder of all adapters, by stack."""
        return self.data_root / "models" / "lora"

    def adapter_dir(self, adapter: AdapterId) -> Path:
        return self.lora / adapter.folder

    def adapters(self, series: str | None = None) -> list[AdapterId]:
        """Return every adapter with a folder, by condition and artist; of one series, or of all."""
        return [
            AdapterId.in_series(name, condition, artist)
            for name in (folders_in(self.lora) if series is None else [series])
            for folder in folders_in(self.lora / name)
            for condition in [Condition.parse(folder)]
            if condition is not None
            for artist in self.artists(self.lora / name / folder)
        ]

    def stacks(self) -> list[str]:
        """Return the stacks that have a folder of adapters, of a variant at least, sorted."""
        return sorted({name.partition(_VARIANT_MARK)[0] for name in folders_in(self.lora)})

    def variants(self, stack: str) -> list[str]:
        """Return the variants of a stack that have a folder of adapters, sorted."""
        series = (name.partition(_VARIANT_MARK) for name in folders_in(self.lora))
        return [variant for name, _, variant in series if name == stack and variant]

    @classmethod
    def around(cls, output_dir: Path) -> "StudyTree | None":
        """Return the tree that has its adapter in `output_dir`; None if that is not a folder of one."""
        adapter = AdapterId.parse(output_dir)
        path = Path(os.path.abspath(output_dir))  # noqa: PTH100 - links stay as they are
        if adapter is None or len(path.parents) < 7:
            return None
        tree = cls(path.parents[6])
        return tree if tree.adapter_dir(adapter) == path else None

    def base_samples(self, series: str) -> Path:
        """Return the folder of the base model's validation images, beside those of the conditions."""
        return self.lora / series / "base_samples"

    def samples_of(self, adapter: AdapterId) -> Path:
        """Return the folder of the images drawn with an adapter."""
        return self.data_root / "mimic_art" / adapter.folder

    def samples_of_base(self, series: str) -> Path:
        """Return the folder of the images drawn with the base model."""
        return self.data_root / "mimic_art" / series / "base"

    def artists(self, root: Path) -> list[Artist]:
        """Return every artist with a folder below `root`, sorted, without hidden folders."""
        return sorted(
            Artist(split, style, name)
            for split in folders_in(root)
            for style in folders_in(root / split)
            for name in folders_in(root / split / style)
        )

    def source(self, condition: Condition) -> Source:
        """Return the folder with the images of `condition`.

        Raises:
            UsageError: a name is unknown, a folder is missing, or the layout does not tell conditions apart.
        """
        self.check_names(condition)
        if condition.countermeasure == NONE:
            if condition.protection == NONE:
                return Source(_existing(self.original_art, "original art"), names_protection=True)
            root = self.protected_art / condition.protection
            return Source(_existing(root, f"art protected by {condition.protection}"), names_protection=True)
        root = _existing(
            self.robust_samples / condition.countermeasure, f"samples countered by {condition.countermeasure}"
        )
        present = self._protections_in(root)
        if condition.protection in present:
            return Source(root / condition.protection, names_protection=True)
        if present:
            raise UsageError(
                f"--protection {condition.protection}: {root} is laid out by protection and has no folder "
                f"of that name; {nearest(condition.protection, present)}"
            )
        if condition.protection == NONE:
            raise UsageError(
                f"--protection none --countermeasure {condition.countermeasure}: {root} does not say which "
                f"protection its images were made from, so they may be protected; name the protection, "
                f"or arrange them as {root / NONE}/SPLIT/STYLE/ARTIST"
            )
        return Source(root, names_protection=False)

    def _protections_in(self, root: Path) -> list[str]:
        # A split never has the name of a protection, so one such folder tells the two layouts apart.
        protections = {NONE, *PROTECTIONS, *folders_in(self.protected_art)}
        return [name for name in folders_in(root) if name in protections]

    def check_names(self, condition: Condition) -> None:
        """Refuse names that are neither known methods nor folders, all in a UsageError."""
        problems = [
            *_name_problem("--protection", condition.protection, PROTECTIONS, self.protected_art),
            *_name_problem(
                "--countermeasure", condition.countermeasure, COUNTERMEASURES, self.robust_samples
            ),
        ]
        if problems:
            raise UsageError(*problems)


def series_name(stack: str, variant: str | None) -> str:
    """Return the name of the folder of all adapters of a stack, or of a variant of it."""
    return stack if variant is None else f"{stack}{_VARIANT_MARK}{variant}"


def variant_problem(name: str) -> str:
    """Return why `name` cannot be that of a variant; empty if it can."""
    if name.casefold() in (NONE, ALL):
        return f"{name!r} is not a name: {NONE} is the study without variants, {ALL} is all of them"
    if _VARIANT_NAME.fullmatch(name):
        return ""
    return (
        f"{name!r} is not a name: it takes up to 40 letters A to Z, digits, and inside also . _ and -, such "
        f"as rank-32"
    )


def sister_folders(output_dir: Path) -> dict[str, Path]:
    """Return the folders of the same artist's adapters in other conditions, by condition."""
    adapter = AdapterId.parse(output_dir)
    if adapter is None:
        return {}
    series = Path(os.path.abspath(output_dir)).parents[3]  # noqa: PTH100 - links stay as they are
    folders = {
        name: series / replace(adapter, condition=condition).folder.relative_to(adapter.folder.parts[0])
        for name in folders_in(series)
        if (condition := Condition.parse(name)) is not None and condition != adapter.condition
    }
    return {name: folder for name, folder in folders.items() if folder.is_dir()}


def folders_in(path: Path) -> list[str]:
    """Return the visible folders in `path`, sorted, none without it; BatchFault if it cannot be listed."""
    try:
        with os.scandir(path) as entries:
            return sorted(
                entry.name for entry in entries if not entry.name.startswith(".") and is_folder(entry)
            )
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise BatchFault(f"{path} cannot be listed: {error.strerror}; get read permission for it") from error


def _name_problem(option: str, name: str, canonical: tuple[str, ...], root: Path) -> Iterator[str]:
    present = folders_in(root)
    # A folder of adapters joins two names with "__". An underscore at the end of a name would be ambiguous.
    if "__" in f"_{name}_" or "/" in name or name in (".", ".."):
        yield (
            f"{option} is {name!r}; it takes the name of a folder, without '/' and '__', "
            "and without '_' at either end"
        )
    elif name != NONE and name not in canonical and name not in present:
        known = sorted({NONE, *canonical, *present})
        yield f"{option} {name}: no such name and no folder {root / name}; {nearest(name, known)}"


def _existing(root: Path, what: str) -> Path:
    if not root.is_dir():
        beside = ", ".join(folders_in(root.parent))
        raise UsageError(
            f"there is no {what}: {root} is not a folder"
            + (f" (beside it there is: {beside})" if beside else "")
            + "; put images there as SPLIT/STYLE/ARTIST/*.jpg, or name another tree with --data-root"
        )
    return root


class State(StrEnum):
    """The state of one adapter, or of one picture that an adapter draws."""

    # Still to be trained.
    WAITING = "waiting"
    # Trained, verified, and as requested.
    COMPLETE = "complete"
    # Complete, but with another recipe or other images than requested.
    STALE = "stale"
    # Its files are damaged or do not belong together.
    BROKEN = "broken"
    # A call is working in its folder.
    RUNNING = "running"
    # A cluster has a job for it that has not ended.
    QUEUED = "queued"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    # It cannot be trained; the plan says why.
    BLOCKED = "blocked"
    # There are no images of it.
    NO_DATA = "no data"

    @classmethod
    def _missing_(cls, value: object) -> "State | None":
        # As trackers of the first version have it.
        return cls.WAITING if value == "pending" else None

    @property
    def has_adapter(self) -> bool:
        """Whether there are whole weights in this state."""
        return self in (State.COMPLETE, State.STALE)
