"""The study's data: its tree, artists and conditions, images, captions, progress.

Import common names from here, and others from the modules.
"""

from mimicry.study.captions import Captions
from mimicry.study.conditions import ChosenConditions, in_order
from mimicry.study.hold_out import EvaluatedOn, held_out, hold_out_problem, training_set
from mimicry.study.images import ImageFolder, ImageRecord
from mimicry.study.pairing import Pairing
from mimicry.study.states import State
from mimicry.study.tree import AdapterId, Artist, Condition, Source, StudyTree, sister_folders

__all__ = [
    "AdapterId",
    "Artist",
    "Captions",
    "ChosenConditions",
    "Condition",
    "EvaluatedOn",
    "ImageFolder",
    "ImageRecord",
    "Pairing",
    "Source",
    "State",
    "StudyTree",
    "held_out",
    "hold_out_problem",
    "in_order",
    "sister_folders",
    "training_set",
]
