"""The conditioning table: every bit as it was without it, and no weight of what it replaces."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel
from torch import Tensor

from mimicry.common.errors import TrainingFailed
from mimicry.tuning.hf_diffusers.sd3 import modulation
from mimicry.tuning.hf_diffusers.sd3.modulation import (
    CachedModulationTransformer,
    ModulationCache,
    ModulationKey,
    WeightFiles,
    compute_modulation,
    row_width,
    trained_modulation,
)
from mimicry.tuning.hf_diffusers.spec.lora_modules import TARGET_MODULES
from tests.tuning.hf_diffusers.sd3.pretended_gpu import GPU, PretendedGpu
from tests.tuning.hf_diffusers.sd3.wide import CPU, POOLED_WIDTH, TIMESTEPS, Passes, write_transformer

REAL_WIDTH = 2432
NARROW = 128


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two blocks, the first with dual attention: all three kinds of adaptive norm, at the real width."""
    folder = tmp_path_factory.mktemp("wide")
    write_transformer(folder, width=REAL_WIDTH, block_count=2, dual=[0])
    return folder


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("narrow")
    write_transformer(folder, width=NARROW, block_count=3, dual=[1])
    return folder


def make_table(
    folder: Path, keys: set[ModulationKey], batch_size: int, pooled_NP: Tensor, variant: str | None = None
) -> ModulationCache:
    model: Any = CachedModulationTransformer.from_pretrained(
        folder, torch_dtype=torch.bfloat16, variant=variant
    )
    weights = WeightFiles.find(folder, variant)
    assert weights is not None
    return compute_modulation(
        model,
        weights,
        timesteps_T=TIMESTEPS,
        pooled_NP=pooled_NP,
        keys=keys,
        batch_size=batch_size,
    )


def some_prompts(count: int) -> Tensor:
    return torch.randn(count, POOLED_WIDTH, generator=torch.Generator().manual_seed(2)).bfloat16()


@pytest.mark.parametrize(
    ("levels", "prompts"),
    [
        *(([700], [0]), ([3, 999], [0, 0]), ([250, 0, 250, 777], [0, 0, 0, 0])),
        *(([3, 999], [0, 1]), ([250, 0, 250, 250], [2, 1, 0, 1])),
    ],
    ids=["1", "2", "4", "2 prompts", "3 prompts"],
)
def test_output_loss_and_gradients_keep_every_bit_at_the_real_width(
    levels: list[int], prompts: list[int], wide: Path
) -> None:
    passes = Passes(wide, levels, prompts)
    plain, tabled = passes.untabled(), passes.tabled()
    assert plain.keys() == tabled.keys()
    assert len(plain) > 30
    for name, value in plain.items():
        assert torch.equal(value, tabled[name]), name
    assert plain["output"].dtype == torch.bfloat16
    # The last block's add_q_proj reaches no output; all else must be alive, or equality means little.
    dead = [name for name, value in plain.items() if not value.any()]
    assert all("transformer_blocks.1.attn.add_q_proj" in name for name in dead), dead


