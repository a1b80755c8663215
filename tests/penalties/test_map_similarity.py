"""The form on feature maps against torch.corrcoef and the data-aware form."""

import pytest
import torch
from torch import nn

import convsim
from closeness import assert_close
from convsim import ConvsimError, ExpectedSimilarity, Regularizer
from convsim.kernels.windows import ALL
from convsim.penalties import MapSimilarity
from seeds import reseed

pytestmark = pytest.mark.core


def network():
    reseed()
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3)).double()


def correlation(maps):
    """Mean ρ² of all pairs, with every position of every image a sample."""
    of_pairs = torch.corrcoef(maps.transpose(0, 1).flatten(1))
    return of_pairs[~torch.eye(len(of_pairs), dtype=torch.bool)].square().mean()


def test_equals_the_correlation_of_the_maps_and_the_data_aware_form():
    model, images = network(), torch.randn(3, 2, 7, 7, dtype=torch.float64)
    on_maps = Regularizer(model, "maps")
    on_windows = Regularizer(model, ExpectedSimilarity(samples=ALL))
    first = model[0](images)
    last = model(images)
    on_maps.forget()
    model(images)
    value = on_maps()
    torch.testing.assert_close(value, (correlation(first) + correlation(last)) / 2)
    torch.testing.assert_close(value, on_windows())


def test_its_gradient_goes_on_to_earlier_layers():
    model, images = network(), torch.randn(3, 2, 7, 7, dtype=torch.float64)
    regularizer = Regularizer(model, "maps", layers="2")
    model(images)
    regularizer().backward()
    assert model[0].weight.grad.abs().sum() > 0
    on_windows = Regularizer(model, "data-aware", layers="2")
    model.zero_grad()
    model(images)
    on_windows().backward()
    assert model[0].weight.grad is None


@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 4, 3, 5), (2, 3, 2, 2, 2)])
def test_gradcheck(shape):
    maps = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(MapSimilarity().maps_value, maps)
    torch.autograd.gradcheck(MapSimilarity(samples=6).maps_value, maps)


def test_samples_are_an_estimate_and_neither_scale_nor_offset_matters():
    mixing = torch.randn(6, 6)
    maps = torch.einsum("ij,njhw->nihw", mixing, torch.randn(32, 6, 40, 40))
    whole, sampled = (MapSimilarity(samples=s).maps_value(maps) for s in (ALL, 4096))
    assert sampled.item() == pytest.approx(whole.item(), rel=0.05)
    scaled = maps * torch.rand(6, 1, 1) + 1000 * torch.randn(6, 1, 1)
    # Of 1000 + x, rounded, x has lost three digits.
    assert_close(MapSimilarity().maps_value(scaled), sampled, terms=4096, size=1000)


def test_a_constant_map_correlates_with_none_and_gives_no_nan():
    maps = torch.ones(2, 3, 4, 4, requires_grad=True)
    value = MapSimilarity().maps_value(maps)
    value.backward()
    assert value == 0
    assert maps.grad.isfinite().all()


def test_half_precision_maps_are_computed_in_single():
    maps = torch.randn(2, 3, 16, 16)
    low = MapSimilarity().maps_value(maps.bfloat16())
    assert low.dtype == torch.float32
    assert_close(low, MapSimilarity().maps_value(maps.bfloat16().float()), terms=512)


def test_bad_options_are_refused():
    with pytest.raises(ConvsimError, match="samples must be an integer ≥ 2; got 1"):
        MapSimilarity(samples=1)
    with pytest.raises(ConvsimError, match="needs feature maps"):
        convsim.initialize_(network(), "maps")
