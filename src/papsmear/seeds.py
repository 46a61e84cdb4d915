"""Everything random derives from one seed and the position in the run."""

import hashlib

import numpy as np


def derive(seed: int, *position: int | str) -> int:
    """A 63-bit seed for one position, such as `derive(seed, "slide", 7)` or `derive(seed, epoch, step, rank)`.

    Unlike Python's hash() it is the same on every machine and in every process.
    """
    text = "/".join(map(str, (seed, *position)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def rng(seed: int, *position: int | str) -> np.random.Generator:
    """A NumPy generator for one position in the run."""
    return np.random.default_rng(derive(seed, *position))
