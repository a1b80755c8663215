"""What a float32 is written as."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convsim.strict_json import shortest


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_float32_has_the_digits_that_numpy_gives_it(number):
    assert np.float32(shortest(number)) == np.float32(number)
    ours, theirs = (repr(x).lower() for x in (shortest(number), float(str(np.float32(number)))))
    assert len(ours) <= len(theirs)


@pytest.mark.parametrize("number", [math.inf, -math.inf])
def test_what_has_no_digits_stays(number):
    assert shortest(number) == number
    assert math.isnan(shortest(math.nan))
