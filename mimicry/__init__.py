"""mimicry: the training step of a style-mimicry study on Stable Diffusion 3.5 Large."""

__version__ = "0.1.0"
