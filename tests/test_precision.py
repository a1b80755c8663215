"""convsim computes in full precision whatever the user has switched on."""

import random
import threading
from types import SimpleNamespace

import pytest
import torch

from convsim.precision import full_precision

pytestmark = pytest.mark.core

ONE = torch.ones(1)
HAS_CHAINS = hasattr(torch.backends.cuda.matmul, "fp32_precision")  # torch 2.9


@pytest.fixture(autouse=True)
def _settings_back():
    torch.set_float32_matmul_precision("highest")
    before = [owner.fp32_precision for owner in _owners()]
    yield
    torch.set_float32_matmul_precision("highest")
    for owner, value in zip(_owners(), before, strict=True):
        owner.fp32_precision = value


def _owners():
    if not HAS_CHAINS:
        return []
    torch_wide, mkldnn, cudnn = torch.backends, torch.backends.mkldnn, torch.backends.cudnn
    products = (mkldnn.matmul, mkldnn.conv, torch.backends.cuda.matmul, cudnn.conv)
    return [torch_wide, mkldnn, cudnn, *products]


def settings():
    """What every setting reads as, and how it follows the one above all others."""
    everything, found = _owners()[0], []
    own = everything.fp32_precision
    for value in (own, "ieee", "tf32", own):
        everything.fp32_precision = value
        found.append([owner.fp32_precision for owner in _owners()])
    return found


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_reduced_precision_is_off_inside_and_back_after(precision):
    torch.set_float32_matmul_precision(precision)
    with full_precision(ONE):
        if HAS_CHAINS:
            assert torch.backends.mkldnn.matmul.fp32_precision in ("ieee", "none")
        else:
            assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.is_autocast_enabled("cpu")
    assert torch.get_float32_matmul_precision() == precision


@pytest.mark.skipif(not HAS_CHAINS, reason="needs torch 2.9, the first with inherited settings")
@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_inherited_settings_are_inherited_again(kind):
    draw = random.Random(0)
    *_, matmul, conv, cuda_matmul, cudnn_conv = _owners()
    own = {"cpu": [matmul, conv], "cuda": [cuda_matmul, cudnn_conv]}[kind]
    for _ in range(100):
        for owner in _owners():
            owner.fp32_precision = draw.choice(["none", "ieee", "tf32"])
        before = settings()
        with full_precision(SimpleNamespace(device=torch.device(kind))):
            assert {owner.fp32_precision for owner in own} <= {"ieee", "none"}
        assert settings() == before


def test_the_last_thread_out_puts_the_settings_back():
    torch.set_float32_matmul_precision("medium")
    inside, leave = threading.Event(), threading.Event()

    def stay():
        with full_precision(ONE):
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=stay)
    with full_precision(ONE):
        thread.start()
        assert inside.wait(60)
    if HAS_CHAINS:
        assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"  # the other is still inside
    leave.set()
    thread.join()
    assert torch.get_float32_matmul_precision() == "medium"


@pytest.mark.skipif(not HAS_CHAINS, reason="needs torch 2.9, the first with inherited settings")
def test_what_the_user_sets_in_the_meantime_stays():
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    with full_precision(ONE):
        torch.backends.mkldnn.matmul.fp32_precision = "tf32"
    assert torch.backends.mkldnn.matmul.fp32_precision == "tf32"


def test_an_error_inside_puts_the_settings_back():
    torch.set_float32_matmul_precision("high")
    with pytest.raises(ZeroDivisionError), full_precision(ONE):
        raise ZeroDivisionError
    assert torch.get_float32_matmul_precision() == "high"


def test_autocast_is_off_inside():
    ones = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (ones @ ones).dtype == torch.bfloat16
        with full_precision(ones):
            assert (ones @ ones).dtype == torch.float32
