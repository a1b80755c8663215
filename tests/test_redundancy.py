"""Feature-map similarity against a plain float64 loop, and its degenerate cases."""

import math

import pytest
import torch
from torch import nn
from torchmetrics.functional import pairwise_cosine_similarity

import convsim
from convsim.errors import NonFiniteError


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(5, 4, 3)
    )


def loop(maps, center):
    """Mean |cosine| over pairs and images, map by map."""
    values = []
    for image in maps.detach().double():
        vectors = [m.flatten() - m.mean() * center for m in image]
        for i, a in enumerate(vectors):
            values += [abs(float(a @ b / a.norm() / b.norm())) for b in vectors[:i]]
    return sum(values) / len(values)


def test_it_equals_the_loop_whatever_the_batches():
    model, images = network(), torch.randn(6, 3, 8, 8)
    report = convsim.measure(model, [images])
    split = convsim.measure(model, [(images[4:], None), (images[:4], None)])
    model.eval()
    stored = {"0": model[0](images), "4": model(images)}
    assert [layer.name for layer in report.layers] == ["0", "4"]
    for layer, other in zip(report.layers, split.layers, strict=True):
        assert layer.similarity == pytest.approx(loop(stored[layer.name], 0), abs=1e-9)
        assert layer.correlation == pytest.approx(loop(stored[layer.name], 1), abs=1e-9)
        assert other.similarity == pytest.approx(layer.similarity, abs=1e-6)
    assert report.images == split.images == 6
    assert report.similarity == pytest.approx(sum(x.similarity for x in report.layers) / 2)


def test_it_equals_torchmetrics():
    model, image = nn.Conv2d(3, 6, 3), torch.randn(1, 3, 9, 9)
    matrix = pairwise_cosine_similarity(model(image)[0].flatten(1)).abs()  # diagonal is zero
    (layer,) = convsim.measure(model, [image]).layers
    assert layer.similarity == pytest.approx(matrix.sum().item() / 30, abs=1e-6)


def test_modes_and_hooks_are_restored():
    model = network()
    model[1].eval()
    convsim.measure(model, [torch.randn(2, 3, 8, 8)])
    assert model.training
    assert model[3].training
    assert not model[1].training
    assert not any(module._forward_hooks for module in model.modules())


def test_dead_constant_and_single_maps_have_defined_values():
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Conv2d(3, 1, 1))
    with torch.no_grad():
        model[0].weight[:] = torch.tensor([0.0, 0.0, 1.0]).view(3, 1, 1, 1)
        model[0].bias[:] = torch.tensor([0.0, 1.0, 0.0])  # dead, constant, live
    first, single = convsim.measure(model, [torch.randn(4, 1, 6, 6)]).layers
    assert 0 < first.similarity < 1 / 3
    assert first.correlation == 0
    assert math.isnan(single.similarity)


def test_identical_maps_are_fully_similar():
    model = nn.Conv2d(1, 2, 3)
    with torch.no_grad():
        model.weight[1] = -2 * model.weight[0]
        model.bias.zero_()
    (layer,) = convsim.measure(model, [torch.randn(2, 1, 6, 6)]).layers
    assert layer.similarity == pytest.approx(1)
    assert layer.correlation == pytest.approx(1)


def test_bad_input_is_refused():
    model = network()
    with pytest.raises(convsim.ConvsimError, match="at least one batch"):
        convsim.measure(model, [])
    with pytest.raises(NonFiniteError, match=r"Layer '0' put out .* NaN or infinite"):
        convsim.measure(model, [torch.full((1, 3, 8, 8), math.nan)])
    unused = nn.ModuleList([nn.Conv2d(3, 2, 3)])
    unused.forward = lambda x: x
    with pytest.raises(convsim.ConvsimError, match="never reached these layers: 0"):
        convsim.measure(unused, [torch.randn(1, 3, 8, 8)])
