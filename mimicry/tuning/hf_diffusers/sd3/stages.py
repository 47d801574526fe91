"""The stages of a training, one after the other."""

import gc
import signal

import torch
import transformers

from mimicry.common.children import signal_noted, stop_signals_held
from mimicry.tuning.adapter import Adapter
from mimicry.tuning.hf_diffusers.sd3.job import Job, Setup
from mimicry.tuning.hf_diffusers.sd3.latents import LatentSource
from mimicry.tuning.hf_diffusers.sd3.lora import save_adapter
from mimicry.tuning.hf_diffusers.sd3.prompts import PromptEmbeds, TextEncoders
from mimicry.tuning.hf_diffusers.sd3.records import RunRecord, say
from mimicry.tuning.hf_diffusers.sd3.training import Loop, load_transformer


def train_adapter(job: Job) -> Adapter:
    """Train the adapter of `job` and publish it in its output folder."""
    setup = Setup.prepare(job)
    record = RunRecord(setup)
    with record.watched(), signal_noted(signal.SIGUSR1) as checkpoint_asked:
        with record.stage("encode"):
            prompt = _encode_prompt(setup, record)
            latents = _encode_images(setup)
        with record.stage("load"):
            say("reading the transformer")
            loop = Loop(setup, load_transformer(setup), prompt, latents, record)
            if record.resumed is not None:
                loop.restore(record.resumed)
        with loop.saved_when_stopped():
            with record.stage("train"):
                say(f"training {job.config.max_train_steps - record.steps} steps on {setup.device}")
                loop.run(checkpoint_asked)
            with stop_signals_held():
                return _save(setup, loop, record)


def _encode_prompt(setup: Setup, record: RunRecord) -> PromptEmbeds:
    config = setup.job.config
    say(f"encoding the prompt {config.instance_prompt!r}")
    # Bars of reading weights make a log unreadable; those of a download are over by now.
    transformers.utils.logging.disable_progress_bar()
    encoders = TextEncoders(setup.model, config.variant, setup.device, setup.dtype, record.warn)
    prompt = encoders.encode(config.instance_prompt, config.max_sequence_length)
    _free(setup)
    return prompt


def _encode_images(setup: Setup) -> LatentSource:
    config = setup.job.config
    latents = LatentSource(setup.model, setup.images.paths, config, setup.device)
    if config.cache_latents:
        say(f"encoding {len(setup.images.names)} images at {config.resolution}x{config.resolution}")
        latents.cache(setup.samples.distinct_views(setup.sample_count))
        _free(setup)
    return latents


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
