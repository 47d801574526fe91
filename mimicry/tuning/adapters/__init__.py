"""What lies in an adapter's folder: weights, record, recipe, state."""

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
from mimicry.tuning.adapters.judge import AdapterSpec, AdapterState, judge_adapter
from mimicry.tuning.adapters.recipe import complete_options, recipe_differences
from mimicry.tuning.adapters.training_run import TRAINING_RUN, TrainingRun
from mimicry.tuning.adapters.weights import ANY_LORA, Adapter, AdapterFormat

__all__ = [
    "ADAPTER_CONFIG",
    "ANY_LORA",
    "METRICS",
    "SAMPLES",
    "TRAINING_RUN",
    "TRAIN_LOG",
    "WEIGHTS",
    "Adapter",
    "AdapterFolder",
    "AdapterFormat",
    "AdapterSpec",
    "AdapterState",
    "TrainingRun",
    "complete_options",
    "describe_differences",
    "judge_adapter",
    "numerics_differences",
    "recipe_differences",
    "sister_differences",
]
