"""The first stages of a training: prompts and images become embeddings and latents."""

from dataclasses import dataclass

import transformers

from mimicry.study import ImageFolder
from mimicry.tuning.hf_diffusers.sd3.batches import BatchSource
from mimicry.tuning.hf_diffusers.sd3.class_sampling import make_class_images
from mimicry.tuning.hf_diffusers.sd3.evaluation import find_eval_set
from mimicry.tuning.hf_diffusers.sd3.prompt_cache import CachedEncoders
from mimicry.tuning.hf_diffusers.sd3.prompts import PromptEmbeds, TextEncoders
from mimicry.tuning.hf_diffusers.sd3.sampling import NEGATIVE_PROMPT
from mimicry.tuning.hf_diffusers.sd3.setup import Setup
from mimicry.tuning.hf_diffusers.sd3.validation import ValidationPrompts
from mimicry.tuning.hf_diffusers.training.console import say
from mimicry.tuning.hf_diffusers.training.latents import LatentSource
from mimicry.tuning.hf_diffusers.training.records import RunRecord


@dataclass(frozen=True)
class Encoded:
    """What is trained on, evaluated on, and drawn for validation; the last two where they are asked for."""

    batches: BatchSource
    eval_images: ImageFolder | None
    validation: ValidationPrompts | None


def encode(setup: Setup, record: RunRecord) -> Encoded:
    """Encode prompts, then images; class images that are missing are generated in between."""
    with record.stage("encode_prompts"):
        prompts, validation = _encode_prompts(setup, record)
    with record.stage("encode_images"):
        latents, eval_images = _encode_images(setup, record)
    batches = BatchSource.of(setup.model, setup.data, setup.runtime, prompts, latents)
    return Encoded(batches, eval_images, validation)


def _encode_prompts(setup: Setup, record: RunRecord) -> tuple[list[PromptEmbeds], ValidationPrompts | None]:
    """Return the embeddings of the prompts and of those for validation, each encoder read once for all."""
    config, runtime, data = setup.job.config, setup.runtime, setup.data
    # Progress bars of reading weights make a log unreadable; those of a download are over by now.
    transformers.utils.logging.disable_progress_bar()
    encoders = TextEncoders(setup.model, config.variant, runtime.device, runtime.dtype, record.warn)
    cached = CachedEncoders.of(encoders, config.prompt_cache_dir)
    generates = data.class_images is not None and bool(data.class_images.missing())
    drawn = config.validation_prompt
    texts = [
        *data.prompts.texts,
        *([] if drawn is None else [drawn]),
        *([NEGATIVE_PROMPT] if generates or drawn is not None else []),
    ]
    distinct = list(dict.fromkeys(texts))
    embeds = dict(zip(distinct, cached.encode_all(distinct, config.max_sequence_length), strict=True))
    runtime.free_memory()
    if data.class_images is not None:
        if generates:
            prompt, negative = embeds[data.prompts.class_text], embeds[NEGATIVE_PROMPT]
            with record.stage("class_images"):
                make_class_images(data.class_images, setup.model, runtime, prompt, negative)
        if "class_images" not in record.facts:
            record.facts["class_images"] = data.class_images.record()
    return (
        [embeds[text] for text in data.prompts.texts],
        None if drawn is None else ValidationPrompts(embeds[drawn], embeds[NEGATIVE_PROMPT]),
    )


def _encode_images(setup: Setup, record: RunRecord) -> tuple[LatentSource, ImageFolder | None]:
    config, data, device = setup.job.config, setup.data, setup.runtime.device
    latents = LatentSource.load(setup.model, data.images.paths, config, device, data.class_paths)
    eval_images = find_eval_set(setup.job, latents, record)
    if config.cache_latents:
        count = len(data.images.names) + len(data.class_paths)
        say(f"encoding {count} images at {config.resolution}x{config.resolution}")
        own = list(data.schedule.own_indices())
        latents.cache(sample for plan in data.schedule.plans for sample in plan.distinct_crops(own))
        setup.runtime.free_memory()
    return latents, eval_images
