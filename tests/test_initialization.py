"""Iterative initialization: it lowers the penalty, keeps what it promises to, and is safe."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import convsim
from closeness import assert_close
from convsim import initialize_
from convsim.errors import NonFiniteError
from seeds import reseed

pytestmark = pytest.mark.core

TERMS = 8 * 3 * 3
"""The numbers of the largest filter."""


def network():
    reseed()
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 8, 1),
        parametrizations.weight_norm(nn.Conv2d(8, 8, 3, stride=2)),
        nn.ConvTranspose2d(8, 4, 4, stride=2),
    )


def norms(layer):
    return layer.weight.detach().flatten(1).norm(dim=1)


def test_it_lowers_every_layer_and_keeps_norms():
    model = network()
    before = copy.deepcopy(model)
    history = initialize_(model, steps=50)
    assert set(history.values) == {"0", "3", "4"}  # the pointwise one cannot vary
    for values in history.values.values():
        assert len(values) == 51
        assert values[-1] < values[0]
    assert_close(history.norm_ratio, dict.fromkeys(history.values, 1.0), terms=2 * TERMS)
    assert_close(norms(model[0]), norms(before[0]), terms=2 * TERMS)
    assert_close(norms(model[3]), norms(before[3]), terms=2 * TERMS)
    assert torch.equal(model[2].weight, before[2].weight)
    after = convsim.Regularizer(model, "crossed").values()
    for name, values in history.values.items():
        assert_close(after[name], values[-1], terms=4 * TERMS)


def test_the_authors_recipe_shrinks_norms():
    model = network()
    history = initialize_(model, "authors")
    assert all(0.05 < ratio < 0.8 for ratio in history.norm_ratio.values())
    assert history.values["0"][-1] < 0.2 * history.values["0"][0]


def test_equal_weights_give_equal_results_whatever_the_random_state():
    results = []
    for seed in (1, 2):
        model = network()
        reseed(seed)
        initialize_(model, steps=5)
        results.append(model[0].weight.detach())
    assert torch.equal(*results)


def test_authors_recipe_equals_adam_by_autograd():
    model, twin = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 6, 3)
    twin.load_state_dict(model.state_dict())
    initialize_(model, "authors", steps=20, lr=0.002)
    regularizer = convsim.Regularizer(twin, "authors", coefficient=1.0)
    optimizer = torch.optim.Adam([twin.weight], lr=0.002)
    for _ in range(20):
        optimizer.zero_grad()
        regularizer().backward()
        optimizer.step()
    assert_close(model.weight, twin.weight, terms=20 * 4 * 27)


def test_zero_steps_only_measures():
    model = network()
    before = copy.deepcopy(model.state_dict())
    history = initialize_(model, steps=0)
    assert all(len(values) == 1 for values in history.values.values())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_half_precision_weights_are_initialised_in_float32():
    model = nn.Conv2d(3, 8, 3).bfloat16()
    history = initialize_(model, steps=20)
    assert model.weight.dtype == torch.bfloat16
    assert history.values[""][-1] < history.values[""][0]


def test_frozen_layers_are_left_alone():
    model = nn.Sequential(nn.Conv2d(1, 4, 3).requires_grad_(False), nn.Conv2d(4, 4, 3))
    before = model[0].weight.clone()
    assert set(initialize_(model, steps=3).values) == {"1"}
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_weight_is_named_and_nothing_is_changed(bad):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3))
    with torch.no_grad():
        model[1].weight[0, 0, 0, 0] = bad
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(NonFiniteError, match=r"in layer '1' at step 0.*weights are as they were"):
        initialize_(model, steps=3)
    for name, value in model.state_dict().items():
        assert torch.equal(value.nan_to_num(7.0), before[name].nan_to_num(7.0))


def test_a_step_that_overflows_is_named_and_nothing_is_changed():
    model = nn.Conv2d(1, 4, 3)
    before = model.weight.clone()
    with pytest.raises(NonFiniteError, match="in layer '' at step 1"):
        initialize_(model, "authors", steps=3, lr=1e30)
    assert torch.equal(model.weight, before)


def test_zero_filters_stay_zero():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3))
    nn.init.zeros_(model[1].weight)
    with torch.no_grad():
        model[0].weight[2] = 0
    history = initialize_(model, steps=3)
    assert not model[0].weight[2].any()
    assert not model[1].weight.any()
    assert history.norm_ratio["1"] == 1
    assert model[0].weight.isfinite().all()


def test_nothing_to_act_on_warns():
    with pytest.warns(convsim.ConvsimWarning, match="left as it is"):
        history = initialize_(nn.Conv2d(4, 4, 1))
    assert history.values == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "steps must be an integer ≥ 0; got -1"),
        ({"steps": 1.5}, "got 1.5"),
        ({"lr": 0}, "lr must be a finite number > 0; got 0"),
        ({"penalty": "best"}, "got 'best'"),
    ],
    ids=str,
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(convsim.ConvsimError, match=message):
        initialize_(nn.Conv2d(1, 2, 3), **options)
