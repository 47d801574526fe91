"""The key of a rating pack, what raters answered, and how often they preferred a condition."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from mimicry.common.errors import UsageError
from mimicry.common.text import first_few, text_table
from mimicry.report.statistics import Summary, summarize

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
    """Yield the answers of a file, and put down what is wrong with it."""
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
