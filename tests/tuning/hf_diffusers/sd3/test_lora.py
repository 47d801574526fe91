"""The adapter: its precision, its beginning, and the files that diffusers and peft read."""

import hashlib
import json
import stat
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from peft import PeftConfig
from peft.utils import set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file

from mimicry.common.errors import AdapterBroken, UsageError
from mimicry.tuning.adapters.weights import Adapter
from mimicry.tuning.hf_diffusers.sd3.lora import add_adapter, chosen_modules, save_adapter
from mimicry.tuning.hf_diffusers.spec.lora_modules import TARGET_MODULES
from mimicry.tuning.options.config import TuningConfig
from tests.tuning.hf_diffusers.sd3.parts import draw_lora_b
from tests.tuning.hf_diffusers.studio import Studio
from tests.tuning.lora_files import check_adapter

WEIGHTS = "pytorch_lora_weights.safetensors"
RANK = 4
BLOCKS = 3
# The last block has no output for the prompt to project.
MODULES = {
    f"transformer_blocks.{block}.{name}"
    for block in range(BLOCKS)
    for name in TARGET_MODULES
    if (block, name) != (BLOCKS - 1, "attn.to_add_out")
}
GOLDEN_LORA_A = "b6b826f99cfa1d140f3afc307546cae2"


def load(studio: Studio, dtype: torch.dtype = torch.float32) -> Any:
    return SD3Transformer2DModel.from_pretrained(studio.base_model / "transformer", torch_dtype=dtype)


def config(studio: Studio, **values: Any) -> TuningConfig:
    return TuningConfig(rank=RANK, pretrained_model_name_or_path=str(studio.base_model), **values)


def predict(transformer: Any) -> torch.Tensor:
    """Return what the transformer makes of an arbitrary input."""
    generator = torch.Generator().manual_seed(5)
    sizes = transformer.config
    with torch.no_grad():
        output: torch.Tensor = transformer(
            hidden_states=torch.randn(1, sizes.in_channels, 8, 8, generator=generator),
            encoder_hidden_states=torch.randn(1, 9, sizes.joint_attention_dim, generator=generator),
            pooled_projections=torch.randn(1, sizes.pooled_projection_dim, generator=generator),
            timestep=torch.tensor([600.0]),
            return_dict=False,
        )[0]
    return output


def save(transformer: Any, folder: Path, asked: TuningConfig) -> Adapter:
    folder.mkdir(parents=True, exist_ok=True)
    return save_adapter(transformer, folder, asked, {"options": asdict(asked)})


@pytest.fixture
def tuned(studio: Studio) -> tuple[Any, dict[str, torch.nn.Parameter]]:
    """A transformer in fp32 whose adapter changes its output, and the adapter's parameters."""
    transformer = load(studio)
    parameters = add_adapter(transformer, config(studio))
    draw_lora_b(parameters)
    return transformer.eval(), parameters


