"""The squared correlation of sampled maps against torch.cov and autograd."""

import pytest
import torch

import convsim
from closeness import assert_close
from convsim import ConvsimError
from convsim.penalties import DeCov, MapSimilarity
from correlations import mean_square
from seeds import reseed

pytestmark = pytest.mark.core

SHAPES = [(1, 50, 3), (3, 40, 7), (2, 5, 9), (2, 4, 3, 30, 5)]
"""Layers, or axes in front; samples, fewer than maps or more; maps."""


def covariance(samples_SM):
    """½ Σ_{i≠j} Cov_ij²."""
    of_pairs = torch.cov(samples_SM.T, correction=0)
    return of_pairs[~torch.eye(len(of_pairs), dtype=torch.bool)].square().sum() / 2


PENALTIES = [(MapSimilarity(), mean_square), (DeCov(), covariance)]


@pytest.mark.parametrize(("penalty", "reference"), PENALTIES, ids=["recommended", "decov"])
@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradient_are_those_of_the_formula(penalty, reference, shape):
    reseed()
    samples = torch.randn(shape, dtype=torch.float64) @ torch.randn(shape[-1], shape[-1]).double()
    samples = samples.requires_grad_()
    flat = samples.reshape(-1, *shape[-2:])
    expected = torch.stack([reference(one) for one in flat]).reshape(shape[:-2])
    (gradient,) = torch.autograd.grad(expected.sum(), samples)
    torch.testing.assert_close(penalty.value(samples), expected)
    value, own = penalty.value_and_gradient(samples.detach())
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(own, gradient)


@pytest.mark.parametrize("penalty", [MapSimilarity(), DeCov()], ids=["recommended", "decov"])
def test_gradients_check_also_twice(penalty):
    samples = [torch.randn(6, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    samples.append(torch.randn(3, 5, dtype=torch.float64, requires_grad=True))

    def values(*samples):
        return tuple(penalty.values(samples))

    def total(*samples):
        return penalty.total(samples, [0.5, 0.5, 2.0])

    assert torch.autograd.gradcheck(values, samples)
    assert torch.autograd.gradgradcheck(values, samples)

    expected = sum(v * by for v, by in zip(penalty.values(samples), [0.5, 0.5, 2.0], strict=True))
    torch.testing.assert_close(total(*samples), expected)
    assert torch.autograd.gradcheck(total, samples)
    assert torch.autograd.gradgradcheck(total, samples)


TOTALS = pytest.mark.parametrize(
    "penalty", [MapSimilarity(), DeCov()], ids=["recommended", "decov"]
)


@TOTALS
@pytest.mark.parametrize("create_graph", [False, True])
def test_a_total_is_differentiated_as_a_sum_of_values(penalty, create_graph):
    """Also of samples that are there twice, that need no gradient, and with a large factor."""
    reseed()
    s, t = torch.randn(2, 8, 3)
    s.requires_grad_()
    (expected,) = torch.autograd.grad(2**17 * penalty.value(s[None]).sum(), s)
    total = 2**16 * penalty.total([s, t, s], [1.0, 0.5, 1.0])
    (actual,) = torch.autograd.grad(total, s, create_graph=create_graph)
    assert_close(actual, expected, terms=8 * 3)


@TOTALS
def test_a_second_derivative_does_not_go_back_through_earlier_layers(penalty):
    first = torch.randn(8, 3, requires_grad=True)
    middle, visits = first * 2, []
    middle.register_hook(visits.append)
    total = penalty.total([middle, middle.sin()], [1.0, 1.0])
    torch.autograd.grad(total, first, create_graph=True)
    assert len(visits) == 1


@TOTALS
def test_a_gradient_may_be_written_to_and_goes_after_the_backward_pass(penalty):
    samples = torch.randn(8, 3, requires_grad=True)
    total = penalty.total([samples], [1.0])
    (one,) = torch.autograd.grad(total, samples, retain_graph=True)
    kept = one.clone()
    one.mul_(5)
    (again,) = torch.autograd.grad(total, samples)
    assert torch.equal(again, kept)
    with pytest.raises(RuntimeError, match="second time"):
        total.backward()


@TOTALS
def test_half_precision_gradients_of_a_scaled_loss_are_finite(penalty):
    samples = torch.randn(64, 3).half().requires_grad_()
    total = 2**16 * penalty.total([samples], [1e-3])
    (gradient,) = torch.autograd.grad(total, samples, create_graph=True)
    assert gradient.isfinite().all()


def test_a_subclass_is_asked_for_its_own_value():
    class Thrice(MapSimilarity):
        def value_and_gradient(self, samples_LSM):
            value, gradient = super().value_and_gradient(samples_LSM)
            return 3 * value, 3 * gradient

    reseed()
    samples = torch.randn(8, 3, requires_grad=True)
    one, other = (p.total([samples], [1.0]) for p in (MapSimilarity(), Thrice()))
    torch.testing.assert_close(other, 3 * one)
    gradients = (torch.autograd.grad(total, samples)[0] for total in (other, 3 * one))
    torch.testing.assert_close(*gradients)


def test_neither_scale_nor_offset_matters():
    reseed()
    samples = torch.randn(4096, 6) @ torch.randn(6, 6)
    value = MapSimilarity().value(samples)
    scaled = samples * torch.rand(6) + 1000 * torch.randn(6)
    # Of 1000 + x, rounded, x has lost three digits.
    assert_close(MapSimilarity().value(scaled), value, terms=4096, size=1000)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e-6, 1e-3, 1.0, 1e12, 1e30])
