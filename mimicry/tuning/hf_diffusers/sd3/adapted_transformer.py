"""The transformer with its LoRA: how it is put together, what it predicts, and its loss."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor

from mimicry.tuning.hf_diffusers.sd3.batches import BatchMaker, BatchSource, ForwardBatch
from mimicry.tuning.hf_diffusers.sd3.lora import add_adapter
from mimicry.tuning.hf_diffusers.sd3.memory import checkpoint_blocks, checkpoint_first, image_tokens
from mimicry.tuning.hf_diffusers.sd3.modulation import ModulationCache, ModulationKey
from mimicry.tuning.hf_diffusers.sd3.setup import Setup
from mimicry.tuning.hf_diffusers.sd3.transformer import (
    cache_modulation,
    cache_obstacle,
    read_transformer,
)
from mimicry.tuning.hf_diffusers.spec.lora_modules import named_layers
from mimicry.tuning.hf_diffusers.training import flow_matching, kernels, rng
from mimicry.tuning.hf_diffusers.training.distributed import say
from mimicry.tuning.hf_diffusers.training.records import RunRecord
from mimicry.tuning.hf_diffusers.training.runtime import Runtime


@dataclass
class AdaptedTransformer:
    """The transformer with its LoRA, on the device, in the training precision.

    `parameters` are those of the LoRA, by name. The first `checkpointed` blocks are recomputed in the
    backward pass.
    """

    setup: Setup
    transformer: SD3Transformer2DModel
    parameters: dict[str, torch.nn.Parameter]
    modulation: ModulationCache | None
    checkpointed: int

    @classmethod
    def load(
        cls,
        setup: Setup,
        batches: BatchSource,
        record: RunRecord,
        extra_keys: Collection[ModulationKey] = (),
    ) -> "AdaptedTransformer":
        """Read the transformer, put the adapter on, and compute the modulation cache where one is asked for.

        `extra_keys` are asked of the transformer in addition to those of training.
        """
        say("reading the transformer")
        config, runtime, schedule = setup.args.config, setup.runtime, setup.data.schedule
        cached = config.conditioning_table
        keys = batches.modulation_keys() | set(extra_keys) if cached else set()
        if cached and (obstacle := cache_obstacle(setup.model, config, named_layers(config), len(keys))):
            say(f"no conditioning table: {obstacle}")
            cached = False
        transformer = read_transformer(
            setup.model, config, runtime.device, runtime.dtype, cached_modulation=cached
        )
        parameters = add_adapter(transformer, config)
        model = cls(setup, transformer, parameters, modulation=None, checkpointed=0)
        with record.stage("conditioning_table") if cached else nullcontext():
            model.modulation = model.modulation_for(batches.maker, keys, schedule.forward_batch_size)
        if model.modulation is not None:
            size = f"{model.modulation.rows_NSR.nbytes / 2**20:.1f} MiB of host memory"
            say(f"conditioning table: {len(model.modulation.place_of)} rows, {size}")
            # What the cache was computed from is gone, and its pieces are of no use to training.
            runtime.free_memory()
        model.checkpointed = checkpoint_blocks(
            transformer,
            config,
            runtime.device,
            batch_size=schedule.forward_batch_size,
            token_count=image_tokens(setup.model, config.resolution) + batches.maker.prompts.token_count,
        )
        blocks = transformer.transformer_blocks
        if config.compile_blocks:
            kernels.compile_blocks(blocks)
        if model.checkpointed:
            say(f"checkpointing {model.checkpointed} of {len(blocks)} blocks")
        return model

    @property
    def runtime(self) -> Runtime:
        return self.setup.runtime

    def modulation_for(
        self, maker: BatchMaker, keys: Collection[ModulationKey], batch_size: int
    ) -> ModulationCache | None:
        """Compute the rows of `keys` of `maker`; None for a transformer that takes none."""
        return cache_modulation(
            self.transformer,
            self.setup.model,
            self.setup.args.config,
            timesteps_T=maker.sigmas.timesteps,
            pooled_NP=maker.prompts.pooled_NP.to(self.runtime.device),
            keys=keys,
            batch_size=batch_size,
        )

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        was_training = self.transformer.training
        self.transformer.eval()
        try:
            yield
        finally:
            self.transformer.train(was_training)

    def checkpoint_more(self) -> bool:
        """Checkpoint a quarter of the blocks that are not, and return whether there were any."""
        left = len(self.transformer.transformer_blocks) - self.checkpointed
        if not left or not self.transformer.gradient_checkpointing:
            return False
        self.checkpointed += -(-left // 4)
        checkpoint_first(self.transformer, self.checkpointed)
        return True

    def predict(self, batch: ForwardBatch) -> Tensor:
        """Return the velocity that the transformer predicts for each sample, of shape (B, C, H, W)."""
        noisy_BCHW = flow_matching.add_noise(batch.latents_BCHW, batch.noise_BCHW, batch.sigmas_B)
        prediction_BCHW: Tensor = self.transformer(
            hidden_states=noisy_BCHW.to(self.runtime.dtype),
            encoder_hidden_states=batch.sequence_BLD,
            pooled_projections=batch.pooled_projections,
            timestep=batch.timesteps_B,
            return_dict=False,
        )[0]
        return prediction_BCHW

    def loss(self, batch: ForwardBatch) -> Tensor:
        """Return the loss of a batch, a scalar in fp32.

        It is the mean over the samples of the style; with prior preservation (Ruiz et al. 2023, DreamBooth,
        arXiv:2208.12242, section 3.3), plus prior_loss_weight times the mean over the class samples.
        """
        config = self.runtime.config
        if config.lora_dropout:
            # What is dropped depends on the place in the run alone, and checkpointing keeps it: it stores
            # the generator's state.
            torch.manual_seed(rng.dropout_seed(config.seed, batch.samples[0].index))
        prediction_BCHW = self.predict(batch)
        if not config.with_prior_preservation:
            return self._mean_loss(prediction_BCHW, batch, slice(None))
        count = config.train_batch_size
        loss = self._mean_loss(prediction_BCHW, batch, slice(count))
        return loss + config.prior_loss_weight * self._mean_loss(prediction_BCHW, batch, slice(count, None))

    def _mean_loss(self, prediction_BCHW: Tensor, batch: ForwardBatch, rows: slice) -> Tensor:
        return flow_matching.flow_loss(
            prediction_BCHW[rows],
            batch.latents_BCHW[rows],
            batch.noise_BCHW[rows],
            batch.sigmas_B[rows],
            scheme=self.runtime.config.weighting_scheme,
            precondition_outputs=bool(self.runtime.config.precondition_outputs),
        )
