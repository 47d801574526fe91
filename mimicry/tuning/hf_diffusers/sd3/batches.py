"""Batches: samples with their latents, noise, noise levels and prompts, stacked on the device."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mimicry.tuning.hf_diffusers.sd3.modulation import ModulationCache, ModulationKey
from mimicry.tuning.hf_diffusers.sd3.prompts import PromptEmbeds
from mimicry.tuning.hf_diffusers.spec.base_model import BaseModel
from mimicry.tuning.hf_diffusers.training import rng
from mimicry.tuning.hf_diffusers.training.data import PromptPlan, SampleSchedule, TrainingData
from mimicry.tuning.hf_diffusers.training.device import send
from mimicry.tuning.hf_diffusers.training.flow_matching import SigmaTable, draw_timestep_index
from mimicry.tuning.hf_diffusers.training.latents import LatentSource
from mimicry.tuning.hf_diffusers.training.rng import Sample
from mimicry.tuning.hf_diffusers.training.runtime import Runtime


@dataclass(frozen=True)
class ForwardBatch:
    """The samples of one forward pass, on the device.

    `latents_BCHW` and `noise_BCHW` are the ends of the path, `sigmas_B` the places on it, `timesteps_B` what
    the transformer is told of them, all in fp32; `pooled_projections` are the pooled prompts, (B, P), or the
    rows of the modulation cache, (B, R). `timestep_indices` are rows of the sigma table.
    """

    latents_BCHW: Tensor
    noise_BCHW: Tensor
    sigmas_B: Tensor
    timesteps_B: Tensor
    sequence_BLD: Tensor
    pooled_projections: Tensor
    samples: tuple[Sample, ...]
    timestep_indices: tuple[int, ...]
    prompt_indices: tuple[int, ...]


class Prompts:
    """The embeddings of the prompts of a run, each held once.

    A single prompt lies on the device. Several lie in host memory, 1.3 MB each for Stable Diffusion 3.5
    Large, and go to the device with the batch that asks for them.
    """

    def __init__(self, embeds: Sequence[PromptEmbeds], device: torch.device, dtype: torch.dtype) -> None:
        place = device if len(embeds) == 1 else torch.device("cpu")
        self._device = device
        self._sequence_NLD = torch.cat([one.sequence_1LD for one in embeds]).to(place, dtype)
        self.pooled_NP = torch.cat([one.pooled_1P for one in embeds]).to(place, dtype)

    @property
    def token_count(self) -> int:
        return self._sequence_NLD.shape[1]

    def rows(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return sequence, (B, L, D), and pooled, (B, P), of the prompts number `indices`, on the device."""
        if len(self.pooled_NP) == 1:
            count = len(indices)
            return self._sequence_NLD.expand(count, -1, -1), self.pooled_NP.expand(count, -1)
        chosen = list(indices)
        return send(self._sequence_NLD[chosen], self._device), send(self.pooled_NP[chosen], self._device)


@dataclass(frozen=True)
class BatchMaker:
    """Puts samples together to batches, with rows of the modulation cache where there is one."""

    device: torch.device
    sigmas: SigmaTable
    prompts: Prompts
    modulation: ModulationCache | None = None

    def make(
        self,
        latents: Sequence[Tensor],
        noise: Sequence[Tensor],
        timestep_indices: Sequence[int],
        prompt_indices: Sequence[int],
        samples: tuple[Sample, ...] = (),
    ) -> ForwardBatch:
        """Return the batch of samples with these latents and noise, (C, H, W) on the CPU; on any thread."""
        levels = list(timestep_indices)
        sequence_BLD, pooled_projections = self.prompts.rows(prompt_indices)
        if self.modulation is not None:
            pooled_projections = self.modulation.rows(levels, prompt_indices)
        return ForwardBatch(
            latents_BCHW=send(torch.stack(list(latents)), self.device),
            noise_BCHW=send(torch.stack(list(noise)), self.device),
            sigmas_B=send(self.sigmas.sigmas[levels], self.device),
            timesteps_B=send(self.sigmas.timesteps[levels], self.device),
            sequence_BLD=sequence_BLD,
            pooled_projections=pooled_projections,
            samples=samples,
            timestep_indices=tuple(levels),
            prompt_indices=tuple(prompt_indices),
        )


@dataclass(frozen=True)
class BatchSource:
    """The batches of a training: draws samples, and puts them together."""

    schedule: SampleSchedule
    prompt_plan: PromptPlan
    latents: LatentSource
    maker: BatchMaker

    @classmethod
    def from_data(
        cls,
        model: BaseModel,
        data: TrainingData,
        runtime: Runtime,
        prompts: Sequence[PromptEmbeds],
        latents: LatentSource,
    ) -> "BatchSource":
        table = Prompts(prompts, runtime.device, runtime.dtype)
        maker = BatchMaker(runtime.device, SigmaTable.read(model), table)
        return cls(data.schedule, data.prompts, latents, maker)

    def with_modulation(self, modulation: ModulationCache | None) -> "BatchSource":
        """Return the same batches with rows of `modulation` in place of pooled prompts; None: as they are."""
        return replace(self, maker=replace(self.maker, modulation=modulation))

    def modulation_keys(self) -> set[ModulationKey]:
        """Return what this process's training asks of the transformer: timestep and prompt, by row."""
        config, level_count = self.schedule.config, len(self.maker.sigmas)
        return {
            (draw_timestep_index(config, sample, level_count), self.prompt_plan.index_of(sample))
            for index in self.schedule.own_indices()
            for sample in (plan.sample(index) for plan in self.schedule.plans)
        }

    def make(self, first: int) -> ForwardBatch:
        """Draw the samples of a batch that begins with index `first`; on any thread."""
        config, level_count = self.schedule.config, len(self.maker.sigmas)
        samples = self.schedule.batch_samples(first)
        latents, noise = [], []
        for sample in samples:
            latents.append(self.latents.latents(sample))
            shape = tuple(latents[-1].shape)
            values = rng.normal(config.seed, sample.purpose("noise"), sample.index, sample.stem, shape)
            noise.append(torch.from_numpy(values))
        return self.maker.make(
            latents,
            noise,
            timestep_indices=[draw_timestep_index(config, sample, level_count) for sample in samples],
            prompt_indices=[self.prompt_plan.index_of(sample) for sample in samples],
            samples=samples,
        )
