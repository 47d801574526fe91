"""Formats of adapters: which tensors belong to one, by their names and shapes, whatever stack made it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mimicry.common.errors import AdapterBroken
from mimicry.common.files import sha256_file
from mimicry.study.images import ImageFolder
from mimicry.study.states import State
from mimicry.tuning.adapters.folder import ADAPTER_CONFIG, WEIGHTS, AdapterFolder
from mimicry.tuning.adapters.format import ANY_LORA, AdapterFormat, LoraTensor
from mimicry.tuning.adapters.judge import AdapterSpec, judge_adapter
from mimicry.tuning.adapters.weights import check_header, check_weights
from mimicry.tuning.hf_diffusers.adapter_format import ADAPTER_FORMAT

UNET = AdapterFormat(components=("unet",))
BOTH = AdapterFormat(components=("unet", "text_encoder"))
DOWN_UP = (("lora_A", "lora_B"), ("lora.down", "lora.up"), ("lora_linear_layer.down", "lora_linear_layer.up"))


def lora(
    module: str, rank: int = 4, sides: tuple[str, str] = ("lora_A", "lora_B"), kernel: int = 0
) -> dict[str, torch.Tensor]:
    """Return the two factors of a trained LoRA of `module`; with a kernel, of a convolution."""
    ones = (1, 1) if kernel else ()
    kernels = (kernel, kernel) if kernel else ()
    return {
        f"{module}.{sides[0]}.weight": torch.ones(rank, 6, *kernels),
        f"{module}.{sides[1]}.weight": torch.ones(8, rank, *ones),
    }


def save(path: Path, *loras: dict[str, torch.Tensor]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor for each in loras for name, tensor in each.items()}, path)
    return path


class TestParse:
    @pytest.mark.parametrize(("down", "up"), DOWN_UP)
    @pytest.mark.parametrize("component", ["transformer", "unet", "text_encoder", "text_encoder_2"])
    def test_a_pair(self, component: str, down: str, up: str) -> None:
        module = "down_blocks.0.attentions.1.to_out.0"
        first = ANY_LORA.parse(f"{component}.{module}.{down}.weight", (4, 320))
        second = ANY_LORA.parse(f"{component}.{module}.{up}.weight", (640, 4))
        assert first == LoraTensor(component, module, is_b=False)
        assert second == LoraTensor(component, module, is_b=True)
        assert first.rank((4, 320)) == second.rank((640, 4)) == 4

    def test_a_convolution(self) -> None:
        down = ANY_LORA.parse("unet.conv_in.lora_A.weight", (4, 320, 3, 3))
        up = ANY_LORA.parse("unet.conv_in.lora_B.weight", (640, 4, 1, 1))
        assert down is not None
        assert up is not None
        assert down.rank((4, 320, 3, 3)) == up.rank((640, 4, 1, 1)) == 4

    @pytest.mark.parametrize(
        ("key", "shape"),
        [
            ("unet.to_q.lora_A.weight", (4,)),
            ("unet.to_q.lora_A.weight", (4, 6, 1)),
            ("unet.to_q.lora_A.weight", (4, 6, 1, 1, 1)),
            ("unet.to_q.weight", (4, 6)),
            ("unet.to_q.lora_C.weight", (4, 6)),
            ("unet.to_q.lora.sideways.weight", (4, 6)),
            ("unet.to_q.lora_A.bias", (4, 6)),
            ("unet.to_q.lora_A.weight.extra", (4, 6)),
            ("unet.lora_A.weight", (4, 6)),
            ("lora_A.weight", (4, 6)),
            ("Unet.to_q.lora_A.weight", (4, 6)),
            ("", (4, 6)),
        ],
    )
    def test_what_is_not_part_of_a_lora(self, key: str, shape: tuple[int, ...]) -> None:
        assert ANY_LORA.parse(key, shape) is None

    def test_only_the_components_of_the_format(self) -> None:
        for form, allowed in ((UNET, {"unet"}), (BOTH, {"unet", "text_encoder"})):
            for component in ("unet", "text_encoder", "text_encoder_2", "transformer"):
                found = form.parse(f"{component}.to_q.lora_A.weight", (4, 6))
                assert (found is not None) == (component in allowed)


class TestHeader:
    @pytest.mark.parametrize("sides", DOWN_UP)
    def test_of_one_component(self, sides: tuple[str, str], tmp_path: Path) -> None:
        path = save(tmp_path / "f", lora("unet.a.to_q", 4, sides), lora("unet.a.to_k", 4, sides))
        header = check_header(path, UNET, 4)
        assert (header.rank, header.components) == (4, ("unet",))
        assert header.modules == ("a.to_k", "a.to_q")

    def test_modules_of_several_components_are_told_apart(self, tmp_path: Path) -> None:
        path = save(tmp_path / "f", lora("unet.a.to_q"), lora("text_encoder.a.to_q"))
        header = check_header(path, BOTH, 4)
        assert header.components == ("text_encoder", "unet")
        assert header.modules == ("text_encoder.a.to_q", "unet.a.to_q")
        assert check_header(path, ANY_LORA, None).modules == header.modules
        with pytest.raises(AdapterBroken, match=r"text_encoder\.a\.to_q\.lora_A\.weight .* not part of"):
            check_header(path, UNET, 4)

    def test_a_convolution_beside_a_linear_layer(self, tmp_path: Path) -> None:
        path = save(tmp_path / "f", lora("unet.conv", kernel=3), lora("unet.to_q"))
        assert check_header(path, UNET, 4).modules == ("conv", "to_q")
        assert check_weights(path, UNET, 4).sha256 == sha256_file(path)

    def test_several_ranks_where_the_format_allows_them(self, tmp_path: Path) -> None:
        path = save(tmp_path / "f", lora("unet.to_q", 4), lora("unet.to_k", 16))
        for asked in (None, 4, 16, 5):
            assert check_header(path, UNET, asked).rank == 16
        with pytest.raises(AdapterBroken, match=r"ranks \[4, 16\] where one rank is expected"):
            check_header(path, AdapterFormat(one_rank=True), None)

    def test_one_rank_is_the_one_that_was_asked_for(self, tmp_path: Path) -> None:
        path = save(tmp_path / "f", lora("unet.to_q", 4), lora("unet.to_k", 4))
        form = AdapterFormat(one_rank=True)
        assert check_header(path, form, 4).rank == check_header(path, form, None).rank == 4
        with pytest.raises(AdapterBroken, match="has rank 4 where 16 was asked for"):
            check_header(path, form, 16)

    @pytest.mark.parametrize("form", [ANY_LORA, AdapterFormat(one_rank=True)])
    def test_halves_must_fit(self, form: AdapterFormat, tmp_path: Path) -> None:
        halves = lora("unet.to_q", 4) | {"unet.to_q.lora_B.weight": torch.ones(8, 5)}
        with pytest.raises(AdapterBroken, match=r"ranks \[4, 5\]"):
            check_header(save(tmp_path / "f", halves), form, None)

    @pytest.mark.parametrize("lost", ["lora_A", "lora_B"])
    def test_one_half(self, lost: str, tmp_path: Path) -> None:
        half = {name: tensor for name, tensor in lora("unet.to_q").items() if lost not in name}
        # The other component's module of the same name does not stand in for it.
        path = save(tmp_path / "f", half, lora("text_encoder.to_q"))
        with pytest.raises(AdapterBroken, match="only one half of the LoRA of to_q"):
            check_header(path, ANY_LORA, None)

    def test_no_tensors(self, tmp_path: Path) -> None:
        with pytest.raises(AdapterBroken, match=r"ranks \[\]"):
            check_header(save(tmp_path / "f"), ANY_LORA, None)


class TestWeights:
    @pytest.mark.parametrize("sides", DOWN_UP)
    def test_untrained_in_every_naming(self, sides: tuple[str, str], tmp_path: Path) -> None:
        tensors = lora("unet.to_q", 4, sides) | lora("text_encoder.to_q", 4, sides)
        ups = [name for name in tensors if sides[1] in name]
        for name in ups:
            tensors[name].zero_()
        with pytest.raises(AdapterBroken, match="untrained"):
            check_weights(save(tmp_path / "f", tensors), BOTH, 4)
        tensors[ups[0]][0, 0] = 1e-30
        assert check_weights(save(tmp_path / "f", tensors), BOTH, 4).rank == 4

    def test_a_value_that_is_not_finite(self, tmp_path: Path) -> None:
        tensors = lora("unet.to_q", kernel=3)
        tensors["unet.to_q.lora_A.weight"][0, 0, 1, 1] = float("nan")
        with pytest.raises(AdapterBroken, match=r"not finite numbers, in unet\.to_q\.lora_A\.weight"):
            check_weights(save(tmp_path / "f", tensors), UNET, 4)


class TestFolder:
    """Adapters of other stacks in folders like ours."""

    def test_a_foreign_one_is_complete(self, tmp_path: Path) -> None:
        save(tmp_path / WEIGHTS, lora("unet.to_q", 4), lora("text_encoder.to_q", 8))
        for form in (BOTH, ANY_LORA):
            folder = AdapterFolder(tmp_path, form)
            folder.check_header(None)
            assert folder.check(None).modules == ("text_encoder.to_q", "unet.to_q")
            found = judge_adapter(folder, AdapterSpec(), ImageFolder(tmp_path, ()), full=True)
            assert (found.state, found.reason) == (State.COMPLETE, "made by another tool")
        with pytest.raises(AdapterBroken, match="not part of a LoRA"):
            AdapterFolder(tmp_path, ADAPTER_FORMAT).check(None)

    def test_without_a_format_any_lora_is_one(self, tmp_path: Path) -> None:
        save(tmp_path / WEIGHTS, lora("transformer.to_q"))
        assert AdapterFolder(tmp_path).form is ANY_LORA
        assert AdapterFolder(tmp_path).check(None).rank == 4

    def test_published_with_a_config_that_names_its_modules(self, tmp_path: Path) -> None:
        source = save(tmp_path / "saved", lora("unet.to_q", 4), lora("text_encoder.to_q", 4))
        folder = AdapterFolder(tmp_path / "out", BOTH)
        run = {"options": {"rank": 4}, "paths": {"pretrained_model_name_or_path": "lab/base"}}
        adapter = folder.publish(source, run, "lab/base")
        assert folder.check(4) == adapter
        assert '"text_encoder.to_q"' in folder.config.read_text()
        folder = AdapterFolder(tmp_path / "out", BOTH)
        assert folder.config_fault() == ""
        written = folder.config.read_bytes()
        folder.config.write_text("{}")
        assert folder.config_fault() == f"{ADAPTER_CONFIG} is not the one that was written"
        folder.config.unlink()
        assert folder.config_fault() == f"{ADAPTER_CONFIG} is missing"
        folder.write_config()
        assert folder.config.read_bytes() == written
