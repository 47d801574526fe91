"""The tables that apply_tuning prints, and the plan as JSON."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from mimicry.common.text import printable, shell_line, text_table
from mimicry.tuning.adapters.folder import TRAIN_LOG
from mimicry.tuning.execution.batch import Result
from mimicry.tuning.execution.pending_uploads import Debt
from mimicry.tuning.planning.plan import Action, Plan, Target
from mimicry.tuning.reports.progress import duration
from mimicry.tuning.reports.verify import Verdict


def plan_table(plan: Plan) -> str:
    """Return the plan as a table for people: artist, images, source, state, reason."""
    data_root = plan.request.tree.data_root
    source = plan.source.root
    shown = source.relative_to(data_root) if source.is_relative_to(data_root) else source
    rows = [
        (
            str(target.artist),
            str(len(target.images.names)),
            str(shown),
            target.action.value,
            "; ".join(filter(None, (target.reason, *target.warnings))),
        )
        for target in plan.targets
    ]
    counts = ", ".join(f"{count} {name}" for name, count in plan.counts().items() if count)
    return f"{text_table(('artist', 'images', 'source', 'state', 'reason'), rows)}\n{counts}"


def plan_json(
    plan: Plan, command: Callable[[Target], list[str]], repository: Callable[[Target], str | None]
) -> dict[str, Any]:
    """Return the plan for programs."""
    request = plan.request
    return {
        "data_root": str(request.tree.data_root),
        "stack": request.stack,
        "protection": request.condition.protection,
        "countermeasure": request.condition.countermeasure,
        "source": str(plan.source.root),
        "counts": plan.counts(),
        "targets": [
            {
                "key": request.key(target.artist),
                "split": target.artist.split,
                "style": target.artist.style,
                "artist": target.artist.name,
                "images": len(target.images.names),
                "input_dir": str(target.images.path),
                "output_dir": str(target.output_dir),
                "state": target.action.value,
                "reason": target.reason,
                "warnings": list(target.warnings),
                "repository": repository(target),
                "command": command(target) if target.action is Action.TRAIN else None,
            }
            for target in plan.targets
        ],
    }


def commands(plan: Plan, command: Callable[[Target], list[str]]) -> str:
    """Return the exact commands of all targets to be trained, as a shell takes them."""
    return "\n".join(shell_line(command(target)) for target in plan.of(Action.TRAIN))


def summary(plan: Plan, results: Sequence[Result]) -> str:
    """Return what became of every target of the plan, as a table, with a line of counts."""
    done = {result.target.artist: result for result in results}
    rows, counts = (
        [],
        dict.fromkeys(
            "trained uploaded owed skipped failed interrupted claimed blocked left".split(),
            0,
        ),
    )
    for target in plan.targets:
        outcome, row = _summary_row(target, done.get(target.artist))
        counts[outcome] += 1
        rows.append(row)
    counted = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return f"{text_table(('artist', 'result', 'time', 'loss', 'remark'), rows)}\n{counted}"


def _summary_row(target: Target, result: Result | None) -> tuple[str, tuple[str, ...]]:
    artist = str(target.artist)
    if result is not None:
        remarks = [result.error.split("\n")[0], f"upload owed: {result.owed}" if result.owed else ""]
        remarks += [
            result.evaluation,
            result.numerics,
            *target.warnings,
            f"log: {target.output_dir / TRAIN_LOG}",
        ]
        loss = "" if result.loss is None else f"{result.loss:.4f}"
        remark = "; ".join(filter(None, remarks))
        return result.outcome, (artist, result.outcome, duration(result.seconds), loss, remark)
    if target.action in (Action.BLOCKED, Action.CLAIMED):
        return target.action.value, (artist, target.action.value, "", "", target.reason)
    if target.action is Action.TRAIN:
        return "left", (artist, "left", "", "", "not begun")
    return "skipped", (
        artist,
        "skipped",
        "",
        "",
        "; ".join(filter(None, (target.action.value, target.reason))),
    )


def upload_table(debts: Sequence[Debt]) -> str:
    """Return the whole adapters of a plan with what `--upload-only` does about each."""
    rows = [
        (
            str(debt.target.artist),
            debt.job.repository,
            "upload" if debt.owed else "leave",
            debt.reason.split("\n")[0],
        )
        for debt in debts
    ]
    count = sum(debt.owed for debt in debts)
    counts = f"{count} to upload, {len(debts) - count} to leave"
    return f"{text_table(('artist', 'repository', 'state', 'reason'), rows)}\n{counts}"


def upload_summary(results: Sequence[Result]) -> str:
    """Return how many uploads went well, and how many are still owed."""
    count = sum(result.outcome == "uploaded" for result in results)
    return f"{count} uploaded, {len(results) - count} owed"


def verdict_table(verdicts: Sequence[Verdict], problems: Sequence[str]) -> str:
    """Return what was found in the folders of adapters as a table, problems with images, and their counts."""
    rows = [(str(each.condition), str(each.artist), each.state, each.reason) for each in verdicts]
    counted = Counter(each.state for each in verdicts)
    counts = ", ".join(f"{count} {state}" for state, count in counted.items()) or "no adapter is there"
    table = text_table(("condition", "artist", "state", "reason"), rows)
    return "\n".join((table, *map(printable, problems), f"{counts}; {len(problems)} problems with images"))
