"""The stages of a training, one after the other."""

import signal
from collections.abc import Callable
from contextlib import nullcontext

from mimicry.common.processes import signal_noted, stop_signals_held
from mimicry.tuning.adapters import Adapter
from mimicry.tuning.hf_diffusers.job import Job
from mimicry.tuning.hf_diffusers.sd3.adapted_transformer import AdaptedTransformer
from mimicry.tuning.hf_diffusers.sd3.encoding import encode
from mimicry.tuning.hf_diffusers.sd3.evaluation import Evaluation, eval_keys
from mimicry.tuning.hf_diffusers.sd3.lora import save_adapter
from mimicry.tuning.hf_diffusers.sd3.setup import Setup
from mimicry.tuning.hf_diffusers.sd3.trainer import Trainer
from mimicry.tuning.hf_diffusers.sd3.validation import Validation, decode_samples
from mimicry.tuning.hf_diffusers.training.endings import recording_end
from mimicry.tuning.hf_diffusers.training.records import RunRecord


def train_adapter(job: Job) -> Adapter | None:
    """Train the adapter of `job` and publish it in its output folder, which this process claims.

    Returns:
        The adapter, in the main process.
    """
    with signal_noted(signal.SIGUSR1) as checkpoint_asked:
        setup = Setup.prepare(job)
        with setup.claimed() as claim:
            record = setup.new_record(claim)
            record.begin()
            adapter = _train(setup, record, checkpoint_asked)
            # Nothing of ours holds the transformer any more.
            decode_samples(setup, record)
            record.write_after_end()
    return adapter


def _train(setup: Setup, record: RunRecord, checkpoint_asked: Callable[[], bool]) -> Adapter | None:
    runtime, config, data = setup.runtime, setup.job.config, setup.data
    with runtime.processes.guarded(recording_end(record)):
        for warning in data.captions.warnings if data.captions else ():
            record.warn(warning)
        encoded = encode(setup, record)
        batches = encoded.batches
        with record.stage("read_transformer"):
            evaluated = set() if encoded.eval_images is None else eval_keys(config, len(batches.maker.sigmas))
            model = AdaptedTransformer.load(setup, batches, record, evaluated)
            record.add_memory(
                conditioning_table=model.modulation is not None, checkpointed_blocks=model.checkpointed
            )
            batches = batches.with_modulation(model.modulation)
            trainer = Trainer(model, batches, record)
            evaluation = Evaluation(model, batches, encoded.eval_images, record)
            record.eval_facts |= evaluation.facts
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
    setup.data.refuse_changed_images(record.images)
    folder = setup.job.inputs.output_dir
    with record.stage("save"):
        adapter = save_adapter(model.transformer, folder, setup.job.config, record.finished())
    record.end_with(adapter)
    return adapter
