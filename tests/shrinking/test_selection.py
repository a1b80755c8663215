"""Greedy selection, against solving every candidate set from scratch in float64."""

import pytest
import torch

from convsim.shrinking.selection import Reading, greedy_selection

pytestmark = pytest.mark.numeric


def lost(reading: Reading, kept: list[int]) -> float:
    """Return the consumer's relative error with a set kept, by pinv."""
    gram, weight = reading.gram, reading.weight
    told = torch.zeros_like(gram)
    if kept:
        inverse = torch.linalg.pinv(gram[kept][:, kept], hermitian=True, rtol=1e-10)
        told = gram[:, kept] @ inverse @ gram[kept]
    return float(torch.trace(weight @ (gram - told))) / float(torch.trace(weight @ gram))


def random_reading(maps: int, rank: int | None = None) -> Reading:
    z = torch.randn(300, rank or maps, dtype=torch.float64)
    z = z @ torch.randn(rank or maps, maps, dtype=torch.float64)
    w = torch.randn(5, maps, dtype=torch.float64)
    return Reading(z.T @ z / 300, w.T @ w)


@pytest.mark.parametrize("readers", [1, 3])
def test_each_step_takes_the_map_that_lowers_the_error_most(readers):
    readings = [random_reading(8) for _ in range(readers)]
    selection = greedy_selection(readings, [(m,) for m in range(8)])
    kept: list[int] = []
    for step, chosen in enumerate(selection.order):
        errors = {
            m: sum(lost(reading, [*kept, m]) for reading in readings)
            for m in range(8)
            if m not in kept
        }
        assert errors[chosen] == pytest.approx(min(errors.values()), abs=1e-9)
        kept.append(chosen)
        want = [lost(reading, kept) for reading in readings]
        assert selection.errors[step + 1].tolist() == pytest.approx(want, abs=1e-9)


def test_nothing_is_lost_once_the_rank_is_kept():
    selection = greedy_selection([random_reading(12, rank=4)], [(m,) for m in range(12)])
    errors = selection.total_errors()
    assert errors[0] == pytest.approx(1)
    assert errors[3] > 1e-3
    assert errors[4:].max() < 1e-9


def test_maps_of_a_unit_are_kept_together():
    units = [(0, 3), (1, 4), (2, 5)]
    reading = random_reading(6)
    selection = greedy_selection([reading], units)
    assert sorted(selection.order) == [0, 1, 2]
    first = list(units[selection.order[0]])
    assert selection.errors[1, 0] == pytest.approx(lost(reading, first), abs=1e-9)
    assert selection.errors[3, 0] == pytest.approx(0, abs=1e-9)


def test_what_no_consumer_minds_goes_first():
    gram = torch.eye(3, dtype=torch.float64)
    weight = torch.diag(torch.tensor([1.0, 0.0, 4.0], dtype=torch.float64))
    selection = greedy_selection([Reading(gram, weight)], [(0,), (1,), (2,)])
    assert selection.order == (2, 0, 1)
    assert selection.errors[:, 0].tolist() == pytest.approx([1, 0.2, 0, 0])


def test_maps_that_are_zero_everywhere_give_no_nan():
    zero = torch.zeros(3, 3, dtype=torch.float64)
    selection = greedy_selection([Reading(zero, zero)], [(0,), (1,), (2,)])
    assert selection.errors.sum() == 0
