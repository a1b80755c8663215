"""Feature-map similarity against a plain float64 loop, and its degenerate cases."""

import math

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from torchmetrics.functional import pairwise_cosine_similarity

import convsim
from closeness import assert_close
from convsim.errors import NonFiniteError
from seeds import new_generator, reseed

pytestmark = pytest.mark.core


def network():
    reseed()
    return nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(5, 4, 3)
    )


TERMS = 27 + 45 + 49
"""The products in a pixel of the two layers below, one after the other, and in a cosine of maps."""


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
        assert_close(layer.similarity, loop(stored[layer.name], 0), terms=TERMS, size=1)
        assert_close(layer.correlation, loop(stored[layer.name], 1), terms=TERMS, size=1)
        assert_close(other.similarity, layer.similarity, terms=TERMS, size=1)
    assert report.images == split.images == 6
    assert_close(report.similarity, sum(x.similarity for x in report.layers) / 2, terms=2)


def test_it_equals_torchmetrics():
    model, image = nn.Conv2d(3, 6, 3), torch.randn(1, 3, 9, 9)
    matrix = pairwise_cosine_similarity(model(image)[0].flatten(1)).abs()  # diagonal is zero
    (layer,) = convsim.measure(model, [image]).layers
    assert_close(layer.similarity, matrix.sum().item() / 30, terms=TERMS, size=1)


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
    assert 0 < first.similarity < 1  # of the constant one and the live one
    assert math.isnan(first.correlation)  # of the other two, neither varies
    assert math.isnan(single.similarity)


def test_identical_maps_are_fully_similar():
    model = nn.Conv2d(1, 2, 3)
    with torch.no_grad():
        model.weight[1] = -2 * model.weight[0]
        model.bias.zero_()
    (layer,) = convsim.measure(model, [torch.randn(2, 1, 6, 6)]).layers
    assert_close(layer.similarity, 1.0, terms=TERMS)
    assert_close(layer.correlation, 1.0, terms=TERMS)


def test_bad_input_is_refused():
    model = network()
    with pytest.raises(convsim.ConvsimError, match="at least one batch"):
        convsim.measure(model, [])
    with pytest.raises(NonFiniteError, match=r"Layer '0' put out .* NaN or infinite"):
        convsim.measure(model, [torch.full((1, 3, 8, 8), math.nan)])
    with pytest.raises(convsim.ConvsimError, match=r"layers=… or modules=…, not both"):
        convsim.measure(model, [], layers="0", modules="1")
    with pytest.raises(convsim.ConvsimError, match=r"No module is selected by modules='9'"):
        convsim.measure(model, [], modules="9")
    with pytest.raises(convsim.ConvsimError, match=r"mapping with 'pixel_values'.* dict with 'x'"):
        convsim.measure(model, [{"x": torch.randn(1, 3, 8, 8)}])
    with pytest.raises(
        convsim.ConvsimError, match=r"'0' \(Conv2d\).*float32 \(5, 6, 6\).* batches"
    ):
        convsim.measure(model, [torch.randn(3, 8, 8)])


def test_layers_that_are_never_reached():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Conv2d(3, 2, 3), nn.Conv2d(3, 2, 3)

        def forward(self, x):
            return self.used(x)

    model = Model()
    batches = [torch.randn(1, 3, 8, 8)]
    with pytest.warns(
        convsim.ConvsimWarning, match=r"never reached these layers: unused\. They are"
    ):
        report = convsim.measure(model, batches)
    assert [layer.name for layer in report.layers] == ["used"]
    with pytest.raises(convsim.ConvsimError, match=r"never reached these layers: unused\. Leave"):
        convsim.measure(model, batches, layers="u*")


def test_any_module_can_be_measured():
    model, images = network(), torch.randn(3, 3, 8, 8)
    after_norm, after_activation = convsim.measure(model, [images], modules=["1", nn.ReLU]).layers
    model.eval()
    maps = model[1](model[0](images))
    assert (after_norm.name, after_norm.kind, after_norm.kernels) == ("1", "BatchNorm2d", None)
    assert_close(after_norm.similarity, loop(maps, 0), terms=TERMS, size=1)
    assert_close(after_activation.similarity, loop(maps.relu(), 0), terms=TERMS, size=1)
    assert math.isnan(after_activation.worst[0].kernel_cosine)


def test_a_module_with_two_numbers_of_maps_is_refused():
    act = nn.ReLU()
    model = nn.Sequential(nn.Conv2d(3, 2, 1), act, nn.Conv2d(2, 4, 1), act)
    with pytest.raises(convsim.ConvsimError, match="'1' put out 2 maps and then 4"):
        convsim.measure(model, [torch.randn(1, 3, 4, 4)], modules=nn.ReLU)


def test_outputs_that_are_no_maps_are_refused():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(32, 3))
    with pytest.raises(convsim.ConvsimError, match=r"'2' \(Linear\) put out .*float32 \(1, 3\)"):
        convsim.measure(model, [torch.randn(1, 3, 4, 4)], modules="2")


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_norms_out_of_the_range_of_squares_change_nothing(scale):
    maps = torch.randn(2, 5, 6, 6, generator=new_generator())
    assert_close(_layer_on(maps * scale).matrix, _layer_on(maps).matrix, terms=TERMS)


