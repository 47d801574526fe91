"""What a report is about: the series, conditions and artists of a study, and their effects."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mimicry.common.errors import UsageError
from mimicry.common.files import utc_now
from mimicry.report.effects import GroupEffects, group_effects, group_rows
from mimicry.report.rows import BASELINE, AdapterRow, rows_of
from mimicry.study import NONE, Condition, StudyTree
from mimicry.tuning.options.study_file import StudyFile
from mimicry.tuning.stacks import Stack
from mimicry.tuning.status.study_status import StudyStatus, read_status


@dataclass(frozen=True, kw_only=True)
class Content:
    """What was read of a study. The first group is that of the first series that was asked for."""

    status: StudyStatus
    stack: str
    made_at: str
    groups: tuple[GroupEffects, ...]

    @property
    def tree(self) -> StudyTree:
        return self.status.tree

    @property
    def main(self) -> GroupEffects:
        return self.groups[0]

    @property
    def rows(self) -> list[AdapterRow]:
        return [row for one in self.groups for row in one.group.rows]


def read_content(parameters: Mapping[str, Any], study_file: StudyFile) -> Content:
    """Read the chosen part of a study, with none__none, which everything is compared with.

    Raises:
        UsageError: a filter matches nothing, or there is no adapter.
    """
    status = read_status(parameters, study_file, always=[BASELINE])
    if not any(status.tree.adapter_dir(cell.adapter).is_dir() for cell in status.cells):
        raise UsageError(
            f"there is no adapter of these artists and conditions in "
            f"{status.tree.lora / status.matrix.series[0]}; train one with apply_tuning"
        )
    # The series that nothing was trained in have nothing to compare.
    groups = tuple(group_effects(group) for group in group_rows(rows_of(status)))
    stack = Stack.find(parameters["stack"]).name
    return Content(status=status, stack=stack, made_at=utc_now(), groups=groups)


def condition_title(condition: Condition) -> str:
    """Return a condition as people call it."""
    names = [name for name in (condition.protection, condition.countermeasure) if name != NONE]
    return " + ".join(names) or "original"
