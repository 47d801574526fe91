"""Every hyper-parameter of a training, declared once.

The options of apply_tuning and of the wrapper, the trainer's flags, the argument lists between them, the
recipe in training_run.json and the table in the README all come from the fields of `TuningConfig`.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from mimicry.common.errors import UsageError
from mimicry.study import CAPTION_FIELD, Reading
from mimicry.tuning.options.declarations import declare, declared_options

MIXED_PRECISIONS = ("no", "fp16", "bf16")
GENERATION_PRECISIONS = ("no", "fp32", "fp16", "bf16")
ATTENTION_BACKENDS = ("auto", "flash", "cudnn", "efficient", "math")
WEIGHTING_SCHEMES = ("logit_normal", "sigma_sqrt", "mode", "cosmap")
OPTIMIZERS = ("AdamW", "prodigy")
QUANTIZATIONS = ("none", "nf4", "int8")
LR_SCHEDULERS = (
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
)
# Values of resume_from_checkpoint that are not a path.
RESUME_LATEST, RESUME_NONE = "latest", "none"
REPORT_NONE, REPORT_ALL = "none", "all"
REPORTS = (REPORT_NONE, "tensorboard", "wandb", REPORT_ALL)


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """The hyper-parameters of one training, with the study's defaults.

    Raises:
        UsageError: some values are out of bounds; the error lists all of them.
    """

    resolution: int = declare(
        1024,
        "Side of the square training images, in pixels.",
        minimum=16,
        maximum=4096,
        rationale="SD3.5 Large native resolution",
    )
    rank: int = declare(
        16,
        "Rank of the LoRA adapter; its alpha is the same.",
        minimum=1,
        maximum=1024,
        rationale="Good balance for ~20 training images",
    )
    max_train_steps: int = declare(
        500,
        "Optimizer steps.",
        minimum=1,
        maximum=1_000_000,
        rationale="~100 epochs of 20 images with effective batch size 4",
    )
    learning_rate: float = declare(
        1e-4,
        "Learning rate of AdamW; for prodigy a factor, usually 1.",
        above=0,
        maximum=1,
        rationale="Standard for LoRA fine-tuning",
    )
    train_batch_size: int = declare(
        1,
        "Samples in one forward pass.",
        minimum=1,
        maximum=256,
        rationale="Fits in 24GB VRAM with gradient checkpointing",
    )
    gradient_accumulation_steps: int = declare(
        4,
        "Forward passes to one optimizer step.",
        minimum=1,
        maximum=4096,
        rationale="Effective batch size of 4",
    )
    mixed_precision: str = declare(
        "bf16",
        "Precision of the frozen base and of its arithmetic; the adapter is always trained in fp32.",
        choices=MIXED_PRECISIONS,
        rationale="Avoids fp16 overflow in DiT attention layers",
    )
    gradient_checkpointing: bool = declare(
        True,
        "Recompute activations in the backward pass: less memory, same result.",
        in_recipe=False,
        rationale="Essential for 24GB VRAM",
    )
    cache_latents: bool = declare(
        True,
        "Encode each image once before training: less memory, same result.",
        in_recipe=False,
        rationale="Reduces VRAM by pre-encoding images",
    )
    seed: int = declare(
        42,
        "Seed of everything that is drawn by chance.",
        minimum=0,
        maximum=2**63 - 1,
        rationale="Reproducibility",
    )
    instance_prompt: str = declare(
        "a painting in the style of sks",
        "Prompt that every image is trained with.",
        rationale="DreamBooth rare token binding",
    )

    # Not part of the recipe, which holds what the name resolved to.
    pretrained_model_name_or_path: str = declare(
        "stabilityai/stable-diffusion-3.5-large",
        "Base model: a Hub name or a folder in the diffusers layout.",
        in_recipe=False,
    )
    revision: str | None = declare(
        None, "Branch, tag or commit of the base model on the Hub.", in_recipe=False
    )
    # `--variant` of apply_tuning names a study beside the usual one.
    variant: str | None = declare(
        None, "Variant of the base model's files, such as fp16.", option="--model-variant"
    )
    cache_dir: str | None = declare(
        None, "Folder for downloaded models; by default the one of huggingface_hub.", in_recipe=False
    )

    center_crop: bool = declare(
        True, "Crop the centre of each image; otherwise a new random crop for each sample."
    )
    random_flip: bool = declare(False, "Mirror each sample with probability one half.")
    convert_profiles: bool = declare(
        False, "Bring images to sRGB by their embedded colour profiles, which are ignored otherwise."
    )
    source_resolution: int | None = declare(
        None,
        "First reduce each image of every condition until its shorter side has so many pixels, so that all "
        "carry the same detail; none is enlarged. By default images stay as they are.",
        minimum=16,
        maximum=16_384,
        added_later=True,
        own_trainer=True,
    )
    hold_out: int = declare(
        0,
        "Paintings of each artist that are left out of training in every condition and for every seed; the "
        "evaluation loss is measured on them.",
        minimum=0,
        maximum=10_000,
        added_later=True,
        own_trainer=True,
    )
    max_sequence_length: int = declare(
        77, "Tokens of the prompt that T5 reads; draw with the same number.", minimum=1, maximum=256
    )

    adam_beta1: float = declare(0.9, "Decay of AdamW's first moment.", minimum=0, maximum=0.999999)
    adam_beta2: float = declare(0.999, "Decay of AdamW's second moment.", minimum=0, maximum=0.99999999)
    adam_weight_decay: float = declare(1e-4, "Weight decay of AdamW.", minimum=0, maximum=1)
    adam_epsilon: float = declare(1e-8, "Epsilon of AdamW.", above=0, maximum=1)
    max_grad_norm: float = declare(1.0, "Gradients are scaled down to at most this norm.", above=0)
    weighting_scheme: str = declare(
        "logit_normal",
        "How timesteps are drawn and losses weighted (Esser et al. 2024).",
        choices=WEIGHTING_SCHEMES,
    )
    logit_mean: float = declare(0.0, "Mean of logit_normal.", minimum=-100, maximum=100)
    logit_std: float = declare(1.0, "Standard deviation of logit_normal.", above=0, maximum=100)
    mode_scale: float = declare(1.29, "Scale of mode.", minimum=-1, maximum=1.75)
    precondition_outputs: int = declare(
        1,
        "1: the loss compares latents, and low noise levels count little; 0: velocities, as in the paper.",
        minimum=0,
        maximum=1,
    )
    deterministic: bool = declare(
        False, "Only deterministic algorithms: the same bytes on CUDA too, slower.", in_recipe=False
    )
    upcast_before_saving: bool = declare(False, "Save the adapter in fp32 instead of bf16.")

    optimizer: str = declare("AdamW", "Optimizer; prodigy finds its own step size.", choices=OPTIMIZERS)
    use_8bit_adam: bool = declare(False, "Keep the state of AdamW in 8 bits, by bitsandbytes.")
    prodigy_beta3: float | None = declare(
        None,
        "Decay of Prodigy's estimate of the step size; by default the square root of beta2.",
        minimum=0,
        maximum=0.99999999,
    )
    prodigy_decouple: bool = declare(True, "Prodigy decays weights as AdamW does.", takes_word=True)
    prodigy_use_bias_correction: bool = declare(
        True, "Prodigy corrects its bias as Adam does.", takes_word=True
    )
    prodigy_safeguard_warmup: bool = declare(
        True, "Prodigy leaves the warm-up out of its estimate of the step size.", takes_word=True
    )
    scale_lr: bool = declare(
        False, "Multiply the learning rate by the samples of one optimizer step, over all processes."
    )
    lr_scheduler: str = declare("constant", "How the learning rate changes.", choices=LR_SCHEDULERS)
    lr_warmup_steps: int = declare(
        0,
        "Optimizer steps in which the learning rate grows from zero; constant has no such steps.",
        minimum=0,
        maximum=1_000_000,
    )
    lr_num_cycles: int = declare(1, "Restarts of cosine_with_restarts.", minimum=1, maximum=1_000_000)
    lr_power: float = declare(1.0, "Power of polynomial.", above=0, maximum=100)

    lora_layers: str | None = declare(
        None,
        "Modules with a LoRA: comma list of the ends of their names; by default all attention projections.",
    )
    lora_blocks: str | None = declare(
        None, "Blocks with a LoRA: comma list of numbers from 0; by default all blocks."
    )
    lora_dropout: float = declare(
        0.0, "Share of a LoRA's inputs that is dropped in training.", minimum=0, maximum=0.999
    )

    repeats: int = declare(1, "How often an epoch shows each image.", minimum=1, maximum=10_000)
    num_train_epochs: int | None = declare(
        None, "Train for so many epochs, whatever --max-train-steps says.", minimum=1, maximum=1_000_000
    )
    dataloader_num_workers: int | None = declare(
        None,
        "Threads that prepare the next batches during a step, same result; by default 2 on a GPU with "
        "--cache-latents, else 0.",
        minimum=0,
        maximum=256,
        in_recipe=False,
    )
    allow_tf32: bool = declare(
        False, "Let CUDA shorten fp32 to TF32 in products: faster, less exact.", in_recipe=False
    )

    conditioning_table: bool = declare(
        True,
        "Compute what depends on timestep and prompt alone ahead of time: less memory, same result.",
        in_recipe=False,
    )
    checkpointed_blocks: int | None = declare(
        None,
        "Blocks that gradient checkpointing recomputes; by default as few as free memory allows.",
        minimum=0,
        maximum=1000,
        in_recipe=False,
    )
    compile_blocks: bool = declare(
        False,
        "Compile the transformer's blocks; off by default until it is measured to pay within one run.",
        in_recipe=False,
    )
    attention_backend: str = declare(
        "auto",
        "Attention kernel; auto takes the best for the device.",
        choices=ATTENTION_BACKENDS,
        in_recipe=False,
    )

    prompt_cache_dir: str | None = declare(
        None, "Folder for prompt embeddings; by default mimicry/prompts in ~/.cache.", in_recipe=False
    )
    eval_timesteps: int = declare(
        4,
        "Noise levels at which the loss on the original art is measured, before and after; 0: never.",
        minimum=0,
        maximum=100,
        in_recipe=False,
    )

    checkpointing_steps: int = declare(
        100, "Optimizer steps from one checkpoint to the next.", minimum=1, maximum=1_000_000, in_recipe=False
    )
    checkpoints_total_limit: int = declare(
        1, "Checkpoints that are kept, the newest ones.", minimum=1, maximum=1000, in_recipe=False
    )
    resume_from_checkpoint: str = declare(
        RESUME_LATEST,
        "latest: go on from the newest checkpoint that fits; none: begin anew; or the path of a checkpoint.",
        in_recipe=False,
    )

    num_processes: int = declare(
        1,
        "Processes that train an adapter together, one GPU each; each takes so many samples a step.",
        minimum=1,
        maximum=64,
        for_launcher=True,
    )
    quantize_base: str = declare(
        "none",
        "Keep the frozen transformer in 4 (nf4) or 8 (int8) bits, by bitsandbytes, for small GPUs.",
        choices=QUANTIZATIONS,
    )
    require_same_numerics: bool = declare(
        False,
        "Refuse to train where the artist's adapters of other conditions were made on another device, with "
        "other kernels or versions of libraries; by default that is a warning.",
        in_recipe=False,
    )

    validation_prompt: str | None = declare(
        None, "Prompt to draw images of as training goes on, into samples/; by default none.", in_recipe=False
    )
    num_validation_images: int = declare(
        4,
        "Images of the validation prompt, each from noise of its own.",
        minimum=1,
        maximum=64,
        in_recipe=False,
    )
    validation_epochs: int = declare(
        50,
        "Epochs from one set of validation images to the next; the last comes at the end.",
        minimum=1,
        maximum=1_000_000,
        in_recipe=False,
    )
    report_to: str = declare(
        REPORT_NONE,
        "Send metrics to tensorboard, wandb, or all of these that are installed.",
        choices=REPORTS,
        in_recipe=False,
    )
    logging_dir: str = declare(
        "logs", "Folder of what --report-to writes, relative to the adapter's.", in_recipe=False
    )

    captions: bool = declare(
        False,
        "Take each image's prompt from STEM.txt beside it, or from metadata.jsonl or metadata.csv in its "
        "folder.",
    )
    caption_template: str | None = declare(
        None,
        "With --captions: what prompts are made of, such as '{caption} in the style of sks'; each prompt "
        "must have the rare token.",
    )

    with_prior_preservation: bool = declare(
        False, "Train on class images as well; needs --class-prompt and --class-data-dir."
    )
    class_data_dir: str | None = declare(
        None,
        "Folder of class images, one for the whole study; those that are missing are generated.",
        in_recipe=False,
    )
    class_prompt: str | None = declare(None, "Prompt of class images, such as 'a painting'.")
    prior_loss_weight: float = declare(
        1.0, "Weight of the loss on class images.", minimum=0, maximum=1_000_000
    )
    num_class_images: int = declare(100, "Class images to train on.", minimum=1, maximum=99_999)
    sample_batch_size: int = declare(
        4, "Class images that are generated at a time.", minimum=1, maximum=256, in_recipe=False
    )
    prior_generation_precision: str | None = declare(
        None,
        "Precision in which class images are generated; by default that of --mixed-precision.",
        choices=GENERATION_PRECISIONS,
        in_recipe=False,
    )

    def __post_init__(self) -> None:
        for option in OPTIONS:
            # 1 and 1.0 would be two recipes, and so would AdamW and adamw.
            object.__setattr__(self, option.name, option.canonical(getattr(self, option.name)))
        problems = [problem for option in OPTIONS if (problem := option.problem(getattr(self, option.name)))]
        problems += self._prior_problems()
        problems += self._template_problems()
        if problems:
            raise UsageError(*problems)

    @property
    def samples_per_step(self) -> int:
        """The samples of one optimizer step, over all processes, class samples not counted."""
        return self.num_processes * self.gradient_accumulation_steps * self.train_batch_size

    @property
    def reading(self) -> Reading:
        """How the images of a training are read, those of its evaluation and class images included."""
        return Reading(self.convert_profiles, self.source_resolution)

    def refuse_train_script(self, script: Path | None) -> None:
        """Refuse values that the script of --train-script cannot be told; None stands for our own trainer.

        Raises:
            UsageError: there are some.
        """
        problems = (
            []
            if script is None
            else [
                f"{option.flag} {getattr(self, option.name)}: {script.name} cannot be told so, and takes all "
                f"images as they are; leave {option.flag} out, or train without --train-script"
                for option in OPTIONS
                if option.facts.own_trainer and getattr(self, option.name) != option.default
            ]
        )
        if problems:
            raise UsageError(*problems)

    def _prior_problems(self) -> list[str]:
        together = {"--class-prompt": self.class_prompt, "--class-data-dir": self.class_data_dir}
        if self.with_prior_preservation:
            return [
                f"--with-prior-preservation needs {flag}; type it too, or --no-with-prior-preservation"
                for flag, value in together.items()
                if value is None
            ]
        return [
            f"{flag} is {value!r} and has no effect without --with-prior-preservation; type both or none"
            for flag, value in together.items()
            if value is not None
        ]

    def _template_problems(self) -> list[str]:
        template = self.caption_template
        if not isinstance(template, str) or not template.strip() or "\0" in template:
            return []  # nothing to use, or refused as any text
        problems = []
        if template.count(CAPTION_FIELD) != 1:
            problems.append(
                f"--caption-template is {template!r}; it takes text with {CAPTION_FIELD} in it, once, such "
                f"as '{CAPTION_FIELD} in the style of sks'"
            )
        if self.captions is False:
            problems.append(
                f"--caption-template is {template!r} and has no effect without --captions; type both or none"
            )
        return problems

    def step_count(self, image_count: int) -> int:
        """Return the optimizer steps of a training on so many images; the last epoch is finished."""
        if self.num_train_epochs is None:
            return self.max_train_steps
        samples = self.num_train_epochs * image_count * self.repeats
        return math.ceil(samples / self.samples_per_step)


# The topics of the fields above, by the first field of each.
_TOPICS = {
    "resolution": "Training",
    "pretrained_model_name_or_path": "Base model",
    "center_crop": "Images and prompt",
    "adam_beta1": "AdamW, loss and precision",
    "optimizer": "Optimizer and learning rate",
    "lora_layers": "Layers of the adapter",
    "repeats": "Epochs and data loading",
    "conditioning_table": "Memory and speed",
    "prompt_cache_dir": "Prompt cache and evaluation",
    "checkpointing_steps": "Checkpoints",
    "num_processes": "Processes, quantisation and numerics",
    "validation_prompt": "Validation images and metrics",
    "captions": "Captions",
    "with_prior_preservation": "Prior preservation",
}
OPTIONS = declared_options(TuningConfig, _TOPICS)
