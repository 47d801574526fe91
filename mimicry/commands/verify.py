"""`mimicry verify`: check every adapter that is there, and the images, without training."""

from typing import Any

from mimicry.study import State, StudyTree
from mimicry.tuning.options import condition_filters, program, selection_options, tree_options
from mimicry.tuning.planning import AdapterFilter
from mimicry.tuning.reports.tables import verdict_table
from mimicry.tuning.reports.verify import image_problems, verify_adapters
from mimicry.tuning.stacks import Stack


@program("verify")
@tree_options
@condition_filters
@selection_options
def verify(**parameters: Any) -> int:
    """Check every value of each adapter against its own record, and decode the images.

    Nothing that earlier calls remember is trusted, nothing is trained, and nothing is written. The exit code
    is 1 when an adapter is broken or an image cannot be trained on.
    """
    tree, stack = StudyTree(parameters["data_root"]), Stack.find(parameters["stack"])
    chosen = AdapterFilter.of(parameters)
    verdicts = verify_adapters(tree, chosen.choose(tree, stack.name), stack.traits.adapter_format)
    problems = image_problems(tree, chosen.image_folders(tree))
    print(verdict_table(verdicts, problems))
    return 1 if problems or any(verdict.state is State.BROKEN for verdict in verdicts) else 0
