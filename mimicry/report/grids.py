"""Which pictures a report shows of an artist, side by side, and what stands in the place of a missing one.

Columns are the base model and the conditions. The first rows are paintings, and by how much each condition
changed them; the other rows are samples, each of one prompt and one seed in all columns. Names and marks are
words for people.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimicry.report.content import condition_title
from mimicry.report.effects import AdapterSeries, Group, adapter_obstacles, own_obstacles
from mimicry.report.pictures import GAIN, Shot
from mimicry.report.rows import BASELINE, AdapterRow
from mimicry.study import Artist, CellImages, Condition, EvaluatedOn, Pairing, StudyTree, read_settings

# What of a sample's settings is its own; all else should be equal in a row.
_OF_ONE_SAMPLE = ("adapter", "condition", "artist", "prompt", "seed")
BASE_MODEL = "base model"
_DIFFERENCE = f"difference \N{MULTIPLICATION SIGN} {GAIN}"


@dataclass(frozen=True, kw_only=True)
class GridCell:
    """A place in a grid: a picture, or words in its place. `marks` say why it is not to be compared."""

    shot: Shot | None = None
    word: str = ""
    caption: str = ""
    marks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a grid. `kind` is "painting", "difference" or "sample"."""

    kind: str
    title: str
    cells: tuple[GridCell, ...]