class TestAddAdapter:
    def test_the_adapter_is_fp32_on_a_bf16_base(self, studio: Studio) -> None:
        transformer = load(studio, torch.bfloat16)
        parameters = add_adapter(transformer, config(studio))
        assert {value.dtype for value in parameters.values()} == {torch.float32}
        frozen = [value for value in transformer.parameters() if not value.requires_grad]
        assert {value.dtype for value in frozen} == {torch.bfloat16}
        assert {id(value) for value in parameters.values()} == {
            id(value) for value in transformer.parameters() if value.requires_grad
        }

    def test_every_attention_projection_has_one(self, studio: Studio) -> None:
        parameters = add_adapter(load(studio), config(studio))
        assert set(parameters) == {
            f"{module}.lora_{side}.default.weight" for module in MODULES for side in "AB"
        }

    def test_the_beginning_is_golden(self, studio: Studio) -> None:
        parameters = add_adapter(load(studio), config(studio))
        digest = hashlib.sha256()
        for name in sorted(parameters):
            digest.update(name.encode() + parameters[name].detach().numpy().astype("<f4").tobytes())
        assert digest.hexdigest()[:32] == GOLDEN_LORA_A

    def test_a_is_gaussian_over_the_rank_and_b_is_zero(self, studio: Studio) -> None:
        parameters = add_adapter(load(studio), config(studio))
        drawn = torch.cat([value.flatten() for name, value in parameters.items() if ".lora_A." in name])
        assert float(drawn.detach().std()) == pytest.approx(1 / RANK, rel=0.03)
        assert float(drawn.detach().mean()) == pytest.approx(0, abs=0.01)
        assert not any(value.any() for name, value in parameters.items() if ".lora_B." in name)

    def test_it_changes_nothing_before_it_is_trained(self, studio: Studio) -> None:
        bare, adapted = load(studio).eval(), load(studio).eval()
        add_adapter(adapted, config(studio))
        assert torch.equal(predict(bare), predict(adapted))

    def test_the_beginning_is_that_of_every_precision_and_changes_with_the_seed(self, studio: Studio) -> None:
        fine = add_adapter(load(studio), config(studio))
        coarse = add_adapter(load(studio, torch.bfloat16), config(studio))
        other = add_adapter(load(studio), config(studio, seed=7))
        assert all(torch.equal(fine[name], coarse[name]) for name in fine)
        assert not any(torch.equal(fine[name], other[name]) for name in fine if ".lora_A." in name)


def names(parameters: dict[str, torch.nn.Parameter]) -> set[str]:
    """Return the modules that have a LoRA."""
    return {name.partition(".lora_")[0] for name in parameters}


# Layers, blocks, and the modules that they mean in the tiny model.
CHOICES = [
    (
        "attn.to_k,attn.to_q",
        None,
        {f"transformer_blocks.{n}.attn.{m}" for n in range(3) for m in ("to_k", "to_q")},
    ),
    (" to_k , attn.to_k ", None, {f"transformer_blocks.{n}.attn.to_k" for n in range(3)}),
    ("ff.net.2", "1", {"transformer_blocks.1.ff.net.2"}),
    ("norm1.linear", "0, 1", {f"transformer_blocks.{n}.norm1.linear" for n in range(2)}),
    ("norm_out.linear,context_embedder", None, {"norm_out.linear", "context_embedder"}),
    ("transformer_blocks.2.attn.to_out.0", None, {"transformer_blocks.2.attn.to_out.0"}),
    (None, "0,1", {f"transformer_blocks.{n}.{m}" for n in range(2) for m in TARGET_MODULES}),
    (None, "2", {name for name in MODULES if ".2." in name}),
]


