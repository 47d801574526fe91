"""x"""

import torch

from mimicry.tuning.config import TuningConfig


def check_quantization(config: TuningConfig, device: torch.device) -> None:
    """x"""
