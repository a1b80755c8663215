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


def _layer_on(maps: torch.Tensor) -> convsim.LayerRedundancy:
    """Measure given maps (N, M, …) as the output of an identity 1×1 convolution."""
    filters = maps.shape[1]
    conv = torch.nn.Conv2d(filters, filters, 1, bias=False).to(maps.dtype)
    with torch.no_grad():
        conv.weight.copy_(torch.eye(filters)[..., None, None])
    return convsim.measure(torch.nn.Sequential(conv), [maps]).layers[0]


def test_the_matrix_equals_torchmetrics_pairwise_cosine():
    maps = torch.randn(5, 7, 6, 4, dtype=torch.float64, generator=torch.manual_seed(0))
    expected = torch.stack(
        [pairwise_cosine_similarity(image.flatten(1), zero_diagonal=False).abs() for image in maps]
    ).mean(0)
    torch.testing.assert_close(_layer_on(maps).matrix, expected, rtol=0, atol=1e-12)


def test_chunks_of_images_change_nothing(monkeypatch):
    maps = torch.randn(5, 7, 6, 4, dtype=torch.float64, generator=torch.manual_seed(0))
    whole = _layer_on(maps)
    monkeypatch.setattr("convsim.redundancy._CHUNK", 100)  # two images at once
    torch.testing.assert_close(_layer_on(maps).matrix, whole.matrix, rtol=0, atol=1e-14)


def test_effective_rank_counts_the_directions_in_use():
    identity = torch.eye(16, dtype=torch.float64).reshape(1, 16, 4, 4)
    assert _layer_on(identity).effective_rank == pytest.approx(16)
    three = identity[:, [0, 1, 2, 0, 1, 2]]
    assert _layer_on(three).effective_rank == pytest.approx(3)


def test_dead_maps_are_counted_only_if_zero_on_every_image():
    maps = torch.randn(2, 4, 3, 3, generator=torch.manual_seed(0))
    maps[:, 1] = 0
    maps[0, 2] = 0
    layer = _layer_on(maps)
    assert layer.dead == 1
    assert not layer.matrix[1].any()
    nothing = _layer_on(torch.zeros(2, 4, 3, 3))
    assert (nothing.dead, nothing.effective_rank, nothing.similarity) == (4, 0, 0)


def test_duplicates_name_the_pairs_most_alike_first():
    maps = torch.randn(3, 5, 8, 8, dtype=torch.float64, generator=torch.manual_seed(0))
    maps[:, 3] = -2 * maps[:, 0]
    maps[:, 4] = maps[:, 1] + 0.1 * maps[:, 2]
    pairs = _layer_on(maps).duplicates(0.9)
    assert [pair[:2] for pair in pairs] == [(0, 3), (1, 4)]
    assert pairs[0][2] == pytest.approx(1)
    assert 0.98 < pairs[1][2] < 1


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_that_is_no_cosine_is_refused(threshold):
    layer = _layer_on(torch.randn(1, 2, 3, 3))
    with pytest.raises(convsim.ConvsimError, match=r"threshold .* \[0, 1\]; got"):
        layer.duplicates(threshold)
