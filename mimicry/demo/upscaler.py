"""A small network that denoises a picture and doubles its size, for noisy upscaling."""

from pathlib import Path

from torch import Tensor, nn

SCALE = 2
_WIDTH = 32
# Dilation of each layer; together they see about thirty pixels.
_DILATIONS = (1, 2, 4, 4, 2, 1)


class Upscaler(nn.Module):
    """Maps noisy pixels (B, 3, H, W), 0 to 1, to clean ones (B, 3, 2H, 2W)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, _WIDTH, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Conv2d(_WIDTH, _WIDTH, 3, padding=step, dilation=step) for step in _DILATIONS
        )
        self.last = nn.Conv2d(_WIDTH, 3 * SCALE**2, 3, padding=1)

    def forward(self, noisy_BIHW: Tensor) -> Tensor:
        """Return the enlarged picture: bilinear enlargement plus what the network adds."""
        features_BCHW = self.first(noisy_BIHW)
        for layer in self.layers:
            features_BCHW = features_BCHW + layer(nn.functional.silu(features_BCHW))
        added = nn.functional.pixel_shuffle(self.last(nn.functional.silu(features_BCHW)), SCALE)
        plain = nn.functional.interpolate(
            noisy_BIHW, scale_factor=SCALE, mode="bilinear", align_corners=False
        )
        enlarged: Tensor = plain + added
        return enlarged


def load_upscaler(path: Path) -> Upscaler:
    """Read the weights at `path`, in fp32."""
    from safetensors.torch import load_file

    upscaler = Upscaler()
    upscaler.load_state_dict({name: values.float() for name, values in load_file(path).items()})
    return upscaler.eval()
