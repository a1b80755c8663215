"""Regularizers that look at forward passes leave no trace in the model."""

import copy
import gc
import io

import pytest
import torch
from torch import nn

from closeness import assert_close
from convsim import Regularizer

pytestmark = pytest.mark.core

STEPS = 27 + 98 + 98
"""The sums to a value, one after the other: a map's pixel, its norm, the product of two maps."""


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))


def hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("penalty", ["recommended", "maps", "decov"])
def test_hooks_go_with_the_regularizer(penalty):
    model = network()
    regularizer = Regularizer(model, penalty)
    assert hooks(model) == 2
    regularizer.remove()
    assert hooks(model) == 0
    regularizer = Regularizer(model, penalty)
    del regularizer
    gc.collect()
    assert hooks(model) == 0


@pytest.mark.parametrize("penalty", ["recommended", "maps", "decov"])
def test_copies_are_not_watched(penalty):
    model = network()
    regularizer = Regularizer(model, penalty)
    images = torch.randn(4, 3, 12, 12)
    model(images)
    value = regularizer()
    model(images)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (copy.deepcopy(model.requires_grad_(True)), torch.load(file, weights_only=False)):
        twin(torch.zeros_like(images))
    assert_close(regularizer(), value, terms=STEPS)


def test_a_shared_weight_is_fed_by_every_module_it_serves():
    model = network()
    model.append(nn.Conv2d(4, 4, 3))
    model[3].weight = model[2].weight
    regularizer = Regularizer(model)
    assert [layer.name for layer in regularizer.layers] == ["0", "2"]
    model[3](torch.randn(2, 4, 9, 9))
    model[0](torch.randn(2, 3, 9, 9))
    assert regularizer() > 0


def test_keywords_and_changed_precision():
    class Named(nn.Conv2d):
        def forward(self, x):
            return self._conv_forward(x, self.weight, self.bias)

    model = nn.Sequential(Named(3, 4, 3))
    regularizer = Regularizer(model)
    model[0](x=torch.randn(2, 3, 9, 9))
    value = regularizer()
    model.double()
    assert_close(regularizer(), value, terms=STEPS)


def test_a_layer_that_pads_in_its_own_forward_may_read_less_than_its_kernel():
    class Same(nn.Conv2d):
        def forward(self, x):
            return super().forward(nn.functional.pad(x, (1, 1, 1, 1)))

    model = nn.Sequential(Same(3, 4, 3))
    regularizer = Regularizer(model)
    model(torch.randn(8, 3, 2, 2))
    assert 0 < regularizer() < 1


def test_values_of_layers_with_a_single_map():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 1, 3))
    regularizer = Regularizer(model)
    model(torch.randn(2, 3, 9, 9))
    values = regularizer.values()
    assert values["0"] > 0
    assert values["1"] == 0
