"""The study.toml of the demo: hyper-parameters for a model of this size on a CPU."""

from mimicry.common.files import write_bytes
from mimicry.study.tree import StudyTree

STUDY_TOML = """\
# What the demo trains, and what mimicry samples draws. docs/study_file.md explains every key.

[study]
protections = ["none", "mist"]
countermeasures = ["none", "noisy_upscaling"]
pilot = true                # the first artist of each style
hold_out = 4                # paintings that are not trained on: the evaluation loss is measured on them
push_to_hub = false

[recipe]
pretrained_model_name_or_path = "../tiny_sd3"
resolution = 64
learning_rate = 3e-3
max_train_steps = 120
train_batch_size = 4
gradient_accumulation_steps = 1
max_sequence_length = 24
mixed_precision = "no"
gradient_checkpointing = false

[samples]
prompts = [
    "a painting in the style of sks",
    "a painting of a boat in the style of sks",
    "a painting of a house in the style of sks",
    "a painting of a tree in the style of sks",
]
seeds = [3]
steps = 15
guidance = 3
"""


def write_study_file(tree: StudyTree) -> None:
    """Write the demo's study.toml, unless there is one: people change it to play."""
    path = tree.study_file
    if not path.exists() and not path.is_symlink():
        write_bytes(path, STUDY_TOML.encode())
