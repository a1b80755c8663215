"""Spearman's rank correlation against scipy's."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from convsim.rank_correlation import rank_correlation

pytestmark = pytest.mark.core


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=30))
def test_it_equals_scipy_with_ties(pairs):
    a, b = map(list, zip(*pairs, strict=True))
    measured = rank_correlation(torch.tensor(a).double(), torch.tensor(b).double())
    if len(a) < 5 or len(set(a)) == 1 or len(set(b)) == 1:
        assert math.isnan(measured)
    else:
        assert measured == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)


def test_places_without_a_number_are_left_out():
    a = torch.tensor([1.0, math.nan, 2.0, 3.0, 4.0, 6.0, 9.0])
    b = torch.tensor([8.0, 5.0, 6.0, 4.0, 1.0, 0.5, math.nan])
    assert rank_correlation(a, b) == pytest.approx(-1)
    assert math.isnan(rank_correlation(a[:5], b[:5]))  # an order of four says nothing
