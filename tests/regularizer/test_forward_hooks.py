"""Regularizers that look at forward passes leave no trace in the model."""

import copy
import gc
import io

import pytest
import torch
from torch import nn

from closeness import assert_close
from convsim import ConvsimError, Regularizer

pytestmark = pytest.mark.core

STEPS = 27 + 98 + 98
"""The sums to a value, one after the other: a map's pixel, its norm, the product of two maps."""


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))


def hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("penalty", ["recommended", "decov"])
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


def test_hooks_go_although_what_was_traced_holds_the_watch():
    model = network()
    regularizer = Regularizer(model)
    held = regularizer._samples._watch  # as a graph of torch.compile may, until it is collected
    del regularizer
    gc.collect()
    assert hooks(model) == 0
    assert held is not None


@pytest.mark.parametrize("penalty", ["recommended", "decov"])
def test_copies_are_not_watched(penalty):
    model = network()
    regularizer = Regularizer(model, penalty)
    images = torch.randn(4, 3, 12, 12)
    model(images)
    value = regularizer()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (copy.deepcopy(model.requires_grad_(True)), torch.load(file, weights_only=False)):
        twin(torch.zeros_like(images))
    assert_close(regularizer(), value, terms=STEPS)


def test_a_copy_of_a_watched_model_can_be_scripted():
    model = network()
    regularizer = Regularizer(model)
    images = torch.randn(4, 3, 12, 12)
    scripted = torch.jit.script(copy.deepcopy(model))
    assert_close(scripted(images), model(images), terms=STEPS)
    assert regularizer() > 0


def test_a_shared_weight_is_fed_by_every_module_it_serves():
    model = network()
    model.append(nn.Conv2d(4, 4, 3))
    model[3].weight = model[2].weight
    regularizer = Regularizer(model)
    assert [layer.name for layer in regularizer.layers] == ["0", "2"]
    x = torch.randn(2, 4, 9, 9)
    model[3](x)
    only_third = regularizer.values()["2"]
    model[2](x)
    assert_close(torch.tensor(only_third), torch.tensor(regularizer.values()["2"]), terms=STEPS)


def test_keywords_and_changed_precision():
    class Named(nn.Conv2d):
        def forward(self, x):
            return self._conv_forward(x, self.weight, self.bias)

    model = nn.Sequential(Named(3, 4, 3))
    regularizer = Regularizer(model)
    x = torch.randn(2, 3, 9, 9)
    model[0](x=x)
    value = regularizer()
    model.double()(x.double())
    assert_close(regularizer().float(), value, terms=STEPS)


def test_what_is_no_map_is_refused():
    class Pair(nn.Conv2d):
        def forward(self, x):
            return super().forward(x), x

    class Pooled(nn.Conv2d):
        def forward(self, x):
            return super().forward(x).mean((2, 3))

    for kind, told in ((Pair, "put out a tuple"), (Pooled, "does not have the 4 axes")):
        model = nn.Sequential(kind(3, 4, 3))
        regularizer = Regularizer(model)
        with pytest.raises(ConvsimError, match=f"Layer '0' .*{told}"):
            model(torch.randn(2, 3, 9, 9))
        del regularizer


def test_values_of_layers_with_a_single_map():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), nn.Conv2d(5, 1, 3))
    regularizer = Regularizer(model)
    model(torch.randn(2, 3, 9, 9))
    values = regularizer.values()
    assert values["0"] > 0
    assert values["2"] == 0
