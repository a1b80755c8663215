"""No look at a model changes it, whatever its layers do when they run."""

import gc

import pytest
import torch
from torch import nn

import convsim
from convsim.kernels import ConvLayer
from leaks import set_aside, tensors
from odd_layers import KINDS

pytestmark = pytest.mark.core

PLAIN = (bool, int, float, str, type(None), tuple)


def everything(model):
    """All that a look could change, by name."""
    found = {"random numbers": torch.get_rng_state()}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if "_hooks" in key:
                found[f"{name}: {key}"] = len(value or ())
            elif isinstance(value, torch.Tensor):
                found[f"{name}.{key}"] = value.detach().clone()
            elif isinstance(value, list):
                found[f"{name}.{key}"] = tuple(value)
            elif isinstance(value, torch.Generator):
                found[f"{name}.{key}"] = value.get_state()
            elif isinstance(value, PLAIN):
                found[f"{name}.{key}"] = value
        own = {**module._parameters, **module._buffers}
        found |= {
            f"{name}.{key}": (id(value), value.detach().clone(), value.requires_grad)
            for key, value in own.items()
            if value is not None
        }
    return found


def difference(before, after):
    def equal(one, other):
        if isinstance(one, torch.Tensor):
            return one.shape == other.shape and one.equal(other)
        if isinstance(one, tuple) and isinstance(other, tuple):
            return len(one) == len(other) and all(map(equal, one, other))
        return type(one) is type(other) and one == other

    missing = {*before} ^ {*after}
    return missing | {key for key in {*before} & {*after} if not equal(before[key], after[key])}


def crossed(model, x):
    return convsim.Regularizer(model, "crossed")


def crossed_values(model, x):
    regularizer = convsim.Regularizer(model, "crossed")
    regularizer.values()
    regularizer()
    print(regularizer)


def crossed_gradients(model, x):
    convsim.Regularizer(model, "crossed").backward_()
    model.zero_grad()


def recommended(model, x):
    print(convsim.Regularizer(model))


def only_measure_its_initialization(model, x):
    convsim.initialize_(model, steps=0)


def measured(model, x):
    convsim.measure(model, [x])


LOOKS = [crossed, crossed_values, crossed_gradients, recommended, only_measure_its_initialization]
CHANGED_BY_MEASURE = {"with a generator", "Counting"}


def check(kind, look, ran_before):
    model = nn.Sequential(KINDS[kind](), nn.BatchNorm2d(8), nn.ReLU())
    x = torch.randn(2, 3, 8, 8)
    if ran_before:
        model[:1](x)
    before = everything(model)
    look(model, x)
    assert not difference(before, everything(model))


@pytest.mark.usefixtures("vision")
@pytest.mark.parametrize("ran_before", [False, True], ids=["fresh", "after a step"])
@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_look_changes_a_model(kind, look, ran_before):
    check(kind, look, ran_before)


@pytest.mark.usefixtures("vision")
@pytest.mark.parametrize("kind", KINDS)
def test_measuring_changes_no_model(kind, request):
    if kind in CHANGED_BY_MEASURE:
        reason = "measure() does not put back what running a model changes"
        request.applymarker(pytest.mark.xfail(strict=True, reason=reason))
    check(kind, measured, ran_before=True)


@pytest.mark.usefixtures("vision")
@pytest.mark.parametrize("kind", KINDS)
def test_a_look_leaves_no_tensor_behind(kind):
    layer = ConvLayer("", KINDS[kind]())
    layer.weight()
    set_aside()
    gc.disable()  # a copy must not wait to be found
    try:
        for _ in range(3):
            layer.weight()
        assert tensors() == 0
    finally:
        gc.enable()
