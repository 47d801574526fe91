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
    option_words,
    options,
    selection_of,
    selection_options,
    take_config,
    tree_options,
)
from mimicry.tuning.options.config import OPTIONS, TuningConfig
from mimicry.tuning.options.grouped_help import option, program
from mimicry.tuning.options.inputs import TrainingInputs, input_options
from mimicry.tuning.options.series import Series, all_series, chosen_series
from mimicry.tuning.options.study_defaults import STUDY_VARIANT, series_of_call, study_file_of
from mimicry.tuning.options.study_file import MOST_REPLICATES, ORDERS, StudyFile

__all__ = [
    "CALL",
    "CONDITIONS",
    "MOST_REPLICATES",
    "OPTIONS",
    "ORDERS",
    "STUDY",
    "STUDY_VARIANT",
    "Series",
    "StudyFile",
    "TrainingInputs",
    "TuningConfig",
    "all_series",
    "chosen_series",
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
