"""Every option: declared once, turned into click options, trainer flags and argument lists.

What programs need of it is named here; the rest lies in its modules.
"""

from mimicry.tuning.options.click_options import (
    CALL,
    CONDITIONS,
    STUDY,
    condition_filters,
    data_root_option,
    handed_on_options,
    hub_options,
    hyper_parameter,
    hyper_parameter_options,
    option,
    option_words,
    options,
    program,
    selection_of,
    selection_options,
    take_config,
    tree_options,
)
from mimicry.tuning.options.config import OPTIONS, TuningConfig
from mimicry.tuning.options.flags import TrainingInputs, input_options
from mimicry.tuning.options.slurm_options import SLURM, SlurmSettings, cluster_options
from mimicry.tuning.options.study_defaults import STUDY_VARIANT, series_of_call, study_file_of
from mimicry.tuning.options.study_file import (
    MOST_REPLICATES,
    ORDERS,
    Series,
    StudyFile,
    all_series,
    chosen_series,
)

__all__ = [
    "CALL",
    "CONDITIONS",
    "MOST_REPLICATES",
    "OPTIONS",
    "ORDERS",
    "SLURM",
    "STUDY",
    "STUDY_VARIANT",
    "Series",
    "SlurmSettings",
    "StudyFile",
    "TrainingInputs",
    "TuningConfig",
    "all_series",
    "chosen_series",
    "cluster_options",
    "condition_filters",
    "data_root_option",
    "handed_on_options",
    "hub_options",
    "hyper_parameter",
    "hyper_parameter_options",
    "input_options",
    "option",
    "option_words",
    "options",
    "program",
    "selection_of",
    "selection_options",
    "series_of_call",
    "study_file_of",
    "take_config",
    "tree_options",
]
