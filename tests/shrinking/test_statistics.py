"""The running sums, against plain loops in float64."""

import pytest
import torch

from convsim.errors import NonFiniteError
from convsim.shrinking.statistics import MapStatistics, RegressionStatistics

pytestmark = pytest.mark.numeric

CPU = torch.device("cpu")


def test_map_statistics_are_those_of_all_samples_however_they_are_split():
    maps = torch.randn(50, 4)
    statistics = MapStatistics(4, CPU)
    for part in maps.split([1, 20, 29]):
        statistics.add(part)
    gram = [[sum(float(z[i]) * float(z[j]) for z in maps) / 50 for j in range(4)] for i in range(4)]
    mean = [sum(float(z[i]) for z in maps) / 50 for i in range(4)]
    torch.testing.assert_close(statistics.gram(), torch.tensor(gram, dtype=torch.float64))
    torch.testing.assert_close(statistics.mean(), torch.tensor(mean, dtype=torch.float64))
    want = torch.cov(maps.double().T, correction=0)
    torch.testing.assert_close(statistics.covariance(), want)


def test_a_map_that_is_a_function_of_others_is_so_to_rounding_of_float32():
    maps = torch.randn(1000, 3)
    maps = torch.cat([maps, maps[:, :1] * 0.3], 1)
    statistics = MapStatistics(4, CPU)
    statistics.add(maps)
    gram = statistics.gram()
    left = gram[3, 3] - gram[3, 0] ** 2 / gram[0, 0]
    assert left <= 1e-12 * gram[3, 3]


def test_a_constant_map_has_no_covariance():
    maps = torch.randn(100, 2)
    maps[:, 1] = 1e3
    statistics = MapStatistics(2, CPU)
    statistics.add(maps)
    assert statistics.covariance()[1].tolist() == [0, 0]


def test_statistics_take_no_more_memory_for_more_samples():
    statistics = MapStatistics(4, CPU)
    for _ in range(3):
        statistics.add(torch.randn(1000, 4))
    assert sum(v.numel() for v in vars(statistics).values() if isinstance(v, torch.Tensor)) == 20
    assert statistics.samples == 3000


def test_a_map_that_is_not_finite_is_refused_and_adds_nothing():
    statistics = MapStatistics(2, CPU)
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        statistics.add(torch.tensor([[1.0, float("nan")]]))
    assert statistics.samples == 0


@pytest.mark.parametrize("centered", [True, False])
def test_regression_moments_are_those_of_all_samples(centered):
    x, y = torch.randn(2, 60, 3, dtype=torch.float64), torch.randn(2, 60, 4, dtype=torch.float64)
    statistics = RegressionStatistics(2, 3, 4, CPU)
    for a, b in zip(x.split(25, 1), y.split(25, 1), strict=True):
        statistics.add(a, b)
    torch.testing.assert_close(statistics.cross(), x.mT @ y / 60)
    torch.testing.assert_close(statistics.means(), (x.mean(1), y.mean(1)))
    if centered:
        x = x - x.mean(1, keepdim=True)
    torch.testing.assert_close(statistics.squares(centered=centered), x.mT @ x / 60)
