"""What every test draws from: the same numbers in each run, others under CONVSIM_TEST_SEED."""

import os

import numpy as np
import torch

SEED = int(os.environ.get("CONVSIM_TEST_SEED", "0"))


def reseed(stream: int = 0) -> None:
    """Let torch's own generator start again, from one of a run's streams."""
    torch.manual_seed(1000 * SEED + stream)


def new_generator(stream: int = 0) -> torch.Generator:
    """Start a generator of its own."""
    return torch.Generator().manual_seed(1000 * SEED + stream)


def new_numpy_generator(*stream: int) -> np.random.Generator:
    """Start numpy's."""
    return np.random.default_rng([*stream, SEED])
