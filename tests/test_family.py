"""docs/mathematics.md, "One family": each penalty is ‖P_V D‖² for its class of inputs."""

import itertools

import numpy as np
import pytest
import torch

import oracles
from convsim.kernels import kernel_bank
from convsim.penalties import ConvolutionalOrthogonality, ConvolutionalSimilarity
from convsim.similarity.cosine import gram
from seeds import new_generator

pytestmark = pytest.mark.core

CHANNELS, TAPS = 2, 3
LAGS = range(1 - TAPS, TAPS)


def bases():
    """Yield each class's orthonormal basis, as tensors over (c, c′, t)."""

    def unit(places):
        tensor = np.zeros((CHANNELS, CHANNELS, len(LAGS)))
        for place in places:
            tensor[place] = 1 / np.sqrt(len(places))
        return tensor

    own = [[(c, c, t) for c in range(CHANNELS)] for t in range(len(LAGS))]
    return {
        "white": [unit(own[TAPS - 1])],
        "common": [unit(places) for places in own],
        "matched": [unit([place]) for places in own for place in places],
        "any": [unit([p]) for p in itertools.product(range(CHANNELS), range(CHANNELS), range(5))],
    }


@pytest.mark.parametrize("name", ["white", "common", "matched", "any"])
def test_a_penalty_is_the_projection_on_its_class(name):
    weight = torch.randn(2, CHANNELS, TAPS, dtype=torch.float64, generator=new_generator())
    bank = kernel_bank(weight)
    d = np.zeros((CHANNELS, CHANNELS, len(LAGS)))
    correlation = oracles.kernel_correlation(*weight.numpy(), stride=(1,), dilation=(1,))
    for (c, other, _, (t,)), value in correlation.items():
        d[c, other, t + TAPS - 1] = value
    projected = sum((d * e).sum() ** 2 for e in bases()[name])

    def similarity(channels):
        return ConvolutionalSimilarity(scale="raw", channels=channels, reduction="sum").value(bank)

    def both_alone():
        return sum(ConvolutionalOrthogonality().value(kernel_bank(w[None])) for w in weight)

    penalty = {
        "white": lambda: gram(bank)[0, 0, 1].square() / CHANNELS,
        # Of the matrix's two mirrored entries, one; divided by C as V's basis is.
        "common": lambda: (ConvolutionalOrthogonality().value(bank) - both_alone()) / 2 / CHANNELS,
        "matched": lambda: similarity("matched"),
        "any": lambda: similarity("crossed"),
    }[name]()
    assert penalty.item() == pytest.approx(projected)


def test_the_classes_are_nested():
    rows = {name: np.stack([e.ravel() for e in basis]) for name, basis in bases().items()}
    for small, large in itertools.pairwise(rows):
        inside = rows[large].T @ rows[large]
        np.testing.assert_allclose(rows[small] @ inside, rows[small], atol=1e-12)