def test_half_precision_is_measured_in_float32_also_under_autocast():
    model, images = nn.Conv2d(3, 6, 3).half(), torch.randn(2, 3, 9, 9).half()
    exact = loop(model(images), 0)
    assert_close(convsim.measure(model, [images]).similarity, exact, terms=TERMS, size=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        exact = loop(model.float()(images.float()), 0)
        measured = convsim.measure(model, [images.float()]).similarity
    assert_close(measured, exact, terms=TERMS, size=1)


def test_maps_of_one_pixel_are_undefined():
    layer = _layer_on(torch.randn(3, 4, 1, 1))
    assert layer.pixels == 1
    assert math.isnan(layer.similarity)
    assert math.isnan(layer.correlation)
    assert (layer.worst, layer.duplicates()) == ((), [])


@pytest.mark.parametrize("dims", [1, 3])
def test_other_dimensions(dims):
    conv = {1: nn.Conv1d, 3: nn.Conv3d}[dims](2, 4, 3)
    images = torch.randn(2, 2, *[7] * dims)
    report = convsim.measure(nn.Sequential(conv), [images])
    assert_close(report.similarity, loop(conv(images), 0), terms=TERMS, size=1)
    assert report.layers[0].pictures.maps.shape[:3] == (2, 6, 2)


def test_transformers_batches_are_taken():
    model, images = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 6, 6)
    batch = {"pixel_values": images, "labels": torch.zeros(2)}
    assert convsim.measure(model, [batch]) == convsim.measure(model, [images])


def test_kernels_beside_maps():
    conv = nn.Conv2d(4, 6, 3, groups=2)
    (layer,) = convsim.measure(conv, [torch.randn(2, 4, 8, 8)]).layers
    kernels, weight = layer.kernels, conv.weight.detach()
    arguments = {"groups": 2, "channels": "crossed"}
    unit = convsim.similarity_matrix(weight, scale="unit", **arguments)
    taps = weight[0].numel()
    assert_close(kernels.similarity, unit, terms=taps**2)
    cosine = pairwise_cosine_similarity(weight.flatten(1), zero_diagonal=False).abs()
    cosine[:3, 3:] = cosine[3:, :3] = 0  # they read different channels
    assert_close(kernels.cosine, cosine, terms=taps)
    within = [(0, 1), (0, 2), (1, 2), (3, 4), (3, 5), (4, 5)]
    mean_cosine = sum(cosine[p].item() for p in within) / 6
    assert_close(kernels.mean_cosine, mean_cosine, terms=taps, size=1)
    mean_similarity = convsim.convolutional_similarity(weight, groups=2).item()
    assert_close(kernels.mean_similarity, mean_similarity, terms=taps**2)
    of_maps, of_cosine, of_similarity = (
        [m[p].item() for p in within] for m in (layer.matrix, kernels.cosine, kernels.similarity)
    )
    assert kernels.cosine_rank_correlation == pytest.approx(spearmanr(of_maps, of_cosine).statistic)
    assert kernels.similarity_rank_correlation == pytest.approx(
        spearmanr(of_maps, of_similarity).statistic
    )
    for pair in layer.worst:
        if (pair.first, pair.second) in within:
            place = pair.first, pair.second
            assert_close(pair.kernel_cosine, cosine[place].item(), terms=taps, size=1)
            assert_close(pair.convolutional_similarity, unit[place].item(), terms=taps**2)
        else:
            assert math.isnan(pair.kernel_cosine)
    largest = sorted(layer.matrix[torch.ones(6, 6).triu(1).bool()].tolist(), reverse=True)[:8]
    assert_close([pair.similarity for pair in layer.worst], largest, terms=1)


def test_what_cannot_vary_is_not_ranked():
    (layer,) = convsim.measure(nn.Conv2d(3, 6, 1), [torch.randn(2, 3, 5, 5)]).layers
    assert_close(layer.kernels.mean_similarity, 1.0, terms=3**2)
    assert math.isnan(layer.kernels.similarity_rank_correlation)
    (depthwise,) = convsim.measure(nn.Conv2d(3, 3, 3, groups=3), [torch.randn(2, 3, 5, 5)]).layers
    assert math.isnan(depthwise.kernels.mean_cosine)
    assert math.isnan(depthwise.kernels.bound)


def test_rank_correlations_of_the_model():
    model = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(6)))
    report = convsim.measure(model, [torch.randn(4, 4, 8, 8)])
    measured = [layer.similarity for layer in report.layers]
    for name, quantity in (
        ("kernel cosine", "mean_cosine"),
        ("Convolutional Similarity", "mean_similarity"),
    ):
        expected = spearmanr(measured, [getattr(x.kernels, quantity) for x in report.layers])
        assert report.rank_correlations[name].layers == pytest.approx(expected.statistic)
    assert report.rank_correlations["kernel cosine"].pairs == pytest.approx(
        sum(x.kernels.cosine_rank_correlation for x in report.layers) / 6
    )