@dataclass(frozen=True, kw_only=True)
class GridColumn:
    """A column of a grid: the base model's, or that of a condition, with the marks of its adapter.

    `is_comparable` says whether what its adapter draws may be compared with what others draw.
    """

    title: str
    marks: tuple[str, ...] = ()
    is_comparable: bool = True


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The pictures of one artist."""

    artist: Artist
    columns: tuple[GridColumn, ...]
    rows: tuple[Row, ...]

    @property
    def has_samples(self) -> bool:
        return any(row.kind == "sample" for row in self.rows)

    @property
    def shots(self) -> list[Shot]:
        return [cell.shot for row in self.rows for cell in row.cells if cell.shot is not None]


@dataclass(frozen=True, kw_only=True)
class _Sample:
    path: Path
    settings: Mapping[str, Any]

    @property
    def place(self) -> tuple[str, int]:
        return self.settings["prompt"], self.settings["seed"]

    @property
    def others(self) -> str:
        """What is the same in all samples that are drawn alike."""
        return json.dumps(
            {name: value for name, value in self.settings.items() if name not in _OF_ONE_SAMPLE},
            sort_keys=True,
        )


class GridMaker:
    """Makes the grids of the first series of a group."""

    def __init__(self, tree: StudyTree, group: Group, *, paintings: int, samples: int) -> None:
        """Read the base model's samples.

        Args:
            paintings: how many paintings a grid shows.
            samples: how many prompts and seeds it shows.
        """
        self._tree, self._group = tree, group
        self._paintings, self._samples = paintings, samples
        self._series: AdapterSeries = group.series[0]
        self._base = _samples_in(tree.samples_of_base(self._series.name))
        self._images = CellImages(tree)

    def grid(self, artist: Artist) -> Grid:
        conditions = self._group.conditions
        rows = [self._series.by_place[artist, condition] for condition in conditions]
        columns = [GridColumn(title=BASE_MODEL), *(self._column(row) for row in rows)]
        return Grid(
            artist=artist,
            columns=tuple(columns),
            rows=(*self._painting_rows(artist, conditions), *self._sample_rows(rows)),
        )

    def _column(self, row: AdapterRow) -> GridColumn:
        marks = own_obstacles(self._group, self._series, row)
        if row.eval_loss is not None and row.eval_loss.on == EvaluatedOn.IN_SAMPLE:
            marks.append(EvaluatedOn.IN_SAMPLE)
        return GridColumn(
            title=condition_title(row.adapter.condition),
            marks=tuple(marks),
            is_comparable=not adapter_obstacles(self._group, self._series, row),
        )

    def _painting_rows(self, artist: Artist, conditions: Sequence[Condition]) -> list[Row]:
        # What is shown is what was trained on.
        hold_out = 0 if self._group.usual is None else self._group.usual.run.hold_out
        sets = [self._images.of(condition, artist, hold_out) for condition in conditions]
        original = None if sets[0] is None else sets[0].images
        rows = []
        for name in () if original is None else original.names[: self._paintings]:
            assert original is not None
            files = [_of_stem(pairing, original.stem(name)) for pairing in sets]
            titles = [f"{condition_title(condition)}, painting {name}" for condition in conditions]
            paintings = [
                GridCell(shot=Shot(file), caption=title)
                if file
                else GridCell(word="missing" if pairing and not pairing.images.fault else "no data")
                for file, title, pairing in zip(files, titles, sets, strict=True)
            ]
            changed = [
                GridCell(shot=Shot(file, original.path / name), caption=f"{_DIFFERENCE}: {title}")
                if file and condition != BASELINE
                else GridCell()
                for file, title, condition in zip(files, titles, conditions, strict=True)
            ]
            rows.append(Row(kind="painting", title=name, cells=(GridCell(), *paintings)))
            if len(conditions) > 1:
                rows.append(Row(kind="difference", title=_DIFFERENCE, cells=(GridCell(), *changed)))
        return rows

    def _sample_rows(self, rows: Sequence[AdapterRow]) -> list[Row]:
        found = [_samples_in(self._tree.samples_of(row.adapter)) for row in rows]
        made = []
        for place in _places(found)[: self._samples]:
            everything = [self._base.get(place), *(samples.get(place) for samples in found)]
            usual = _usual(everything)
            prompt, seed = place
            cells = [
                _sample_cell(sample, row, usual)
                for sample, row in zip(everything, [None, *rows], strict=True)
            ]
            made.append(Row(kind="sample", title=f"{prompt}, seed {seed}", cells=tuple(cells)))
        return made


def _of_stem(pairing: Pairing | None, stem: str) -> Path | None:
    if pairing is None:
        return None
    images = pairing.images
    return next((images.path / name for name in images.names if images.stem(name) == stem), None)


def _samples_in(folder: Path) -> dict[tuple[str, int], _Sample]:
    found = {}
    for path in sorted(folder.glob("*.png")):
        settings = read_settings(path, whole=False)
        if settings and isinstance(settings.get("prompt"), str) and isinstance(settings.get("seed"), int):
            sample = _Sample(path=path, settings=settings)
            found[sample.place] = sample
    return found


def _places(found: Sequence[Mapping[tuple[str, int], _Sample]]) -> list[tuple[str, int]]:
    counted = Counter(place for samples in found for place in samples)
    return sorted(counted, key=lambda place: (-counted[place], place[1], len(place[0]), place[0]))


def _usual(samples: Sequence[_Sample | None]) -> str:
    counted = Counter(sample.others for sample in samples if sample is not None)
    return counted.most_common(1)[0][0]


def _sample_cell(sample: _Sample | None, row: AdapterRow | None, usual: str) -> GridCell:
    if sample is None:
        return GridCell(word="not drawn" if row is None or row.has_adapter else row.state.value)
    settings = sample.settings
    marks = []
    if settings.get("adapter") != (None if row is None else row.weights_sha256):
        marks.append("stale: drawn with another adapter than is there now")
    if sample.others != usual:
        marks.append(f"drawn otherwise: {_differences(sample.others, usual)}")
    title = BASE_MODEL if row is None else condition_title(row.adapter.condition)
    seed = "" if row is None or row.seed is None else f", trained with seed {row.seed}"
    recipe = "" if row is None or row.recipe_hash is None else f", recipe {row.recipe_hash[:8]}"
    how = f"{settings.get('steps')} steps, guidance {settings.get('guidance')}"
    caption = f"{title}: \u201c{settings['prompt']}\u201d, seed {settings['seed']}, {how}{recipe}{seed}"
    return GridCell(shot=Shot(sample.path), caption=caption, marks=tuple(marks))


def _differences(others: str, usual: str) -> str:
    own, most = json.loads(others), json.loads(usual)
    names = sorted(name for name in {*own, *most} if own.get(name) != most.get(name))
    return ", ".join(f"{name} {own.get(name)!r} where most have {most.get(name)!r}" for name in names)
