"""convsim computes in full precision whatever the user has switched on."""

import pytest
import torch

from convsim.precision import full_precision


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_reduced_precision_is_off_inside_and_back_after(precision):
    torch.set_float32_matmul_precision(precision)
    try:
        before = torch.backends.mkldnn.matmul.fp32_precision
        with full_precision(torch.ones(1)):
            assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
            assert not torch.is_autocast_enabled("cpu")
        assert torch.backends.mkldnn.matmul.fp32_precision == before
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")


def test_autocast_is_off_inside():
    ones = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (ones @ ones).dtype == torch.bfloat16
        with full_precision(ones):
            assert (ones @ ones).dtype == torch.float32
