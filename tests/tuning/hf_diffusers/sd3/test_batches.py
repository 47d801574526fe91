"""Prompts are held once and come with the batch that asks for them."""

import pytest
import torch

from mimicry.tuning.hf_diffusers.sd3.batches import BatchMaker, Prompts
from mimicry.tuning.hf_diffusers.sd3.modulation import ModulationCache
from mimicry.tuning.hf_diffusers.sd3.prompts import PromptEmbeds
from mimicry.tuning.hf_diffusers.training.flow_matching import SigmaTable
from tests.tuning.hf_diffusers.sd3.pretended_gpu import GPU, PretendedGpu

CPU = torch.device("cpu")


def some_prompts(count: int) -> list[PromptEmbeds]:
    return [
        PromptEmbeds(torch.full((1, 5, 4), float(number)), torch.full((1, 3), -float(number)))
        for number in range(count)
    ]


def test_one_prompt_is_not_copied() -> None:
    prompts = Prompts(some_prompts(1), CPU, torch.bfloat16)
    sequence, pooled = prompts.rows([0, 0, 0])
    assert (sequence.shape, pooled.shape) == ((3, 5, 4), (3, 3))
    assert sequence.dtype == pooled.dtype == torch.bfloat16
    assert (sequence.stride(0), pooled.stride(0)) == (0, 0)
    assert prompts.token_count == 5


def test_each_sample_gets_its_own() -> None:
    prompts = Prompts(some_prompts(3), CPU, torch.float32)
    sequence, pooled = prompts.rows([2, 0, 2, 1])
    assert sequence[:, 0, 0].tolist() == [2, 0, 2, 1]
    assert pooled[:, 2].tolist() == [-2, 0, -2, -1]
    assert prompts.pooled_NP.shape == (3, 3)


def test_several_stay_in_host_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the device that stands in for a GPU there is nothing before a batch is asked for."""
    elsewhere = torch.device("meta")
    assert Prompts(some_prompts(1), elsewhere, torch.float32).pooled_NP.device == elsewhere
    prompts = Prompts(some_prompts(2), elsewhere, torch.float32)
    assert prompts.pooled_NP.device == CPU
    assert {part.device for part in prompts.rows([1, 0])} == {elsewhere}


SIGMAS = SigmaTable(timesteps=torch.tensor([900.0, 500.0, 100.0]), sigmas=torch.tensor([0.9, 0.5, 0.1]))


def test_a_batch_is_its_samples_side_by_side() -> None:
    maker = BatchMaker(CPU, SIGMAS, Prompts(some_prompts(2), CPU, torch.float32))
    latents = [torch.full((2, 1, 1), value) for value in (1.0, 2.0)]
    batch = maker.make(latents, [10 * one for one in latents], [2, 0], [1, 0])
    assert batch.latents_BCHW[:, 0, 0, 0].tolist() == [1, 2]
    assert batch.noise_BCHW[:, 1, 0, 0].tolist() == [10, 20]
    assert batch.pooled_projections.tolist() == [[-1, -1, -1], [0, 0, 0]]
    assert torch.equal(batch.sigmas_B, torch.tensor([0.1, 0.9]))
    assert torch.equal(batch.timesteps_B, torch.tensor([100.0, 900.0]))
    assert batch.sequence_BLD[:, 0, 0].tolist() == [1, 0]
    assert (batch.timestep_indices, batch.prompt_indices, batch.samples) == ((2, 0), (1, 0), ())


def test_rows_of_the_table_come_with_the_batch_in_place_of_pooled_prompts() -> None:
    rows_NSR = torch.arange(12.0).reshape(3, 2, 2)
    table = ModulationCache(rows_NSR, {(0, 0): 0, (2, 0): 1, (2, 1): 2}, CPU)
    prompts = Prompts(some_prompts(2), CPU, torch.float32)
    latents = [torch.zeros(2, 1, 1)] * 3
    batch = BatchMaker(CPU, SIGMAS, prompts, table).make(latents, latents, [2, 2, 0], [0, 1, 0])
    # Of three samples the third has the place of the first again.
    expected = [rows_NSR[1, 0].tolist(), rows_NSR[2, 1].tolist(), rows_NSR[0, 0].tolist()]
    assert batch.pooled_projections.tolist() == expected
    assert batch.sequence_BLD[:, 0, 0].tolist() == [0, 1, 0]


def test_on_a_gpu_all_that_a_batch_holds_goes_through_pinned_memory() -> None:
    """Else each copy would wait for all work that the GPU has been given."""
    table = ModulationCache(torch.ones(2, 1, 1000), {(0, 0): 0, (2, 1): 1}, GPU)
    prompts = Prompts(some_prompts(2), GPU, torch.float32)
    latents = [torch.zeros(2, 1, 1)] * 2
    with PretendedGpu() as gpu:
        BatchMaker(GPU, SIGMAS, prompts, table).make(latents, latents, [2, 0], [1, 0])
    # Sequence and pooled prompts, rows, latents, noise, sigmas and timesteps of two samples.
    assert gpu.pinned == [2 * 4 * count for count in (5 * 4, 3, 1000, 2, 2, 1, 1)]
