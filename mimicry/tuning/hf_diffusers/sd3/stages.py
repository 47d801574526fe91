"""The stages of a training, one after the other."""

import signal
from collections.abc import Callable
from contextlib import ExitStack, nullcontext

import transformers

from mimicry.common.children import signal_noted, stop_signals_held
from mimicry.common.claims import Claim
from mimicry.study.image_checks import refuse_changed_images
from mimicry.study.images import ImageFolder
from mimicry.tuning.adapters.weights import Adapter
from mimicry.tuning.hf_diffusers.sd3.class_sampling import make_class_images
from mimicry.tuning.hf_diffusers.sd3.conditioning import Condition
from mimicry.tuning.hf_diffusers.sd3.evaluation import Evaluation, eval_conditions, find_eval_set
from mimicry.tuning.hf_diffusers.sd3.job import Job, Setup
from mimicry.tuning.hf_diffusers.sd3.lora import save_adapter
from mimicry.tuning.hf_diffusers.sd3.memory import free_memory
from mimicry.tuning.hf_diffusers.sd3.prompt_cache import CachedEncoders
from mimicry.tuning.hf_diffusers.sd3.prompts import PromptEmbeds, TextEncoders
from mimicry.tuning.hf_diffusers.sd3.records import RunRecord, say
from mimicry.tuning.hf_diffusers.sd3.sampling import NEGATIVE_PROMPT
from mimicry.tuning.hf_diffusers.sd3.training import Loop
from mimicry.tuning.hf_diffusers.sd3.transformer import load_transformer, trained_conditions
from mimicry.tuning.hf_diffusers.sd3.validation import Shown, Validation, decode_samples
from mimicry.tuning.hf_diffusers.training.kernels import attention
from mimicry.tuning.hf_diffusers.training.latents import LatentSource


def train_adapter(job: Job) -> Adapter | None:
    """Train the adapter of `job` and publish it in its output folder, which nobody else may work in.

    Returns:
        The adapter, in the main process.
    """
    with ExitStack() as stack:
        checkpoint_asked = stack.enter_context(signal_noted(signal.SIGUSR1))
        setup = Setup.prepare(job)
        claim = None
        with setup.processes.failing_together():
            if setup.processes.is_main:
                claim = stack.enter_context(Claim.take(job.output_dir))
        record = RunRecord(setup, claim)
        adapter = _train(setup, record, checkpoint_asked)
        # Nothing holds the transformer any more.
        free_memory(setup.device)
        decode_samples(setup, record)
    return adapter


def _train(setup: Setup, record: RunRecord, checkpoint_asked: Callable[[], bool]) -> Adapter | None:
    processes = setup.processes
    with processes.as_one(record.watched()):
        for warning in setup.captions.warnings if setup.captions else ():
            record.warn(warning)
        with record.stage("encode"):
            prompts, shown = _encode_prompts(setup, record)
            latents, eval_images = _encode_images(setup, record)
        with record.stage("load"):
            say("reading the transformer")
            conditions = _conditions(setup, evaluates=eval_images is not None)
            transformer = load_transformer(setup, conditions)
            loop = Loop(setup, transformer, prompts, latents, record, conditions)
            evaluation = Evaluation(loop, latents, eval_images, record)
            validation = Validation(loop, shown, record)
        with attention(setup.job.config, setup.device):
            # The adapter is still that of step 0, which changes nothing, in a run that is resumed too.
            validation.draw_base()
        if record.resumed is not None:
            loop.restore(record.resumed)
        with (
            loop.saved_when_stopped(),
            processes.stopping_together(),
            attention(setup.job.config, setup.device),
        ):
            if record.resumed is None:
                evaluation.evaluate_at(0)
            # Of the step that a stop signal may have come after.
            validation.draw_after(record.steps)
            with record.stage("train"):
                say(f"training {setup.step_count - record.steps} steps on {setup.device}")
                loop.run(checkpoint_asked, validation.draw_after)
            evaluation.evaluate_at(setup.step_count)
            with stop_signals_held(), nullcontext() if record.claim is None else record.claim.fenced():
                return _save(setup, loop, record) if processes.is_main else None


def _encode_prompts(setup: Setup, record: RunRecord) -> tuple[list[PromptEmbeds], Shown | None]:
    """Return the embeddings of `setup.prompts`, and what validation shows, each encoder read once for all.

    Class images that are missing are there afterwards.
    """
    config = setup.job.config
    # Bars of reading weights make a log unreadable; those of a download are over by now.
    transformers.utils.logging.disable_progress_bar()
    encoders = TextEncoders(setup.model, config.variant, setup.device, setup.dtype, record.warn)
    cached = CachedEncoders.of(encoders, config.prompt_cache_dir)
    generate = setup.class_images is not None and bool(setup.class_images.missing())
    shown = config.validation_prompt
    texts = [
        *setup.prompts.texts,
        *([] if shown is None else [shown]),
        *([NEGATIVE_PROMPT] if generate or shown is not None else []),
    ]
    distinct = list(dict.fromkeys(texts))
    embeds = dict(zip(distinct, cached.encode_all(distinct, config.max_sequence_length), strict=True))
    free_memory(setup.device)
    if generate:
        class_text = setup.prompts.texts[setup.prompts.of_class]
        make_class_images(setup, embeds[class_text], embeds[NEGATIVE_PROMPT])
    record.add_class_images()
    return (
        [embeds[text] for text in setup.prompts.texts],
        None if shown is None else Shown(embeds[shown], embeds[NEGATIVE_PROMPT]),
    )


def _encode_images(setup: Setup, record: RunRecord) -> tuple[LatentSource, ImageFolder | None]:
    config = setup.job.config
    class_paths = [] if setup.class_images is None else setup.class_images.images.paths
    latents = LatentSource(setup.model, setup.images.paths, config, setup.device, class_paths)
    eval_images = find_eval_set(setup.job, latents, record)
    if config.cache_latents:
        count = len(setup.images.names) + len(class_paths)
        say(f"encoding {count} images at {config.resolution}x{config.resolution}")
        own = list(setup.own_samples())
        latents.cache(sample for plan in setup.plans for sample in plan.distinct_views(own))
        free_memory(setup.device)
    return latents, eval_images


def _conditions(setup: Setup, *, evaluates: bool) -> set[Condition]:
    """Return all that the run asks of the transformer; only a conditioning table needs to know."""
    if not setup.job.config.conditioning_table:
        return set()
    return trained_conditions(setup) | (eval_conditions(setup) if evaluates else set())


def _save(setup: Setup, loop: Loop, record: RunRecord) -> Adapter:
    refuse_changed_images(setup.images, record.images)
    adapter = save_adapter(loop.transformer, setup.job.output_dir, setup.job.config, record.finished())
    record.complete = True
    record.checkpoints.remove_all()
    say(f"saved {setup.job.output_dir}: rank {adapter.rank}, {len(adapter.modules)} modules")
    return adapter
