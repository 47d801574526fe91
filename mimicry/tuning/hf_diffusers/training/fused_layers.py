"""Layers that take the place of peft's and diffusers' slower ones; weights and their names stay.

peft would widen the input of each of its layers to fp32, narrow what comes out, and multiply it by a scale of
one. Here the adapter's fp32 weights are narrowed once for each pass through the model, and a layer adds its
low-rank product in one fused call. Gradients arrive in fp32.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.normalization import RMSNorm
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor
from torch.utils.hooks import RemovableHandle

# peft's layers around a linear layer: a plain one, and those of bitsandbytes.
_AROUND_LINEAR = ("Linear", "Linear8bitLt", "Linear4bit")


class FusedLora(torch.nn.Module, LoraLayer):  # type: ignore[misc]
    """A frozen linear layer with the low-rank product of its one adapter (Hu et al. 2021, arXiv:2106.09685).

    `factors` are A, (rank, inputs), and B, (outputs, rank), in the precision of the base; `use_fused_lora`
    puts them there.
    """

    base_layer: torch.nn.Module
    lora_A: torch.nn.ModuleDict
    lora_B: torch.nn.ModuleDict
    lora_dropout: torch.nn.ModuleDict
    scaling: dict[str, float]
    adapter_name: str
    factors: tuple[Tensor, Tensor]

    def forward(self, x: Tensor) -> Tensor:
        """Return x W^T + bias + scale * dropout(x) A^T B^T, of shape (..., outputs)."""
        down_RI, up_OR = self.factors
        # In two dimensions a linear layer's output is not a view, so that the product can be added in place.
        x_NI = x.reshape(-1, x.shape[-1])
        low_NR = F.linear(self.lora_dropout[self.adapter_name](x_NI), down_RI)
        base_NO = self.base_layer(x_NI)
        add = base_NO.addmm_ if type(self.base_layer) is torch.nn.Linear else base_NO.addmm
        output: Tensor = add(low_NR, up_OR.t(), alpha=self.scaling[self.adapter_name])
        return output.view(*x.shape[:-1], -1)


class _Cast(torch.autograd.Function):
    """Many fp32 tensors in another precision, by few kernels; their gradients in fp32."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *wide: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        narrow = [torch.empty_like(one, dtype=dtype) for one in wide]
        torch._foreach_copy_(narrow, wide)
        return tuple(narrow)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        narrow = [gradient for gradient in gradients if gradient is not None]
        wide = [torch.empty_like(gradient, dtype=torch.float32) for gradient in narrow]
        if wide:
            torch._foreach_copy_(wide, narrow)
        found = iter(wide)
        return None, *(None if gradient is None else next(found) for gradient in gradients)


def use_fused_norms(model: torch.nn.Module) -> None:
    """Let one kernel compute each of diffusers' RMS norms that has a weight and no bias."""
    for name, norm in list(model.named_modules()):
        if isinstance(norm, RMSNorm) and norm.weight is not None and norm.bias is None:
            fused = torch.nn.RMSNorm(tuple(norm.dim), eps=norm.eps, device="meta")
            fused.weight = norm.weight
            model.set_submodule(name, fused.train(norm.training))


def use_fused_lora(model: torch.nn.Module) -> RemovableHandle:
    """Let the layers that peft has put into `model` add their products in one call, in its precision.

    That of its first weight, which is never quantised. What is not a plain low-rank product stays with peft.
    Return the hook that casts the weights, fp32 ones; remove it with the adapter.
    """
    layers: list[Any] = [layer for layer in model.modules() if _is_plain(layer)]
    for layer in layers:
        (layer.adapter_name,) = layer.lora_A
        layer.__class__ = FusedLora
    dtype = next(model.parameters()).dtype

    def cast(model: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        factors: Sequence[Any] = [
            part[layer.adapter_name].weight for layer in layers for part in (layer.lora_A, layer.lora_B)
        ]
        if dtype != torch.float32:
            factors = _Cast.apply(dtype, *factors)  # type: ignore[no-untyped-call]
        for place, layer in enumerate(layers):
            layer.factors = (factors[2 * place], factors[2 * place + 1])

    return model.register_forward_pre_hook(cast)


def _is_plain(layer: Any) -> bool:
    if not isinstance(layer, LoraLayer) or type(layer).__name__ not in _AROUND_LINEAR:
        return False
    biases = [up.bias for up in layer.lora_B.values()]
    return len(layer.lora_A) == 1 and biases == [None] and not layer.lora_variant and not layer.merged
