"""How much of the outputs is lost with each number of units kept of a group."""

from itertools import pairwise

import pytest
import torch
from networks import NETWORKS, network
from torch import nn

import convsim
from convsim.shrinking import sequence
from convsim.shrinking.road import Road
from convsim.shrinking.sensitivity import output_errors
from convsim.shrinking.sequence import Fitting
from convsim.shrinking.survey import survey

pytestmark = pytest.mark.numeric

ALL = 10**9


def measured(model, images, *, in_sequence, size=100):
    """Return what was found in a network, and the outputs' errors by group."""
    model.requires_grad_(False)
    batches = images.split(size)
    found = survey(model, batches, layers=None, positions=ALL)
    fitting = Fitting(model, found, batches, 32) if in_sequence else None
    calls = []
    errors = output_errors(model, found, batches, fitting, lambda: calls.append(1))
    assert len(calls) == len(found.groups)
    return found, errors


@pytest.mark.parametrize("name", ["plain", "residual", "depthwise"])
def test_with_half_of_the_units_and_with_one_they_are_the_outputs_own(name):
    """Against networks of which one group is cut by hand and nothing is fitted in sequence."""
    model, images = network(name)
    images = images[:200]
    found, errors = measured(model, images, in_sequence=False)
    with torch.no_grad():
        want = model(images)
        for number, (group, own) in enumerate(zip(found.groups, errors, strict=True)):
            assert len(own) == len(group.units) + 1
            for count in (1, len(group.units) // 2):
                keep = {group.name: found.channels(number, count)}
                small = convsim.shrink(
                    model, [images], keep=keep, in_sequence=False, positions=ALL
                ).model
                variance = (want - want.mean(0)).square().mean()
                error = float((small(images) - want).square().mean() / variance)
                assert float(own[count]) == pytest.approx(error, rel=1e-3)


def test_in_between_they_rise_as_the_consumers_errors_do():
    model, images = network("depthwise")
    found, errors = measured(model, images, in_sequence=True)
    for own, selection in zip(errors, found.selections, strict=True):
        assert (own.diff() <= 1e-12).all()
        assert float(own[-1]) == pytest.approx(0, abs=1e-9)
        assert len(own) == len(selection.total_errors())


def test_later_layers_repair_what_is_lost_and_nothing_repairs_the_last():
    torch.manual_seed(0)
    widths = [3, 16, 16, 16, 16]
    layers = [
        part
        for read, put_out in pairwise(widths)
        for part in (nn.Conv2d(read, put_out, 3, padding=1), nn.ReLU())
    ]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)).eval()
    images = torch.randn(400, 3, 8, 8)
    bare, fitted = (measured(model, images, in_sequence=way)[1] for way in (False, True))
    assert float(fitted[-1][8]) == pytest.approx(float(bare[-1][8]), rel=0.2)
    before, after = (sum(float(own[8]) for own in errors[:-1]) for errors in (bare, fitted))
    assert after < before / 1.2


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


def test_samples_that_do_not_fit_in_memory_together_are_taken_anew(monkeypatch):
    model, images = network("depthwise")
    _, together = measured(model, images, in_sequence=True)
    monkeypatch.setattr(sequence, "_MOST_BYTES", 1)
    _, apart = measured(model, images, in_sequence=True)
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("name", NETWORKS)
def test_trials_that_start_in_the_middle_find_what_those_from_the_images_find(name, monkeypatch):
    model, images = network(name)
    _, resumed = measured(model, images, in_sequence=True)
    monkeypatch.setattr(Road, "before", lambda self, number, layer: None)
    _, whole = measured(model, images, in_sequence=True)
    for one, other in zip(resumed, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-9)


def test_a_trial_does_not_run_what_comes_before_its_group(monkeypatch):
    torch.manual_seed(0)
    layers = [part for _ in range(8) for part in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())]
    model, images = nn.Sequential(*layers).eval(), torch.randn(400, 8, 8, 8)

    def images_convolved():
        found = []

        def counting(layer, images, *args):
            found.append(len(images))
            return convolve(layer, images, *args)

        with monkeypatch.context() as patch:
            patch.setattr(nn.Conv2d, "_conv_forward", counting)
            measured(model, images, in_sequence=True)
        return sum(found)

    convolve = nn.Conv2d._conv_forward
    resumed = images_convolved()
    monkeypatch.setattr(Road, "before", lambda self, number, layer: None)
    assert resumed < images_convolved() / 1.3


def test_a_layer_that_reads_too_much_is_fitted_to_fewer_samples(monkeypatch):
    model, images = network("flattened")
    model.requires_grad_(False)
    looked_at: dict[int, set[int]] = {}
    solve_ = sequence._Stage.solve_

    def solving_(self, *args):
        looked_at.setdefault(self.predictors, set()).add(len(self.batches))
        return solve_(self, *args)

    monkeypatch.setattr(sequence._Stage, "solve_", solving_)
    batches = [*images.split(20)]
    convsim.shrink(model, batches, parameters=0.5, uniformly=True)
    monkeypatch.setattr(sequence, "_MOST_PREDICTORS", 27)
    monkeypatch.setattr(sequence, "_MOST_SAMPLES", 10)
    small = convsim.shrink(model, batches, parameters=0.5, uniformly=True).model
    assert {read for read, counts in looked_at.items() if 1 in counts} == {
        read for read in looked_at if read > 27
    }
    assert small(images).isfinite().all()


def test_outputs_that_never_change_divide_by_nothing():
    model, images = network("plain")
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    nn.init.zeros_(last.weight)
    _, errors = measured(model, images, in_sequence=True)
    assert all(bool(own.isfinite().all()) for own in errors)


def test_planted_redundancy_stays_without_loss():
    """Half of the units tell all of the others; fewer are tried then."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    with torch.no_grad():
        model[0].weight[4:], model[0].bias[4:] = model[0].weight[:4], model[0].bias[:4]
    _, (own,) = measured(model, torch.randn(100, 3, 9, 9), in_sequence=True)
    assert float(own[4]) < 1e-9
    assert 0.01 < float(own[2]) <= 1.01
