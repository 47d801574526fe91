"""Print the agreement table, or with --next the safe-next table; the exit code is 1 if a row is wrong.

python -m tests.agreement
python -m tests.agreement --next [SITUATION ...]
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from mimicry.common.text import text_table
from tests.agreement.following import follow
from tests.agreement.situations import SITUATIONS
from tests.agreement.study import Study, new_study
from tests.agreement.table import agreement, short

PROGRAMS = ("plan", "status", "verify", "report")
AGREEMENT = ("situation", "cell", "plan, action", "status", "verify", "report", "agree")
NEXT = ("situation", "next", "exit", "lost", "trained", "ranks", "safe")

Found = tuple[list[list[str]], list[str]]


def agreement_rows(name: str, study: Study) -> Found:
    """Return a row for each cell that the situation is about, or that is wrong; and what is wrong."""
    rows = [row for row in agreement(study) if row.is_named or row.wrong]
    said = [
        [name, short(row.key), *(row.said.get(program, "-") for program in PROGRAMS), yes(row.wrong)]
        for row in rows
    ]
    return said, [f"{name}, {short(row.key)}: {words}" for row in rows for words in row.wrong]


def next_rows(name: str, study: Study) -> Found:
    """Return the row of what a status says to type next; and what is wrong with it."""
    found = follow(study)
    ranks = sorted({str(record["options"]["rank"]) for record in found.trained.values()})
    code = "-" if found.ended is None else str(found.ended.code)
    line = found.line.replace(str(study.folder), "LAB")
    row = [name, line, code, str(found.lost), str(len(found.trained)), " ".join(ranks), yes(found.wrong)]
    return [row], [f"{name}: {words}" for words in found.wrong]


def yes(wrong: Sequence[str]) -> str:
    return "no" if wrong else "yes"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.agreement", description=__doc__)
    parser.add_argument("--next", action="store_true", help="type what each status says to type next")
    parser.add_argument("situations", nargs="*", metavar="SITUATION", help=", ".join(SITUATIONS))
    typed = parser.parse_args()
    look: Callable[[str, Study], Found] = next_rows if typed.next else agreement_rows
    rows, wrong = [], []
    for name in typed.situations or SITUATIONS:
        with tempfile.TemporaryDirectory() as folder, new_study(Path(folder)) as study:
            SITUATIONS[name](study)
            try:
                found, faults = look(name, study)
            except Exception as error:  # the other rows are worth seeing
                found, faults = [[name, "", "", "", "", "", "no"]], [f"{name}: {error!r}"]
            rows += found
            wrong += faults
    print(text_table(NEXT if typed.next else AGREEMENT, rows))
    print("\n".join(["", *wrong, f"{len(SITUATIONS)} situations, {len(rows)} rows, {len(wrong)} faults"]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
