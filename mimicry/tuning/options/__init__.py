"""Every option: declared once, turned into click options, trainer flags and argument lists.

What programs need of it is named here; the rest lies in its modules.
"""

from mimicry.tuning.options.click_options import (
    CALL,
    CONDITIONS,
    STUDY_VARIANT,
    condition_filters,
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

__all__ = [
    "CALL",
    "CONDITIONS",
    "OPTIONS",
    "STUDY_VARIANT",
    "TrainingInputs",
    "TuningConfig",
    "condition_filters",
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
    "take_config",
    "tree_options",
]
