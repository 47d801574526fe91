"""What a report is about: the series, conditions and artists of a study, and their effects."""

from dataclasses import dataclass

from mimicry.common.errors import UsageError
from mimicry.common.files import utc_now
from mimicry.report.effects import GroupEffects, group_effects, group_rows
from mimicry.report.rows import BASELINE, AdapterRow, read_rows
from mimicry.study import ChosenConditions, Condition, StudyTree, in_order
from mimicry.study.tree import NONE
from mimicry.tuning.planning import AdapterFilter
from mimicry.tuning.stacks import Stack


@dataclass(frozen=True, kw_only=True)
class Content:
    """What was read of a study. The first group is that of the first series that was asked for."""

    tree: StudyTree
    stack: str
    made_at: str
    groups: tuple[GroupEffects, ...]

    @property
    def main(self) -> GroupEffects:
        return self.groups[0]

    @property
    def rows(self) -> list[AdapterRow]:
        return [row for one in self.groups for row in one.group.rows]


def read_content(tree: StudyTree, stack: Stack, chosen: AdapterFilter) -> Content:
    """Read the chosen part of a study, with none__none, which everything is compared with.

    Raises:
        UsageError: a filter matches nothing, or there is no adapter.
    """
    series = chosen.series(tree, stack.name)
    adapters = chosen.choose(tree, stack.name)
    if not adapters:
        raise UsageError(
            f"there is no adapter of these artists and conditions in {tree.lora / series[0]}; train one with "
            f"apply_tuning"
        )
    artists = chosen.artists(tree, {adapter.artist for adapter in adapters})
    on_disk = ChosenConditions.choose(tree, needed=False).present
    conditions = [
        condition
        for condition in in_order([BASELINE, *on_disk, *(adapter.condition for adapter in adapters)])
        if condition == BASELINE or chosen.means(condition)
    ]
    rows = read_rows(tree, series, conditions, artists, stack.traits.adapter_format)
    groups = tuple(group_effects(group) for group in group_rows(rows))
    return Content(tree=tree, stack=stack.name, made_at=utc_now(), groups=groups)


def condition_title(condition: Condition) -> str:
    """Return a condition as people call it."""
    names = [name for name in (condition.protection, condition.countermeasure) if name != NONE]
    return " + ".join(names) or "original"
