"""From which checkpoint a training would go on, told before it begins."""

from mimicry.study import Captions, ImageFolder
from mimicry.study.captions import image_records, record_differences
from mimicry.tuning.adapters import AdapterFolder
from mimicry.tuning.adapters.checkpoint_facts import CheckpointFacts, choose_checkpoint
from mimicry.tuning.adapters.judge import other_class_images
from mimicry.tuning.adapters.recipe import OWN_TRAINER
from mimicry.tuning.planning.request import Request


def resumption(
    request: Request, folder: AdapterFolder, images: ImageFolder, captions: Captions | None, *, full: bool
) -> str:
    """Say at which step a training goes on, and which checkpoints it drops and why; empty without any.

    Args:
        full: read the checkpoints and the images whole, as the trainer does.

    Raises:
        UsageError: the checkpoint that --resume-from-checkpoint names does not fit.
    """
    recipe = request.spec.recipe
    if recipe is None or recipe["trainer"] != OWN_TRAINER:  # others know themselves what they go on from
        return ""

    def difference(checkpoint: CheckpointFacts) -> str:
        facts = checkpoint.facts
        try:
            words = record_differences(facts["images"], image_records(images, captions, hashed=full))
        except OSError:
            words = ["other images"]
        asked = request.spec.class_images
        if asked is not None and other_class_images(facts.get("class_images"), asked, full=full):
            words.append("other class images")
        return checkpoint.other_run(recipe, words)

    read = CheckpointFacts.read if full else CheckpointFacts.glance
    found, dropped = choose_checkpoint(folder, request.config.resume_from_checkpoint, read, difference)
    words = [f"drops {name}: {reason}" for name, reason in dropped.items()]
    if found is not None:
        words.insert(0, f"resumes at step {found.step} of {request.config.step_count(len(images.names))}")
    return "; ".join(words)
