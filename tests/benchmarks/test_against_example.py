"""Tests of the comparison with the diffusers example that need no copy of it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, CLIPTextModelWithProjection

from benchmarks.against_example import step_seconds
from benchmarks.gpu_watch import GpuWatch
from benchmarks.judge import tensors_of
from benchmarks.timed_run import TimedRun, timed_command
from benchmarks.wide_prompts import CLIP_TOKENS, with_wide_prompts
from mimicry.demo.variants import TINY_SD3

BAR = "Steps:  {share}%|#####     | {step}/4 [00:0{step}<00:01,  1.00s/it, loss=0.1, lr=0.0001]\n"


def run(*lines: tuple[str, float]) -> TimedRun:
    return TimedRun(code=0, lines=list(lines), seconds=9.0, cpu_seconds=9.0, peak_bytes=0)


def test_the_seconds_of_a_step_are_read_from_lines_and_from_a_progress_bar() -> None:
    ours = run(
        ("training 4 steps on cpu\n", 1.0), ("step 1/4, loss 0.5\n", 3.0), ("step 4/4, loss 0.4\n", 4.5)
    )
    bar = run(*((BAR.format(share=25 * step, step=step), 3.0 + step) for step in (0, 1, 1, 2, 4)))
    assert step_seconds(ours) == pytest.approx(0.5)
    assert step_seconds(bar) == pytest.approx(1.0)
    assert step_seconds(run(("step 1/4, loss 0.5\n", 3.0))) is None


def test_a_command_is_run_to_its_end_and_its_exit_code_and_lines_are_kept() -> None:
    found = timed_command(["sh", "-c", 'echo "$WORD"; echo second >&2; exit 3'], {"WORD": "first"})
    assert found.code == 3
    assert found.output == "first\nsecond\n"
    assert found.when("second") <= found.seconds
    assert found.peak_bytes > 0


def test_clips_of_a_copy_read_77_tokens_and_the_first_ones_as_before(tmp_path: Path) -> None:
    copy = with_wide_prompts(TINY_SD3, tmp_path / "copy")
    assert copy == tmp_path / "copy"
    for encoder, tokenizer in (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")):
        assert AutoTokenizer.from_pretrained(copy / tokenizer).model_max_length == CLIP_TOKENS
        narrow = CLIPTextModelWithProjection.from_pretrained(TINY_SD3 / encoder)
        wide = CLIPTextModelWithProjection.from_pretrained(copy / encoder)
        length = narrow.config.max_position_embeddings
        ids_1L = torch.arange(3, 3 + CLIP_TOKENS)[None]
        with torch.no_grad():
            before_1LD = narrow(ids_1L[:, :length], output_hidden_states=True).hidden_states[-2]
            after_1LD = wide(ids_1L, output_hidden_states=True).hidden_states[-2]
        assert after_1LD.shape[1] == CLIP_TOKENS
        # A CLIP sees only what comes before.
        torch.testing.assert_close(after_1LD[:, :length], before_1LD)


def test_a_model_whose_clips_read_77_tokens_is_taken_as_it_is(tmp_path: Path) -> None:
    wide = with_wide_prompts(TINY_SD3, tmp_path / "wide")
    assert with_wide_prompts(wide, tmp_path / "other") == wide
    assert not (tmp_path / "other").exists()


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="is not a Stable Diffusion 3 pipeline"):
        with_wide_prompts(tmp_path, tmp_path / "copy")


def test_tensors_are_counted_by_type(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(2), "b": torch.zeros(2, dtype=torch.bfloat16), "c": torch.zeros(3)}
    save_file(tensors, tmp_path / "file.safetensors")
    assert tensors_of(tmp_path / "file.safetensors") == "1 bf16, 2 f32"


def test_gpu_memory_is_the_peak_of_all_gpus_beyond_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = tmp_path / "used"
    used.write_text("100\n50\n")
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat {used}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with GpuWatch() as watch:
        used.write_text("300\n60\n")
        while not watch.peak_bytes:
            pass
    assert watch.peak_bytes == 210 * 2**20


def test_without_nvidia_smi_no_gpu_memory_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with GpuWatch() as watch:
        pass
    assert watch.peak_bytes == 0
