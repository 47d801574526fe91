"""`mimicry upload`: upload every complete adapter that is not on the Hub yet, without training."""

from typing import Any

import click

from mimicry.common.errors import BatchFault
from mimicry.study import State
from mimicry.tuning.adapters import AdapterFolder, AdapterSpec, judge_adapter, open_tracker
from mimicry.tuning.execution.uploads import (
    due_repositories,
    pending_upload,
    upload_pending,
)
from mimicry.tuning.hub.names import colliding_names, refuse_names, token_problems
from mimicry.tuning.hub.upload import HubOptions, Upload
from mimicry.tuning.options.click_options import (
    CALL,
    condition_filters,
    hub_options,
    option,
    program,
    selection_options,
    tree_options,
)
from mimicry.tuning.options.study_defaults import study_file_of
from mimicry.tuning.stacks import Stack
from mimicry.tuning.status.study_status import read_status
from mimicry.tuning.status.tables import upload_summary, upload_table


@program("upload")
@tree_options
@condition_filters
@selection_options
@hub_options
@option("--dry-run", topic=CALL, is_flag=True, help="Show what would be uploaded; write nothing, ask nobody.")
@click.pass_context
def upload(context: click.Context, /, dry_run: bool, **parameters: Any) -> int:
    """Upload every complete adapter that is not on the Hub yet, as a private repository.

    All conditions that have adapters are meant, unless --protection or --countermeasure names some. The exit
    code is 1 when an upload failed; the same command tries it again.
    """
    refuse_names({"--hub-namespace": parameters["hub_namespace"]}, parameters["base_model_id"])
    stack, hub = Stack.find(parameters["stack"]), HubOptions.from_parameters(parameters)
    status = read_status(parameters, study_file_of(context))
    tree, form, prefix = status.tree, stack.traits.adapter_format, stack.traits.hub_prefix
    uploads = []
    for cell in status.cells:
        if cell.weights is None:
            continue
        folder = AdapterFolder(tree.adapter_dir(cell.adapter), form)
        broken = cell.reason if cell.weights is State.BROKEN else ""
        if not broken and not dry_run:
            found = judge_adapter(folder, AdapterSpec(), None, full=True)
            broken = found.reason if found.state is State.BROKEN else ""
        job = Upload.from_adapter(cell.adapter, folder.path, prefix, hub)
        uploads.append(pending_upload(cell.adapter, folder, job, broken=broken))
    due = due_repositories(uploads)
    faults = [*token_problems(else_do=""), *colliding_names(due, else_do="")] if due and not dry_run else []
    if faults:
        raise BatchFault(*faults)
    print(upload_table(uploads), flush=True)
    if dry_run:
        return 0
    ends = upload_pending(tree, uploads, open_tracker(tree), print)
    print(upload_summary(ends), flush=True)
    return 1 if any(end.error for end in ends) else 0
