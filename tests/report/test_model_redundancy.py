"""The numbers that follow from a report's layers, and the report as a sequence of them."""

import math

import pytest
import torch
from torch import nn

import convsim

pytestmark = pytest.mark.core


def test_a_report_is_its_layers(report):
    assert list(report) == list(report.layers)
    assert len(report) == 5
    assert "2" in report
    assert "x" not in report
    assert report["2"] is report.layers[1]
    with pytest.raises(convsim.ConvsimError, match=r"no layer 'x'; it has '0', '2'"):
        report["x"]


@pytest.mark.parametrize("layers", [4, 5])
def test_layers_are_ranked_from_five_on(layers):
    convolutions = [nn.Conv2d(4, 4, 3, padding=1) for _ in range(layers)]
    report = convsim.measure(nn.Sequential(*convolutions), [torch.randn(4, 4, 8, 8)])
    for value in report.rank_correlations.values():
        assert math.isnan(value.layers) == (layers < 5)
        assert math.isfinite(value.pairs)  # of six


def test_a_silent_layer_is_named_and_left_out_of_the_mean(silent):
    first, dead, last = silent
    assert silent.silent == (dead.name,) == ("1.0",)
    assert math.isnan(dead.similarity)
    assert silent.similarity == (first.similarity + last.similarity) / 2
    assert silent.correlation == (first.correlation + last.correlation) / 2
    assert "convsim/similarity/1.0" not in silent.scalars()
