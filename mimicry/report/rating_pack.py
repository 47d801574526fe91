"""A pack for people who compare pictures, its key, and the score of what they answer.

The protocol is that of Hönig, Rando, Carlini and Tramèr, "Adversarial Perturbations Cannot Reliably Protect
Artists From Generative AI" (2024): a rater sees two pictures of one prompt and seed, one drawn after learning
from the original art, the other after learning from what was protected, or countered. Two questions are
asked: which is of better quality, and which is nearer to the style of paintings that are shown beside them.
The share that prefers the second picture is the success of the mimicry: a half means that it is as good.

What raters are given holds no name of an artist, of a condition or of a file. The key stays outside of it.
"""

import csv
import io
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
from PIL import Image

from mimicry.common.errors import BatchFault, UsageError
from mimicry.common.files import sha256_text, write_bytes
from mimicry.common.text import first_few, text_table
from mimicry.report.grids import Grid
from mimicry.report.page import environment
from mimicry.report.statistics import Summary, summarize
from mimicry.study.images import read_rgb

KEY = "key.csv"
LEFT, RIGHT = "left", "right"
QUESTIONS = ("quality", "style")


@dataclass(frozen=True, kw_only=True)
class KeyRow:
    """What raters are not told of a pair; `original` and `other` are the sides that the pictures stand on."""

    pack: str
    pair: str
    artist: str
    condition: str
    prompt_and_seed: str
    original: str
    other: str


@dataclass(frozen=True, kw_only=True)
class Score:
    """How a condition did in one question: `preferred` of `answers` were for it and against the original art.

    `by_artist` is the share of each artist, summed up: its mean, and its interval where there are several.
    """

    condition: str
    question: str
    answers: int
    raters: int
    preferred: int
    by_artist: Summary


@dataclass(frozen=True)
class _Answer:
    rater: str
    row: KeyRow
    question: str
    side: str