class TestChosenModules:
    @pytest.mark.parametrize(("layers", "blocks", "expected"), CHOICES)
    def test_those_and_no_others_have_a_lora(
        self, layers: str | None, blocks: str | None, expected: set[str], studio: Studio
    ) -> None:
        asked = config(studio, lora_layers=layers, lora_blocks=blocks)
        assert names(add_adapter(load(studio), asked)) == expected

    def test_the_beginning_of_a_module_does_not_depend_on_the_others(self, studio: Studio) -> None:
        every = add_adapter(load(studio), config(studio))
        some = add_adapter(load(studio), config(studio, lora_layers="attn.to_q", lora_blocks="1"))
        assert len(some) == 2
        assert all(torch.equal(value, every[name]) for name, value in some.items())

    @pytest.mark.parametrize(
        ("layers", "blocks", "expected"),
        [
            ("attn.to_z", None, ["--lora-layers: 'attn.to_z' is not a layer; did you mean 'attn.to_"]),
            ("attn.to_k,,attn.to_v", None, ["--lora-layers: '' is not a layer"]),
            ("o_k", None, ["--lora-layers: 'o_k' is not a layer"]),
            ("pos_embed.proj", None, ["--lora-layers: 'pos_embed.proj' is not a layer"]),
            ("tokey,toque", None, ["'tokey' is not a layer", "'toque' is not a layer"]),
            (
                "attn.to_add_out",
                "2",
                ["'attn.to_add_out' is not a layer in blocks 2; did you mean 'attn.to_out.0'"],
            ),
            ("context_embedder", "0", ["'context_embedder' is not a layer in blocks 0"]),
            (None, "3", ["--lora-blocks: '3' is not a block of this model; it takes numbers from 0 to 2"]),
            (None, "0,-1, x", ["'-1' is not a block", "'x' is not a block"]),
        ],
    )
    def test_what_is_not_there_is_named(
        self, layers: str | None, blocks: str | None, expected: list[str], studio: Studio
    ) -> None:
        with pytest.raises(UsageError) as caught:
            chosen_modules(load(studio), config(studio, lora_layers=layers, lora_blocks=blocks))
        assert len(caught.value.problems) == len(expected)
        for problem, part in zip(caught.value.problems, expected, strict=True):
            assert part in problem

    @pytest.mark.parametrize(("layers", "blocks", "expected"), CHOICES)
    def test_files_say_what_was_trained_and_other_programs_read_them(
        self, layers: str | None, blocks: str | None, expected: set[str], studio: Studio, tmp_path: Path
    ) -> None:
        asked = config(
            studio, lora_layers=layers, lora_blocks=blocks, lora_dropout=0.25, upcast_before_saving=True
        )
        transformer = load(studio)
        draw_lora_b(add_adapter(transformer, asked))

        adapter = save(transformer.eval(), tmp_path, asked)

        assert set(adapter.modules) == expected
        with safe_open(tmp_path / WEIGHTS, "pt") as file:
            metadata = json.loads(file.metadata()["lora_adapter_metadata"])
        assert metadata["transformer.target_modules"] == sorted(expected)
        assert metadata["transformer.lora_dropout"] == 0.25
        read = PeftConfig.from_pretrained(str(tmp_path))
        assert (read.target_modules, read.lora_dropout) == (expected, 0.25)

        by_peft = load(studio)
        by_peft.add_adapter(read)
        assert names({n: p for n, p in by_peft.named_parameters() if p.requires_grad}) == expected
        pipeline = StableDiffusion3Pipeline.from_pretrained(studio.base_model)
        pipeline.load_lora_weights(tmp_path)
        torch.testing.assert_close(predict(pipeline.transformer.eval()), predict(transformer))


