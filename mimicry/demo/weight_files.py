"""The weights that come with this package. `tools.demo_weights` makes them."""

from pathlib import Path

_WEIGHTS = Path(__file__).parent / "weights"
# A complete pipeline of Stable Diffusion 3, only small, and the network of noisy upscaling.
TINY_SD3, UPSCALER = _WEIGHTS / "tiny_sd3", _WEIGHTS / "upscaler.safetensors"
