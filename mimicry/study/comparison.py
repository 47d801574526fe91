"""Compares an image with its original: how far it was changed, and whether it is the same picture.

The dose: peak signal-to-noise ratio, 10 log10(255^2 / mean squared error) in dB over all pixels and channels,
and the L-infinity distance, the largest difference of a channel, of 255. Both are measured at the image's own
size, to which the original is brought; with --source-resolution at the size to which both are reduced.

The same picture: both are reduced to 16 x 16 pixels, where a perturbation averages out. What is left after
taking away a blurred copy is the composition, whose correlation with that of the original is the likeness.
docs/running.md has the margins. Nothing else of the artist may be nearer: one mirrored picture passed the
limit there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

LEAST_LIKENESS = 0.8
# Something else must be nearer by so much, or noise would decide on a symmetric picture.
_NEARER = 0.05
# Of 255. Two pictures may be plain, and differ in their colour alone.
_LARGEST_COLOUR_CHANGE = 64
_SIDE = 16
# The variation of 255 below which a composition is as good as none.
_PLAIN = 3.0
AS_IT_IS, SCALED, SQUEEZED, CROPPED = "as it is", "scaled", "squeezed", "cropped in the middle"


@dataclass(frozen=True)
class Comparison:
    """How an image differs from its original: `psnr` in dB, None where no pixel does; `linf` of 255.

    `fit` is how the original was brought to the image's size, `likeness` that of the compositions, up to 1,
    and `unlike` says why it is not the same picture; it is empty if it is.
    """

    psnr: float | None
    linf: int
    likeness: float
    fit: str
    unlike: str = ""


@dataclass(frozen=True)
class Reduced:
    """A picture in 16 x 16 pixels: its mean colour, (I,), and what a blurred copy of it lacks, (H, W, I)."""

    colour: "NDArray[np.float32]"
    composition: "NDArray[np.float32]"

    @classmethod
    def of(cls, image: "Image") -> "Reduced":
        import numpy as np
        from PIL import Image

        small = image.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
        picture = np.asarray(small, np.float32)
        return cls(picture.mean((0, 1)), picture - _blurred(picture))

    def likeness(self, other: "NDArray[np.float32]") -> float:
        """Return the correlation with another composition, from -1 to 1; 1 where both are plain."""
        own = self.composition
        plain = _PLAIN**2 * own.size
        norms = [float((each * each).sum()) + plain for each in (own, other)]
        return (float((own * other).sum()) + plain) / math.sqrt(norms[0] * norms[1])

    def laid_down_otherwise(self) -> "list[NDArray[np.float32]]":
        """Return the composition mirrored and turned in the seven other ways."""
        import numpy as np

        upright = self.composition
        ways = [np.rot90(side, turns) for side in (upright, upright[:, ::-1]) for turns in range(4)]
        return ways[1:]


@dataclass(frozen=True)
class Pair:
    """An image and its original, measured; `judged` compares it with the other pairs of an artist.

    `original` was brought to the size of the image, and may have been cropped for that; `whole` was not.
    """

    stem: str
    psnr: float | None
    linf: int
    fit: str
    image: Reduced
    original: Reduced
    whole: Reduced

    @classmethod
    def measure(cls, stem: str, image: "Image", original: "Image") -> "Pair":
        brought, fit = fitted(original, image)
        psnr, linf = _distance(image, brought)
        return cls(stem, psnr, linf, fit, Reduced.of(image), Reduced.of(brought), Reduced.of(original))


def judged(pairs: Sequence[Pair]) -> list[Comparison]:
    """Return the comparison of each pair; `pairs` are all pairs of one artist."""
    return [_judged(pair, pairs) for pair in pairs]


def _judged(pair: Pair, pairs: Sequence[Pair]) -> Comparison:
    own = pair.image.likeness(pair.original.composition)
    turned = max(map(pair.image.likeness, pair.whole.laid_down_otherwise()))
    others = {
        other.stem: pair.image.likeness(other.original.composition)
        for other in pairs
        if other.stem != pair.stem
    }
    nearest = max(others, key=lambda stem: others[stem], default="")
    enough = max(own + _NEARER, LEAST_LIKENESS)
    # Of the mean of a channel, of 255.
    colour_change = float(abs(pair.image.colour - pair.original.colour).max())
    unlike = ""
    if nearest and others[nearest] >= max(enough, turned):
        unlike = f"looks like {nearest!r}"
    elif turned >= enough:
        unlike = "is mirrored or turned"
    elif own < LEAST_LIKENESS or colour_change > _LARGEST_COLOUR_CHANGE:
        unlike = "is another picture, or another part of it"
    psnr = None if pair.psnr is None else round(pair.psnr, 2)
    return Comparison(psnr, pair.linf, round(own, 3), pair.fit, unlike)


def fitted(original: "Image", image: "Image") -> tuple["Image", str]:
    """Return `original` at the size of `image`, and how it was brought there."""
    from PIL import Image, ImageOps

    if original.size == image.size:
        return original, AS_IT_IS
    scaled = original.resize(image.size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    if same_shape(original.size, image.size):
        return scaled, SCALED
    # Tools either squeeze a painting into a square or cut one out of the middle.
    cropped = ImageOps.fit(original, image.size, Image.Resampling.LANCZOS)
    return min((scaled, SQUEEZED), (cropped, CROPPED), key=lambda made: _squared_error(image, made[0]))


def same_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Return whether two sizes have the same aspect, up to a pixel of rounding and one percent."""
    expected = other[0] * size[1] / size[0]
    return abs(expected - other[1]) <= max(1.0, 0.01 * other[1])


def _distance(image: "Image", original: "Image") -> tuple[float | None, int]:
    """Return PSNR in dB, None for equal pictures, and L-infinity distance of two pictures of one size."""
    from PIL import ImageChops

    bands: Any = ImageChops.difference(image, original).getextrema()
    largest = max(high for _, high in bands)
    if largest == 0:
        return None, 0
    return 10 * math.log10(255**2 / _squared_error(image, original)), largest


def _squared_error(image: "Image", original: "Image") -> float:
    """Return the mean squared difference over pixels and channels, from 0 to 255 squared; exact."""
    from PIL import ImageChops

    counts = ImageChops.difference(image, original).histogram()
    return sum(count * (value % 256) ** 2 for value, count in enumerate(counts)) / sum(counts)


def _blurred(picture: "NDArray[np.float32]") -> "NDArray[np.float32]":
    """Return the picture under a Gaussian of one pixel; at the edges it is continued as in a mirror."""
    import numpy as np

    weights = np.exp(-(np.arange(-3, 4) ** 2) / 2).astype(np.float32)
    weights /= weights.sum()
    for axis in (0, 1):
        padding = [(3, 3) if axis == each else (0, 0) for each in range(3)]
        padded = np.pad(picture, padding, mode="reflect")
        parts = [
            weight * padded.take(range(shift, shift + _SIDE), axis) for shift, weight in enumerate(weights)
        ]
        picture = np.sum(parts, axis=0)
    return picture