def test_the_histogram_counts_pairs():
    maps = torch.randn(5, 7, 6, 4, generator=new_generator())
    layer = _layer_on(maps)
    pairs = layer.matrix[torch.ones(7, 7).triu(1).bool()]
    expected = [int(((pairs >= n / 20) & (pairs < (n + 1) / 20)).sum()) for n in range(20)]
    assert list(layer.histogram) == expected
    assert sum(layer.histogram) == 21


def _layer_on(maps: torch.Tensor) -> convsim.LayerRedundancy:
    """Measure given maps (N, M, …) as the output of an identity 1×1 convolution."""
    filters = maps.shape[1]
    conv = torch.nn.Conv2d(filters, filters, 1, bias=False).to(maps.dtype)
    with torch.no_grad():
        conv.weight.copy_(torch.eye(filters)[..., None, None])
    return convsim.measure(torch.nn.Sequential(conv), [maps]).layers[0]


def test_the_matrix_equals_torchmetrics_pairwise_cosine():
    maps = torch.randn(5, 7, 6, 4, dtype=torch.float64, generator=new_generator())
    expected = torch.stack(
        [pairwise_cosine_similarity(image.flatten(1), zero_diagonal=False).abs() for image in maps]
    ).mean(0)
    assert_close(_layer_on(maps).matrix, expected, terms=1)


def test_chunks_of_images_and_blocks_of_maps_change_nothing(monkeypatch):
    maps = torch.randn(5, 7, 6, 4, dtype=torch.float64, generator=new_generator())
    whole = _layer_on(maps)
    monkeypatch.setattr("convsim.redundancy.pair_statistics._CHUNK", 400)  # two images at once
    monkeypatch.setattr(
        "convsim.redundancy.pair_statistics._BLOCK", 3
    )  # three blocks, of 3, 3 and 1 maps
    parts = _layer_on(maps)
    assert_close(parts.matrix, whole.matrix, terms=1)
    for name in ("correlation", "effective_rank"):
        one, other = getattr(parts, name), getattr(whole, name)
        assert_close(one, other, terms=maps.numel(), size=7, dtype=torch.float64)


def test_effective_rank_counts_the_directions_in_use():
    identity = torch.eye(16, dtype=torch.float64).reshape(1, 16, 4, 4)
    assert_close(_layer_on(identity).effective_rank, 16.0, terms=16, dtype=torch.float64)
    three = identity[:, [0, 1, 2, 0, 1, 2]]
    assert_close(_layer_on(three).effective_rank, 3.0, terms=16 * 6, dtype=torch.float64)


def test_dead_maps_are_counted_only_if_zero_on_every_image():
    maps = torch.randn(2, 4, 3, 3, generator=new_generator())
    maps[:, 1] = 0
    maps[0, 2] = 0
    layer = _layer_on(maps)
    assert layer.dead == 1
    assert layer.matrix[1].isnan().all()
    nothing = _layer_on(torch.zeros(2, 4, 3, 3))
    assert (nothing.dead, nothing.effective_rank) == (4, 0)


def test_duplicates_name_the_pairs_most_alike_first():
    maps = torch.randn(3, 5, 8, 8, dtype=torch.float64, generator=new_generator())
    maps[:, 3] = -2 * maps[:, 0]
    maps[:, 4] = maps[:, 1] + 0.1 * maps[:, 2]
    pairs = _layer_on(maps).duplicates(0.9)
    assert [pair[:2] for pair in pairs] == [(0, 3), (1, 4)]
    assert_close(pairs[0][2], 1.0, terms=1)
    assert 0.98 < pairs[1][2] < 1


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_that_is_no_cosine_is_refused(threshold):
    layer = _layer_on(torch.randn(1, 2, 3, 3))
    with pytest.raises(convsim.ConvsimError, match=r"threshold .* \[0, 1\]; got"):
        layer.duplicates(threshold)


def test_shapes_are_enough_for_a_first_look():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3))
    report = convsim.measure(model, input_size=(3, 12, 10))
    assert (report.images, report.data) == (32, "noise of shape (3, 12, 10)")
    assert report["0"].pixels == 10 * 8
    assert convsim.measure(model, input_size=(3, 12, 10)) == report
    assert "measured on noise" in report.verdict
    assert convsim.RedundancyReport.from_json(report.to_json()).data == report.data
    drawn = convsim.measure(model, [torch.randn(4, 3, 12, 12)])
    assert drawn.data == ""
    assert "noise" not in drawn.verdict


@pytest.mark.parametrize("size", [(3,), (3, 0, 3), (3, 2.5, 3), 32])
def test_a_shape_that_is_none_is_refused(size):
    with pytest.raises(convsim.ConvsimError, match="input_size is the shape of one input"):
        convsim.measure(nn.Conv2d(3, 8, 3), input_size=size)


def test_a_shape_beside_batches_is_refused():
    with pytest.raises(convsim.ConvsimError, match="batches or input_size"):
        convsim.measure(nn.Conv2d(3, 8, 3), [torch.randn(2, 3, 8, 8)], input_size=(3, 8, 8))
