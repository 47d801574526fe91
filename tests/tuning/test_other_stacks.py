"""Stacks of somebody else: adapters of other models are trained, verified, skipped, and uploaded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mimicry.commands.upload import upload
from mimicry.commands.verify import verify
from mimicry.common.processes import run_command
from mimicry.sampling.draw_samples import draw_samples
from mimicry.tuning.adapters.folder import AdapterFolder
from mimicry.tuning.apply_tuning import apply_tuning
from tests.fake_hub import FakeHub
from tests.small_study import ANNA, original, output_dir, write_images, write_study

_SCRIPT = """\
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

names = NAMES
tensors = {}
for number, (down, up) in enumerate(names, start=1):
    rank = 2 * number
    tensors[down] = np.ones((rank, 6), np.float16)
    tensors[up] = np.full((8, rank), number, np.float16)
print("trained on", len(list(Path(sys.argv[1]).iterdir())), "images")
save_file(tensors, Path(sys.argv[2]) / "pytorch_lora_weights.safetensors")
with Path(sys.argv[0]).with_name("calls").open("a") as calls:
    calls.write(sys.argv[1] + "\\n")
"""
UNET = (
    "unet.mid_block.attentions.0.to_k.lora_A.weight",
    "unet.mid_block.attentions.0.to_k.lora_B.weight",
)
TEXT_ENCODER = (
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.down.weight",
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight",
)


@pytest.fixture(params=[[UNET], [UNET, TEXT_ENCODER]], ids=["unet", "unet and text_encoder"])
def stack(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A stack for Stable Diffusion 1.5 that knows nothing of this project."""
    folder = tmp_path / "sd15"
    folder.mkdir()
    command = "{python} {stack_dir}/train.py {input_dir} {output_dir}"
    (folder / "runner_config.json").write_text(json.dumps({"command": command}))
    (folder / "train.py").write_text(_SCRIPT.replace("NAMES", repr(request.param)))
    return folder


Runner = Callable[..., tuple[int, str]]


@pytest.fixture
def run(tmp_path: Path, stack: Path, capsys: pytest.CaptureFixture[str]) -> Runner:
    write_study(tmp_path / "study", artists=[ANNA])

    def call(command: Any, *words: str) -> tuple[int, str]:
        capsys.readouterr()
        code = run_command(command, [f"--data-root={tmp_path / 'study'}", f"--stack={stack}", *words])
        said = capsys.readouterr()
        return code, said.out + said.err

    return call


def calls(stack: Path) -> int:
    return len((stack / "calls").read_text().splitlines())


def test_trained_verified_and_skipped(run: Runner, stack: Path, tmp_path: Path) -> None:
    code, said = run(apply_tuning)
    assert (code, said.splitlines()[-1]) == (0, "1 trained")
    code, said = run(verify)
    assert (code, said.splitlines()[-1]) == (0, "1 complete; 0 problems with images")
    code, said = run(apply_tuning)
    assert (code, said.splitlines()[-1]) == (0, "1 skipped")
    assert calls(stack) == 1


def test_the_record_says_what_it_was_trained_on(run: Runner, stack: Path, tmp_path: Path) -> None:
    tree = write_study(tmp_path / "study", artists=[ANNA])
    assert run(apply_tuning)[0] == 0
    folder = AdapterFolder(output_dir(tree, stack="sd15"))
    record = folder.run
    assert record is not None
    assert record.weights_sha256 == folder.check(None).sha256
    assert record.content["stack"] == "sd15"
    assert record.images is not None
    assert [image["name"] for image in record.images] == ["01_tree.png", "02_boat.png", "03_hills.png"]
    write_images(original(tree), ["02_boat"], salt="painted over")
    code, said = run(apply_tuning)
    assert (code, said.splitlines()[-1]) == (3, "1 skipped")
    assert "stale" in said
    assert "other images" in said


def test_what_is_broken_is_found_and_trained_again(run: Runner, stack: Path, tmp_path: Path) -> None:
    tree = write_study(tmp_path / "study", artists=[ANNA])
    run(apply_tuning)
    weights = AdapterFolder(output_dir(tree, stack="sd15")).weights
    weights.write_bytes(weights.read_bytes()[:-1])
    code, said = run(verify)
    assert code == 1
    assert "1 broken" in said
    code, said = run(apply_tuning)
    assert (code, said.splitlines()[-1]) == (0, "1 trained")
    assert calls(stack) == 2


def test_uploaded_under_the_prefix_of_the_stack(run: Runner, stack: Path, fake_hub: FakeHub) -> None:
    (stack / "stack.py").write_text(
        "from mimicry.tuning.stacks import StackTraits\nTRAITS = StackTraits(hub_prefix='sd15-lora')\n"
    )
    assert run(apply_tuning)[0] == 0
    code, said = run(upload)
    assert (code, said.splitlines()[-1]) == (0, "1 uploaded, 0 owed")
    (repository,) = fake_hub.repositories
    assert repository.endswith("/sd15-lora-none-none-Anna_Berg")
    code, said = run(upload)
    assert (code, said.splitlines()[-1]) == (0, "0 uploaded, 0 owed")


def test_a_script_that_ignores_the_rank_has_failed(run: Runner, stack: Path) -> None:
    command = "{python} {stack_dir}/train.py {input_dir} {output_dir} {options}"
    (stack / "runner_config.json").write_text(json.dumps({"command": command}))
    (stack / "stack.py").write_text(
        "from mimicry.tuning.adapters import AdapterFormat\n"
        "from mimicry.tuning.stacks import StackTraits\n"
        "TRAITS = StackTraits(hub_prefix='sd15-lora', adapter_format=AdapterFormat(one_rank=True))\n"
    )
    code, said = run(apply_tuning, "--no-push-to-hub", "--rank=7")
    assert (code, said.splitlines()[-1]) == (1, "1 failed")
    assert "rank 2 where 7 was asked for" in said or "ranks [2, 4]" in said


def test_another_script_is_another_recipe(run: Runner, stack: Path) -> None:
    command = "{python} {stack_dir}/train.py {input_dir} {output_dir} {options}"
    (stack / "runner_config.json").write_text(json.dumps({"command": command}))
    assert run(apply_tuning, "--no-push-to-hub")[0] == 0
    assert "1 complete" in run(apply_tuning, "--no-push-to-hub", "--dry-run")[1]
    with (stack / "train.py").open("a") as script:
        script.write("# mended\n")
    assert "another trainer" in run(apply_tuning, "--no-push-to-hub", "--dry-run")[1]


@pytest.mark.parametrize(
    ("body", "said_of_it"),
    [
        ("return ['there is no model']", "error: there is no model"),
        ("return 'a text'", "problems() returned 'a text'; it takes a list of messages"),
        ("return 1 / 0", "problems() failed: ZeroDivisionError"),
    ],
)
def test_what_a_stack_says_itself_refuses_the_training(
    body: str, said_of_it: str, run: Runner, stack: Path
) -> None:
    (stack / "stack.py").write_text(
        "from mimicry.tuning.stacks import StackTraits\n"
        "class Traits(StackTraits):\n"
        f"    def problems(self, config, *, network):\n        {body}\n"
        "TRAITS = Traits(hub_prefix='sd15-lora')\n"
    )
    code, said = run(apply_tuning)
    assert code == 2
    assert said_of_it in said
    assert not (stack / "calls").exists()


def test_samples_are_of_our_own_stack_only(run: Runner) -> None:
    code, said = run(draw_samples)
    assert code == 2
    assert "--stack sd15: mimicry samples draws with adapters of Stable Diffusion 3 only" in said
