"""Drawing on a GPU; run by `pytest -m gpu`."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from mimicry.sampling.sampler import Sampler
from mimicry.tuning.hf_diffusers.sd3.sampling import SamplingSettings
from mimicry.tuning.hf_diffusers.spec.base_model import BaseModel
from mimicry.tuning.hf_diffusers.training.latents import decode
from mimicry.tuning.options.config import TuningConfig
from tests.random_sd3 import write_random_sd3
from tests.sampling.adapters import write_adapter

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

GIB = 2**30
# What a card of 16 GB has left beside the context of CUDA.
CARD_BYTES = int(15.3 * GIB)
# The transformer of Stable Diffusion 3.5 Large in bf16 with a table, and an adapter of rank 16 in fp32.
TRANSFORMER_BYTES = int(9.97 * GIB) + 4 * 23_580_672
SETTINGS = SamplingSettings(resolution=32, steps=3)


@pytest.fixture
def model(tmp_path: Path) -> BaseModel:
    write_random_sd3(tmp_path / "tiny_sd3")
    return BaseModel(folder=tmp_path / "tiny_sd3")


@pytest.fixture
def small_card() -> Iterator[None]:
    total = torch.cuda.get_device_properties(0).total_memory
    if total < CARD_BYTES:
        pytest.skip("this card is smaller than 16 GB")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.set_per_process_memory_fraction(CARD_BYTES / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def pictures(model: BaseModel, adapter: Path, *, table: bool) -> list[bytes]:
    config = TuningConfig(mixed_precision="bf16", conditioning_table=table)
    sampler = Sampler.load(model, config, SETTINGS, ["a boat", "a tree"])
    assert bool(sampler.base.modulations) is table
    found = []
    for folder in (None, adapter):
        with sampler.base.adapter(folder):
            found += [sampler.image(prompt, 0).tobytes() for prompt in ("a boat", "a tree")]
    return found


def test_a_table_changes_no_bit_of_a_picture(model: BaseModel, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", model, ("attn.to_q", "attn.to_out.0"), seed=1)

    found = pictures(model, adapter, table=True)

    assert found == pictures(model, adapter, table=False)
    assert len(set(found)) == 4


def test_the_transformer_makes_room(model: BaseModel) -> None:
    config = TuningConfig(mixed_precision="bf16")
    sampler = Sampler.load(model, config, SETTINGS, ["a boat"])
    picture = sampler.image("a boat", 0)
    before = torch.cuda.memory_allocated()

    with sampler.base.set_aside():
        assert torch.cuda.memory_allocated() <= before - sampler.base.byte_count

    assert sampler.image("a boat", 0).tobytes() == picture.tobytes()


def test_a_card_of_16_gb_has_room_to_decode_beside_the_transformer(small_card: None) -> None:
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=16,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    vae = vae.to("cuda").eval()
    transformer = torch.empty(TRANSFORMER_BYTES, dtype=torch.uint8, device="cuda")

    (picture,) = decode(vae, torch.zeros(1, 16, 128, 128))

    assert picture.size == (1024, 1024)
    # The transformer was there all the time, and the pixels were not decoded in tiles.
    assert torch.cuda.max_memory_allocated() > transformer.nbytes + 3 * GIB
