"""`mimicry verify`: check every adapter that is there, and the images, without training."""

from typing import Any

from mimicry.common.processes import NOT_AS_ASKED
from mimicry.study import State, StudyTree
from mimicry.tuning.options.click_options import (
    CALL,
    condition_filters,
    option,
    program,
    selection_options,
    tree_options,
)
from mimicry.tuning.planning import AdapterFilter
from mimicry.tuning.planning.recipes import StudyRecipes
from mimicry.tuning.reports.tables import verdict_table
from mimicry.tuning.reports.verify import image_problems, verify_adapters, with_sisters
from mimicry.tuning.stacks import Stack


@program("verify")
@tree_options
@condition_filters
@selection_options
@option("-v", "--verbose", topic=CALL, is_flag=True, help="List every image that cannot be used.")
def verify(verbose: bool, **parameters: Any) -> int:
    """Check every value of each adapter against its own record, its recipe against that of the study's
    other adapters, and decode the images.

    Nothing that earlier calls remember is trusted, nothing is trained, and nothing is written. The exit code
    is 1 when an adapter is broken or an image cannot be trained on, and 3 when that is not so, but an adapter
    is stale or in use, or the study has several recipes.
    """
    tree, stack = StudyTree(parameters["data_root"]), Stack.find(parameters["stack"])
    chosen = AdapterFilter.of(parameters)
    adapters = chosen.choose(tree, stack.name)
    recipes = {
        series: StudyRecipes.read(tree, tree.adapters(series)) for series in chosen.series(tree, stack.name)
    }
    verdicts = with_sisters(verify_adapters(tree, adapters, stack.traits.adapter_format), recipes)
    problems = image_problems(tree, chosen.image_folders(tree))
    print(verdict_table(verdicts, problems, recipes))
    if verbose:
        print("".join(problem.full_list() for problem in problems), end="")
    states = {verdict.state for verdict in verdicts}
    if problems or State.BROKEN in states:
        return 1
    is_mixed = any(each.is_mixed for each in recipes.values())
    return NOT_AS_ASKED if is_mixed or states & {State.STALE, State.CLAIMED} else 0
