"""The adapters that are there already, as commands that train nothing choose them."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mimicry.common.errors import Problems, UsageError, nearest
from mimicry.study import AdapterId, Artist, Condition, ImageFolder, StudyTree
from mimicry.study.captions import image_records, record_differences
from mimicry.study.cells import CellImages, is_named
from mimicry.study.conditions import condition_order
from mimicry.study.selection import Selection
from mimicry.study.tree import ALL, NONE, folders_in, series_name
from mimicry.tuning.adapters import TrainingRun
from mimicry.tuning.adapters.place import recorded_elsewhere
from mimicry.tuning.options.click_options import selection_of
from mimicry.tuning.options.study_defaults import STUDY_VARIANT
from mimicry.tuning.options.study_file import is_meant, names_of


@dataclass(frozen=True, kw_only=True)
class AdapterFilter:
    """Which adapters of a stack are meant; an empty filter lets all through."""

    protections: tuple[str, ...] = ()
    countermeasures: tuple[str, ...] = ()
    selection: Selection = field(default_factory=Selection)
    variants: tuple[str, ...] = ()

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> "AdapterFilter":
        """Return the filter that a command with `condition_filters` and `selection_options` was given."""
        return cls(
            protections=parameters["protections"],
            countermeasures=parameters["countermeasures"],
            selection=selection_of(parameters),
            variants=parameters[STUDY_VARIANT],
        )

    def choose(self, tree: StudyTree, stack: str) -> list[AdapterId]:
        """Return the adapters of the stack that have a folder and are meant, by series, artist and condition.

        Conditions come in the order that a reader expects: unprotected first, each before its countered ones.

        Raises:
            UsageError: names that match nothing, all of them.
        """
        series = self.series(tree, stack)
        adapters = [adapter for name in series for adapter in tree.adapters(name)]
        problems = Problems()
        artists: set[Artist] = set()
        with problems:
            self._refuse_unknown(tree, {adapter.condition for adapter in adapters})
        with problems:
            artists = set(self.artists(tree, {adapter.artist for adapter in adapters}))
        problems.raise_any()
        chosen = [
            adapter for adapter in adapters if adapter.artist in artists and self.means(adapter.condition)
        ]
        return sorted(
            chosen,
            key=lambda one: (series.index(one.series), one.artist, condition_order(one.condition)),
        )

    def image_folders(self, tree: StudyTree) -> list[Path]:
        """Return the folders of images, of conditions and artists that are meant, that are there."""
        roots = self._image_roots(tree)
        known = {artist for root in roots for artist in tree.artists(root)}
        folders = [tree.images_of(root, artist) for root in roots for artist in self.artists(tree, known)]
        return [folder for folder in folders if folder.is_dir()]

    def _image_roots(self, tree: StudyTree) -> list[Path]:
        if not self.protections and not self.countermeasures:
            return tree.image_roots()
        roots = []
        for protection in self.protections or (NONE, *folders_in(tree.protected_art)):
            for countermeasure in self.countermeasures or (NONE, *folders_in(tree.robust_samples)):
                # A product of names: not every pair has images.
                with suppress(UsageError):
                    roots.append(tree.source(Condition(protection, countermeasure)).root)
        return list(dict.fromkeys(roots))

    def means(self, condition: Condition) -> bool:
        return is_named(condition, self.protections or (ALL,), self.countermeasures or (ALL,))

    def artists(self, tree: StudyTree, known: set[Artist]) -> list[Artist]:
        """Return the artists that are meant, of `known` and of those with original art, sorted.

        A pilot is picked by original art, as apply_tuning does.

        Raises:
            UsageError: names that match nothing.
        """

        def has_images(artist: Artist) -> bool:
            return bool(ImageFolder.read(tree.images_of(tree.original_art, artist)).names)

        everybody = sorted(known | set(tree.artists(tree.original_art)))
        return self.selection.choose(everybody, has_images) if everybody else []

    def series(self, tree: StudyTree, stack: str, planned: Iterable[str | None] = ()) -> list[str]:
        """Return the folders of the series that are meant: by default all there are, the plain one first.

        A variant stands for its replicates, too.

        Args:
            planned: variants that need not have adapters yet.

        Raises:
            UsageError: variants that have no adapters, all of them.
        """
        present = list(dict.fromkeys([*filter(None, planned), *tree.variants(stack)]))
        meant = [variant for variant in (None, *present) if is_meant(variant, self.variants)]
        known = {NONE, ALL}.union(*map(names_of, present))
        problems = [
            f"--variant {name}: there are no adapters of it in {tree.lora}; {nearest(name, sorted(known))}"
            for name in self.variants
            if name not in known
        ]
        if problems:
            raise UsageError(*problems)
        return [series_name(stack, variant) for variant in meant]

    def _refuse_unknown(self, tree: StudyTree, conditions: set[Condition]) -> None:
        protections = {NONE, *folders_in(tree.protected_art), *(one.protection for one in conditions)}
        countermeasures = {
            NONE,
            *folders_in(tree.robust_samples),
            *(one.countermeasure for one in conditions),
        }
        problems = [
            f"{option} {name}: there are neither images nor adapters of it; {nearest(name, sorted(known))}"
            for option, names, known in (
                ("--protection", self.protections, protections),
                ("--countermeasure", self.countermeasures, countermeasures),
            )
            for name in names
            if name not in known
        ]
        if problems:
            raise UsageError(*problems)


@dataclass(frozen=True)
class OwnImages:
    """The images of the conditions of a study, as adapters' folders name them."""

    tree: StudyTree

    def of(self, adapter: AdapterId, hold_out: int) -> ImageFolder | None:
        """Return the images of an adapter; None when its condition has none on this machine.

        Args:
            hold_out: how many paintings were held out of its training.
        """
        pairing = self._images.of(adapter.condition, adapter.artist, hold_out)
        return None if pairing is None or pairing.images.fault else pairing.images

    def problem(self, adapter: AdapterId, run: TrainingRun) -> str:
        """Say why an adapter is not what its folder says; empty when it is, as far as can be told.

        Names and sizes of images are compared, and contents where the record is of another place.
        """
        elsewhere = recorded_elsewhere(self.tree.adapter_dir(adapter), run)
        images = self.of(adapter, run.hold_out)
        if images is None or run.images is None:
            return elsewhere
        try:
            words = record_differences(run.images, image_records(images, None, hashed=bool(elsewhere)))
        except OSError:
            words = ["other images"]
        # Where the images are the same, somebody has given the folder another name.
        return ", ".join(filter(None, (elsewhere, *words))) if words else ""

    @cached_property
    def _images(self) -> CellImages:
        return CellImages(self.tree)
