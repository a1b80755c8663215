"""What replaces lost maps, against least squares on the samples themselves."""

from itertools import count as counting
from itertools import pairwise

import pytest
import torch
from torch import nn

import convsim
from closeness import assert_close
from convsim.shrinking import sequence
from convsim.shrinking.compensation import (
    RidgeRegression,
    map_compensation,
    ridge_regression_of_few,
)
from convsim.shrinking.statistics import RegressionStatistics

pytestmark = pytest.mark.numeric

CPU = torch.device("cpu")
MANY = 10**9


def test_it_is_the_least_squares_solution():
    z = torch.randn(500, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    kept = [4, 0, 2]
    want = torch.linalg.lstsq(z[:, kept], z).solution.T
    got = map_compensation(z.T @ z / 500, kept, MANY)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)


def test_linear_functions_of_kept_maps_are_told_exactly_with_few_samples_too():
    basis = torch.randn(60, 3, dtype=torch.float64)
    z = torch.cat([basis, basis * torch.tensor([2.0, -0.5, 3.0]), basis.sum(1, keepdim=True)], 1)
    a = map_compensation(z.T @ z / 60, [0, 1, 2], 60)
    torch.testing.assert_close(z[:, :3] @ a.T, z, rtol=0, atol=1e-12)


def test_more_maps_than_rank_may_be_kept():
    basis = torch.randn(60, 2, dtype=torch.float64)
    z = basis @ torch.randn(2, 5, dtype=torch.float64)
    z[:, 3] = 0
    a = map_compensation(z.T @ z / 60, [0, 1, 2, 3], MANY)
    torch.testing.assert_close(z[:, :4] @ a.T, z, rtol=0, atol=1e-9)


def test_with_fewer_samples_than_maps_it_does_not_fit_the_noise():
    truth = torch.randn(4000, 40, dtype=torch.float64)
    few = truth[:30]
    kept = list(range(20))
    a = map_compensation(few.T @ few / 30, kept, 30)
    error = (truth[:, kept] @ a.T - truth)[:, 20:].square().mean()
    exact = torch.linalg.lstsq(few[:, kept], few).solution.T
    fitted = (truth[:, kept] @ exact.T - truth)[:, 20:].square().mean()
    assert error < fitted / 1.2


def ridge_regression(statistics, *, constant, ridge):
    regression = RidgeRegression(statistics, constant=constant, ridge=ridge)
    return regression.tell(statistics.cross(), statistics.means()[1])


