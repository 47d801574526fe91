"""Uploading adapters that are complete and not on the Hub yet, without training."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mimicry.common.claims import Claim
from mimicry.common.errors import AdapterBroken, ClaimedElsewhere, MimicryError
from mimicry.common.files import FileIdentity
from mimicry.common.text import printable
from mimicry.study import AdapterId, ProgressTracker, State, StudyTree
from mimicry.tuning.adapters import TRAINING_RUN, AdapterFolder, complete_bookmark
from mimicry.tuning.execution.bookkeeping import SAME_FAILURES, Result, same_failure
from mimicry.tuning.hub.upload import Upload, upload_and_record
from mimicry.tuning.planning import Action, Plan


@dataclass(frozen=True, kw_only=True)
class PendingUpload:
    """Whether a whole adapter is to be uploaded, and why, or why not, in words.

    `weights` tells the weights that were looked at from any others.
    """

    adapter: AdapterId
    job: Upload
    weights: FileIdentity
    is_due: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class UploadEnd:
    """What became of an upload; `error` is empty for a good end."""

    adapter: AdapterId
    error: str = ""


def pending_of_plan(plan: Plan) -> list[PendingUpload]:
    """Look at each whole adapter of the plan, except those that are to be trained again.

    Of stale ones only uploads that failed before are due.
    """
    found = []
    for target in plan.targets:
        weights = target.status.weights
        if target.action is not Action.TRAIN and weights is not None and weights.has_adapter:
            stale = weights is State.STALE
            found.append(pending_upload(target.adapter, target.folder, target.upload_job, stale=stale))
    return found


def pending_upload(
    adapter: AdapterId, folder: AdapterFolder, job: Upload, *, stale: bool = False, broken: str = ""
) -> PendingUpload:
    """Return whether the adapter in `folder` is still to be uploaded as `job`.

    Args:
        stale: it is not what is asked for now; then only an upload that failed before is due.
        broken: what is wrong with it; empty for a whole adapter.
    """

    def found(is_due: bool, reason: str) -> PendingUpload:
        return PendingUpload(
            adapter=adapter, job=job, weights=folder.weights_identity(), is_due=is_due, reason=reason
        )

    if broken:
        return found(False, f"broken: {broken}")
    try:
        run = folder.run
    except AdapterBroken as error:
        return found(False, str(error))
    if run is None:
        return found(False, f"it has no {TRAINING_RUN}")
    hub = run.hub
    if _is_there(hub, job):
        return found(False, f"uploaded to {hub['repository_id']}")
    if "owed" in hub:
        return found(True, f"owed: {hub.get('error', 'unknown')}")
    if stale:
        return found(False, "stale, and never to be uploaded")
    elsewhere = f"uploaded to {hub['repository_id']} only" if hub.get("commit") else "never uploaded"
    return found(True, elsewhere)


def upload_pending(
    tree: StudyTree,
    uploads: Iterable[PendingUpload],
    tracker: ProgressTracker,
    say: Callable[[str], None],
) -> list[UploadEnd]:
    """Carry out the uploads that are due, one after the other, and record it; return what became of each.

    One that another call works on stays pending.

    Raises:
        Interrupted: a stop signal came; what was not uploaded is still pending.
    """
    ends: list[UploadEnd] = []
    failures: list[str] = []
    owner: str | None = None
    due = [upload for upload in uploads if upload.is_due]
    for number, upload in enumerate(due, start=1):
        label = f"[{number}/{len(due)}] {printable(str(upload.adapter.artist))}"
        if same_failure(failures):
            ends.append(UploadEnd(adapter=upload.adapter, error="not tried, as others failed alike"))
            continue
        say(f"{label}: uploading to {upload.job.repository}")
        error = ""
        try:
            repository = _upload(upload, owner)
        except MimicryError as failure:
            error = str(failure)
            say(f"{label}: {error}")
            if isinstance(failure, ClaimedElsewhere):
                # The other call says in the tracker what is to be said.
                ends.append(UploadEnd(adapter=upload.adapter, error=error))
                continue
            # What differs from one to the next is where it was to go.
            alike = error.replace(str(upload.job.folder), "").replace(upload.job.repository, "")
            failures = [*failures, alike][-SAME_FAILURES:]
        else:
            failures, owner = [], repository.partition("/")[0]
            say(f"{label}: uploaded to {repository}")
        ends.append(UploadEnd(adapter=upload.adapter, error=error))
        tracker.record(
            upload.adapter.key, **complete_bookmark(tree, AdapterFolder(upload.job.folder)).to_json()
        )
    return ends


def due_repositories(uploads: Sequence[PendingUpload]) -> list[tuple[str, str]]:
    """Return artist and repository of each upload that is due."""
    return [(str(upload.adapter.artist), upload.job.repository) for upload in uploads if upload.is_due]


def _upload(upload: PendingUpload, owner: str | None) -> str:
    """Upload one adapter, with its folder claimed; return the id of its repository."""
    job, folder = upload.job, AdapterFolder(upload.job.folder)
    with Claim.take_anew(folder.path):
        if folder.weights_identity() != upload.weights:
            raise ClaimedElsewhere(f"{folder} was changed by another call; type the same command again")
        hub = {} if folder.run is None else folder.run.hub
        if _is_there(hub, job):  # another call has uploaded it
            return str(hub["repository_id"])
        return upload_and_record(replace(job, namespace=job.namespace or owner)).repository_id


def _is_there(hub: Mapping[str, Any], job: Upload) -> bool:
    """Return whether `hub`, of a training_run.json, tells of an upload to where `job` goes."""
    if not hub.get("commit"):
        return False
    owner, _, name = str(hub.get("repository_id")).rpartition("/")
    asked, _, wanted = job.repository.rpartition("/")
    asked = asked or job.namespace or owner
    return (owner.casefold(), name.casefold()) == (asked.casefold(), wanted.casefold())


def upload_owed(plan: Plan, tracker: ProgressTracker, say: Callable[[str], None]) -> list[Result]:
    """Upload what earlier calls could not upload of a plan's adapters, and return what became of it."""
    targets = {target.adapter: target for target in plan.targets}
    results = []
    for end in upload_pending(plan.call.tree, pending_of_plan(plan), tracker, say):
        target = targets[end.adapter]
        results.append(Result(target=target, state=target.existing, uploaded=not end.error, owed=end.error))
    return results
