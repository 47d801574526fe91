"""The study's data: its tree, artists and conditions, images, captions, progress."""

from mimicry.study.captions import Captions
from mimicry.study.images import ImageFolder, ImageRecord
from mimicry.study.matrix import ChosenConditions, in_order
from mimicry.study.pairing import EvaluatedOn, Pairing, held_out, hold_out_problem, training_set
from mimicry.study.tree import AdapterId, Artist, Condition, Source, State, StudyTree, sister_folders

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
