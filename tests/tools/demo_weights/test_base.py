"""The losses of the parts begin where they should, and prompts with words that are far apart."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mimicry.demo.variants import Upscaler, load_upscaler
from tools.demo_weights.base import Base, base_loss, encode_paintings
from tools.demo_weights.tiny_sd3 import new_models, write_tokenizers
from tools.demo_weights.training_set import draw_training_set
from tools.demo_weights.upscaling import save_upscaler, upscaler_loss
from tools.demo_weights.vae import as_pixels, vae_loss
from tools.demo_weights.vae_start import start_as_cosine_transform


@pytest.fixture(scope="module")
def drawn() -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    return draw_training_set(7, "few", 8, side=64, plain_share=0.5).images_NHWI


def test_the_base_starts_from_the_loss_of_a_still_network(tmp_path: Path) -> None:
    torch.manual_seed(7)
    few = draw_training_set(7, "few", 8, side=64, plain_share=1.0)
    models = new_models()
    start_as_cosine_transform(models["vae"], as_pixels(few.images_NHWI, "cpu"))
    write_tokenizers(tmp_path)
    latents = encode_paintings(models["vae"], few.images_NHWI, "cpu")
    base = Base(models, tmp_path)
    loss, _ = base_loss(base, latents, few.subjects, 7)(0)

    assert latents.means_NCHW.shape == (16, 16, 16, 16)
    assert float(latents.means_NCHW.std()) == pytest.approx(1, abs=0.01)
    # It predicts nothing at all: what is left is the variance of noise and of latents.
    assert float(loss.detach()) == pytest.approx(2, abs=0.5)
    slopes = torch.autograd.grad(loss, list(base.parameters()), allow_unused=True)
    assert any(slope is not None and float(slope.abs().max()) > 0 for slope in slopes)


def test_words_are_far_apart_from_the_first_step_on(tmp_path: Path) -> None:
    torch.manual_seed(7)
    write_tokenizers(tmp_path)
    base = Base(new_models(), tmp_path).eval()
    with torch.no_grad():
        sequences, _ = base.encode(["a painting of a house", "a painting of a boat"], 24)

    assert sequences.shape == (2, 32 + 24, 80)
    assert float((sequences[0] - sequences[1]).norm()) > 0.1 * float(sequences[0].norm())


def test_the_loss_of_the_vae_is_made_of_its_figures_and_trains_both_halves(
    drawn: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]",
) -> None:
    torch.manual_seed(7)
    vae = new_models()["vae"]
    loss, figures = vae_loss(vae, drawn, 7, "cpu")(0)
    loss.backward()  # type: ignore[no-untyped-call]

    assert 0 < figures["l1"] < 2
    assert figures["l1"] + figures["edges"] < float(loss.detach()) < figures["l1"] + figures["edges"] + 0.01
    for weight in (vae.encoder.conv_in.weight, vae.decoder.conv_out.weight):
        assert weight.grad is not None
        assert float(weight.grad.abs().max()) > 0


def test_the_upscaler_starts_near_plain_enlargement_and_is_kept(
    tmp_path: Path,
) -> None:
    torch.manual_seed(7)
    upscaler = Upscaler()
    drawn = draw_training_set(7, "few", 2, side=128, plain_share=0.5).images_NHWI
    loss, _ = upscaler_loss(upscaler, drawn, 7, "cpu")(0)
    assert 0 < float(loss.detach()) < 0.5

    save_upscaler(upscaler, tmp_path / "upscaler.safetensors")
    picture = torch.rand(1, 3, 10, 12)
    with torch.no_grad():
        one, other = upscaler(picture), load_upscaler(tmp_path / "upscaler.safetensors")(picture)
    assert one.shape == (1, 3, 20, 24)
    assert torch.allclose(one, other, atol=0.02)
