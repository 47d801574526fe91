"""Carrying out a plan: trainings, claims, bookmarks, pending uploads.

What programs need of it is named here; the rest lies in its modules.
"""

from mimicry.tuning.execution.batch import Batch
from mimicry.tuning.execution.bookmarks import open_tracker
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
from mimicry.tuning.execution.result import Result
from mimicry.tuning.execution.slurm import SlurmSubmitter
from mimicry.tuning.execution.slurm_batch import SlurmBatch
from mimicry.tuning.execution.slurm_queue import live_jobs, with_queue

__all__ = [
    "Batch",
    "LocalExecutor",
    "PendingUpload",
    "Result",
    "SlurmBatch",
    "SlurmSubmitter",
    "UploadEnd",
    "due_repositories",
    "live_jobs",
    "open_tracker",
    "pending_of_plan",
    "pending_upload",
    "upload_owed",
    "upload_pending",
    "with_queue",
]
