"""The Hugging Face Hub: names, checks before training, uploads.

What most of the project needs of it is named here; the rest lies in its modules.
"""

from mimicry.tuning.hub.names import colliding_names, refuse_names, token_problems
from mimicry.tuning.hub.upload import HubOptions, Upload, Uploaded, hub_problems, upload_and_record

__all__ = [
    "HubOptions",
    "Upload",
    "Uploaded",
    "colliding_names",
    "hub_problems",
    "refuse_names",
    "token_problems",
    "upload_and_record",
]