@pytest.mark.parametrize("constant", [True, False])
def test_regression_is_ridge_regression_on_the_samples(constant):
    x = torch.randn(2, 80, 4, dtype=torch.float64) + 1
    y = torch.randn(2, 80, 3, dtype=torch.float64) + 2
    statistics = RegressionStatistics(2, 4, 3, CPU)
    statistics.add(x, y)
    w, c = ridge_regression(statistics, constant=constant, ridge=0.1)
    for group in range(2):
        means = (x[group].mean(0), y[group].mean(0)) if constant else (0.0, 0.0)
        a, b = x[group] - means[0], y[group] - means[1]
        ridge = torch.diag(0.1 * a.square().sum(0))
        want = torch.linalg.solve(a.T @ a + ridge, a.T @ b)
        torch.testing.assert_close(w[group], want, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(
            c[group], means[1] - means[0] @ want if constant else torch.zeros(3).double()
        )


@pytest.mark.parametrize("constant", [True, False])
def test_regression_of_few_is_ridge_regression_on_the_samples(constant):
    x = torch.randn(2, 12, 40, dtype=torch.float64) + 1
    x[:, :, 3] = 0
    y = torch.randn(2, 12, 3, dtype=torch.float64) + 2
    w, c = ridge_regression_of_few(x, y, constant=constant, ridge=0.1)
    for group in range(2):
        means = (x[group].mean(0), y[group].mean(0)) if constant else (0.0, 0.0)
        a, b = x[group] - means[0], y[group] - means[1]
        ridge = 0.1 * a.square().sum(0).mean() * torch.eye(40, dtype=torch.float64)
        want = torch.linalg.solve(a.T @ a + ridge, a.T @ b)
        torch.testing.assert_close(w[group], want, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(
            c[group], means[1] - means[0] @ want if constant else torch.zeros(3).double()
        )


def test_few_samples_of_a_constant_tell_nothing():
    x = torch.full((1, 5, 9), 3.0)
    w, c = ridge_regression_of_few(x, torch.ones(1, 5, 2) * 7, constant=True, ridge=1e-3)
    assert not w.any()
    assert c.tolist() == [[7, 7]]


def test_what_few_samples_tell_holds_for_others():
    """A predictor that hardly varies gets no large weight."""
    torch.manual_seed(0)
    x = torch.randn(1, 400, 200, dtype=torch.float64)
    x[:, :, 100:] *= 1e-2
    y = x[:, :, :100] @ torch.randn(1, 100, 3, dtype=torch.float64) / 10
    w, c = ridge_regression_of_few(x[:, :120], y[:, :120], constant=True, ridge=1e-3)
    error = (x[:, 120:] @ w + c[:, None] - y[:, 120:]).square().mean() / y[:, 120:].var()
    assert error < 0.1


def test_a_predictor_that_is_constant_or_zero_gets_no_weight():
    x = torch.randn(1, 100, 3, dtype=torch.float64)
    x[..., 1], x[..., 2] = 0, 5
    y = x[..., :1] * 2 + 7
    statistics = RegressionStatistics(1, 3, 1, CPU)
    statistics.add(x, y)
    w, c = ridge_regression(statistics, constant=True, ridge=0)
    assert w[0, :, 0].tolist() == pytest.approx([2, 0, 0])
    assert c.item() == pytest.approx(7)


@pytest.mark.parametrize("count", [40, 100, 200])
def test_few_images_are_not_learnt_by_heart(count):
    """Of as many samples as a layer reads numbers, least squares would remember every one."""
    sizes = [3, 32, 64, 64, 64]
    layers = [
        part
        for number, (before, after) in enumerate(pairwise(sizes))
        for part in (
            nn.Conv2d(before, after, 3, 1 if number == 0 else 2, 1),
            nn.BatchNorm2d(after),
            nn.ReLU(),
        )
    ]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    images = 5 * nn.functional.avg_pool2d(torch.randn(600, 3, 20, 20), 5, 1)
    for _ in range(30):
        model(images[:200])
    model.eval()
    others = images[300:]

    def error(**options):
        batches = [*images[:count].split(10)]
        small = convsim.shrink(model, batches, parameters=0.5, uniformly=True, **options).model
        return (small(others) - model(others)).var() / model(others).var()

    with torch.no_grad():
        assert error() < 1.2 * error(in_sequence=False)


def pooled():
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def normalized():
    norm = nn.BatchNorm2d(10)
    norm.running_mean = torch.randn(10)
    return nn.Sequential(nn.Conv2d(16, 10, 3, bias=False), norm)


@pytest.mark.parametrize("last", [pooled, normalized])
def test_what_the_network_puts_out_chooses_the_ridge_of_the_last_layer(monkeypatch, last):
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), last(), nn.Sigmoid()).eval()
    batches = [*torch.randn(40, 3, 8, 8).split(8)]
    with torch.no_grad():
        outputs = model(torch.cat(batches)).flatten(1)

    def shrunk():
        small = convsim.shrink(model, batches, channels=0.5, uniformly=True).model
        return torch.cat([part.flatten() for part in small.state_dict().values()])

    found = []
    for sign in (1, -1):
        tried = counting()

        def judge(wanted, told, sign=sign, tried=tried):
            off = (wanted[0].flatten(1)[:, None] - outputs).abs().amax(2)
            assert off.amin(1).max() < 1e-5
            assert (wanted[0] - told[0]).abs().max() > 1e-4
            return sign * next(tried)

        monkeypatch.setattr(sequence, "_difference", judge)
        found.append(shrunk())
        assert next(tried) == 3
    monkeypatch.setattr(sequence, "_RIDGE_OF_FEW", 0)
    assert_close(found[0], shrunk(), terms=1000)
    assert (found[1] - found[0]).norm() > 1e-4 * found[0].norm()


def test_a_weight_that_is_computed_is_left_as_it_is():
    last = nn.utils.parametrizations.weight_norm(nn.Linear(16, 10))
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(16, 16), nn.ReLU(), last,
    ).eval()  # fmt: skip
    small = convsim.shrink(model, [torch.randn(200, 3, 8, 8)], channels=0.5).model
    assert small[0].out_channels == 8
    assert_close(small[6].bias, last.bias, terms=1)
    assert_close(small[6].weight, last.weight, terms=1)
