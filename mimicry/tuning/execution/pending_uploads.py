"""Uploading adapters that are complete and not on the Hub yet: what is owed is paid, without training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mimicry.common.claims import Claim
from mimicry.common.errors import AdapterBroken, ClaimedElsewhere, MimicryError
from mimicry.common.text import printable
from mimicry.study.tracker import ProgressTracker
from mimicry.tuning.adapters.folder import TRAINING_RUN, read_training_run
from mimicry.tuning.adapters.state import Asked, State, judge_existing, weights_identity
from mimicry.tuning.execution.batch import Result
from mimicry.tuning.execution.bookmarks import complete_bookmark
from mimicry.tuning.hub.job import UploadJob
from mimicry.tuning.hub.upload import upload_and_record
from mimicry.tuning.planning.plan import Action, Plan, Target

# So many failures that are alike mean that the Hub, and not an adapter, is at fault.
_SAME_FAILURES = 3


@dataclass(frozen=True, kw_only=True)
class Debt:
    """Whether a whole adapter is to be uploaded, and why, or why not, in words."""

    target: Target
    job: UploadJob
    owed: bool
    reason: str


def find_debts(
    plan: Plan, make_job: Callable[[Target], UploadJob], *, every: bool, full: bool = True
) -> list[Debt]:
    """Look at each whole adapter of the plan, except those that are to be trained again.

    Args:
        make_job: where the adapter of a target goes.
        every: also those that are stale and were never to be uploaded; else of stale ones what is owed.
        full: where nothing can be trained, check every value of the adapter; the plan has checked the others.
    """
    return [
        _debt(target, make_job(target), every=every)
        for target in plan.targets
        if target.action is not Action.TRAIN and _state(target, full=full) in (State.COMPLETE, State.STALE)
    ]


def pay(
    plan: Plan, debts: Sequence[Debt], tracker: ProgressTracker, say: Callable[[str], None]
) -> list[Result]:
    """Upload what is owed, one after the other, and keep book of it; return what became of each.

    One that another call works on stays owed.

    Raises:
        Interrupted: a stop signal came; what was not uploaded is still owed.
    """
    results: list[Result] = []
    errors: list[str] = []
    owner: str | None = None
    owed = [debt for debt in debts if debt.owed]
    for number, debt in enumerate(owed, start=1):
        label = f"[{number}/{len(owed)}] {printable(str(debt.target.artist))}"
        if len(errors) == _SAME_FAILURES and len(set(errors)) == 1:
            results.append(
                Result(target=debt.target, outcome="owed", owed="not tried, as others failed alike")
            )
            continue
        say(f"{label}: uploading to {debt.job.repository}")
        try:
            uploaded = _pay(debt, owner)
        except ClaimedElsewhere as error:
            say(f"{label}: {error}")
            results.append(Result(target=debt.target, outcome="owed", owed=str(error)))
            # What is to be said of it in the tracker is for the other call to say.
            continue
        except MimicryError as error:
            say(f"{label}: {error}")
            # What differs from one to the next is where it was to go.
            alike = str(error).replace(str(debt.job.folder), "").replace(debt.job.repository, "")
            errors = [*errors, alike][-_SAME_FAILURES:]
            results.append(Result(target=debt.target, outcome="owed", owed=str(error)))
        else:
            errors, owner = [], uploaded.partition("/")[0]
            say(f"{label}: uploaded to {uploaded}")
            results.append(Result(target=debt.target, outcome="uploaded"))
        mark = complete_bookmark(plan.request.tree, debt.target.output_dir)
        tracker.record(plan.request.key(debt.target.artist), **mark)
    return results


def _pay(debt: Debt, owner: str | None) -> str:
    """Upload one adapter, while nobody else works in its folder; return the id of its repository.

    Args:
        owner: whose token this is, where that is known: the Hub lets one ask a few times only.

    Raises:
        ClaimedElsewhere: another call works there, or has put another adapter there.
        MimicryError: it was not uploaded.
    """
    folder = debt.job.folder
    with Claim.take_anew(folder):
        if weights_identity(folder) != debt.target.weights:
            raise ClaimedElsewhere(f"{folder} was changed by another call; type the same command again")
        hub = _hub_record(read_training_run(folder) or {})
        if _is_there(hub, debt.job):  # another call has paid
            return str(hub["repository_id"])
        return upload_and_record(replace(debt.job, namespace=debt.job.namespace or owner)).repository_id


def _state(target: Target, *, full: bool) -> State:
    # One whose images are gone or cannot be read is blocked, and its adapter as good as ever.
    if target.action is not Action.BLOCKED:
        return target.existing
    return judge_existing(target.output_dir, Asked(None, None), target.images, full=full).state


def _debt(target: Target, job: UploadJob, *, every: bool) -> Debt:
    try:
        run = read_training_run(target.output_dir)
    except AdapterBroken as error:
        return Debt(target=target, job=job, owed=False, reason=str(error))
    if run is None:
        return Debt(target=target, job=job, owed=False, reason=f"it has no {TRAINING_RUN}")
    hub = _hub_record(run)
    if _is_there(hub, job):
        return Debt(target=target, job=job, owed=False, reason=f"uploaded to {hub['repository_id']}")
    if "owed" in hub:
        return Debt(target=target, job=job, owed=True, reason=f"owed: {hub.get('error', 'unknown')}")
    if target.existing is State.STALE and not every:
        return Debt(target=target, job=job, owed=False, reason="stale, and never to be uploaded")
    elsewhere = f"uploaded to {hub['repository_id']} only" if hub.get("commit") else "never uploaded"
    return Debt(target=target, job=job, owed=True, reason=elsewhere)


def _hub_record(run: Mapping[str, Any]) -> dict[str, Any]:
    hub = run.get("hub")
    return hub if isinstance(hub, dict) else {}


def _is_there(hub: dict[str, Any], job: UploadJob) -> bool:
    """Return whether `hub`, of a training_run.json, tells of an upload to where `job` goes."""
    if not hub.get("commit"):
        return False
    owner, _, name = str(hub.get("repository_id")).rpartition("/")
    asked, _, wanted = job.repository.rpartition("/")
    asked = asked or job.namespace or owner
    return (owner.casefold(), name.casefold()) == (asked.casefold(), wanted.casefold())
