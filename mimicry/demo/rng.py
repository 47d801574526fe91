"""Random numbers that are the same on every machine: each drawing has a generator of its own."""

import hashlib

import numpy as np

from mimicry.common.files import canonical_json

Rng = np.random.Generator


def generator(seed: int, *names: str | int) -> Rng:
    """Return numpy's counter-based Philox generator that belongs to `seed` and `names`.

    The key depends on nothing else, so one painting does not depend on which others are drawn.
    """
    digest = hashlib.sha256(canonical_json([seed, *names]).encode("utf-8")).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
