"""The VAE starts from latents that hold brightness and colour of the paintings' blocks."""

import torch

from tools.demo_weights.tiny_sd3 import new_models
from tools.demo_weights.training_set import draw_training_set
from tools.demo_weights.vae import as_pixels
from tools.demo_weights.vae_start import patterns, start_as_cosine_transform


def test_patterns_are_orthonormal() -> None:
    rows = torch.stack([torch.from_numpy(pattern).flatten() for pattern in patterns()])

    assert rows.shape == (32, 48)
    assert torch.allclose(rows @ rows.T, torch.eye(32, dtype=rows.dtype), atol=1e-9)


def test_latents_start_with_unit_scale_and_tell_the_colours() -> None:
    torch.manual_seed(7)
    vae = new_models()["vae"]
    pixels_NIHW = as_pixels(draw_training_set(7, "start", 24, side=64, plain_share=0.5).images_NHWI, "cpu")
    start_as_cosine_transform(vae, pixels_NIHW)
    with torch.no_grad():
        posterior = vae.encode(pixels_NIHW).latent_dist

    assert torch.allclose(posterior.mean.std(dim=(0, 2, 3)), torch.ones(16), atol=0.02)
    assert float(posterior.std.max()) < 0.2
    # The mean colours of the blocks follow linearly from the latents, up to the norm's scale of each picture.
    known = torch.cat([posterior.mean, torch.ones_like(posterior.mean[:, :1])], dim=1)
    known = known.permute(0, 2, 3, 1).reshape(-1, 17)
    colours = torch.nn.functional.avg_pool2d(pixels_NIHW, 4).permute(0, 2, 3, 1).reshape(-1, 3)
    unknown = colours - known @ torch.linalg.lstsq(known, colours).solution
    assert float((unknown.var(dim=0) / colours.var(dim=0)).max()) < 0.2
