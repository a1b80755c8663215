"""One budget over a network."""

import pytest
import torch
from networks import NETWORKS, network
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from convsim.shrinking.budget import (
    Cost,
    Extent,
    Term,
    allocate,
    multiplication_cost,
    parameter_cost,
)
from convsim.shrinking.channels import cut_, kept_axes
from convsim.shrinking.groups import channel_groups
from convsim.shrinking.survey import survey

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("name", NETWORKS)
def test_costs_are_those_of_the_network_that_is_cut(name):
    model, images = network(name)
    groups, _ = channel_groups(model, images[:2])
    units = [1 + n % len(group.units) for n, group in enumerate(groups)]
    found = survey(model, [images], layers=None, positions=4)
    costs = (parameter_cost(model, groups), multiplication_cost(model, groups, found.positions))
    for kept in ([len(group.units) for group in groups], units):
        channels = [
            (group, [c for unit in group.units[:count] for c in unit])
            for group, count in zip(groups, kept, strict=True)
        ]
        cut_(model, kept_axes(channels))
        parameters, macs = (cost.at(kept) for cost in costs)
        assert parameters == pytest.approx(sum(p.numel() for p in model.parameters()))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(images[:1])
        assert macs == pytest.approx(counter.get_total_flops() / 2)


def quadratic(units: int, groups: int) -> Cost:
    axes = tuple(Extent(0.0, {g: 1.0}) for g in range(groups))
    return Cost(0.0, tuple(Term(1.0, (axis,)) for axis in axes))


def test_what_costs_least_error_goes_first():
    cheap = torch.tensor([1.0, 0.2, 0.1, 0.0, 0.0])
    dear = torch.tensor([9.0, 3.0, 2.0, 1.0, 0.0])
    assert allocate([cheap, dear], quadratic(4, 2), 7, multiple_of=[1, 1]) == [3, 4]
    assert allocate([cheap, dear], quadratic(4, 2), 5, multiple_of=[1, 1]) == [1, 4]


def test_it_looks_past_a_step_that_costs_much():
    step = torch.tensor([9.0, 1.0, 1.0, 1.0, 0.0])
    even = torch.tensor([9.0, 1.5, 1.0, 0.5, 0.0])
    assert allocate([step, even], quadratic(4, 2), 5, multiple_of=[1, 1]) == [1, 4]


def test_counts_are_rounded_to_multiples_and_never_to_none():
    errors = [torch.linspace(1, 0, 17)]
    assert allocate(errors, quadratic(16, 1), 11, multiple_of=[8]) == [8]
    assert allocate(errors, quadratic(16, 1), 0, multiple_of=[1]) == [1]


def test_the_cost_of_a_module_outside_all_groups_is_fixed():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 3))
    groups, _ = channel_groups(model.eval(), torch.randn(2, 3, 9, 9))
    cost = parameter_cost(model, groups[:1])
    assert cost.fixed == 4 + 4 * 2 * 9 + 2


def test_what_a_long_step_leaves_of_the_budget_is_spent():
    """A step of the wide group saves four at a time; the last of it is taken back."""
    wide, narrow = torch.linspace(1, 0, 129), torch.linspace(100, 0, 5)
    errors, cost = [wide, narrow], quadratic(128, 2)
    kept = allocate(errors, cost, 101, multiple_of=[1, 1])
    assert kept == [97, 4]
    assert cost.at(allocate(errors, cost, 101, multiple_of=[8, 1])) == 96 + 4