class TestSavedFile:
    @pytest.mark.parametrize(
        ("upcast", "dtype"), [(False, torch.bfloat16), (True, torch.float32)], ids=["bf16", "upcast"]
    )
    def test_it_holds_the_parameters_and_leaves_them_alone(
        self, upcast: bool, dtype: torch.dtype, studio: Studio, tuned: Any, tmp_path: Path
    ) -> None:
        transformer, parameters = tuned
        before = {name: value.detach().clone() for name, value in parameters.items()}

        save(transformer, tmp_path, config(studio, upcast_before_saving=upcast))

        saved = load_file(tmp_path / WEIGHTS)
        assert set(saved) == {
            f"transformer.{module}.lora_{side}.weight" for module in MODULES for side in "AB"
        }
        for name, value in before.items():
            kept = saved["transformer." + name.replace(".default.", ".")]
            assert kept.dtype == dtype
            assert torch.equal(kept, value.to(dtype))
            assert torch.equal(parameters[name], value)
            assert parameters[name].dtype == torch.float32

    @pytest.mark.parametrize("upcast", [False, True])
    def test_the_live_model_keeps_its_precision(self, upcast: bool, studio: Studio, tmp_path: Path) -> None:
        transformer = load(studio, torch.bfloat16)
        draw_lora_b(add_adapter(transformer, config(studio)))
        before = {name: value.dtype for name, value in transformer.named_parameters()}
        assert set(before.values()) == {torch.bfloat16, torch.float32}

        save(transformer, tmp_path, config(studio, upcast_before_saving=upcast))

        assert {name: value.dtype for name, value in transformer.named_parameters()} == before

    def test_its_header_says_how_the_adapter_was_made(
        self, studio: Studio, tuned: Any, tmp_path: Path
    ) -> None:
        save(tuned[0], tmp_path, config(studio))
        with safe_open(tmp_path / WEIGHTS, "pt") as file:
            metadata = json.loads(file.metadata()["lora_adapter_metadata"])
        assert metadata["transformer.r"] == metadata["transformer.lora_alpha"] == RANK
        assert metadata["transformer.target_modules"] == sorted(TARGET_MODULES)
        assert metadata["transformer.init_lora_weights"] == "gaussian"

    def test_its_permissions_are_those_of_an_ordinary_new_file(
        self, studio: Studio, tuned: Any, tmp_path: Path
    ) -> None:
        save(tuned[0], tmp_path, config(studio))
        (tmp_path / "ordinary").touch()
        ordinary = stat.S_IMODE((tmp_path / "ordinary").stat().st_mode)
        assert ordinary != 0o600
        for name in (WEIGHTS, "adapter_config.json", "training_run.json"):
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == ordinary, name

    def test_same_parameters_are_same_bytes(self, studio: Studio, tuned: Any, tmp_path: Path) -> None:
        one, other = (save(tuned[0], tmp_path / name, config(studio)) for name in ("one", "other"))
        assert (tmp_path / "one" / WEIGHTS).read_bytes() == (tmp_path / "other" / WEIGHTS).read_bytes()
        assert one == other
        assert one.modules == tuple(sorted(MODULES))

    def test_nothing_but_the_adapter_is_left(self, studio: Studio, tuned: Any, tmp_path: Path) -> None:
        adapter = save(tuned[0], tmp_path, config(studio))
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "adapter_config.json",
            WEIGHTS,
            "training_run.json",
        ]
        assert check_adapter(tmp_path, RANK) == adapter

    @pytest.mark.parametrize("fault", ["untrained", "nan"])
    def test_a_useless_adapter_is_not_published(
        self, fault: str, studio: Studio, tuned: Any, tmp_path: Path
    ) -> None:
        transformer, parameters = tuned
        with torch.no_grad():
            for name, value in parameters.items():
                if ".lora_B." in name:
                    value.fill_(0.0 if fault == "untrained" else float("nan"))
        with pytest.raises(AdapterBroken, match="untrained" if fault == "untrained" else "not finite"):
            save(transformer, tmp_path, config(studio))
        assert list(tmp_path.iterdir()) == []


class TestOtherPrograms:
    def test_peft_reads_the_configuration_without_a_warning(
        self, studio: Studio, tuned: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        save(tuned[0], tmp_path, config(studio))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read = PeftConfig.from_pretrained(str(tmp_path))
        assert (read.r, read.lora_alpha, read.target_modules) == (RANK, RANK, set(TARGET_MODULES))
        assert read.base_model_name_or_path == str(studio.base_model)
        assert read.inference_mode
        assert capsys.readouterr().err == ""

    def test_peft_and_diffusers_get_the_trained_model_back(
        self, studio: Studio, tuned: Any, tmp_path: Path
    ) -> None:
        save(tuned[0], tmp_path, config(studio, upcast_before_saving=True))
        by_peft = load(studio).eval()
        by_peft.add_adapter(PeftConfig.from_pretrained(str(tmp_path)))
        weights = load_file(tmp_path / WEIGHTS)
        outcome = set_peft_model_state_dict(
            by_peft, {name.removeprefix("transformer."): value for name, value in weights.items()}
        )
        assert not outcome.unexpected_keys
        assert not [key for key in outcome.missing_keys if "lora" in key]

        pipeline = StableDiffusion3Pipeline.from_pretrained(studio.base_model)
        pipeline.load_lora_weights(tmp_path)

        trained = predict(tuned[0])
        torch.testing.assert_close(predict(by_peft), trained)
        torch.testing.assert_close(predict(pipeline.transformer.eval()), trained)
        assert not torch.allclose(predict(load(studio).eval()), trained, atol=1e-3)
        (loaded,) = pipeline.transformer.peft_config.values()
        assert (loaded.r, loaded.lora_alpha) == (RANK, RANK)