def test_maps_of_any_size_have_a_finite_gradient(scale):
    samples = torch.randn(50, 4)
    value, gradient = MapSimilarity().value_and_gradient(samples * scale)
    exact = (samples.double() * scale).requires_grad_()
    expected = mean_square(exact)
    (own,) = torch.autograd.grad(expected, exact)
    assert_close(value, expected.float(), terms=100)
    assert_close(gradient, own.float(), terms=200, size=own.abs().max().item())


@pytest.mark.parametrize("offset", [0.0, 0.1, 100.0])
@pytest.mark.parametrize("scale", [0.0, 1e-8, 1e-6, 1e-4, 1e-2])
def test_no_gradient_is_larger_than_at_the_floor(scale, offset):
    """Of maps that are their rounding, too, or whose correlation is perfect."""
    directions = torch.randn(64, 1) + 0.1 * torch.randn(64, 5)
    _, gradient = MapSimilarity().value_and_gradient(offset + scale * directions)
    # |∂value/∂u| ≤ 4/M for ρ of 1, and |∂u/∂samples| ≤ 1/√(S·ε).
    assert torch.linalg.vector_norm(gradient, dim=0).max() <= 4 / 5 / (64 * 1e-5) ** 0.5


def test_second_derivatives_of_constant_maps_are_finite():
    samples = torch.zeros(9, 3, dtype=torch.float64, requires_grad=True)
    (value,) = MapSimilarity().values([samples])
    (first,) = torch.autograd.grad(value, samples, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), samples)
    assert not second.any()


def test_a_constant_map_correlates_with_none_and_gives_no_nan():
    samples = torch.randn(16, 3)
    samples[:, 1] = 7
    value, gradient = MapSimilarity().value_and_gradient(samples)
    assert gradient.isfinite().all()
    assert gradient[:, 1].abs().max() < 1e-6 * gradient.abs().max()
    assert_close(value, mean_square(samples[:, [0, 2]]) / 3, terms=32)
    value, gradient = MapSimilarity().value_and_gradient(torch.ones(16, 3))
    assert value == 0
    assert not gradient.any()


def test_half_precision_maps_are_computed_in_single():
    samples = torch.randn(64, 3)
    (low,) = MapSimilarity().values([samples.bfloat16()])
    assert low.dtype == torch.float32
    (single,) = MapSimilarity().values([samples.bfloat16().float()])
    assert_close(low, single, terms=64)


def test_nan_shows_in_value_and_gradient():
    samples = torch.randn(16, 3)
    samples[3, 1] = torch.nan
    value, gradient = MapSimilarity().value_and_gradient(samples)
    assert value.isnan()
    assert gradient.isnan().any()


@pytest.mark.parametrize("penalty", [MapSimilarity, DeCov])
def test_bad_options_are_refused(penalty):
    with pytest.raises(ConvsimError, match="samples must be an integer ≥ 2; got 1"):
        penalty(samples=1)
    with pytest.raises(ConvsimError, match="reduction must be 'mean' or 'sum'; got 'max'"):
        penalty(reduction="max")
    with pytest.raises(ConvsimError, match="there are no images before training"):
        convsim.initialize_(torch.nn.Conv2d(3, 4, 3), penalty())