@pytest.mark.parametrize("batch_size", [1, 3])
def test_another_timestep_or_prompt_is_another_row(batch_size: int, narrow: Path) -> None:
    prompts = some_prompts(2)
    keys = {(level, prompt) for level in (5, 6) for prompt in (0, 1)}
    table = make_table(narrow, keys, batch_size, prompts)
    rows = table.rows([5, 6, 5, 6], [0, 0, 1, 1])
    assert len({tuple(row.tolist()) for row in rows}) == 4
    assert torch.equal(table.rows([6, 5], [0, 0])[0], rows[1])
    second = make_table(narrow, {(5, 0)}, batch_size, prompts[1:])
    assert torch.equal(second.rows([5], [0])[0], rows[2])
    with pytest.raises(KeyError):
        table.rows([7], [0])


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_how_many_go_through_a_layer_at_a_time_changes_nothing(
    chunk: int, narrow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {(level, prompt) for level in (5, 6, 9) for prompt in (0, 1)}
    whole = make_table(narrow, keys, 2, some_prompts(2))
    monkeypatch.setattr(modulation, "CHUNK", chunk)
    assert torch.equal(make_table(narrow, keys, 2, some_prompts(2)).rows_NSR, whole.rows_NSR)


def test_the_width_of_a_row_is_known_from_the_headers(narrow: Path) -> None:
    weights = WeightFiles.find(narrow, None)
    assert weights is not None
    assert row_width(weights) == make_table(narrow, {(5, 0)}, 1, some_prompts(1)).rows_NSR.shape[-1]


def test_rows_are_kept_apart_where_the_place_in_a_batch_matters(
    narrow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    linear = F.linear

    def uneven(values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        result = linear(values, weight, bias)
        # Only in one layer, and not in the first, so that what came before must be kept.
        if weight.shape[0] == 2 * NARROW and len(values) == 2:
            result = result + torch.tensor([[0], [1]])
        return result

    even = make_table(narrow, {(5, 0), (9, 0)}, 2, some_prompts(1))
    monkeypatch.setattr(F, "linear", uneven)
    apart = make_table(narrow, {(5, 0), (9, 0)}, 2, some_prompts(1))
    assert (even.rows_NSR.shape[1], apart.rows_NSR.shape[1]) == (1, 2)
    assert apart.rows_NSR.nbytes == 2 * even.rows_NSR.nbytes
    assert torch.equal(even.rows([9, 5], [0, 0])[0], apart.rows([9, 5], [0, 0])[0])
    monkeypatch.setattr(modulation, "CHUNK", 1)
    assert torch.equal(make_table(narrow, {(5, 0), (9, 0)}, 2, some_prompts(1)).rows_NSR, apart.rows_NSR)
    monkeypatch.setattr(modulation, "host_memory_problem", lambda count: f"{count} bytes, too many")
    with pytest.raises(TrainingFailed, match=rf"{apart.rows_NSR.nbytes} bytes.*--no-conditioning-table"):
        make_table(narrow, {(5, 0), (9, 0)}, 2, some_prompts(1))
    moved = (even.rows([9, 5], [0, 0])[1] != apart.rows([9, 5], [0, 0])[1]).nonzero().flatten()
    # norm_out and the last block's norm1_context: scale and shift each.
    assert 0 < len(moved) <= 4 * NARROW
    assert torch.equal(moved, moved.sort().values)


@pytest.mark.parametrize(
    ("options", "variant"),
    [
        ({"max_shard_size": "200KB"}, None),
        ({"variant": "fp16"}, "fp16"),
        ({"max_shard_size": "200KB", "variant": "fp16"}, "fp16"),
    ],
    ids=["shards", "variant", "shards of a variant"],
)
def test_weights_are_found_however_they_are_filed(
    options: dict[str, Any], variant: str | None, narrow: Path, tmp_path: Path
) -> None:
    model = SD3Transformer2DModel.from_pretrained(narrow, torch_dtype=torch.bfloat16)
    model.save_pretrained(tmp_path, **options)
    assert len(list(tmp_path.glob("*.safetensors"))) > (2 if "max_shard_size" in options else 0)
    keys: set[ModulationKey] = {(5, 0)}
    ours = make_table(tmp_path, keys, 1, some_prompts(1), variant)
    theirs = make_table(narrow, keys, 1, some_prompts(1))
    assert torch.equal(ours.rows([5], [0]), theirs.rows([5], [0]))


def test_other_formats_are_not_found(narrow: Path, tmp_path: Path) -> None:
    model = SD3Transformer2DModel.from_pretrained(narrow)
    model.save_pretrained(tmp_path, safe_serialization=False)
    assert WeightFiles.find(tmp_path, None) is None
    assert WeightFiles.find(narrow, "fp16") is None


def test_nothing_that_the_table_replaces_is_in_the_model(narrow: Path) -> None:
    whole: Any = SD3Transformer2DModel.from_pretrained(narrow)
    tabled, info = CachedModulationTransformer.from_pretrained(narrow, output_loading_info=True)
    assert info["missing_keys"] == info["unexpected_keys"] == []
    left = set(whole.state_dict()) - set(tabled.state_dict())
    layers = {name.rpartition(".")[0] for name in left}
    assert layers == {*tabled.replaced_layers(), *trained_modulation(0, ["linear_1", "linear_2"])}
    assert set(tabled.state_dict()) < set(whole.state_dict())
    assert [name for name, _ in tabled.named_parameters() if "time_text" in name or ".linear." in name] == []


def test_targets_are_understood_as_peft_does(narrow: Path) -> None:
    tabled: Any = CachedModulationTransformer.from_pretrained(narrow)
    assert trained_modulation(3, TARGET_MODULES) == []
    assert trained_modulation(3, ["ff.net.0.proj", "inear", "norm1", "proj_out"]) == []
    assert trained_modulation(3, ["linear"]) == list(tabled.replaced_layers())
    assert trained_modulation(3, ["norm1.linear"])[:1] == ["transformer_blocks.0.norm1.linear"]
    assert len(trained_modulation(3, ["norm1.linear", "to_q"])) == 3
    assert trained_modulation(3, ["norm_out.linear"]) == ["norm_out.linear"]
    assert trained_modulation(3, ["timestep_embedder.linear_2"]) == [
        "time_text_embed.timestep_embedder.linear_2"
    ]


@pytest.mark.parametrize("place_matters", [False, True])
def test_only_the_rows_of_a_batch_are_copied_to_pinned_memory(
    place_matters: bool, narrow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pinned as a whole, the table of a long run would take a power of two: 2 GiB for 1.5."""
    linear = F.linear

    def uneven(values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        result = linear(values, weight, bias)
        return result + torch.tensor([[0], [1]]) if len(values) == 2 else result

    if place_matters:
        monkeypatch.setattr(F, "linear", uneven)
    keys = {(level, prompt) for level in (5, 6, 9) for prompt in (0, 1)}
    on_cpu = make_table(narrow, keys, 2, some_prompts(2))
    gpu = PretendedGpu()
    with gpu:
        table = make_table(narrow, keys, 2, some_prompts(2))
        assert (table.device, gpu.pinned) == (GPU, [])
        rows = table.rows([9, 5], [1, 0])
    assert table.rows_NSR.nbytes == 6 * (1 + place_matters) * rows[0].nbytes
    assert gpu.pinned == [2 * rows[0].nbytes]
    assert torch.equal(rows, on_cpu.rows([9, 5], [1, 0]))


def test_rows_lie_on_the_device_asked_for(narrow: Path) -> None:
    table = make_table(narrow, {(5, 0)}, 1, some_prompts(1))
    assert table.rows([5], [0]).device == table.device == CPU
    assert table.rows([5], [0]).dtype == torch.bfloat16
