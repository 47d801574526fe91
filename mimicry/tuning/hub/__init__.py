"""The Hugging Face Hub: names, checks before training, uploads.

What most of the project needs of it is named here; the rest lies in its modules.
"""

from mimicry.tuning.hub.job import HubOptions, Uploaded, UploadJob
from mimicry.tuning.hub.names import colliding_names, refuse_names
from mimicry.tuning.hub.preflight import hub_problems
from mimicry.tuning.hub.token import token_problems
from mimicry.tuning.hub.upload import upload_and_record

__all__ = [
    "HubOptions",
    "UploadJob",
    "Uploaded",
    "colliding_names",
    "hub_problems",
    "refuse_names",
    "token_problems",
    "upload_and_record",
]
