"""The agreement table: what the programs say of each cell of a situation, and what is wrong with that."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.agreement.programs import FACTS, Cells, cells
from tests.agreement.study import Expected, Study
from tests.small_study import ORIGINAL, listing

# They look at headers; `verify` and the full plan look at everything.
LIGHT = ("plan", "status", "report")


@dataclass
class Row:
    """What is said of a cell, by program; `is_named` tells those that the situation is about."""

    key: str
    said: dict[str, str]
    is_named: bool
    wrong: list[str] = field(default_factory=list)


def agreement(study: Study) -> list[Row]:
    """Ask all programs, before and after a full look; return what they say, and what is wrong with it."""
    before = listing(study.tree.data_root)
    light = {program: cells(study, program) for program in LIGHT if has(study, program)}
    full = {"verify": cells(study, "verify")}
    full |= {program: cells(study, program) for program in (*LIGHT, "full plan") if has(study, program)}
    keys = dict.fromkeys(key for found in full.values() for key in found)
    rows = [_row(study, key, light, full) for key in [*keys, *(study.expected.keys() - keys)]]
    if listing(study.tree.data_root) != before:
        rows[0].wrong.append("something was written into the study")
    return rows


def has(study: Study, program: str) -> bool:
    return program != "report" or not study.no_report


def _row(study: Study, key: str, light: dict[str, Cells], full: dict[str, Cells]) -> Row:
    wanted = study.expected.get(key, Expected(study.others, light=study.others))
    said = {program: found[key]["state"] for program, found in full.items() if key in found}
    if action := full["plan"].get(key, {}).get("action"):
        said["plan"] += f", {action}"
    row = Row(key, said, key in study.expected)
    row.wrong += _listed(key, full)
    for program, found in light.items():
        if key in found and found[key]["state"] != wanted.light:
            row.wrong.append(f"{program} says {found[key]['state']} and not {wanted.light} at a first look")
    here = {program: found[key] for program, found in full.items() if key in found}
    for program, cell in here.items():
        if cell["state"] != wanted.state:
            row.wrong.append(f"{program} says {cell['state']} and not {wanted.state}: {cell['reason']}")
        if wanted.says not in cell["reason"]:
            row.wrong.append(f"{program} does not say {wanted.says!r}: {cell['reason']}")
        row.wrong += [
            f"{program} has {name} {cell[name]!r} and not {value!r}"
            for name, value in wanted.numbers.items()
            if cell[name] != value
        ]
    if wanted.action and here["plan"]["action"] != wanted.action:
        row.wrong.append(f"the plan would {here['plan']['action']} and not {wanted.action}")
    for name in ("reason", *FACTS):
        values = {
            program: cell[name]
            for program, cell in here.items()
            if not (name == "reason" and study.other_reasons and program.endswith("plan"))
        }
        if len(set(values.values())) > 1:
            row.wrong.append(f"{name} differs: {values}")
    return row


def _listed(key: str, full: dict[str, Cells]) -> Iterator[str]:
    """Yield which programs list a cell and should not, or do not and should."""
    is_meant = key in full["status"]
    if (key in full["verify"]) != is_meant:
        yield f"of status and verify, only {'status' if is_meant else 'verify'} lists it"
    is_baseline = f"/{ORIGINAL.protection}/{ORIGINAL.countermeasure}/" in key
    if "report" in full and is_meant and key not in full["report"]:
        yield "report does not list it"
    if "report" in full and not is_meant and key in full["report"] and not is_baseline:
        yield "report lists it, and status does not"
    yield from (
        f"{program} lists it, and status does not"
        for program in ("plan", "full plan")
        if key in full[program] and not is_meant
    )


def short(key: str) -> str:
    """Return a key without split and style."""
    series, protection, countermeasure, *artist = key.split("/")
    variant = series.partition("@")[2]
    return " ".join(filter(None, (variant, f"{protection}__{countermeasure}", artist[-1])))
