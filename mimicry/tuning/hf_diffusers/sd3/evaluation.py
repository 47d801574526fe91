"""The evaluation loss: how well the original art is predicted, before and after training.

It is measured on a fixed set at fixed levels with fixed noise, so that its values can be compared: with one
base model and one set, all runs of an artist start from the very same value, whatever their training seed. It
is the mean, over images and levels, of the squared error of the predicted velocity, noise minus latents, in
fp32: unweighted, and not preconditioned, in every configuration of the training.
"""

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from mimicry.common.errors import TrainingFailed
from mimicry.study import EvaluatedOn, ImageFolder
from mimicry.tuning.adapters.training_run import EvalLoss
from mimicry.tuning.hf_diffusers.sd3.adapted_transformer import AdaptedTransformer
from mimicry.tuning.hf_diffusers.sd3.batches import BatchMaker, BatchSource, ForwardBatch
from mimicry.tuning.hf_diffusers.sd3.modulation import ModulationKey
from mimicry.tuning.hf_diffusers.spec.trainer_args import TrainerArgs
from mimicry.tuning.hf_diffusers.training import rng
from mimicry.tuning.hf_diffusers.training.device import Prefetch, worker_count
from mimicry.tuning.hf_diffusers.training.distributed import say
from mimicry.tuning.hf_diffusers.training.latents import LatentSource
from mimicry.tuning.hf_diffusers.training.records import RunRecord
from mimicry.tuning.options.config import TuningConfig

# More images would not measure better, and would cost time in each of many short runs.
_MOST_IMAGES = 20
_CENTRE = rng.Crop()
# Every image is evaluated with the instance prompt, not with its caption.
_PROMPT = 0
# In the place of the training seed, on which the evaluation's draws must not depend.
_SEED = 42
# So many samples at once keep a GPU busy. It needs no more memory than training leaves room for: without
# gradients a sample takes at most 28 bytes for each value of the stream, that of the stream itself included,
# in 16 bits (benchmarks/step_counts.py). Four take 112, and the least that sd3/memory.py counts for
# training, with every block checkpointed, is 113.
_GPU_BATCH_SIZE = 4
# An image, its stem, and the row of the sigma table that it is evaluated at.
_Point = tuple[Path, str, int]
_WORDS_ON = {
    EvaluatedOn.HELD_OUT: ", which are held out of training",
    EvaluatedOn.IN_SAMPLE: ", which is in-sample: it is on paintings that are trained on",
    EvaluatedOn.UNKNOWN: "",
}


