"""What lies in an adapter's folder: weights, record, recipe, state."""

from mimicry.tuning.adapters.bookmark import (
    Bookmark,
    complete_bookmark,
    log_path,
    open_tracker,
    read_bookmarks,
    record_adapter,
)
from mimicry.tuning.adapters.folder import (
    ADAPTER_CONFIG,
    METRICS,
    SAMPLES,
    TRAIN_LOG,
    WEIGHTS,
    AdapterFolder,
    describe_differences,
    numerics_differences,
    sister_differences,
)
from mimicry.tuning.adapters.inspect import ALLOW_UNPAIRED, TO_TRAIN, AdapterStatus, Inspector, QueuedJob
from mimicry.tuning.adapters.judge import AdapterSpec, AdapterState, judge_adapter, other_class_images
from mimicry.tuning.adapters.recipe import (
    OWN_TRAINER,
    complete_options,
    recipe_differences,
    recipe_hash,
    trainer_identity,
)
from mimicry.tuning.adapters.safetensors_file import SafetensorsFile
from mimicry.tuning.adapters.training_run import TRAINING_RUN, Evaluated, TrainingRun
from mimicry.tuning.adapters.weights import ANY_LORA, Adapter, AdapterFormat, check_header, lora_arguments

__all__ = ["ADAPTER_CONFIG", "ALLOW_UNPAIRED", "ANY_LORA", "METRICS", "OWN_TRAINER", "SAMPLES", "TO_TRAIN"]
__all__ += ["TRAINING_RUN", "TRAIN_LOG", "WEIGHTS", "Adapter", "AdapterFolder", "AdapterFormat"]
__all__ += ["AdapterSpec", "AdapterState", "AdapterStatus", "Bookmark", "Evaluated", "Inspector", "QueuedJob"]
__all__ += ["SafetensorsFile", "TrainingRun", "check_header", "complete_bookmark", "complete_options"]
__all__ += ["describe_differences", "judge_adapter", "log_path", "lora_arguments", "numerics_differences"]
__all__ += ["open_tracker", "other_class_images", "read_bookmarks", "recipe_differences", "recipe_hash"]
__all__ += ["record_adapter", "sister_differences", "trainer_identity"]
