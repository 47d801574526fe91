"""The stages of a training, one after the other."""

import signal
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import transformers

from mimicry.common.processes import signal_noted, stop_signals_held
from mimicry.study import ImageFolder
from mimicry.study.image_checks import refuse_changed_images
from mimicry.tuning.adapters import Adapter
from mimicry.tuning.adapters.training_run import LEFT_OUT, LaterClassImages, Memory
from mimicry.tuning.hf_diffusers.sd3.adapted_transformer import AdaptedTransformer
from mimicry.tuning.hf_diffusers.sd3.batches import BatchSource
from mimicry.tuning.hf_diffusers.sd3.class_sampling import make_class_images
from mimicry.tuning.hf_diffusers.sd3.evaluation import Evaluation, eval_keys, find_eval_set
from mimicry.tuning.hf_diffusers.sd3.lora import save_adapter
from mimicry.tuning.hf_diffusers.sd3.prompts import CachedEncoders, PromptEmbeds, TextEncoders
from mimicry.tuning.hf_diffusers.sd3.sampling import NEGATIVE_PROMPT
from mimicry.tuning.hf_diffusers.sd3.setup import Setup
from mimicry.tuning.hf_diffusers.sd3.trainer import Trainer
from mimicry.tuning.hf_diffusers.sd3.validation import Validation, ValidationPrompts, decode_samples
from mimicry.tuning.hf_diffusers.spec.trainer_args import TrainerArgs
from mimicry.tuning.hf_diffusers.training.distributed import say
from mimicry.tuning.hf_diffusers.training.latents import LatentSource
from mimicry.tuning.hf_diffusers.training.records import RunRecord, recording_end
from mimicry.tuning.hf_diffusers.training.resume import begin, checkpoints_of


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
    batches = BatchSource.from_data(setup.model, setup.data, setup.runtime, prompts, latents)
    return Encoded(batches, eval_images, validation)


def _encode_prompts(setup: Setup, record: RunRecord) -> tuple[list[PromptEmbeds], ValidationPrompts | None]:
    config, runtime, data = setup.args.config, setup.runtime, setup.data
    # Progress bars of reading weights make a log unreadable; those of a download are over by now.
    transformers.utils.logging.disable_progress_bar()
    encoders = TextEncoders(setup.model, config.variant, runtime.device, runtime.dtype, record.warn)
    cached = CachedEncoders.from_option(encoders, config.prompt_cache_dir)
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
            prompt, negative = embeds[data.prompts.texts[data.prompts.of_class]], embeds[NEGATIVE_PROMPT]
            with record.stage("class_images"):
                make_class_images(data.class_images, setup.model, runtime, prompt, negative)
        if record.trained.class_images is LEFT_OUT:
            record.generated = LaterClassImages(class_images=data.class_images.record())
    return (
        [embeds[text] for text in data.prompts.texts],
        None if drawn is None else (embeds[drawn], embeds[NEGATIVE_PROMPT]),
    )


def _encode_images(setup: Setup, record: RunRecord) -> tuple[LatentSource, ImageFolder | None]:
    config, data, device = setup.args.config, setup.data, setup.runtime.device
    latents = LatentSource.load(setup.model, data.images.paths, config, device, data.class_paths)
    eval_images = find_eval_set(setup.args, latents, record)
    if config.cache_latents:
        count = len(data.images.names) + len(data.class_paths)
        say(f"encoding {count} images at {config.resolution}x{config.resolution}")
        own = list(data.schedule.own_indices())
        latents.cache(sample for plan in data.schedule.plans for sample in plan.distinct_crops(own))
        setup.runtime.free_memory()
    return latents, eval_images


def train_adapter(args: TrainerArgs) -> Adapter | None:
    """Train the adapter and publish it in its output folder; only the main process returns it."""
    with signal_noted(signal.SIGUSR1) as checkpoint_asked:
        setup = Setup.prepare(args)
        with setup.claimed() as claim:
            record = setup.new_record(claim)
            begin(record)
            adapter = _train(setup, record, checkpoint_asked)
            # Nothing of ours holds the transformer any more.
            decode_samples(setup, record)
            record.write_after_end()
    return adapter


def _train(setup: Setup, record: RunRecord, checkpoint_asked: Callable[[], bool]) -> Adapter | None:
    runtime, config, data = setup.runtime, setup.args.config, setup.data
    with runtime.processes.guarded(recording_end(record)):
        for warning in data.captions.warnings if data.captions else ():
            record.warn(warning)
        encoded = encode(setup, record)
        batches = encoded.batches
        with record.stage("read_transformer"):
            evaluated = set() if encoded.eval_images is None else eval_keys(config, len(batches.maker.sigmas))
            model = AdaptedTransformer.load(setup, batches, record, evaluated)
            record.numerics.memory = Memory(
                conditioning_table=model.modulation is not None, checkpointed_blocks=model.checkpointed
            )
            batches = batches.with_modulation(model.modulation)
            trainer = Trainer(model, batches, record)
            evaluation = Evaluation(model, batches, encoded.eval_images, record)
            evaluation.record_set()
            validation = Validation(setup, model, encoded.validation, record)
        with runtime.attention():
            # The adapter is still that of step 0, which changes nothing, in a run that is resumed too.
            validation.draw_base()
        if record.resumed is not None:
            trainer.restore(record.resumed)
        with trainer.saved_when_stopped(), runtime.processes.deferring_stops(), runtime.attention():
            if record.resumed is None:
                evaluation.evaluate_at(0)
            # Of the step that a stop signal may have come after.
            validation.draw_after(record.steps)
            with record.stage("train"):
                trainer.run(checkpoint_asked, validation.draw_after)
            evaluation.evaluate_at(data.schedule.step_count)
            with stop_signals_held(), nullcontext() if record.claim is None else record.claim.fenced():
                return _save(setup, model, record) if runtime.processes.is_main else None


def _save(setup: Setup, model: AdaptedTransformer, record: RunRecord) -> Adapter:
    refuse_changed_images(setup.data.images, record.trained.images)
    folder = setup.args.inputs.output_dir
    with record.stage("save"):
        adapter = save_adapter(model.transformer, folder, setup.args.config, record.finished())
    record.adapter = adapter
    checkpoints_of(record).remove_all()
    say(f"saved {folder}: rank {adapter.rank}, {len(adapter.modules)} modules")
    return adapter
