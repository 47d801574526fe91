"""The loss and the draw of timesteps, against the formulas of Esser et al. 2024, section 3.1."""

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch

from mimicry.tuning.hf_diffusers.training.flow_matching import (
    add_noise,
    draw_timestep_index,
    flow_loss,
    loss_weights,
)
from mimicry.tuning.hf_diffusers.training.rng import SamplePlan
from mimicry.tuning.options.config import WEIGHTING_SCHEMES, TuningConfig

LEVELS = 1000
DRAWS = 4000
SIGMAS = (0.05, 0.5, 0.93)


def tensors(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a prediction, latents and noise, of shape (3, 4, 6, 5)."""
    generator = torch.Generator().manual_seed(seed)
    first, second, third = torch.randn(3, 3, 4, 6, 5, generator=generator)
    return first, second, third


def places(**values: object) -> np.ndarray:
    """Return many drawn rows of a table of noise levels, as fractions of its length."""
    config = TuningConfig(**values)  # type: ignore[arg-type]
    plan = SamplePlan(seed=config.seed, stems=("a", "b", "c"), center_crop=True, random_flip=False)
    rows = [draw_timestep_index(config, plan.sample(index), LEVELS) for index in range(DRAWS)]
    assert min(rows) >= 0
    assert max(rows) < LEVELS
    return (np.array(rows) + 0.5) / LEVELS


def plain_weight(scheme: str, sigma: float) -> float:
    if scheme == "sigma_sqrt":
        return sigma**-2
    if scheme == "cosmap":
        return 2 / (math.pi - 2 * math.pi * sigma + 2 * math.pi * sigma**2)
    return 1.0


@pytest.mark.parametrize("precondition", [False, True])
@pytest.mark.parametrize("scheme", WEIGHTING_SCHEMES)
def test_the_loss_is_the_formula(scheme: str, precondition: bool) -> None:
    prediction, latents, noise = tensors()
    expected = 0.0
    for row, sigma in enumerate(SIGMAS):
        x0, x1, velocity = (value[row].double().numpy() for value in (latents, noise, prediction))
        if precondition:
            noisy = (1 - sigma) * x0 + sigma * x1
            error = (noisy + velocity * -sigma) - x0
        else:
            error = velocity - (x1 - x0)
        expected += plain_weight(scheme, sigma) * float((error**2).mean()) / len(SIGMAS)

    loss = flow_loss(
        prediction, latents, noise, torch.tensor(SIGMAS), scheme=scheme, precondition_outputs=precondition
    )

    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("precondition", [False, True])
def test_the_true_velocity_has_no_loss(precondition: bool) -> None:
    _, latents, noise = tensors()
    loss = flow_loss(
        noise - latents,
        latents,
        noise,
        torch.tensor(SIGMAS),
        scheme="logit_normal",
        precondition_outputs=precondition,
    )
    assert float(loss) < 1e-12


@pytest.mark.parametrize("precondition", [False, True])
def test_a_prediction_in_bf16_is_compared_in_fp32(precondition: bool) -> None:
    prediction, latents, noise = tensors()
    coarse = prediction.bfloat16()
    one, other = (
        flow_loss(
            given, latents, noise, torch.tensor(SIGMAS), scheme="cosmap", precondition_outputs=precondition
        )
        for given in (coarse, coarse.float())
    )
    assert one.dtype == torch.float32
    assert float(one) == float(other)


def test_noise_is_mixed_in_on_a_straight_line() -> None:
    _, latents, noise = tensors()
    ends = add_noise(latents[:2], noise[:2], torch.tensor([0.0, 1.0]))
    assert torch.equal(ends[0], latents[0])
    assert torch.equal(ends[1], noise[1])
    halfway = add_noise(latents, noise, torch.full((3,), 0.25))
    torch.testing.assert_close(halfway, 0.75 * latents + 0.25 * noise)


def test_the_even_schemes_weigh_all_alike() -> None:
    for scheme in ("logit_normal", "mode"):
        assert loss_weights(scheme, torch.tensor(SIGMAS)).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (-0.8, 0.5), (1.5, 2.0)])
def test_logit_normal_draws_a_normal_logit(mean: float, deviation: float) -> None:
    drawn = places(weighting_scheme="logit_normal", logit_mean=mean, logit_std=deviation)
    normal = NormalDist(mean, deviation)
    for place in (0.1, 0.3, 0.5, 0.7, 0.9):
        expected = normal.cdf(math.log(place / (1 - place)))
        assert float((drawn < place).mean()) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("scheme", ["sigma_sqrt", "cosmap"])
def test_the_schemes_that_weigh_draw_evenly(scheme: str) -> None:
    drawn = places(weighting_scheme=scheme)
    for place in (0.1, 0.3, 0.5, 0.7, 0.9):
        assert float((drawn < place).mean()) == pytest.approx(place, abs=0.03)


@pytest.mark.parametrize("scale", [1.29, 0.5, -1.0])
def test_mode_draws_the_transform_of_an_even_number(scale: float) -> None:
    drawn = places(weighting_scheme="mode", mode_scale=scale)
    for even in (0.1, 0.3, 0.5, 0.7, 0.9):
        # f_mode falls, so what lies above f_mode(u) are the numbers below u.
        threshold = 1 - even - scale * (math.cos(math.pi / 2 * even) ** 2 - 1 + even)
        assert float((drawn > threshold).mean()) == pytest.approx(even, abs=0.03)


def test_a_logit_beyond_all_numbers_is_the_first_or_the_last_level() -> None:
    assert set(places(logit_mean=-100, logit_std=100 * 1e-6)) == {0.5 / LEVELS}
    assert set(places(logit_mean=100, logit_std=100 * 1e-6)) == {1 - 0.5 / LEVELS}


@pytest.mark.parametrize("scheme", WEIGHTING_SCHEMES)
def test_a_draw_is_a_function_of_seed_index_and_stem(scheme: str) -> None:
    drawn, again = (places(weighting_scheme=scheme) for _ in range(2))
    assert (drawn == again).all()
    assert (drawn != places(weighting_scheme=scheme, seed=43)).mean() > 0.9
    # The same numbers serve all schemes that draw evenly.
    if scheme in ("sigma_sqrt", "cosmap"):
        assert (drawn == places(weighting_scheme="cosmap")).all()
