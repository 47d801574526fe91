"""Count what a block of the transformer does in a micro-step: operations, bytes moved, bytes kept.

    .venv/bin/python -m benchmarks.step_counts [--output FILE]

Everything runs on the meta device: nothing is computed, and no GPU is needed. Counted is one joint block with
its adapter, at 1024 x 1024 pixels and a batch of one, forward and backward, in bf16, for the widths of Stable
Diffusion 3.5 Large and for both kinds of blocks of Medium. "autocast" is peft's own layers under autocast, as
the diffusers example runs them; "lean" is what the trainer does. Operations are those that start a kernel.
Elementwise bytes are what all operations but matrix products and attention read and write. Kept are the
tensors that the backward pass needs, in bytes for each value of the stream (tokens x width). The peak without
gradients is what lives at once in a forward pass that keeps nothing, its inputs included.

Meta tensors know neither CUDA's autocast nor its fused kernels of attention and RMS norm; stand-ins here have
their inputs, outputs and kept tensors.
"""

import argparse
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from diffusers.models.attention import JointTransformerBlock
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode

from mimicry.tuning.adapters.weights import lora_arguments
from mimicry.tuning.hf_diffusers.sd3.transformer import JointAttention
from mimicry.tuning.hf_diffusers.spec.lora_modules import TARGET_MODULES
from mimicry.tuning.hf_diffusers.training.fused_layers import use_fused_lora, use_fused_norms
from tools.results_file import add_output_option, report

_RANK = 16
_IMAGE_TOKENS, _TEXT_TOKENS = 4096, 154
_VIEWS = {
    *("view", "_unsafe_view", "transpose", "permute", "expand", "unsqueeze", "squeeze", "slice", "select"),
    *("detach", "alias", "split", "chunk", "t", "as_strided", "unbind", "empty", "empty_like", "reshape"),
    *("split_with_sizes", "new_empty", "new_empty_strided", "empty_strided", "lift_fresh"),
}
_PRODUCTS = {"mm", "addmm", "addmm_", "bmm", "baddbmm", "_attention", "_attention_backward"}
# Of CUDA's lists: what autocast runs in bf16, and what in fp32.
_NARROW = {"linear", "matmul", "conv2d", "addmm", "mm", "bmm", "scaled_dot_product_attention"}
_WIDE = {"layer_norm", "rms_norm", "softmax", "pow", "rsqrt", "sum", "norm"}


@dataclass(frozen=True)
class Shape:
    """The sizes of a block; `dual` for one with a second attention over the image alone."""

    width: int
    heads: int
    dual: bool = False


BLOCKS = {
    "large": Shape(2432, 38),
    "medium": Shape(1536, 24),
    "medium, dual attention": Shape(1536, 24, dual=True),
}
WAYS = ("autocast", "lean")


class CudaAutocast(TorchFunctionMode):
    """What torch.autocast("cuda", torch.bfloat16) does, for tensors on the meta device."""

    def __torch_function__(
        self, function: Any, types: Any, inputs: tuple[Any, ...] = (), named: dict[str, Any] | None = None
    ) -> Any:
        name = (resolve_name(function) or "").rpartition(".")[2]
        dtype = torch.bfloat16 if name in _NARROW else torch.float32 if name in _WIDE else None
        named = named or {}
        if dtype is not None:
            inputs = tuple(_cast(value, dtype) for value in inputs)
            named = {key: _cast(value, dtype) for key, value in named.items()}
        return function(*inputs, **named)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations and bytes while it is active."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0
        self.elementwise_bytes = 0
        self.kept: dict[int, int] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, inputs: tuple[Any, ...] = (), named: dict[str, Any] | None = None
    ) -> Any:
        output = function(*inputs, **(named or {}))
        name = function.overloadpacket.__name__
        if name not in _VIEWS:
            self.add(name, inputs, output)
        return output

    def add(self, name: str, *tensors: Any) -> None:
        self.operations += 1
        if name not in _PRODUCTS:
            self.elementwise_bytes += sum(tensor.nbytes for tensor in _tensors(tensors))

    def keep(self, tensor: Tensor) -> Tensor:
        """Note a tensor that is kept for the backward pass; each storage counts once."""
        storage = tensor.untyped_storage()
        self.kept[storage._cdata] = storage.nbytes()
        return tensor


class _Peak(Counter):  # type: ignore[no-untyped-call]
    """Counts the bytes that live at once, beside the weights, while it is active."""

    def __init__(self, weights: set[int]) -> None:
        super().__init__()
        self.peak = 0
        self._weights = weights
        self._living: dict[int, int] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, inputs: tuple[Any, ...] = (), named: dict[str, Any] | None = None
    ) -> Any:
        output = function(*inputs, **(named or {}))
        for tensor in _tensors([inputs, output]):
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._weights and key not in self._living:
                self._living[key] = storage.nbytes()
                weakref.finalize(storage, self._living.pop, key)
        self.peak = max(self.peak, sum(self._living.values()))
        return output


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)


