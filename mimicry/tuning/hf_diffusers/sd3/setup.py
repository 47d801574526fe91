"""What a training has found to work with."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from mimicry.common.claims import Claim
from mimicry.tuning.hf_diffusers.sd3.lora import check_modules
from mimicry.tuning.hf_diffusers.sd3.memory import image_tokens
from mimicry.tuning.hf_diffusers.spec.base_model import BaseModel
from mimicry.tuning.hf_diffusers.spec.trainer_args import TrainerArgs
from mimicry.tuning.hf_diffusers.training import data
from mimicry.tuning.hf_diffusers.training.device import check_quantization
from mimicry.tuning.hf_diffusers.training.optimizers import check_optimizer
from mimicry.tuning.hf_diffusers.training.records import RunRecord, describe_training
from mimicry.tuning.hf_diffusers.training.runtime import Runtime


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a training was asked for, with what was found for it."""

    args: TrainerArgs
    runtime: Runtime
    model: BaseModel
    data: data.TrainingData

    @classmethod
    def prepare(cls, args: TrainerArgs) -> "Setup":
        """Find everything that the training needs.

        Raises:
            UsageError: a precision or kernel that the device does not have, more processes than GPUs, a
                library that is missing, layers or blocks that the model does not have, or a folder of class
                images that cannot be used.
            TrainingFailed: the images or their captions cannot be used.
            BatchFault: the base model cannot be had, or cannot be trained at this resolution.
        """
        runtime = Runtime.start(args.config, args.inputs.output_dir)
        with runtime.processes.failing_together():
            images = data.usable_images(args)
            captions = data.usable_captions(args, images)
            model = BaseModel.usable(args.config)
            check_optimizer(args.config)
            check_quantization(args.config, runtime.device)
            check_modules(model, args.config)
            found = data.TrainingData.make(
                args.config,
                images,
                captions,
                data.usable_class_images(args.config, model),
                process_count=runtime.processes.count,
                process_index=runtime.processes.index,
            )
            transformer, clip = model.config_of("transformer"), model.config_of("text_encoder")
            prompt_tokens = clip["max_position_embeddings"] + args.config.max_sequence_length
            runtime = runtime.with_kernels(
                batch_size=found.schedule.forward_batch_size,
                head_count=transformer["num_attention_heads"],
                token_count=image_tokens(model, args.config.resolution) + prompt_tokens,
                head_width=transformer["attention_head_dim"],
            )
        return cls(args=args, runtime=runtime, model=model, data=found)

    @contextmanager
    def claimed(self) -> Iterator[Claim | None]:
        """Hold the claim of the output folder in the body; the main process holds it for all."""
        with ExitStack() as stack:
            claim = None
            with self.runtime.processes.failing_together():
                if self.runtime.processes.is_main:
                    claim = stack.enter_context(Claim.take(self.args.inputs.output_dir))
            yield claim

    def new_record(self, claim: Claim | None = None) -> RunRecord:
        args = self.args
        trained, numerics = describe_training(args, self.model, self.data, self.runtime)
        record = RunRecord(
            output_dir=args.inputs.output_dir,
            config=args.config,
            trained=trained,
            numerics=numerics,
            runtime=self.runtime,
            claim=claim,
        )
        for warning in self.runtime.attention_choice.warnings:
            record.warn(warning)
        return record
