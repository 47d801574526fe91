"""What programs that train on a random pipeline share. No torch: who only starts them keeps off the GPU."""

from dataclasses import dataclass, replace

# How the line begins that `benchmarks.limited` prints at the end.
PEAK_LINE = "GPU memory at most [bytes]: "


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of a pipeline's models. `clips` holds width, layers and heads of both CLIP encoders."""

    blocks: int
    heads: int
    head_width: int = 64
    clips: tuple[tuple[int, int, int], tuple[int, int, int]]
    t5_width: int
    t5_layers: int
    t5_heads: int
    vae_channels: tuple[int, ...]
    resolution: int


# Stable Diffusion 3.5 Large.
_LARGE = Sizes(
    blocks=38,
    heads=38,
    clips=((768, 12, 12), (1280, 32, 20)),
    t5_width=4096,
    t5_layers=24,
    t5_heads=64,
    vae_channels=(128, 256, 512, 512),
    resolution=1024,
)
SIZES = {
    "large": _LARGE,
    # Its widths, with few layers: for a machine with little memory.
    "cut": replace(_LARGE, blocks=8, clips=((768, 2, 12), (1280, 2, 20)), t5_layers=2, resolution=128),
    "small": Sizes(
        blocks=3,
        heads=2,
        clips=((64, 2, 2), (128, 2, 2)),
        t5_width=256,
        t5_layers=2,
        t5_heads=4,
        vae_channels=(32, 32, 64, 64),
        resolution=128,
    ),
}