class _Attention(torch.autograd.Function):
    """Inputs, outputs and kept tensors of a fused attention kernel."""

    @staticmethod
    def forward(ctx: Any, counter: Counter, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # Fused kernels write (batch, tokens, heads, width), and return it transposed.
        batch, heads, tokens, width = query.shape
        output = query.new_empty(batch, tokens, heads, width).transpose(1, 2)
        log_sums = query.new_empty(batch, heads, tokens, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, log_sums)
        ctx.counter = counter
        counter.add("_attention")
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        ctx.counter.add("_attention_backward")
        return None, *(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


class _RmsNorm(torch.autograd.Function):
    """Inputs, outputs and kept tensors of the fused RMS norm, which first makes its input contiguous."""

    @staticmethod
    def forward(ctx: Any, counter: Counter, x: Tensor, weight: Tensor) -> Tensor:
        x = x.contiguous()
        output = torch.empty_like(x)
        ctx.save_for_backward(x, weight, x.new_empty(*x.shape[:-1], 1, dtype=torch.float32))
        ctx.counter = counter
        counter.add("rms_norm", x, output)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x = ctx.saved_tensors[0]
        gradient, output = gradient.contiguous(), torch.empty_like(x)
        ctx.counter.add("rms_norm_backward", x, gradient, output)
        return None, output, None


@contextmanager
def _fused_kernels(counter: Counter) -> Iterator[None]:
    def attention(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Any:
        narrow = (one.to(torch.bfloat16) for one in (query, key, value))
        return _Attention.apply(counter, *narrow)  # type: ignore[no-untyped-call]

    def rms_norm(x: Tensor, shape: Any, weight: Tensor, eps: float | None = None) -> Any:
        return _RmsNorm.apply(counter, x, weight)  # type: ignore[no-untyped-call]

    with (
        patch.object(F, "scaled_dot_product_attention", attention),
        patch.object(F, "rms_norm", rms_norm),
    ):
        yield


def make_block(way: str, shape: Shape) -> Any:
    """Return a joint block with its adapter on the meta device, as that way runs it."""
    with torch.device("meta"):
        block: Any = JointTransformerBlock(
            dim=shape.width,
            num_attention_heads=shape.heads,
            attention_head_dim=64,
            qk_norm="rms_norm",
            use_dual_attention=shape.dual,
        )
        block.requires_grad_(False).bfloat16()
        inject_adapter_in_model(LoraConfig(**lora_arguments(_RANK, TARGET_MODULES, 0.0)), block)
    for name, parameter in block.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()
    if way == "lean":
        use_fused_norms(block)
        block.attn.set_processor(JointAttention())
        if shape.dual:
            block.attn2.set_processor(JointAttention())
        use_fused_lora(block)
    return block


def _inputs(shape: Shape) -> tuple[list[Tensor], Tensor]:
    """Return what a block takes: the streams of image and prompt, and a row of the modulation."""
    stream = [
        torch.empty(1, tokens, shape.width, dtype=torch.bfloat16, device="meta", requires_grad=True)
        for tokens in (_IMAGE_TOKENS, _TEXT_TOKENS)
    ]
    return stream, torch.empty(1, shape.width, dtype=torch.bfloat16, device="meta")


def peak_without_gradients(shape: Shape) -> float:
    """Return the bytes for each value of the stream that live at once in the lean block's forward pass."""
    block = make_block("lean", shape)
    stream, condition = _inputs(shape)
    counter = _Peak({value.untyped_storage()._cdata for value in block.parameters()})
    with _fused_kernels(counter), torch.no_grad(), counter:
        block(*stream, condition)
    return counter.peak / sum(tensor.numel() for tensor in stream)


def count(way: str, shape: Shape) -> dict[str, float]:
    """Return the counts of one block."""
    block = make_block(way, shape)
    stream, condition = _inputs(shape)
    weights = {value.untyped_storage()._cdata for value in block.parameters()}
    counter = Counter()
    with ExitStack() as stack:
        stack.enter_context(_fused_kernels(counter))
        if way == "autocast":
            stack.enter_context(CudaAutocast())
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(counter.keep, lambda tensor: tensor))
        with counter:
            context, image = block(*stream, condition)
        forward, forward_bytes = counter.operations, counter.elementwise_bytes
        gradients = [torch.empty_like(image), torch.empty_like(context)]
        with counter:
            torch.autograd.backward([image, context], gradients)
    values = sum(tensor.numel() for tensor in stream)
    kept = sum(size for storage, size in counter.kept.items() if storage not in weights)
    return {
        "operations, forward": forward,
        "operations, backward": counter.operations - forward,
        "elementwise bytes, forward [MB]": forward_bytes / 1e6,
        "elementwise bytes, both [MB]": counter.elementwise_bytes / 1e6,
        "kept [bytes a value]": kept / values,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_output_option(parser)
    options = parser.parse_args()
    figures = {
        f"{name}, {way}: {what}": value
        for name, shape in BLOCKS.items()
        for way in WAYS
        for what, value in count(way, shape).items()
    }
    for name, shape in BLOCKS.items():
        figures[f"{name}, lean: peak without gradients [bytes a value]"] = peak_without_gradients(shape)
    report("step_counts", figures, options.output)


if __name__ == "__main__":
    main()
