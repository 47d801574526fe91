"""Portable chance: every drawing of the demo has a generator of its own, named by what it is for."""

import hashlib

import numpy as np

from mimicry.common.files import canonical_json

Rng = np.random.Generator


def generator(seed: int, *names: str | int) -> Rng:
    """Return numpy's counter-based Philox generator that belongs to `seed` and `names`.

    Nothing else enters the key, so what is drawn for one painting does not depend on which others are drawn.
    """
    digest = hashlib.sha256(canonical_json([seed, *names]).encode("utf-8")).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