def key_text(rows: Iterable[KeyRow]) -> str:
    """Return the key as CSV."""
    file = io.StringIO()
    writer = csv.DictWriter(file, [field.name for field in fields(KeyRow)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return file.getvalue()


def read_scores(key: Path, answers: Sequence[Path]) -> list[Score]:
    """Return the scores of all conditions and questions.

    Raises:
        UsageError: a file cannot be read or is not what it should be, all of them; or nothing was answered.
    """
    rows = {row.pair: row for row in (KeyRow(**row) for row in _rows(key, [f.name for f in fields(KeyRow)]))}
    problems: list[str] = []
    found: dict[tuple[str, str, str], _Answer] = {}
    for path in answers:
        for answer in _answers(path, rows, problems):
            # A rater who answers again has changed his mind.
            found[answer.rater, answer.row.pair, answer.question] = answer
    if problems:
        raise UsageError(*problems)
    if not found:
        raise UsageError(f"--rating-answers: nothing was answered in {first_few(list(map(str, answers)))}")
    conditions = list(dict.fromkeys(row.condition for row in rows.values()))
    return [
        score
        for condition in sorted(conditions)
        for question in QUESTIONS
        if (score := _score(condition, question, list(found.values()))) is not None
    ]


def score_table(scores: Sequence[Score]) -> str:
    """Return the scores for people."""
    lines = [
        (
            score.condition,
            score.question,
            str(score.answers),
            str(score.raters),
            f"{score.preferred / score.answers:.0%}",
            "" if (span := score.by_artist.bootstrap) is None else f"{span.low:.0%} to {span.high:.0%}",
        )
        for score in scores
    ]
    # Student's t would go below 0% and above 100%, so few artists have no interval.
    header = ("condition", "question", "answers", "raters", "preferred", "95% interval over artists")
    return f"{text_table(header, lines)}\n50% means: as good as what was learnt from the original art"


def _score(condition: str, question: str, answers: Sequence[_Answer]) -> Score | None:
    own = [each for each in answers if each.row.condition == condition and each.question == question]
    if not own:
        return None
    by_artist: dict[str, list[bool]] = {}
    for each in own:
        by_artist.setdefault(each.row.artist, []).append(each.side == each.row.other)
    summary = summarize([sum(votes) / len(votes) for votes in by_artist.values()])
    assert summary is not None  # there are answers
    return Score(
        condition=condition,
        question=question,
        answers=len(own),
        raters=len({each.rater for each in own}),
        preferred=sum(each.side == each.row.other for each in own),
        by_artist=summary,
    )


def _answers(path: Path, key: dict[str, KeyRow], problems: list[str]) -> Iterator[_Answer]:
    for number, line in enumerate(_rows(path, ["pack", "rater", "pair", *QUESTIONS]), start=2):
        row = key.get(line["pair"])
        if row is None or row.pack != line["pack"]:
            problems.append(
                f"{path}, line {number} answers pair {line['pair']!r} of another pack than the key's"
            )
            continue
        for question in QUESTIONS:
            side = line[question]
            if side in (LEFT, RIGHT):
                yield _Answer(line["rater"], row, question, side)
            elif side:
                problems.append(f"{path}, line {number}: {question} is {side!r}; it takes {LEFT} or {RIGHT}")


def _rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows = [{name: row.get(name) or "" for name in columns} for row in reader]
            lacking = [name for name in columns if name not in (reader.fieldnames or ())]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{path} cannot be read: {reason}") from error
    if lacking:
        raise UsageError(f"{path} lacks the columns {', '.join(lacking)}, so it is not of a rating pack")
    return rows


PACK = "pack"
_LONGEST = 768


@dataclass(frozen=True, kw_only=True)
class SamplePair:
    """Two samples of one prompt and seed, of the original art and of another condition of the same artist.

    `references` are paintings of the artist.
    """

    artist: str
    condition: str
    place: str
    original: Path
    other: Path
    references: tuple[Path, ...]


def pairs_of(grids: Iterable[Grid]) -> list[SamplePair]:
    """Return all pairs that may be compared: samples that are there and have no marks."""
    return [pair for grid in grids for pair in _pairs_of(grid)]


def _pairs_of(grid: Grid) -> Iterator[SamplePair]:
    # The columns: base model, original art, and the others.
    references = tuple(
        cell.shot.file
        for row in grid.rows
        if row.kind == "painting" and (cell := row.cells[1]).shot is not None
    )
    for row in grid.rows:
        original = row.cells[1]
        if row.kind != "sample" or original.shot is None or original.marks:
            continue
        for column, cell in zip(grid.columns[2:], row.cells[2:], strict=True):
            if (
                cell.shot is None
                or cell.marks
                or not (column.is_comparable and grid.columns[1].is_comparable)
            ):
                continue
            yield SamplePair(
                artist=str(grid.artist),
                condition=column.title,
                place=row.title,
                original=original.shot.file,
                other=cell.shot.file,
                references=references,
            )


def choose_pairs(pairs: Sequence[SamplePair], count: int, seed: int) -> list[SamplePair]:
    """Return up to `count` pairs in an order drawn by chance, as many of each condition as there are."""
    generator = np.random.Generator(np.random.Philox(seed))
    shuffled = [pairs[place] for place in generator.permutation(len(pairs))]
    by_condition = [
        [pair for pair in shuffled if pair.condition == condition]
        for condition in sorted({pair.condition for pair in pairs})
    ]
    in_turn = [pair for pair in chain.from_iterable(zip_longest(*by_condition)) if pair is not None]
    chosen = in_turn[:count]
    return [chosen[place] for place in generator.permutation(len(chosen))]


def write_rating_pack(folder: Path, pairs: Sequence[SamplePair], seed: int) -> None:
    """Write the folder for raters, and the key beside it, into a new folder.

    Args:
        seed: of the sides that pictures stand on. It stands in the key alone.

    Raises:
        UsageError: there are no pairs, or the folder has files already.
        BatchFault: a picture cannot be read, or a file cannot be written.
    """
    if not pairs:
        raise UsageError(
            "--rating-pack: there is no pair of samples to compare; draw the same prompts and seeds for the "
            "original art and another condition with mimicry samples"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            f"--rating-pack {folder} is there already, and answers need the key that they were given for; "
            f"name a new folder"
        )
    # Half of the pairs on each side, so that a rater who always says left tells nothing.
    generator = np.random.Generator(np.random.Philox(seed + 1))
    flips = generator.permutation(len(pairs)) % 2
    sides = [(LEFT, RIGHT) if flip else (RIGHT, LEFT) for flip in flips]
    paths = dict.fromkeys(path for pair in pairs for path in pair.references)
    paintings = {path: f"pictures/painting-{number}.png" for number, path in enumerate(paths, start=1)}
    # It tells the answers to this pack from those to others.
    pack = sha256_text(repr((seed, sides, pairs)))[:12]
    key = [
        KeyRow(
            pack=pack,
            pair=str(number),
            artist=pair.artist,
            condition=pair.condition,
            prompt_and_seed=pair.place,
            original=own,
            other=other,
        )
        for number, (pair, (own, other)) in enumerate(zip(pairs, sides, strict=True), start=1)
    ]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
            made = Path(temporary) / "made"
            (made / PACK / "pictures").mkdir(parents=True)
            for path, name in paintings.items():
                _save(path, made / PACK / name)
            shown = [
                _write_pair(made / PACK, number, pair, own, paintings)
                for number, (pair, (own, _)) in enumerate(zip(pairs, sides, strict=True), start=1)
            ]
            write_bytes(made / KEY, key_text(key).encode("utf-8", "backslashreplace"))
            page = environment().get_template("rating.html").render(pack=pack, pairs=shown)
            write_bytes(made / PACK / "index.html", page.encode())
            made.rename(folder)
    except OSError as error:
        raise BatchFault(f"--rating-pack {folder}: {error}") from error


def _write_pair(
    pack: Path, number: int, pair: SamplePair, own: str, paintings: Mapping[Path, str]
) -> dict[str, object]:
    files = {own: pair.original, LEFT if own == RIGHT else RIGHT: pair.other}
    names = {side: f"pictures/pair-{number}-{side}.png" for side in (LEFT, RIGHT)}
    for side, name in names.items():
        _save(files[side], pack / name)
    return {"pair": str(number), "paintings": [paintings[path] for path in pair.references], **names}


def _save(source: Path, path: Path) -> None:
    picture = read_rgb(source)
    picture.thumbnail((_LONGEST, _LONGEST), Image.Resampling.LANCZOS)
    bare = Image.new("RGB", picture.size)
    bare.paste(picture)
    bare.save(path, format="PNG")
