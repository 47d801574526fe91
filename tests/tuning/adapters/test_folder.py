"""The files of an adapter: what is refused, and how a good one comes to its place."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftConfig
from safetensors.torch import load_file, save_file

from mimicry.common.errors import AdapterBroken
from mimicry.common.files import sha256_file, write_json
from mimicry.tuning.adapters import folder as adapter_module
from mimicry.tuning.adapters.folder import ADAPTER_CONFIG, METRICS, TRAIN_LOG, WEIGHTS, AdapterFolder
from mimicry.tuning.adapters.safetensors_file import SafetensorsFile
from mimicry.tuning.adapters.training_run import TRAINING_RUN, TrainingRun
from mimicry.tuning.adapters.weights import Adapter, check_header, check_weights, lora_arguments, peft_config
from mimicry.tuning.hf_diffusers.spec.lora_modules import ADAPTER_FORMAT, TARGET_MODULES
from tests.hostile_names import over_hostile_names
from tests.tuning.lora_files import MODULES, check_adapter, files_in, lora_tensors, save_lora

A = f"transformer.{MODULES[0]}.lora_A.weight"
B = f"transformer.{MODULES[0]}.lora_B.weight"


def save(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, path)
    return path


def publish(source: Path, output_dir: Path, run: dict[str, Any], base_model: str | None) -> Adapter:
    return AdapterFolder(output_dir, ADAPTER_FORMAT).publish(source, run, base_model)


def config_of(
    modules: tuple[str, ...], base_model: str | None = None, options: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return the adapter_config.json of an adapter of rank 4 on `modules`."""
    return peft_config(ADAPTER_FORMAT, Adapter(4, modules, "", 0), base_model, options)


