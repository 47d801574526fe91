"""Which kernels the time of an action goes to, and how long the GPU waits for the host."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

_MOST_KERNELS = 30
_LONGEST_NAME = 160


def profile(action: Callable[[], object], device: torch.device, seconds: float) -> dict[str, Any] | None:
    """Return the time of the kernels of `action`, summed by name; of torch's operators on the CPU.

    None where the profiler does not work, which is said.

    Args:
        seconds: how long the action takes without the profiler, which slows the host down.
    """
    try:
        times = _kernel_times(action, device)
    except RuntimeError as error:
        print(f"no profile: {error}")
        return None
    busy = sum(map(sum, times.values()))
    longest = sorted(times, key=lambda name: -sum(times[name]))[:_MOST_KERNELS]
    return {
        "kernels": sum(map(len, times.values())),
        "kernel time [s]": busy,
        # One stream does all the work, so that kernels do not overlap.
        "busy share": busy / seconds,
        "longest": [
            {"kernel": name[:_LONGEST_NAME], "calls": len(times[name]), "seconds": sum(times[name])}
            for name in longest
        ],
    }


def _kernel_times(action: Callable[[], object], device: torch.device) -> dict[str, list[float]]:
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    with profiler(activities=activities, acc_events=True) as taken:
        action()
        if cuda:
            torch.cuda.synchronize(device)
    times: dict[str, list[float]] = defaultdict(list)
    for event in taken.events() or ():
        if cuda and event.device_type.name == "CUDA" and not event.is_user_annotation:
            times[event.name].append(event.time_range.elapsed_us() / 1e6)
        elif not cuda:
            times[event.name].append(event.self_cpu_time_total / 1e6)
    return times
