"""The study's data: its tree, artists and conditions, images, captions, progress."""

from mimicry.study.captions import CAPTION_FIELD, Captions, image_records, record_differences
from mimicry.study.cells import CellImages, Listing, leave_out, left_out
from mimicry.study.drawn_images import (
    DEFAULT_GUIDANCE,
    DEFAULT_STEPS,
    SETTINGS_ENTRY,
    ClassImages,
    default_prompts,
    read_settings,
    save_sample,
)
from mimicry.study.image_checks import (
    BadImage,
    Examined,
    Progress,
    Size,
    bad_images,
    examine,
    refuse_changed_images,
    remembered,
    stated_sizes,
    unreadable,
)
from mimicry.study.image_sets import Dose, Finding, described_images, image_facts, unusable
from mimicry.study.images import ImageFolder, ImageRecord, Reading, read_rgb
from mimicry.study.matrix import CellFilter, ChosenConditions, Matrix, Selection, in_order
from mimicry.study.pairing import EvaluatedOn, Pairing, held_out, hold_out_problem, training_set
from mimicry.study.tracker import Bookmarks, ProgressTracker
from mimicry.study.tree import (
    ALL,
    COUNTERMEASURES,
    DEFAULT_DATA_ROOT,
    NONE,
    PROTECTIONS,
    AdapterId,
    Artist,
    Condition,
    Source,
    State,
    StudyTree,
    folders_in,
    series_name,
    sister_folders,
    variant_problem,
)

__all__ = ["ALL", "CAPTION_FIELD", "COUNTERMEASURES", "DEFAULT_DATA_ROOT", "DEFAULT_GUIDANCE"]
__all__ += ["DEFAULT_STEPS", "NONE", "PROTECTIONS", "SETTINGS_ENTRY", "AdapterId", "Artist", "BadImage"]
__all__ += ["Bookmarks", "Captions", "CellFilter", "CellImages", "ChosenConditions", "ClassImages"]
__all__ += ["Condition", "Dose", "EvaluatedOn", "Examined", "Finding", "ImageFolder", "ImageRecord"]
__all__ += ["Listing", "Matrix", "Pairing", "Progress", "ProgressTracker", "Reading", "Selection", "Size"]
__all__ += ["Source", "State", "StudyTree", "bad_images", "default_prompts", "described_images", "examine"]
__all__ += ["folders_in", "held_out", "hold_out_problem", "image_facts", "image_records", "in_order"]
__all__ += ["leave_out", "left_out", "read_rgb", "read_settings", "record_differences"]
__all__ += ["refuse_changed_images", "remembered", "save_sample", "series_name", "sister_folders"]
__all__ += ["stated_sizes", "training_set", "unreadable", "unusable", "variant_problem"]