class TestCheckHeader:
    def test_says_what_it_holds(self, tmp_path: Path) -> None:
        header = check_header(save_lora(tmp_path / "f", rank=4), ADAPTER_FORMAT, 4)
        assert header.rank == 4
        assert header.modules == tuple(sorted(MODULES))
        assert header.components == ("transformer",)
        assert len(header.file.shapes) == 2 * len(MODULES)
        assert check_header(tmp_path / "f", ADAPTER_FORMAT, None).rank == 4

    def test_another_rank(self, tmp_path: Path) -> None:
        with pytest.raises(AdapterBroken, match="has rank 4 where 16 was asked for"):
            check_header(save_lora(tmp_path / "f", rank=4), ADAPTER_FORMAT, 16)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({A: None}, "only one half"),
            ({B: None}, "only one half"),
            ({A: torch.ones(5, 6)}, r"ranks \[4, 5\]"),
            ({B: torch.ones(8, 5)}, r"ranks \[4, 5\]"),
            ({A: torch.ones(4)}, "not part of a LoRA"),
            ({A: torch.ones(4, 6, 1)}, "not part of a LoRA"),
            ({"transformer.norm.weight": torch.ones(4, 4)}, "not part of a LoRA"),
            ({A.removeprefix("transformer."): torch.ones(4, 6)}, "not part of a LoRA"),
            ({A.replace("lora_A", "lora_C"): torch.ones(4, 6)}, "not part of a LoRA"),
            ({A + ".extra": torch.ones(4, 6)}, "not part of a LoRA"),
        ],
    )
    def test_what_is_no_lora(self, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
        tensors = {k: v for k, v in (lora_tensors() | changes).items() if v is not None}
        with pytest.raises(AdapterBroken, match=words):
            check_header(save(tmp_path / "f", tensors), ADAPTER_FORMAT, None)

    def test_no_tensors_at_all(self, tmp_path: Path) -> None:
        with pytest.raises(AdapterBroken, match=r"ranks \[\]"):
            check_header(save(tmp_path / "f", {}), ADAPTER_FORMAT, None)

    def test_reads_no_value(self, tmp_path: Path) -> None:
        path = save(tmp_path / "f", lora_tensors() | {A: torch.full((4, 6), float("nan"))})
        assert check_header(path, ADAPTER_FORMAT, 4).rank == 4

    def test_equal_headers_are_parsed_once_and_tell_their_own_files(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        parsed: list[Path] = []

        def counted(path: Path) -> SafetensorsFile:
            parsed.append(path)
            return whole(path)

        whole = SafetensorsFile.open
        monkeypatch.setattr(SafetensorsFile, "open", counted)
        first = save_lora(tmp_path / "1", rank=7)
        second = save_lora(tmp_path / "2", rank=7, seed=1)

        headers = [check_header(path, ADAPTER_FORMAT, 7) for path in (first, second)]

        assert first.read_bytes() != second.read_bytes()
        assert [header.file.path for header in headers] == [first, second]
        assert headers[0].modules == headers[1].modules
        assert parsed == [first]
        with pytest.raises(AdapterBroken, match="rank 7 where 8"):
            check_header(second, ADAPTER_FORMAT, 8)
        second.write_bytes(second.read_bytes()[:-1])
        with pytest.raises(AdapterBroken, match="not a readable safetensors file"):
            check_header(second, ADAPTER_FORMAT, 7)


@pytest.mark.parametrize(
    ("content", "step"),
    [
        ('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 1.0}\n', 2),
        ('{"step": 1, "loss": 1.0}\n{"step": 2, "lo', 1),
        ("".join(f'{{"step": {step}, "loss": 0.123456}}\n' for step in range(1, 1001)), 1000),
        ('{"step": 1}\nnot JSON\n', 0),
        ('{"loss": 1.0}\n', 0),
        ("", 0),
        (None, 0),
    ],
)
def test_the_last_step_of_the_metrics(content: str | None, step: int, tmp_path: Path) -> None:
    folder = AdapterFolder(tmp_path)
    if content is not None:
        folder.metrics.write_text(content)

    assert folder.last_step() == step


class TestCheckWeights:
    def test_whole(self, tmp_path: Path) -> None:
        path = save_lora(tmp_path / "f")
        expected = Adapter(4, tuple(sorted(MODULES)), sha256_file(path), path.stat().st_size)
        assert check_weights(path, ADAPTER_FORMAT, 4) == expected

    @pytest.mark.parametrize("key", [A, B])
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_one_bad_value(self, key: str, value: float, tmp_path: Path) -> None:
        tensors = lora_tensors()
        tensors[key][-1, -1] = value
        with pytest.raises(AdapterBroken, match=f"not finite numbers, in {key}"):
            check_weights(save(tmp_path / "f", tensors), ADAPTER_FORMAT, 4)

    def test_untrained_means_every_lora_b_is_zero(self, tmp_path: Path) -> None:
        tensors = {k: torch.zeros_like(v) if "lora_B" in k else v for k, v in lora_tensors().items()}
        with pytest.raises(AdapterBroken, match="untrained"):
            check_weights(save(tmp_path / "f", tensors), ADAPTER_FORMAT, 4)
        tensors[B][0, 0] = 1e-30
        assert check_weights(save(tmp_path / "f", tensors), ADAPTER_FORMAT, 4).rank == 4


class TestCheckAdapter:
    def test_of_another_tool(self, tmp_path: Path) -> None:
        save_lora(tmp_path / WEIGHTS)
        assert check_adapter(tmp_path, 4).rank == 4

    def test_the_record_must_be_about_these_weights(self, tmp_path: Path) -> None:
        save_lora(tmp_path / WEIGHTS)
        write_json(tmp_path / TRAINING_RUN, {"weights": {"sha256": sha256_file(tmp_path / WEIGHTS)}})
        assert check_adapter(tmp_path, 4).rank == 4
        save_lora(tmp_path / WEIGHTS, seed=1)
        with pytest.raises(AdapterBroken, match="sha256"):
            check_adapter(tmp_path, 4)

    @pytest.mark.parametrize("run", [{}, {"weights": None}, {"weights": []}, {"weights": {}}])
    def test_a_record_of_a_run_that_did_not_end(self, run: dict[str, Any], tmp_path: Path) -> None:
        save_lora(tmp_path / WEIGHTS)
        write_json(tmp_path / TRAINING_RUN, run)
        with pytest.raises(AdapterBroken, match="sha256"):
            check_adapter(tmp_path, 4)


class TestReadTrainingRun:
    def test_missing(self, tmp_path: Path) -> None:
        assert AdapterFolder(tmp_path).run is None

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{",
            "[]",
            "7",
            "null",
            "[" * 100_000,
            '{"options": []}',
            '{"options": null}',
            '{"recipe": "x"}',
            '{"images": {}}',
            '{"images": ["a.jpg"]}',
            '{"images": null}',
        ],
        ids=lambda text: text[:20],
    )
    def test_unusable(self, text: str, tmp_path: Path) -> None:
        (tmp_path / TRAINING_RUN).write_text(text)
        with pytest.raises(AdapterBroken, match=TRAINING_RUN):
            TrainingRun.read(tmp_path / TRAINING_RUN)
        with pytest.raises(AdapterBroken, match=TRAINING_RUN):
            _ = AdapterFolder(tmp_path).run
        assert AdapterFolder(tmp_path).readable_run == TrainingRun({})

    def test_what_later_versions_add_is_no_fault(self, tmp_path: Path) -> None:
        run = {"schema": 9, "options": {"rank": 4}, "weights": {"sha256": "ab"}, "new": [1]}
        write_json(tmp_path / TRAINING_RUN, run)
        read = AdapterFolder(tmp_path).run
        assert read is not None
        assert read.content == run
        assert read.rank == 4
        assert read.weights_sha256 == "ab"
        assert TrainingRun({}).rank is None
        assert TrainingRun({}).weights_sha256 is None

    def test_it_is_read_once(self, tmp_path: Path) -> None:
        write_json(tmp_path / TRAINING_RUN, {"status": "running"})
        folder = AdapterFolder(tmp_path)
        assert folder.readable_run.status == "running"
        write_json(tmp_path / TRAINING_RUN, {"status": "complete"})
        assert folder.readable_run.status == "running"
        assert AdapterFolder(tmp_path).readable_run.status == "complete"


@pytest.fixture
def umask_027() -> Iterator[None]:
    old = os.umask(0o027)
    yield
    os.umask(old)


class TestPublish:
    def test_files(self, tmp_path: Path) -> None:
        source = save_lora(tmp_path / "saved" / "x.safetensors")
        output_dir = tmp_path / "deep" / "out"
        adapter = publish(source, output_dir, {"steps": 3, "weights": "old"}, "some/model")
        assert set(files_in(output_dir)) == {WEIGHTS, ADAPTER_CONFIG, TRAINING_RUN}
        assert set(files_in(source.parent)) == {"x.safetensors"}
        assert check_adapter(output_dir, 4) == adapter
        run = AdapterFolder(output_dir).run
        assert run is not None
        assert run.content == {
            "steps": 3,
            "weights": {
                "sha256": sha256_file(output_dir / WEIGHTS),
                "bytes": (output_dir / WEIGHTS).stat().st_size,
                "modules": len(MODULES),
            },
        }
        assert json.loads((output_dir / ADAPTER_CONFIG).read_text()) == config_of(
            adapter.modules, "some/model"
        )
        loaded, saved = load_file(output_dir / WEIGHTS), load_file(source)
        assert all(torch.equal(loaded[key], saved[key]) for key in saved)

    @over_hostile_names
    def test_hostile_folders(self, hostile_name: str, tmp_path: Path) -> None:
        source = save_lora(tmp_path / "s")
        publish(source, tmp_path / hostile_name, {}, None)
        assert check_adapter(tmp_path / hostile_name, 4).rank == 4

    def test_weights_come_last(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A failure at any moment leaves no file of the weights' name."""
        source, written = save_lora(tmp_path / "s"), []

        def fail_at(name: str) -> None:
            def write(path: Path, value: Any) -> None:
                assert not (path.parent / WEIGHTS).exists()
                written.append(path.name)
                if path.name == name:
                    raise OSError("disk full")
                write_json(path, value)

            monkeypatch.setattr(adapter_module, "write_json", write)

        for number, name in enumerate((ADAPTER_CONFIG, TRAINING_RUN)):
            fail_at(name)
            with pytest.raises(OSError, match="disk full"):
                publish(source, tmp_path / f"out{number}", {}, None)
            assert not (tmp_path / f"out{number}" / WEIGHTS).exists()
        fail_at("nothing")
        publish(source, tmp_path / "out", {}, None)
        assert written[-2:] == [ADAPTER_CONFIG, TRAINING_RUN]
        assert set(files_in(tmp_path / "out")) == {WEIGHTS, ADAPTER_CONFIG, TRAINING_RUN}
        assert {path.name for path in tmp_path.iterdir()} <= {"s", "out", "out0", "out1"}

    @pytest.mark.parametrize("fault", ["truncated", "no file", "nan", "zero", "no lora"])
    def test_nothing_is_published_of_broken_weights(self, fault: str, tmp_path: Path) -> None:
        source = tmp_path / "new" / "weights"
        tensors = lora_tensors()
        if fault == "nan":
            tensors[A][0, 0] = float("nan")
        if fault == "zero":
            tensors = {key: torch.zeros_like(value) for key, value in tensors.items()}
        if fault == "no lora":
            tensors["other"] = torch.ones(1)
        source.parent.mkdir()
        save(source, tensors)
        if fault == "truncated":
            source.write_bytes(source.read_bytes()[:-1])
        if fault == "no file":
            source.unlink()
        with pytest.raises(AdapterBroken):
            publish(source, tmp_path / "out", {}, None)
        assert not (tmp_path / "out").exists()
        assert set(files_in(tmp_path / "new")) <= {"weights"}

    def test_the_rank_must_be_the_one_of_the_options(self, tmp_path: Path) -> None:
        source = save_lora(tmp_path / "s", rank=4)
        with pytest.raises(AdapterBroken, match="has rank 4 where 16 was asked for"):
            publish(source, tmp_path / "out", {"options": {"rank": 16}}, None)
        assert not (tmp_path / "out").exists()
        assert publish(source, tmp_path / "out", {"options": {"rank": 4}}, None).rank == 4

    @pytest.mark.usefixtures("umask_027")
    def test_permissions_are_the_umasks(self, tmp_path: Path) -> None:
        source = save_lora(tmp_path / "s")
        source.chmod(0o600)
        publish(source, tmp_path / "out", {}, None)
        modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
        assert modes == dict.fromkeys((WEIGHTS, ADAPTER_CONFIG, TRAINING_RUN), 0o640)


class TestConfig:
    def test_short_names_when_every_block_was_trained(self) -> None:
        config = config_of(tuple(sorted(MODULES)), "some/model")
        assert config["target_modules"] == sorted(TARGET_MODULES)
        assert config["base_model_name_or_path"] == "some/model"

    @pytest.mark.parametrize(
        "modules",
        [
            tuple(name for name in MODULES if "blocks.0." not in name),
            tuple(name for name in MODULES if not name.endswith("to_k")),
            (*MODULES, "transformer_blocks.0.attn2.to_k"),
            (*MODULES, "transformer_blocks.0.ff.net"),
            ("context_embedder",),
        ],
        ids=["block 0 left out", "no to_k", "attn2", "feed forward", "no block"],
    )
    def test_full_names_otherwise(self, modules: tuple[str, ...]) -> None:
        assert config_of(modules)["target_modules"] == sorted(modules)

    @pytest.mark.parametrize("options", [{"lora_blocks": "0,1"}, {"lora_layers": "to_k"}])
    def test_full_names_when_modules_were_chosen(self, options: dict[str, str]) -> None:
        """The first blocks of a larger model look like all blocks of a smaller one."""
        config = config_of(MODULES, None, options)
        assert config["target_modules"] == sorted(MODULES)

    def test_the_options_it_was_trained_with_are_told(self, tmp_path: Path) -> None:
        options = {"rank": 4, "lora_blocks": "0,1", "lora_layers": None, "lora_dropout": 0.5}
        publish(save_lora(tmp_path / "s"), tmp_path, {"options": options}, "some/model")
        config = PeftConfig.from_pretrained(str(tmp_path))
        assert isinstance(config, LoraConfig)
        assert (config.target_modules, config.lora_dropout) == (set(MODULES), 0.5)

    def test_the_last_block_may_have_fewer(self) -> None:
        """SD3's last block has no add_out: the short names still match exactly what is there."""
        modules = tuple(name for name in MODULES if not name.endswith("blocks.1.attn.to_add_out"))
        assert config_of(modules)["target_modules"] == sorted(TARGET_MODULES)

    def test_peft_reads_it(self, tmp_path: Path) -> None:
        publish(save_lora(tmp_path / "s"), tmp_path, {}, "some/model")
        config = PeftConfig.from_pretrained(str(tmp_path))
        assert isinstance(config, LoraConfig)
        assert (config.r, config.lora_alpha, config.base_model_name_or_path) == (4, 4, "some/model")
        assert config.target_modules == set(TARGET_MODULES)
        assert config.inference_mode

    def test_lora_facts_make_a_lora_config(self) -> None:
        facts = lora_arguments(8, ["b", "a"])
        assert facts["target_modules"] == ["a", "b"]
        config = LoraConfig(**facts)
        assert (config.r, config.lora_alpha, config.lora_dropout) == (8, 8, 0.0)
        assert list(lora_arguments(8, ["a", "b"]).items()) == list(facts.items())


class TestSetAside:
    def test_moves_one_run_and_keeps_the_log(self, tmp_path: Path) -> None:
        """A checkpoint goes with the run that it was for: the next one must not go on from it."""
        moved = {name: name.encode() for name in (WEIGHTS, ADAPTER_CONFIG, TRAINING_RUN, METRICS)}
        moved |= {"checkpoint-100/state": b"x", "checkpoint-50/state": b"y"}
        kept = {TRAIN_LOG: b"log", "checkpoint-x/notes": b"not ours"}
        for name in ("checkpoint-100", "checkpoint-50", "checkpoint-x"):
            (tmp_path / name).mkdir()
        for name, content in (moved | kept).items():
            (tmp_path / name).write_bytes(content)
        aside = AdapterFolder(tmp_path).set_aside("broken")
        assert aside is not None
        assert aside.name.endswith("-broken")
        assert files_in(aside) == dict(sorted(moved.items()))
        assert {name: (tmp_path / name).read_bytes() for name in kept} == kept
        assert not any((tmp_path / name).exists() for name in moved)

    def test_nothing_to_move(self, tmp_path: Path) -> None:
        (tmp_path / TRAIN_LOG).write_bytes(b"log")
        assert AdapterFolder(tmp_path).set_aside("broken") is None
        assert set(files_in(tmp_path)) == {TRAIN_LOG}

    def test_twice(self, tmp_path: Path) -> None:
        for content in (b"1", b"2"):
            (tmp_path / WEIGHTS).write_bytes(content)
            AdapterFolder(tmp_path).set_aside("stale")
        assert sorted(files_in(tmp_path).values()) == [b"1", b"2"]
