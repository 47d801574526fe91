"""Copies from host memory to the device."""

import torch
from torch import Tensor


def send(values: Tensor, device: torch.device) -> Tensor:
    """Copy `values` to the device without waiting for the work that it has already been given; on any thread.

    Two things may go wrong with such a copy, and do not:

    - The pinned memory that it reads is free for others before it has ended. torch's allocator of pinned
      memory notes the stream of the copy, and hands the memory out again when the copy has ended there.
    - The copy is used before it has ended. No thread chooses a stream here, so all copies and all of the
      training's work are on the default stream of the device, in the order in which they were asked for; and
      a thread gets a tensor from another one only after that has asked for the copy.
    """
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=device.type == "cuda")
