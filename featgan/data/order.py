"""The random streams of the data loader, each a pure function of the seed and a position."""

import numpy as np

ORDER_STREAM, FLIP_STREAM, TARGET_STREAM, PENALTY_STREAM = range(4)
"""Kinds of independent random streams derived from one seed."""


def random_stream(seed: int, kind: int, *position: int) -> np.random.Generator:
    """Return the random generator of one kind of stream at one position."""
    return np.random.default_rng(np.random.SeedSequence([seed, kind, *position]))
