"""Every hyper-parameter of a training, declared once.

The options of apply_tuning and of the wrapper, the trainer's flags, the argument lists between them, the
recipe in training_run.json and the table in the README all come from the fields of `TuningConfig`.
"""

import dataclasses
import math
import types
from dataclasses import dataclass, field
from typing import Any, get_args, get_type_hints

from mimicry.common.errors import UsageError

MIXED_PRECISIONS = ("no", "fp16", "bf16")
ATTENTION_BACKENDS = ("auto", "flash", "cudnn", "efficient", "math")
WEIGHTING_SCHEMES = ("logit_normal", "sigma_sqrt", "mode", "cosmap")
OPTIMIZERS = ("AdamW", "prodigy")
LR_SCHEDULERS = (
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
)
# Values of resume_from_checkpoint that are no path.
RESUME_LATEST, RESUME_NONE = "latest", "none"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of an option beside its name, type and default.

    `choices` may be spelt in any case. `takes_word` is for booleans that the diffusers example declares with
    a value: the trainer's flag takes true or false, and has the option's own default.
    `in_recipe` says whether the value defines the adapter: two adapters of one recipe differ in their
    images only. `rationale` is the README's reason for the default; only the main options have one.
    """

    help: str
    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    takes_word: bool = False
    in_recipe: bool = True
    rationale: str = ""


def _option(default: Any, help: str, **facts: Any) -> Any:
    return field(default=default, metadata={"facts": Facts(help=help, **facts)})


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """The hyper-parameters of one training, with the study's defaults.

    Raises:
        UsageError: some values are out of bounds; the error lists all of them.
    """

    # The options of the study's table, in its order.
    resolution: int = _option(
        1024,
        "Side of the square training images, in pixels.",
        minimum=16,
        maximum=4096,
        rationale="SD3.5 Large native resolution",
    )
    rank: int = _option(
        16,
        "Rank of the LoRA adapter; its alpha is the same.",
        minimum=1,
        maximum=1024,
        rationale="Good balance for ~20 training images",
    )
    max_train_steps: int = _option(
        500,
        "Optimizer steps.",
        minimum=1,
        maximum=1_000_000,
        rationale="~100 epochs of 20 images with effective batch size 4",
    )
    learning_rate: float = _option(
        1e-4,
        "Learning rate of AdamW; for prodigy a factor, usually 1.",
        above=0,
        maximum=1,
        rationale="Standard for LoRA fine-tuning",
    )
    train_batch_size: int = _option(
        1,
        "Samples in one forward pass.",
        minimum=1,
        maximum=256,
        rationale="Fits in 24GB VRAM with gradient checkpointing",
    )
    gradient_accumulation_steps: int = _option(
        4,
        "Forward passes to one optimizer step.",
        minimum=1,
        maximum=4096,
        rationale="Effective batch size of 4",
    )
    mixed_precision: str = _option(
        "bf16",
        "Precision of the frozen base and of its arithmetic; the adapter is always trained in fp32.",
        choices=MIXED_PRECISIONS,
        rationale="Avoids fp16 overflow in DiT attention layers",
    )
    gradient_checkpointing: bool = _option(
        True,
        "Recompute activations in the backward pass: less memory, same result.",
        in_recipe=False,
        rationale="Essential for 24GB VRAM",
    )
    cache_latents: bool = _option(
        True,
        "Encode each image once before training: less memory, same result.",
        in_recipe=False,
        rationale="Reduces VRAM by pre-encoding images",
    )
    seed: int = _option(
        42,
        "Seed of everything that is drawn by chance.",
        minimum=0,
        maximum=2**63 - 1,
        rationale="Reproducibility",
    )
    instance_prompt: str = _option(
        "a painting in the style of sks",
        "Prompt that every image is trained with.",
        rationale="DreamBooth rare token binding",
    )

    # Base model. Its name is no part of the recipe: the recipe holds what the name resolved to.
    pretrained_model_name_or_path: str = _option(
        "stabilityai/stable-diffusion-3.5-large",
        "Base model: a Hub name or a folder in the diffusers layout.",
        in_recipe=False,
    )
    revision: str | None = _option(
        None, "Branch, tag or commit of the base model on the Hub.", in_recipe=False
    )
    variant: str | None = _option(None, "Variant of the base model's files, such as fp16.")
    cache_dir: str | None = _option(
        None, "Folder for downloaded models; by default the one of huggingface_hub.", in_recipe=False
    )

    # Images and prompt.
    center_crop: bool = _option(
        True, "Crop the centre of each image; otherwise a new random crop for each sample."
    )
    random_flip: bool = _option(False, "Mirror each sample with probability one half.")
    max_sequence_length: int = _option(77, "Tokens of the prompt that T5 reads.", minimum=1, maximum=256)

    # Training, in the words of the diffusers example.
    adam_beta1: float = _option(0.9, "Decay of AdamW's first moment.", minimum=0, maximum=0.999999)
    adam_beta2: float = _option(0.999, "Decay of AdamW's second moment.", minimum=0, maximum=0.99999999)
    adam_weight_decay: float = _option(1e-4, "Weight decay of AdamW.", minimum=0, maximum=1)
    adam_epsilon: float = _option(1e-8, "Epsilon of AdamW.", above=0, maximum=1)
    max_grad_norm: float = _option(1.0, "Gradients are scaled down to at most this norm.", above=0)
    weighting_scheme: str = _option(
        "logit_normal",
        "How timesteps are drawn and losses weighted (Esser et al. 2024).",
        choices=WEIGHTING_SCHEMES,
    )
    logit_mean: float = _option(0.0, "Mean of logit_normal.", minimum=-100, maximum=100)
    logit_std: float = _option(1.0, "Standard deviation of logit_normal.", above=0, maximum=100)
    mode_scale: float = _option(1.29, "Scale of mode.", minimum=-1, maximum=1.75)
    precondition_outputs: int = _option(
        1, "1: the loss compares latents; 0: velocities.", minimum=0, maximum=1
    )
    deterministic: bool = _option(
        False, "Only deterministic algorithms: the same bytes on CUDA too, slower.", in_recipe=False
    )
    upcast_before_saving: bool = _option(False, "Save the adapter in fp32 instead of bf16.")

    # Optimizer and learning rate.
    optimizer: str = _option("AdamW", "Optimizer; prodigy finds its own step size.", choices=OPTIMIZERS)
    use_8bit_adam: bool = _option(False, "Keep the state of AdamW in 8 bits, by bitsandbytes.")
    prodigy_beta3: float | None = _option(
        None,
        "Decay of Prodigy's estimate of the step size; by default the square root of beta2.",
        minimum=0,
        maximum=0.99999999,
    )
    prodigy_decouple: bool = _option(True, "Prodigy decays weights as AdamW does.", takes_word=True)
    prodigy_use_bias_correction: bool = _option(
        True, "Prodigy corrects its bias as Adam does.", takes_word=True
    )
    prodigy_safeguard_warmup: bool = _option(
        True, "Prodigy leaves the warm-up out of its estimate of the step size.", takes_word=True
    )
    scale_lr: bool = _option(
        False, "Multiply the learning rate by the samples of one optimizer step, over all processes."
    )
    lr_scheduler: str = _option("constant", "How the learning rate changes.", choices=LR_SCHEDULERS)
    lr_warmup_steps: int = _option(
        0,
        "Optimizer steps in which the learning rate grows from zero; constant has no such steps.",
        minimum=0,
        maximum=1_000_000,
    )
    lr_num_cycles: int = _option(1, "Restarts of cosine_with_restarts.", minimum=1, maximum=1_000_000)
    lr_power: float = _option(1.0, "Power of polynomial.", above=0, maximum=100)

    # What the adapter is put on.
    lora_layers: str | None = _option(
        None,
        "Modules with a LoRA: comma list of the ends of their names; by default all attention projections.",
    )
    lora_blocks: str | None = _option(
        None, "Blocks with a LoRA: comma list of numbers from 0; by default all blocks."
    )
    lora_dropout: float = _option(
        0.0, "Share of a LoRA's inputs that is dropped in training.", minimum=0, maximum=0.999
    )

    # Length and supply of a training.
    repeats: int = _option(1, "How often an epoch shows each image.", minimum=1, maximum=10_000)
    num_train_epochs: int | None = _option(
        None, "Train for so many epochs, whatever --max-train-steps says.", minimum=1, maximum=1_000_000
    )
    dataloader_num_workers: int = _option(
        0,
        "Threads that prepare the next batches during a step; same result.",
        minimum=0,
        maximum=256,
        in_recipe=False,
    )
    allow_tf32: bool = _option(
        False, "Let CUDA shorten fp32 to TF32 in products: faster, less exact.", in_recipe=False
    )

    # Memory and speed.
    conditioning_table: bool = _option(
        True,
        "Compute what depends on timestep and prompt alone ahead of time: less memory, same result.",
        in_recipe=False,
    )
    checkpointed_blocks: int | None = _option(
        None,
        "Blocks that gradient checkpointing recomputes; by default as few as the GPU's memory allows.",
        minimum=0,
        maximum=1000,
        in_recipe=False,
    )
    compile_blocks: bool = _option(
        False,
        "Compile the transformer's blocks; off by default until it is measured to pay within one run.",
        in_recipe=False,
    )
    attention_backend: str = _option(
        "auto",
        "Attention kernel; auto takes the best for the device.",
        choices=ATTENTION_BACKENDS,
        in_recipe=False,
    )

    # Prompt embeddings on disk, and evaluation.
    prompt_cache_dir: str | None = _option(
        None, "Folder for prompt embeddings; by default mimicry/prompts in ~/.cache.", in_recipe=False
    )
    eval_timesteps: int = _option(
        4,
        "Noise levels at which the loss on the original art is measured, before and after; 0: never.",
        minimum=0,
        maximum=100,
        in_recipe=False,
    )

    # Checkpoints: where a training that was stopped goes on.
    checkpointing_steps: int = _option(
        100, "Optimizer steps from one checkpoint to the next.", minimum=1, maximum=1_000_000, in_recipe=False
    )
    checkpoints_total_limit: int = _option(
        1, "Checkpoints that are kept, the newest ones.", minimum=1, maximum=1000, in_recipe=False
    )
    resume_from_checkpoint: str = _option(
        RESUME_LATEST,
        "latest: go on from the newest checkpoint that fits; none: begin anew; or the path of a checkpoint.",
        in_recipe=False,
    )

    def __post_init__(self) -> None:
        for option in OPTIONS:
            value = getattr(self, option.name)
            # 1 and 1.0 would be two recipes. What is too large for a float is left for the check of types.
            if option.type is float and type(value) is int and abs(value) < 2**1000:
                object.__setattr__(self, option.name, float(value))
            # AdamW and adamw would be two recipes, too.
            if option.facts.choices and isinstance(value, str):
                spelt = {choice.casefold(): choice for choice in option.facts.choices}
                object.__setattr__(self, option.name, spelt.get(value.casefold(), value))
        problems = [problem for option in OPTIONS if (problem := option.problem(getattr(self, option.name)))]
        if problems:
            raise UsageError(*problems)

    def step_count(self, image_count: int, process_count: int = 1) -> int:
        """Return the optimizer steps of a training on so many images; the last epoch is finished."""
        if self.num_train_epochs is None:
            return self.max_train_steps
        samples = self.num_train_epochs * image_count * self.repeats
        return math.ceil(samples / (process_count * self.gradient_accumulation_steps * self.train_batch_size))


@dataclass(frozen=True, kw_only=True)
class Option:
    """One field of `TuningConfig`: its name with underscores, the type of a value, its default, its facts."""

    name: str
    type: type
    optional: bool
    default: Any
    facts: Facts

    @property
    def flag(self) -> str:
        """The option of apply_tuning and the wrapper: with dashes."""
        return "--" + self.name.replace("_", "-")

    @property
    def trainer_flag(self) -> str:
        """The flag of the trainer: with underscores."""
        return "--" + self.name

    def problem(self, value: Any) -> str | None:
        """Return what is wrong with `value` for this option, or None."""
        if value is None and self.optional:
            return None
        if type(value) is not self.type:
            return f"{self.flag} is {value!r}; it takes {_ARTICLES[self.type]}"
        if isinstance(value, str) and (not value.strip() or "\0" in value):
            return f"{self.flag} is {value!r}; it takes text that is not blank"
        if self.facts.choices and str(value) not in self.facts.choices:
            return f"{self.flag} is {value!r}; choose one of {', '.join(self.facts.choices)}"
        return None if self._within_bounds(value) else f"{self.flag} is {value}; it takes {self.bounds}"

    def _within_bounds(self, value: Any) -> bool:
        facts = self.facts
        if not isinstance(value, (int, float)):
            return True
        return (
            math.isfinite(value)
            and (facts.minimum is None or value >= facts.minimum)
            and (facts.above is None or value > facts.above)
            and (facts.maximum is None or value <= facts.maximum)
        )

    @property
    def bounds(self) -> str:
        """The allowed range in words, for messages and help; empty when there is none."""
        facts, words = self.facts, []
        if facts.minimum is not None:
            words.append(
                f"at least {facts.minimum:g}" if abs(facts.minimum) < 1e6 else f"at least {facts.minimum}"
            )
        if facts.above is not None:
            words.append(f"above {facts.above:g}")
        if facts.maximum is not None:
            words.append(f"at most {facts.maximum}")
        return ", ".join(words) or "a finite number"


_ARTICLES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _declared_options() -> tuple[Option, ...]:
    hints = get_type_hints(TuningConfig)
    options = []
    for item in dataclasses.fields(TuningConfig):
        hint = hints[item.name]
        optional = isinstance(hint, types.UnionType)
        kind = next(part for part in get_args(hint) if part is not types.NoneType) if optional else hint
        options.append(
            Option(
                name=item.name,
                type=kind,
                optional=optional,
                default=item.default,
                facts=item.metadata["facts"],
            )
        )
    return tuple(options)


OPTIONS = _declared_options()