def eval_timestep_indices(config: TuningConfig, level_count: int) -> list[int]:
    """Return the rows of the sigma table that are evaluated at: the middles of equal parts, highest first."""
    count = min(config.eval_timesteps, level_count)
    return [(2 * part + 1) * level_count // (2 * count) for part in range(count)]


def eval_keys(config: TuningConfig, level_count: int) -> set[ModulationKey]:
    return {(level, _PROMPT) for level in eval_timestep_indices(config, level_count)}


def eval_batch_size(device: torch.device, training_size: int) -> int:
    """Return how many samples are evaluated in one pass; on the CPU as in training, to keep the bits."""
    return _GPU_BATCH_SIZE if device.type == "cuda" else training_size


def find_eval_set(args: TrainerArgs, latents: LatentSource, record: RunRecord) -> ImageFolder | None:
    """Choose and encode the images to evaluate on, if any; their faults are warnings, and are printed."""
    if args.config.eval_timesteps == 0:
        _skip(record, "--eval_timesteps is 0")
        return None
    folder = args.inputs.read_eval_images(0)
    if folder is None:
        _skip(record, "no --eval_data_dir was given")
        return None
    if (problem := folder.problem()) is not None:
        _skip(record, "the folder of --eval_data_dir has no usable set of images", problem)
        return None
    hold_out = args.config.hold_out
    held_out = args.inputs.read_eval_images(hold_out) if hold_out else None
    if held_out is not None and len(held_out.names) < hold_out:
        _skip(record, "the folder of --eval_data_dir lacks paintings that --hold_out holds out")
        return None
    chosen = held_out or replace(folder, names=folder.names[:_MOST_IMAGES])
    on = _on(args, chosen)
    left_out = 0 if held_out else len(folder.names) - len(chosen.names)
    say(
        f"encoding {len(chosen.names)} images for the evaluation{_WORDS_ON[on]}"
        + (f", the first by name; {left_out} more are left out" if left_out else "")
    )
    try:
        for path in chosen.paths:
            latents.hold(path, _CENTRE)
    except TrainingFailed as error:
        _skip(record, "an image of --eval_data_dir cannot be read", str(error))
        return None
    record.eval_loss = EvalLoss(on=on)
    return chosen


def _on(args: TrainerArgs, evaluated: ImageFolder) -> EvaluatedOn:
    if args.config.hold_out:
        return EvaluatedOn.HELD_OUT
    # An image of another name may show a painting that is trained on, or not.
    trained = set(args.inputs.read_images(0).stems)
    return EvaluatedOn.UNKNOWN if trained.isdisjoint(evaluated.stems) else EvaluatedOn.IN_SAMPLE


def _skip(record: RunRecord, reason: str, problem: str = "") -> None:
    record.eval_loss = EvalLoss(skipped=reason)
    if problem:
        # Names a path of this machine, which has no place in training_run.json.
        say(f"--eval_data_dir: {problem}")
        record.warn(f"no evaluation: {reason}")
    else:
        say(f"no evaluation: {reason}")


@dataclass(frozen=True)
class _Passes:
    size: int
    maker: BatchMaker


class Evaluation:
    """The evaluation of one run; it does nothing without images."""

    def __init__(
        self, model: AdaptedTransformer, batches: BatchSource, images: ImageFolder | None, record: RunRecord
    ) -> None:
        self._model = model
        self._batches = batches
        self._record = record
        self._images = images
        levels = [] if images is None else self._levels()
        files = [] if images is None else list(zip(images.paths, images.stems, strict=True))
        self._points = [(path, stem, level) for (path, stem), level in product(files, levels)]
        self._training_passes = _Passes(batches.schedule.forward_batch_size, batches.maker)
        self._passes = self._passes_of(eval_batch_size(model.runtime.device, self._training_passes.size))
        self._is_short_of_memory = False

    def _passes_of(self, size: int) -> _Passes:
        # Rows of a modulation table that are computed for a batch of another size are rounded otherwise.
        maker = self._batches.maker
        if maker.modulation is None or not self._points or size == self._training_passes.size:
            return _Passes(size, maker)
        keys = eval_keys(self._model.runtime.config, len(maker.sigmas))
        with self._record.stage("conditioning_table"):
            modulation = self._model.modulation_for(maker, keys, size)
            self._model.runtime.free_memory()
        return _Passes(size, replace(maker, modulation=modulation))

    def _levels(self) -> list[int]:
        return eval_timestep_indices(self._model.runtime.config, len(self._batches.maker.sigmas))

    def record_set(self) -> None:
        if self._images is not None:
            timesteps = self._batches.maker.sigmas.timesteps
            self._record.eval_loss.images = len(self._images.names)
            self._record.eval_loss.timesteps = [round(float(timesteps[level]), 3) for level in self._levels()]

    def evaluate_at(self, step: int) -> None:
        """Record the loss after a step, once; 0 is the base model. TrainingFailed where it is not finite."""
        if not self._points or step in self._record.history.eval_losses:
            return
        with self._record.stage("evaluate"):
            loss = self._loss()
        if not math.isfinite(loss):
            reason = (
                "training diverged; type a smaller --learning-rate" if step else "the base model is broken"
            )
            raise self._model.runtime.processes.common_error(
                TrainingFailed(f"the evaluation loss of step {step} is {loss}: {reason}")
            )
        self._record.add_eval(step, loss)
        say(f"evaluation at step {step}: loss {loss:.4f}")

    @torch.no_grad()
    def _loss(self) -> float:
        runtime, size = self._model.runtime, self._passes.size
        processes = runtime.processes
        # Each process fills in its part, and zeros change no sum: the values are those of a lone process.
        errors = torch.zeros(len(self._points), device=runtime.device)
        firsts = processes.shard(range(0, len(self._points), size))
        groups = [self._points[first : first + size] for first in firsts if first is not None]
        coming = Prefetch(
            lambda number: self._batch(groups[number], self._passes),
            len(groups),
            worker_count(runtime.config, runtime.device),
        )
        with self._model.evaluating(), closing(coming):
            for number, first in enumerate(firsts):
                processes.barrier_gather(None)
                if first is not None:
                    errors[first : first + size].copy_(self._group_errors(groups, number, coming))
        processes.barrier_gather(None)
        processes.all_reduce_sum([errors])
        # One transfer from the device, and a sum without rounding.
        values = errors.tolist()
        return math.fsum(values) / len(values)

    def _group_errors(
        self, groups: Sequence[Sequence[_Point]], number: int, coming: Prefetch[ForwardBatch]
    ) -> Tensor:
        group, small = groups[number], self._training_passes
        if not self._is_short_of_memory:
            try:
                return self._errors(coming.get(number))[: len(group)]
            except torch.OutOfMemoryError:
                if self._passes.size <= small.size:
                    raise
            # The error held on to what is freed here.
            self._is_short_of_memory = True
            self._model.runtime.free_memory()
            self._record.warn(f"out of GPU memory: evaluation batch size reduced to {small.size}")
        parts = [group[first : first + small.size] for first in range(0, len(group), small.size)]
        return torch.cat([self._errors(self._batch(part, small))[: len(part)] for part in parts])

    def _batch(self, points: Sequence[_Point], passes: _Passes) -> ForwardBatch:
        """Return the batch of `points`, filled up with the last one: the transformer sees one size only."""
        latents, noise = [], []
        for path, stem, level in points:
            latents.append(self._batches.latents.draw(path, _CENTRE, "eval_vae", level, stem, seed=_SEED))
            shape = tuple(latents[-1].shape)
            noise.append(torch.from_numpy(rng.normal(_SEED, "eval_noise", level, stem, shape)))
        rows = [min(row, len(points) - 1) for row in range(passes.size)]
        return passes.maker.make(
            latents=[latents[row] for row in rows],
            noise=[noise[row] for row in rows],
            timestep_indices=[points[row][2] for row in rows],
            prompt_indices=[_PROMPT] * passes.size,
        )

    def _errors(self, batch: ForwardBatch) -> Tensor:
        """Return the mean squared error of each sample, of shape (B,), in fp32."""
        velocity_BCHW = self._model.predict(batch).float()
        target_BCHW = batch.noise_BCHW - batch.latents_BCHW
        return (velocity_BCHW - target_BCHW).square().flatten(1).mean(1)
