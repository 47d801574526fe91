"""Our LoRA layers and norms against those of peft and diffusers, whose place they take."""

import math
from typing import Any

import pytest
import torch
from diffusers.models.attention import JointTransformerBlock
from diffusers.models.normalization import RMSNorm
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor

from mimicry.tuning.adapters.weights import lora_arguments
from mimicry.tuning.hf_diffusers.sd3.transformer import JointAttention
from mimicry.tuning.hf_diffusers.spec.lora_modules import TARGET_MODULES
from mimicry.tuning.hf_diffusers.training.fused_layers import FusedLora, use_fused_lora, use_fused_norms

RANK = 4
IMAGE_TOKENS, TEXT_TOKENS = 24, 10


def make_block(width: int, *, dual: bool = False, dropout: float = 0.0, scale: float = 1.0) -> Any:
    """Return a joint block in fp32 whose adapter has been trained a little."""
    torch.manual_seed(5)
    block: Any = JointTransformerBlock(
        dim=width,
        num_attention_heads=width // 32,
        attention_head_dim=32,
        qk_norm="rms_norm",
        use_dual_attention=dual,
    )
    block.requires_grad_(False)
    config = LoraConfig(**lora_arguments(RANK, TARGET_MODULES, dropout) | {"lora_alpha": RANK * scale})
    inject_adapter_in_model(config, block)
    for name, parameter in block.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.05)
        if name.endswith(("norm_q.weight", "norm_added_k.weight")):
            torch.nn.init.normal_(parameter, mean=1, std=0.1)
    return block.train()


def fuse(block: Any) -> Any:
    use_fused_norms(block)
    for attention in (block.attn, block.attn2):
        if attention is not None:
            attention.set_processor(JointAttention())
    use_fused_lora(block)
    return block


def narrow(block: Any) -> Any:
    """Return the block in bf16, but for its adapter."""
    for name, parameter in block.named_parameters():
        if ".lora_" not in name:
            parameter.data = parameter.data.bfloat16()
    return block


def results(block: Any, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Return outputs of a pass, and the gradients of inputs and adapter."""
    generator = torch.Generator().manual_seed(3)
    width = block.norm1.linear.in_features
    image, text = (
        torch.randn(2, tokens, width, generator=generator).to(dtype).requires_grad_()
        for tokens in (IMAGE_TOKENS, TEXT_TOKENS)
    )
    condition = torch.randn(2, width, generator=generator).to(dtype)
    torch.manual_seed(11)
    outputs = block(image, text, condition)
    loss = sum(output.float().square().mean() for output in outputs)
    adapter = {name: value for name, value in block.named_parameters() if ".lora_" in name}
    wanted = {"image": image, "text": text, **adapter}
    found = torch.autograd.grad(loss, list(wanted.values()))
    return {"text out": outputs[0], "image out": outputs[1], **dict(zip(wanted, found, strict=True))}


def error(found: dict[str, Tensor], expected: dict[str, Tensor], part: str = ".lora_") -> float:
    """Return the relative error of all gradients of the adapter together."""
    names = [name for name in expected if part in name]
    assert names
    off = sum(float((found[name].double() - expected[name].double()).square().sum()) for name in names)
    size = sum(float(expected[name].double().square().sum()) for name in names)
    return math.sqrt(off / size)


@pytest.mark.parametrize("dual", [False, True])
@pytest.mark.parametrize(("dropout", "scale"), [(0.0, 1.0), (0.4, 1.0), (0.0, 2.5)])
def test_in_fp32_all_is_as_in_peft_and_diffusers(dual: bool, dropout: float, scale: float) -> None:
    plain = results(make_block(64, dual=dual, dropout=dropout, scale=scale))
    block = fuse(make_block(64, dual=dual, dropout=dropout, scale=scale))
    assert sum(isinstance(module, FusedLora) for module in block.modules()) == 8
    assert not any(isinstance(module, RMSNorm) for module in block.modules())
    fused = results(block)
    assert fused.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(fused[name], value, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.slow
def test_in_bf16_gradients_are_no_worse_than_under_autocast() -> None:
    """At the width of Stable Diffusion 3.5 Large."""
    exact = results(make_block(2432))
    block = narrow(make_block(2432))
    with torch.autocast("cpu", torch.bfloat16):
        autocast = error(results(block, torch.bfloat16), exact)
    lean = error(results(fuse(block), torch.bfloat16), exact)
    assert 0 < lean <= 1.1 * autocast
    assert autocast < 0.03


def test_gradients_arrive_in_fp32_and_weights_stay() -> None:
    block = fuse(narrow(make_block(64)))
    before = {name: value.detach().clone() for name, value in block.named_parameters()}
    found = results(block, torch.bfloat16)
    for name, value in block.named_parameters():
        assert torch.equal(value, before[name])
        if ".lora_" in name:
            assert value.dtype == found[name].dtype == torch.float32
            assert found[name].any()
    assert found["image out"].dtype == torch.bfloat16


def test_names_and_tensors_are_those_of_peft() -> None:
    plain, fused = make_block(64), fuse(make_block(64))
    assert plain.state_dict().keys() == fused.state_dict().keys()


def test_the_hook_can_be_removed_and_base_layers_are_whole() -> None:
    block = make_block(64)
    use_fused_lora(block).remove()
    (layer,) = [module for name, module in block.named_modules() if name == "attn.to_q"]
    assert not block._forward_pre_hooks
    assert type(layer.get_base_layer()) is torch.nn.Linear


@pytest.mark.parametrize("change", [{"lora_bias": True}, {"use_dora": True}])
def test_what_is_no_plain_product_stays_with_peft(change: dict[str, bool]) -> None:
    block: Any = JointTransformerBlock(dim=64, num_attention_heads=2, attention_head_dim=32)
    arguments = lora_arguments(RANK, TARGET_MODULES, 0.0) | {"init_lora_weights": True} | change
    inject_adapter_in_model(LoraConfig(**arguments), block)
    use_fused_lora(block)
    assert not any(isinstance(module, FusedLora) for module in block.modules())
    results(block)
