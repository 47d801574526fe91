"""The tables that programs print, and the plan as JSON."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mimicry.common.text import printable, shell_line, text_table
from mimicry.study import NONE, Condition, EvaluatedOn, Finding, State, image_facts
from mimicry.tuning.execution.bookkeeping import Result
from mimicry.tuning.execution.uploads import PendingUpload, UploadEnd
from mimicry.tuning.planning import Action, Plan, Target, duration, plan_word
from mimicry.tuning.planning.recipes import evaluation_remarks
from mimicry.tuning.status.study_status import StudyStatus, count_states

# The words of a summary, in the order in which they are counted.
_SUMMARY_WORDS = (
    "trained",
    "uploaded",
    "owed",
    "skipped",
    "failed",
    "interrupted",
    "claimed",
    "queued",
    "blocked",
    "no data",
    "left",
)


def plan_table(plan: Plan) -> str:
    """Return the plan as a table for people: artist, images, source, state, reason.

    Variant and condition come first where there are several.
    """
    doses = [target.dose for target in plan.targets]
    # The median PSNR and L-infinity distance to the originals.
    header = [*_place_header(plan), "artist", "images", *(["dose"] if any(doses) else []), "source"]
    rows = []
    for target, dose in zip(plan.targets, doses, strict=True):
        row = [*_place(plan, target), str(target.artist), _images(target)]
        if any(doses):
            row.append("" if dose is None else str(dose))
        reasons = "; ".join(filter(None, (target.reason, *target.warnings)))
        rows.append([*row, _shown_source(plan, target), plan_word(target), reasons])
    counts = ", ".join(f"{count} {name}" for name, count in plan.counts().items() if count)
    lines = (*_remarks(plan), *_evaluation(plan), counts)
    return "\n".join((text_table([*header, "state", "reason"], rows), *lines))


def _images(target: Target) -> str:
    held = f" + {len(target.held_out)} held out" if target.held_out else ""
    return f"{len(target.images.names)}{held}"


def _evaluation(plan: Plan) -> list[str]:
    evaluations = {target.request.evaluation for target in plan.of(State.WAITING, State.RUNNING)}
    if EvaluatedOn.IN_SAMPLE not in evaluations:
        return []
    return ["evaluation loss: in-sample, on paintings that are trained on; --hold-out N keeps some for it"]


def _place_header(plan: Plan) -> list[str]:
    return [
        *(["variant"] if plan.has_several_series else []),
        *(["condition"] if plan.has_several_conditions else []),
    ]


def _place(plan: Plan, target: Target) -> list[str]:
    request = target.request
    return [
        *([request.variant or NONE] if plan.has_several_series else []),
        *([str(request.condition)] if plan.has_several_conditions else []),
    ]


def _shown_source(plan: Plan, target: Target) -> str:
    data_root, source = plan.call.tree.data_root, target.source
    return str(source.relative_to(data_root) if source.is_relative_to(data_root) else source)


def _remarks(plan: Plan) -> list[str]:
    return [printable(f"note: {remark}") for remark in plan.remarks]


def plan_json(plan: Plan) -> dict[str, Any]:
    """Return the plan for programs. What holds for all targets stands at the top, too."""
    first = plan.requests[0]
    return {
        "data_root": str(plan.call.tree.data_root),
        "stack": plan.call.stack.name,
        **({} if plan.has_several_series else {"variant": first.variant}),
        **(
            {}
            if plan.has_several_conditions
            else {**_condition_json(first.condition), "source": str(first.source.root)}
        ),
        "absent": [{**_condition_json(condition), "reason": reason} for condition, reason in plan.absent],
        "counts": plan.counts(),
        "remarks": list(plan.remarks),
        "cells": [_target_json(target) for target in plan.targets],
    }


def _condition_json(condition: Condition) -> dict[str, str]:
    return {"protection": condition.protection, "countermeasure": condition.countermeasure}


def _target_json(target: Target) -> dict[str, Any]:
    return {
        **target.status.to_json(),
        "action": target.action.value,
        "action_reason": target.reason,
        "images": len(target.images.names),
        "held_out": list(target.held_out),
        "evaluation": target.request.evaluation,
        "input_dir": str(target.images.path),
        "output_dir": str(target.folder),
        "warnings": list(target.warnings),
        "unpaired": list(target.marks),
        "dose": None if target.dose is None else asdict(target.dose),
        "files": [_file_json(target, name) for name in target.images.names],
        "ignored": list(target.images.ignored),
        "repository": target.upload_job.repository if target.request.uploads else None,
        "command": target.command if target.action is Action.TRAIN else None,
    }


def _file_json(target: Target, name: str) -> dict[str, Any]:
    found = target.examined.get(name)
    facts = image_facts(target.pairing, name, found)
    if found is None and name in target.sizes:
        facts["width"], facts["height"] = target.sizes[name]
    return {"name": name, **facts}


def commands(plan: Plan) -> str:
    """Return the exact commands of all targets to be trained, as a shell takes them."""
    return "\n".join(shell_line(target.command) for target in plan.of(State.WAITING))


def summary(plan: Plan, results: Sequence[Result]) -> str:
    """Return what became of every target of the plan, as a table, with a line of counts."""
    done = {result.target.adapter: result for result in results}
    found = [_summary_row(target, done.get(target.adapter)) for target in plan.targets]
    counted = Counter(row[1] for row in found)
    rows = [[*_place(plan, target), *row] for target, row in zip(plan.targets, found, strict=True)]
    counts = ", ".join(f"{counted[word]} {word}" for word in _SUMMARY_WORDS if counted[word])
    table = text_table([*_place_header(plan), "artist", "result", "time", "loss", "remark"], rows)
    return "\n".join((table, *_remarks(plan), counts))


def _summary_row(target: Target, result: Result | None) -> tuple[str, ...]:
    artist = str(target.artist)
    if result is not None:
        remarks = (
            result.error.split("\n")[0],
            f"upload owed: {result.owed}" if result.owed else "",
            result.evaluation,
            result.numerics,
            *target.warnings,
            *result.warnings,
            f"log: {target.folder.log}",
        )
        loss = "" if result.loss is None else f"{result.loss:.4f}"
        took = duration(result.seconds)
        if result.earlier_seconds:
            took += f" of {duration(result.earlier_seconds + result.seconds)}"
        return artist, result.word, took, loss, "; ".join(filter(None, remarks))
    if target.state is State.WAITING:
        return artist, "left", "", "", "not begun"
    if target.state in (State.BLOCKED, State.RUNNING, State.QUEUED, State.NO_DATA):
        return artist, plan_word(target), "", "", target.reason
    return artist, "skipped", "", "", "; ".join(filter(None, (target.state.value, target.reason)))


def upload_table(uploads: Sequence[PendingUpload]) -> str:
    """Return whole adapters with what is done about each."""
    rows = [
        (
            str(upload.adapter.condition),
            str(upload.adapter.artist),
            upload.job.repository,
            "upload" if upload.is_due else "leave",
            upload.reason.split("\n")[0],
        )
        for upload in uploads
    ]
    count = sum(upload.is_due for upload in uploads)
    counts = f"{count} to upload, {len(uploads) - count} to leave"
    return f"{text_table(('condition', 'artist', 'repository', 'state', 'reason'), rows)}\n{counts}"


def upload_summary(ends: Sequence[UploadEnd]) -> str:
    """Return how many uploads went well, and how many are still pending."""
    count = sum(not end.error for end in ends)
    return f"{count} uploaded, {len(ends) - count} owed"


def verdict_table(status: StudyStatus, problems: Sequence[Finding]) -> str:
    """Return how the cells are in which something was begun as a table, problems with images, and counts.

    It is said where a series has several recipes, or evaluation losses that must not be compared. A line for
    many images says that -v lists them.
    """
    begun = [cell for cell in status.cells if cell.state not in (State.WAITING, State.NO_DATA)]
    has_several_series = len({cell.adapter.series for cell in begun}) > 1
    header = [*(["variant"] if has_several_series else []), "condition", "artist", "state", "reason"]
    rows = [
        [
            *([cell.adapter.variant or NONE] if has_several_series else []),
            *(str(cell.adapter.condition), str(cell.adapter.artist), cell.state.value, cell.reason),
        ]
        for cell in begun
    ]
    counts = ", ".join(f"{count} {state}" for state, count in count_states(begun).items())
    count = sum(max(1, len(problem.items)) for problem in problems)
    of_images = "1 problem" if count == 1 else f"{count} problems"
    lines = [printable(problem.line("-v")) for problem in problems]
    remarks = []
    for series, each in status.recipes.items():
        where = f" in {series}" if has_several_series else ""
        if each.is_mixed:
            groups = "; ".join(f"{len(group.adapters)} ({group.places()})" for group in each.groups)
            remarks.append(f"the study{where} has {len(each.groups)} recipes: {groups}")
        remarks += [f"{remark}{where}" for remark in evaluation_remarks(each)]
    table = text_table(header, rows)
    ending = f"{counts or 'there are no adapters'}; {of_images} with images"
    return "\n".join((table, *map(printable, remarks), *lines, ending))
