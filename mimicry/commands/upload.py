"""`mimicry upload`: upload every complete adapter that is not on the Hub yet, without training."""

from typing import Any

from mimicry.common.errors import BatchFault
from mimicry.study import AdapterId, ImageFolder, State, StudyTree
from mimicry.tuning.adapters import AdapterFolder, AdapterSpec, judge_adapter
from mimicry.tuning.adapters.bookmark import open_tracker
from mimicry.tuning.execution.uploads import (
    PendingUpload,
    due_repositories,
    pending_upload,
    upload_pending,
)
from mimicry.tuning.hub import HubOptions, UploadJob, colliding_names, refuse_names, token_problems
from mimicry.tuning.options import (
    CALL,
    condition_filters,
    hub_options,
    option,
    program,
    selection_options,
    tree_options,
)
from mimicry.tuning.planning import AdapterFilter
from mimicry.tuning.reports.tables import upload_summary, upload_table
from mimicry.tuning.stacks import Stack


@program("upload")
@tree_options
@condition_filters
@selection_options
@hub_options
@option("--dry-run", topic=CALL, is_flag=True, help="Show what would be uploaded; write nothing, ask nobody.")
def upload(dry_run: bool, **parameters: Any) -> int:
    """Upload every complete adapter that is not on the Hub yet, as a private repository.

    All conditions that have adapters are meant, unless --protection or --countermeasure names some. The exit
    code is 1 when an upload failed; the same command tries it again.
    """
    refuse_names({"--hub-namespace": parameters["hub_namespace"]}, parameters["base_model_id"])
    tree, stack = StudyTree(parameters["data_root"]), Stack.find(parameters["stack"])
    hub = HubOptions.of(parameters)
    uploads = [
        found
        for adapter in AdapterFilter.of(parameters).choose(tree, stack.name)
        if (found := _pending(tree, stack, adapter, hub, full=not dry_run)) is not None
    ]
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


def _pending(
    tree: StudyTree, stack: Stack, adapter: AdapterId, hub: HubOptions, *, full: bool
) -> PendingUpload | None:
    """Return the upload of an adapter, None where there is none; its images may have changed."""
    folder = AdapterFolder(tree.adapter_dir(adapter), stack.traits.adapter_format)
    no_images = ImageFolder(folder.path, ())
    found = judge_adapter(folder, AdapterSpec(), no_images, full=full)
    if found.state is State.PENDING:
        return None
    job = UploadJob.of(adapter, folder.path, stack.traits.hub_prefix, hub)
    broken = found.reason if found.state is State.BROKEN else ""
    return pending_upload(adapter, folder, job, broken=broken)
