"""How much of the outputs is lost for what each group's consumers lose."""

from itertools import pairwise

import pytest
import torch
from networks import network
from torch import nn

import convsim
from convsim.shrinking.sensitivity import sensitivities
from convsim.shrinking.sequence import Fitting
from convsim.shrinking.survey import survey

pytestmark = pytest.mark.numeric

ALL = 10**9


def measured(model, images, *, in_sequence):
    """Return what was found in a network, and the groups' sensitivities."""
    model.requires_grad_(False)
    found = survey(model, [images], layers=None, positions=ALL)
    fitting = Fitting(model, found, [images], 32).rough() if in_sequence else None
    calls = []
    factors = sensitivities(model, found, [images], fitting, lambda: calls.append(1))
    assert len(calls) == len(found.groups)
    return found, factors


@pytest.mark.parametrize("name", ["plain", "residual", "depthwise"])
def test_they_are_the_outputs_error_over_the_consumers(name):
    """Against networks of which one group is cut by hand and nothing is fitted in sequence."""
    model, images = network(name)
    found, factors = measured(model, images, in_sequence=False)
    with torch.no_grad():
        want = model(images)
        for number, (group, factor) in enumerate(zip(found.groups, factors, strict=True)):
            half = len(group.units) // 2
            keep = {group.name: found.channels(number, half)}
            small = convsim.shrink(
                model, [images], keep=keep, in_sequence=False, positions=ALL
            ).model
            error = (small(images) - want).square().mean() / (want - want.mean(0)).square().mean()
            told = found.selections[number].total_errors()[half]
            assert factor == pytest.approx(float(error / told), rel=1e-3)


def test_the_last_layer_loses_what_the_network_does_and_later_layers_repair_the_rest():
    torch.manual_seed(0)
    widths = [3, 16, 16, 16, 16]
    layers = [
        part
        for read, put_out in pairwise(widths)
        for part in (nn.Conv2d(read, put_out, 3, padding=1), nn.ReLU())
    ]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)).eval()
    images = torch.randn(300, 3, 8, 8)
    bare, fitted = (measured(model, images, in_sequence=way)[1] for way in (False, True))
    assert bare[-1] == pytest.approx(1, rel=0.02)
    assert fitted[-1] == pytest.approx(1, rel=0.05)
    assert all(b < a / 1.5 for a, b in zip(bare[:-1], fitted[:-1], strict=True)), (bare, fitted)


def test_a_branch_that_hardly_reaches_the_output_is_cut_more():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.loud, self.faint = (nn.Conv2d(3, 16, 3) for _ in range(2))
            self.read_loud, self.read_faint = (nn.Conv2d(16, 4, 1) for _ in range(2))

        def forward(self, x):
            return self.read_loud(self.loud(x).relu()) + 0.1 * self.read_faint(self.faint(x).relu())

    torch.manual_seed(0)
    model, images = Branches().eval(), torch.randn(100, 3, 12, 12)
    small = convsim.shrink(model, [images], channels=0.5).model
    assert small.loud.out_channels > small.faint.out_channels + 4


def test_outputs_that_never_change_divide_by_nothing():
    model, images = network("plain")
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    nn.init.zeros_(last.weight)
    _, factors = measured(model, images, in_sequence=True)
    assert all(0 < factor <= 1 for factor in factors)


def test_planted_redundancy_needs_no_trial_that_loses_nothing():
    """Half of the units tell all of the others; fewer are tried then, and nothing is infinite."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    with torch.no_grad():
        model[0].weight[4:], model[0].bias[4:] = model[0].weight[:4], model[0].bias[:4]
    found, factors = measured(model, torch.randn(100, 3, 9, 9), in_sequence=True)
    assert float(found.selections[0].total_errors()[4]) < 1e-9
    assert 0 < factors[0] <= 1.01
