"""A GPU for code that only asks for one: every tensor says that it is there, and stays on the CPU."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")


class PretendedGpu(TorchFunctionMode):
    """While it is entered, all devices are the GPU; `pinned` has the bytes of each copy in pinned memory."""

    def __init__(self) -> None:
        super().__init__()
        self.pinned: list[int] = []

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Iterable[type],
        arguments: tuple[Any, ...] = (),
        named: Mapping[str, Any] | None = None,
    ) -> Any:
        if function == Tensor.device.__get__:
            return GPU
        if function is Tensor.pin_memory:
            self.pinned.append(arguments[0].nbytes)
            return arguments[0]
        words = {name: _on_cpu(value) for name, value in (named or {}).items()}
        pins = words.pop("pin_memory", False)
        result = function(*map(_on_cpu, arguments), **words)
        if pins:
            self.pinned.append(result.nbytes)
        return result


def _on_cpu(value: Any) -> Any:
    return CPU if value == GPU and isinstance(value, torch.device) else value
