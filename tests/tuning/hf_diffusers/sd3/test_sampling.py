"""Sampling is that of diffusers' pipeline, drawn from noise of our own."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mimicry.tuning.hf_diffusers.sd3.modulation import (
    CachedModulationTransformer,
    WeightFiles,
    compute_modulation,
)
from mimicry.tuning.hf_diffusers.sd3.prompts import PromptEmbeds
from mimicry.tuning.hf_diffusers.sd3.sampling import (
    NEGATIVE,
    PROMPT,
    SamplingSettings,
    initial_noise,
    latent_shape,
    sample_latents,
    sampling_timesteps,
)
from mimicry.tuning.hf_diffusers.spec.base_model import BaseModel
from mimicry.tuning.hf_diffusers.training.latents import decode, load_vae
from tests.tuning.hf_diffusers.studio import Studio

CPU = torch.device("cpu")
SETTINGS = SamplingSettings(resolution=48, steps=5)


@pytest.fixture
def model(studio: Studio) -> BaseModel:
    return BaseModel(folder=studio.base_model)


@pytest.fixture
def transformer(model: BaseModel) -> SD3Transformer2DModel:
    return SD3Transformer2DModel.from_pretrained(model.folder / "transformer").eval()


def embeds(model: BaseModel, seed: int) -> PromptEmbeds:
    """Return embeddings of no prompt in particular, of the sizes that the model takes."""
    config = model.config_of("transformer")
    generator = torch.Generator().manual_seed(seed)
    return PromptEmbeds(
        torch.randn(1, 20, config["joint_attention_dim"], generator=generator),
        torch.randn(1, config["pooled_projection_dim"], generator=generator),
    )


def noise(model: BaseModel, count: int = 1, resolution: int = SETTINGS.resolution) -> Tensor:
    shape = latent_shape(model, resolution)
    return torch.cat([initial_noise(7, "test", index, "", shape) for index in range(count)])


def pixels(image: Image.Image) -> NDArray[np.int16]:
    return np.asarray(image, dtype=np.int16)


@pytest.mark.parametrize("guidance", [1.0, 4.5])
def test_images_are_those_of_diffusers_pipeline(
    guidance: float, model: BaseModel, transformer: SD3Transformer2DModel
) -> None:
    prompt, negative, start = embeds(model, 1), embeds(model, 2), noise(model, 2)
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        model.folder, text_encoder=None, text_encoder_2=None, text_encoder_3=None
    )
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        prompt_embeds=prompt.sequence_1LD.expand(2, -1, -1),
        pooled_prompt_embeds=prompt.pooled_1P.expand(2, -1),
        negative_prompt_embeds=negative.sequence_1LD.expand(2, -1, -1),
        negative_pooled_prompt_embeds=negative.pooled_1P.expand(2, -1),
        latents=start,
        guidance_scale=guidance,
        num_inference_steps=5,
        height=48,
        width=48,
    ).images

    settings = SamplingSettings(resolution=48, steps=5, guidance=guidance)
    latents = sample_latents(transformer, model.folder / "scheduler", prompt, negative, start, settings)
    ours = decode(load_vae(model, None, CPU), latents)

    assert [image.size for image in ours] == [(48, 48)] * 2
    for our, their in zip(ours, theirs, strict=True):
        assert np.abs(pixels(our) - pixels(their)).max() <= 1
    assert pixels(ours[0]).std() > 5
    assert np.abs(pixels(ours[0]) - pixels(ours[1])).max() > 20


def test_the_negative_prompt_is_left_out_at_guidance_1(
    model: BaseModel, transformer: SD3Transformer2DModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Tensor] = []
    forward = transformer.forward

    def counted(**words: Any) -> Any:
        calls.append(words["timestep"])
        return forward(**words)

    monkeypatch.setattr(transformer, "forward", counted)

    def sample(guidance: float, negative: int) -> Tensor:
        settings = SamplingSettings(resolution=48, steps=3, guidance=guidance)
        calls.clear()
        return sample_latents(
            transformer,
            model.folder / "scheduler",
            embeds(model, 1),
            embeds(model, negative),
            noise(model),
            settings,
        )

    assert torch.equal(sample(1, negative=2), sample(1, negative=3))
    assert len(calls) == 3
    assert not torch.equal(sample(2, negative=2), sample(2, negative=3))
    assert len(calls) == 6


def test_rows_of_a_table_stand_in_for_pooled_prompts(
    model: BaseModel, transformer: SD3Transformer2DModel
) -> None:
    prompts = (embeds(model, 1), embeds(model, 2))
    scheduler = model.folder / "scheduler"
    expected = sample_latents(transformer, scheduler, *prompts, noise(model), SETTINGS)
    tabled = CachedModulationTransformer.from_pretrained(model.folder / "transformer").eval()
    weights = WeightFiles.find(model.folder / "transformer", None)
    assert weights is not None
    table = compute_modulation(
        tabled,
        weights,
        timesteps_T=sampling_timesteps(scheduler, SETTINGS.steps),
        pooled_NP=torch.cat([prompt.pooled_1P for prompt in prompts]),
        keys=[(step, which) for step in range(SETTINGS.steps) for which in (PROMPT, NEGATIVE)],
        batch_size=1,
    )

    found = sample_latents(
        tabled,
        scheduler,
        *prompts,
        noise(model),
        SETTINGS,
        modulation=lambda step, which: table.rows([step], [which]),
    )

    assert torch.equal(found, expected)


def test_timesteps_are_those_of_the_models_own_scheduler(model: BaseModel) -> None:
    timesteps = sampling_timesteps(model.folder / "scheduler", 4)

    # sigma = shift * s / (1 + (shift - 1) * s), at shift 3, evenly spaced between the ends of training's.
    ends = torch.linspace(1000, 1000 * 3 / 1000 / (1 + 2 / 1000), 4) / 1000
    assert torch.allclose(timesteps, 1000 * 3 * ends / (1 + 2 * ends), rtol=1e-4)


def test_noise_is_a_function_of_all_its_arguments() -> None:
    shape = (4, 8, 8)
    first = initial_noise(1, "a", 0, "", shape)

    assert first.shape == (1, *shape)
    assert torch.equal(first, initial_noise(1, "a", 0, "", shape))
    for other in ((2, "a", 0, ""), (1, "b", 0, ""), (1, "a", 1, ""), (1, "a", 0, "x")):
        assert not torch.equal(first, initial_noise(*other, shape))


def test_an_image_does_not_depend_on_those_beside_it(model: BaseModel) -> None:
    vae, latents = load_vae(model, None, CPU), noise(model, 3)

    together = decode(vae, latents)

    for index, image in enumerate(together):
        assert image.tobytes() == decode(vae, latents[index : index + 1])[0].tobytes()
