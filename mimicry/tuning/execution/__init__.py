"""Carrying out a plan: trainings, claims, bookmarks, pending uploads.

What programs need of it is named here; the rest lies in its modules.
"""

from mimicry.tuning.execution.batch import Batch
from mimicry.tuning.execution.bookmarks import open_tracker
from mimicry.tuning.execution.engines import Engine, LocalEngine, SlurmEngine
from mimicry.tuning.execution.local import LocalExecutor
from mimicry.tuning.execution.pending_uploads import (
    PendingUpload,
    UploadEnd,
    due_repositories,
    pending_of_plan,
    pending_upload,
    upload_owed,
    upload_pending,
)
from mimicry.tuning.execution.places import Place, choose_places
from mimicry.tuning.execution.result import Result
from mimicry.tuning.execution.slurm_queue import QueuedJob, QueueUnknown, live_jobs

__all__ = [
    "Batch",
    "Engine",
    "LocalEngine",
    "LocalExecutor",
    "PendingUpload",
    "Place",
    "QueueUnknown",
    "QueuedJob",
    "Result",
    "SlurmEngine",
    "UploadEnd",
    "choose_places",
    "due_repositories",
    "live_jobs",
    "open_tracker",
    "pending_of_plan",
    "pending_upload",
    "upload_owed",
    "upload_pending",
]
