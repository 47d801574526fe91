"""Stand-ins for somebody's copy of the diffusers example: its command line, and a small file of weights."""

import json
import math
import struct
from pathlib import Path

# It stops at a flag that it does not know, as argparse does, and writes down what it was given.
SCRIPT = """
import argparse, json, os, struct, sys

parser = argparse.ArgumentParser()
parser.add_argument("--pretrained_model_name_or_path", type=str, required=True)
parser.add_argument("--instance_data_dir", type=str)
parser.add_argument("--instance_prompt", "--prompt-of-instance", type=str, required=True)
parser.add_argument("--output_dir", type=str, default="sd3-dreambooth")
parser.add_argument("--resolution", type=int, default=512)
parser.add_argument("--rank", type=int, default=4)
parser.add_argument("--max_train_steps", type=int)
parser.add_argument("--mixed_precision", type=str, choices=["no", "fp16", "bf16"])
group = parser.add_mutually_exclusive_group()
group.add_argument("--cache_latents", action="store_true")
arguments = parser.parse_args()

os.makedirs(arguments.output_dir, exist_ok=True)
print("the script was given", json.dumps(vars(arguments)))
behaviour = os.environ.get("STAND_IN", "whole")
if behaviour == "crash":
    sys.exit("the script has crashed")
if behaviour == "nothing":
    sys.exit(0)
rank = arguments.rank + (behaviour == "other rank")
value = {"untrained": 0.0, "nan": float("nan")}.get(behaviour, 0.5)
header, data = {}, b""
for side, shape in (("A", [rank, 6]), ("B", [6, rank])):
    numbers = struct.pack("<%df" % (6 * rank), *[value] * (6 * rank))
    name = "transformer.transformer_blocks.0.attn.to_q.lora_%s.weight" % side
    header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(numbers)]}
    data += numbers
text = json.dumps(header).encode()
content = struct.pack("<Q", len(text)) + text + data
if behaviour == "truncated":
    content = content[:-10]
if behaviour == "garbage":
    content = b"<html>404</html>" * 10
with open(os.path.join(arguments.output_dir, "pytorch_lora_weights.safetensors"), "wb") as file:
    file.write(content)
if behaviour == "saved, then crash":
    sys.exit("no room for a sample")
"""
KNOWN = frozenset(
    """
    pretrained_model_name_or_path instance_data_dir instance_prompt prompt_of_instance output_dir resolution
    rank max_train_steps mixed_precision cache_latents
    """.split()
)


def write_stand_in(folder: Path) -> Path:
    """Write the stand-in into `folder` and return its path."""
    path = folder / "train_dreambooth_lora_sd3.py"
    path.write_text(SCRIPT)
    return path


def given_flags(log: Path) -> dict[str, object]:
    """Return the arguments that the stand-in was last given, by a log of its output."""
    lines = [line for line in log.read_text().splitlines() if line.startswith("the script was given ")]
    flags: dict[str, object] = json.loads(lines[-1].removeprefix("the script was given "))
    return flags


def write_weights(path: Path, rank: int) -> None:
    """Write a small whole adapter, as an earlier run of some script has left it."""
    header, data = {}, b""
    for side, shape in (("A", [rank, 6]), ("B", [6, rank])):
        numbers = struct.pack(f"<{math.prod(shape)}f", *[0.25] * math.prod(shape))
        header[f"transformer.transformer_blocks.0.attn.to_q.lora_{side}.weight"] = {
            "dtype": "F32",
            "shape": shape,
            "data_offsets": [len(data), len(data) + len(numbers)],
        }
        data += numbers
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
