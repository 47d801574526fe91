"""The stages of a training, one after the other."""

import gc
import signal

import torch
import transformers

from mimicry.common.children import signal_noted, stop_signals_held
from mimicry.common.images import ImageFolder
from mimicry.tuning.adapter import Adapter
from mimicry.tuning.hf_diffusers.sd3.evaluation import Evaluation, eval_levels, find_eval_set
from mimicry.tuning.hf_diffusers.sd3.job import Job, Setup
from mimicry.tuning.hf_diffusers.sd3.kernels import attention
from mimicry.tuning.hf_diffusers.sd3.latents import LatentSource
from mimicry.tuning.hf_diffusers.sd3.lora import save_adapter
from mimicry.tuning.hf_diffusers.sd3.prompt_cache import CachedEncoders
from mimicry.tuning.hf_diffusers.sd3.prompts import TextEncoders
from mimicry.tuning.hf_diffusers.sd3.records import RunRecord, say
from mimicry.tuning.hf_diffusers.sd3.training import Loop
from mimicry.tuning.hf_diffusers.sd3.transformer import load_transformer
from mimicry.tuning.hf_diffusers.sd3.validation import Validation, decode_samples, encode_validation


def train_adapter(job: Job) -> Adapter | None:
    """Train the adapter of `job` and publish it in its output folder; return it in the main process."""
    setup = Setup.prepare(job)
    record = RunRecord(setup)
    adapter = _train(setup, record)
    # Nothing holds the transformer any more.
    _free(setup)
    decode_samples(setup, record)
    return adapter


def _train(setup: Setup, record: RunRecord) -> Adapter | None:
    processes = setup.processes
    with processes.as_one(record.watched()), signal_noted(signal.SIGUSR1) as checkpoint_asked:
        with record.stage("encode"):
            cached = _cached_encoders(setup, record)
            prompt = cached.encode(setup.job.config.instance_prompt, setup.job.config.max_sequence_length)
            shown = encode_validation(setup, cached)
            _free(setup)
            latents, eval_images = _encode_images(setup, record)
        with record.stage("load"):
            say("reading the transformer")
            levels = eval_levels(setup) if eval_images else []
            loop = Loop(setup, load_transformer(setup), prompt, latents, record, extra_timesteps=levels)
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
            with stop_signals_held():
                return _save(setup, loop, record) if processes.is_main else None


def _cached_encoders(setup: Setup, record: RunRecord) -> CachedEncoders:
    config = setup.job.config
    # Bars of reading weights make a log unreadable; those of a download are over by now.
    transformers.utils.logging.disable_progress_bar()
    encoders = TextEncoders(setup.model, config.variant, setup.device, setup.dtype, record.warn)
    return CachedEncoders.of(encoders, config.prompt_cache_dir)


def _encode_images(setup: Setup, record: RunRecord) -> tuple[LatentSource, ImageFolder | None]:
    config = setup.job.config
    latents = LatentSource(setup.model, setup.images.paths, config, setup.device)
    eval_images = find_eval_set(setup.job, latents, record)
    if config.cache_latents:
        say(f"encoding {len(setup.images.names)} images at {config.resolution}x{config.resolution}")
        latents.cache(setup.samples.distinct_views(setup.own_samples()))
        _free(setup)
    return latents, eval_images


def _save(setup: Setup, loop: Loop, record: RunRecord) -> Adapter:
    adapter = save_adapter(loop.transformer, setup.job.output_dir, setup.job.config, record.finished())
    record.complete = True
    record.checkpoints.remove_all()
    say(f"saved {setup.job.output_dir}: rank {adapter.rank}, {len(adapter.modules)} modules")
    return adapter


def _free(setup: Setup) -> None:
    gc.collect()
    if setup.device.type == "cuda":
        torch.cuda.empty_cache()
