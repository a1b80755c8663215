"""Which of several smaller networks is taken."""

from importlib import import_module

import pytest
import torch
from networks import network
from torch import nn

import convsim
from convsim.shrinking.fitting import Fitted, nearest
from convsim.shrinking.survey import survey
from seeds import reseed

pytestmark = pytest.mark.numeric


def made(value):
    return Fitted(nn.Identity(), [[value]], {}, [torch.tensor([[float(value)]])], scores=False)


@pytest.mark.parametrize(
    ("wanted", "start", "fitted"),
    [(2, 2, [2, 3, 1]), (9, 1, [1, 2, 3, 4]), (0, 2, [2, 3, 1, 0]), (3, 2, [2, 3, 4])],
)
def test_the_nearest_is_found_and_no_more_than_needed_are_fitted(wanted, start, fitted):
    seen = []

    def make(kept):
        seen.append(kept[0][0])
        return made(seen[-1])

    found = nearest([[[n]] for n in range(5)], start, [torch.tensor([[float(wanted)]])], make)
    assert found.kept == [[min(wanted, 4)]]
    assert seen == fitted


def test_the_divergence_of_scores_is_that_of_their_softmax():
    reseed()
    want, have = torch.randn(2, 6, 5).double()
    one = Fitted(nn.Identity(), [], {}, [*have.split(4)], scores=True)
    expected = nn.functional.kl_div(
        have.log_softmax(1), want.log_softmax(1), log_target=True, reduction="batchmean"
    )
    assert one.divergence(want.split(4)) == pytest.approx(float(expected))
    shifted = Fitted(nn.Identity(), [], {}, [want + torch.randn(6, 1)], scores=True)
    assert shifted.divergence([want]) == pytest.approx(0, abs=1e-12)


def test_a_network_cut_hard_is_the_best_of_its_plans(monkeypatch):
    """Each plan is shrunk on its own, by the channels it keeps, and judged by torch's KL."""
    reseed()
    model, images = network("residual")
    tried = []

    def remembering(plans, start, wanted, make):
        return nearest(plans, start, wanted, lambda kept: tried.append(kept) or make(kept))

    monkeypatch.setattr(import_module("convsim.shrinking.shrink"), "nearest", remembering)
    shrunk = convsim.shrink(model, [images], parameters=0.3)
    monkeypatch.undo()
    groups = survey(model.eval(), [images], layers=None, positions=32).groups

    def divergence(small):
        with torch.no_grad():
            want, have = (net.eval()(images).double().log_softmax(1) for net in (model, small))
        return float(nn.functional.kl_div(have, want, log_target=True, reduction="batchmean"))

    found = [
        divergence(
            convsim.shrink(
                model, [images], keep={g.name: own for g, own in zip(groups, kept, strict=True)}
            ).model
        )
        for kept in tried
    ]
    assert len({round(one, 6) for one in found}) > 1
    assert divergence(shrunk.model) == pytest.approx(min(found), rel=1e-4)
