"""All chance in training, as a function of (seed, purpose, index of the sample, stem) and nothing else.

So it is equal, image by image, for every condition of an artist, on every machine, and in a run that was
resumed. numpy's Philox has the same stream everywhere, where torch.randn differs from CPU to CPU.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# The kind of samples that show class images, of prior preservation.
CLASS = "class_"


def generator(seed: int, purpose: str, index: int, name: str) -> np.random.Generator:
    """Return the generator for one purpose of one sample: its key is a hash of all four arguments."""
    words = json.dumps([seed, purpose, index, name], ensure_ascii=True).encode()
    key = int.from_bytes(hashlib.sha256(words).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key))


def normal(seed: int, purpose: str, index: int, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return generator(seed, purpose, index, name).standard_normal(shape, dtype=np.float32)


def dropout_seed(seed: int, index: int) -> int:
    """Return the seed of torch's generator for the forward pass whose first sample is number `index`."""
    return int(generator(seed, "dropout", index, "").integers(2**63))


@dataclass(frozen=True)
class Crop:
    """How an image is cut: crop centre or corner as fractions of what is left to choose, and mirrored or not.

    `across` and `down` lie in [0, 1], from the left or upper end; fractions, since a countermeasure may have
    changed the size of the image.
    """

    across: float = 0.5
    down: float = 0.5
    flipped: bool = False


@dataclass(frozen=True)
class Sample:
    """One sample of the run: its index in the whole run, the image it shows, how, and the kind of plan."""

    index: int
    image: int
    stem: str
    crop: Crop
    kind: str = ""

    def purpose(self, name: str) -> str:
        return self.kind + name


@dataclass(frozen=True)
class SamplePlan:
    """Which image each sample of the run shows: every image `repeats` times in each epoch, in a new order.

    `kind` is empty for the images of a style, and `CLASS` for class images: it goes into every purpose.
    """

    seed: int
    stems: tuple[str, ...]
    center_crop: bool
    random_flip: bool
    repeats: int = 1
    kind: str = ""

    def sample(self, index: int) -> Sample:
        """Return sample number `index` of the run, counted from 0 over all epochs."""
        epoch, place = divmod(index, len(self.stems) * self.repeats)
        image = _epoch_order(self.seed, f"{self.kind}order", epoch, self.stems, self.repeats)[place]
        stem = self.stems[image]
        return Sample(index=index, image=image, stem=stem, crop=self._crop(index, stem), kind=self.kind)

    def distinct_crops(self, indices: Iterable[int]) -> Iterator[Sample]:
        """Return samples that show all that the samples of `indices` show, each crop of an image once."""
        fixed = self.center_crop and not self.random_flip
        seen: set[tuple[int, Crop]] = set()
        for index in indices:
            sample = self.sample(index)
            if (sample.image, sample.crop) not in seen:
                seen.add((sample.image, sample.crop))
                yield sample
            if fixed and len(seen) == len(self.stems):
                return

    def _crop(self, index: int, stem: str) -> Crop:
        across = down = 0.5
        if not self.center_crop:
            across, down = generator(self.seed, f"{self.kind}crop", index, stem).random(2).tolist()
        flipped = self.random_flip and bool(
            generator(self.seed, f"{self.kind}flip", index, stem).random() < 0.5
        )
        return Crop(across=across, down=down, flipped=flipped)


@lru_cache(maxsize=4)
def _epoch_order(seed: int, purpose: str, epoch: int, stems: Sequence[str], repeats: int) -> list[int]:
    # Each stem draws its own places, so that two sets that differ in one image agree on the others' order.
    places = [
        (place, image)
        for image, stem in enumerate(stems)
        for place in generator(seed, purpose, epoch, stem).random(repeats).tolist()
    ]
    return [image for _, image in sorted(places)]
