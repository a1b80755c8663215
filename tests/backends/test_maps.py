"""Sampled maps in C++ against torch's indexing, and their correlations against the formula."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

from closeness import assert_close
from convsim import ConvsimError
from convsim.backends import maps
from convsim.kernels.windows import spread
from convsim.penalties import MapSimilarity
from correlations import mean_square
from needs import need_compiler
from seeds import reseed

pytestmark = pytest.mark.core

DTYPES = [torch.bfloat16, torch.float32, torch.float64]


def within(x):
    """The maps in a larger tensor."""
    return torch.nn.functional.pad(x, (1, 2, 2, 1), value=torch.nan)[..., 2:-1, 1:-2]


LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "every other map": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "a corner": within,
    "turned": lambda x: x.mT.contiguous().mT,
}
COUNT = 37
EPSILON = torch.nn.BatchNorm1d(1).eps


@pytest.fixture(autouse=True)
def compiled():
    need_compiler()


def by_indexing(x):
    """The maps at the same positions, of a view that torch indexes."""
    pixels = x.movedim(1, -1).flatten(0, -2)
    return pixels[spread(COUNT, len(pixels))]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(3, 5, 7, 6), (2, 70, 9, 4), (1, 3, 2, 2)])
def test_positions_are_read_and_added_to_to_the_digit(dtype, layout, size):
    reseed()
    x = LAYOUTS[layout](torch.randn(size).to(dtype))
    places = maps.places_in(x, COUNT)
    samples = places.read(x)
    assert torch.equal(samples, by_indexing(x).to(samples.dtype))
    own = torch.randn_like(samples)
    expected, everything = x.clone(), x._base.clone() if x._is_view() else None
    pixels = expected.movedim(1, -1)
    axes = torch.unravel_index(spread(COUNT, pixels[..., 0].numel()), pixels.shape[:-1])
    pixels[axes] = (pixels[axes].to(samples.dtype) + own).to(dtype)  # rounded once
    places.add_(x, own)
    assert torch.equal(x, expected)
    if everything is not None:  # and nothing beside them
        x.copy_(torch.zeros(()))
        everything.as_strided(x.shape, x.stride(), x.storage_offset()).zero_()
        torch.testing.assert_close(x._base, everything, rtol=0, atol=0, equal_nan=True)


def test_bfloat16_is_rounded_as_torch_rounds():
    bits = torch.arange(-(2**31), 2**31, 65_521, dtype=torch.int64).to(torch.int32)
    own = bits.view(torch.float32).reshape(-1, 1)
    zeros = torch.zeros(len(own), 1, 1, dtype=torch.bfloat16)
    maps.Places(zeros.shape, zeros.stride(), zeros.dtype, len(own)).add_(zeros, own)
    expected = own.bfloat16()[spread(len(own), len(own)).argsort()]
    torch.testing.assert_close(zeros[..., 0], expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "refused",
    [
        torch.zeros(2, 3, 4, dtype=torch.float16),
        torch.zeros(2, 3, 4, dtype=torch.complex64).conj().imag,
        torch.zeros(2, 3, 4).to_sparse(),
        torch.nn.Parameter(torch.zeros(2, 3, 4)),
        torch.zeros(2, 3, 4, device="meta"),
    ],
    ids=["half", "negated view", "sparse", "subclass", "meta"],
)
def test_what_cannot_be_read_as_it_lies_is_left_to_torch(refused):
    assert maps.places_in(refused, COUNT) is None
    assert not maps.serve([torch.zeros(3, 4).to(refused.dtype), refused])


def test_a_recording_of_torchs_operations_holds_the_penalty():
    record = make_fx(lambda x: MapSimilarity().total([x], [1.0]))
    reseed()
    one, other = torch.randn(2, 9, 3)
    torch.testing.assert_close(record(one)(other), MapSimilarity().total([other], [1.0]))


def test_a_forced_backend_of_no_name_is_refused(monkeypatch):
    monkeypatch.setenv("CONVSIM_BACKEND", "egaer")
    with pytest.raises(ConvsimError, match="'compiled', 'fused', 'eager'; got 'egaer'"):
        maps.serve([torch.zeros(3, 4)])


@given(
    shapes=st.lists(st.tuples(st.integers(2, 70), st.integers(1, 70)), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e30]),
    offset=st.sampled_from([0.0, 3.0]),
    seed=st.integers(0, 2**31),
)
def test_correlations_and_gradients_are_those_of_the_formula(shapes, dtype, scale, offset, seed):
    draw = torch.Generator().manual_seed(seed)
    samples = [
        ((torch.randn(shape, generator=draw, dtype=torch.float64) + offset) * scale).to(dtype)
        for shape in shapes
    ]
    weights = [0.5 + number for number in range(len(shapes))]
    total, gradients = maps.squared_correlations(samples, weights)
    exact = [one.double().requires_grad_() for one in samples]
    expected = sum(
        by * (mean_square(one) if one.shape[1] > 1 else 0 * one.sum())
        for by, one in zip(weights, exact, strict=True)
    )
    assert total.dtype == dtype
    least = [(x.var(0, correction=0).min() + EPSILON).sqrt() for x in exact]
    cancelled = [  # in a map less its mean
        (1 + x.abs().max() / own).item() for x, own in zip(exact, least, strict=True)
    ]
    assert_close(total, expected, terms=4 * 70, size=sum(weights) * max(cancelled), dtype=dtype)
    found = torch.autograd.grad(expected, exact)
    for own, one, x, by, small, more in zip(
        gradients, found, exact, weights, least, cancelled, strict=True
    ):
        # what a gradient is where a correlation is 1, before what leaves ρ as it is cancels
        size = by * 4 / x.shape[1] / small.item() / len(x) ** 0.5 * more
        assert_close(own[0], one, terms=4 * 70, size=size, dtype=dtype)


def test_wide_and_long_layers_of_real_sizes():
    reseed()
    samples = [torch.randn(256, m) @ torch.randn(m, m) for m in (16, 64, 300, 1000)]
    _, gradients = maps.squared_correlations(samples, [1.0] * 4)
    for one, own in zip(samples, gradients, strict=True):
        value, expected = MapSimilarity().value_and_gradient(one.double()[None])
        assert_close(own, expected, terms=2 * max(one.shape), dtype=torch.float32)
        alone, _ = maps.squared_correlations([one], [1.0])
        assert_close(alone, value[0], terms=2 * max(one.shape), dtype=torch.float32)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("count", [3, 40])
def test_no_number_shows(bad, count):
    samples = torch.randn(16, count)
    samples[3, 1] = bad
    total, (gradient,) = maps.squared_correlations([samples], [1.0])
    assert total.isnan()
    assert gradient.isnan().any()


def test_constant_maps_have_no_gradient():
    total, (gradient,) = maps.squared_correlations([torch.full((16, 3), 7.0)], [1.0])
    assert total == 0
    assert not gradient.any()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_nothing(threads):
    reseed()
    samples = [torch.randn(256, 200) for _ in range(5)]
    before = torch.get_num_threads()
    expected = maps.squared_correlations(samples, [1.0] * 5)
    torch.set_num_threads(threads)
    try:
        actual = maps.squared_correlations(samples, [1.0] * 5)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(actual[0], expected[0])
    assert all(map(torch.equal, actual[1], expected[1]))
