"""The stages of a training, one after the other."""

import gc
import signal
from collections.abc import Callable

import torch
import transformers

from mimicry.common.children import signal_noted, stop_signals_held
from mimicry.common.claims import Claim
from mimicry.common.images import ImageFolder
from mimicry.tuning.adapter import Adapter
from mimicry.tuning.hf_diffusers.sd3.evaluation import Evaluation, eval_levels, find_eval_set
from mimicry.tuning.hf_diffusers.sd3.job import Job, Setup
from mimicry.tuning.hf_diffusers.sd3.kernels import attention
from mimicry.tuning.hf_diffusers.sd3.latents import LatentSource
from mimicry.tuning.hf_diffusers.sd3.lora import save_adapter
from mimicry.tuning.hf_diffusers.sd3.prompt_cache import CachedEncoders
from mimicry.tuning.hf_diffusers.sd3.prompts import PromptEmbeds, TextEncoders
from mimicry.tuning.hf_diffusers.sd3.records import RunRecord, say
from mimicry.tuning.hf_diffusers.sd3.training import Loop
from mimicry.tuning.hf_diffusers.sd3.transformer import load_transformer


def train_adapter(job: Job) -> Adapter:
    """Train the adapter of `job` and publish it in its output folder, which nobody else may work in."""
    with signal_noted(signal.SIGUSR1) as checkpoint_asked:
        setup = Setup.prepare(job)
        with Claim.take(job.output_dir) as claim:
            return _train(setup, claim, checkpoint_asked)


def _train(setup: Setup, claim: Claim, checkpoint_asked: Callable[[], bool]) -> Adapter:
    job = setup.job
    record = RunRecord(setup, claim)
    with record.watched():
        with record.stage("encode"):
            prompt = _encode_prompt(setup, record)
            latents, eval_images = _encode_images(setup, record)
        with record.stage("load"):
            say("reading the transformer")
            levels = eval_levels(setup) if eval_images else []
            loop = Loop(setup, load_transformer(setup), prompt, latents, record, extra_timesteps=levels)
            evaluation = Evaluation(loop, latents, eval_images, record)
            if record.resumed is not None:
                loop.restore(record.resumed)
        with loop.saved_when_stopped(), attention(job.config, setup.device):
            if record.resumed is None:
                evaluation.evaluate_at(0)
            with record.stage("train"):
                say(f"training {setup.step_count - record.steps} steps on {setup.device}")
                loop.run(checkpoint_asked)
            evaluation.evaluate_at(setup.step_count)
            with stop_signals_held(), claim.kept():
                return _save(setup, loop, record)


def _encode_prompt(setup: Setup, record: RunRecord) -> PromptEmbeds:
    config = setup.job.config
    # Bars of reading weights make a log unreadable; those of a download are over by now.
    transformers.utils.logging.disable_progress_bar()
    encoders = TextEncoders(setup.model, config.variant, setup.device, setup.dtype, record.warn)
    cached = CachedEncoders.of(encoders, config.prompt_cache_dir)
    prompt = cached.encode(config.instance_prompt, config.max_sequence_length)
    _free(setup)
    return prompt


def _encode_images(setup: Setup, record: RunRecord) -> tuple[LatentSource, ImageFolder | None]:
    config = setup.job.config
    latents = LatentSource(setup.model, setup.images.paths, config, setup.device)
    eval_images = find_eval_set(setup.job, latents, record)
    if config.cache_latents:
        say(f"encoding {len(setup.images.names)} images at {config.resolution}x{config.resolution}")
        latents.cache(setup.samples.distinct_views(setup.sample_count))
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
