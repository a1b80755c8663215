"""The data-aware form against the layers' own outputs, torch.corrcoef and expected_similarity."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import convsim
from closeness import assert_close
from convsim import ConvsimError, ExpectedSimilarity, Regularizer
from convsim.kernels import conv_layers
from convsim.kernels.windows import ALL, sample_windows, spread
from seeds import reseed

pytestmark = pytest.mark.core

TERMS = 27 + 784 + 784
"""In float32, of 14² positions of 4 images: a pixel of a map, its norm, the product of two."""
LAYERS = [  # every kind of convolution, its input
    (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (3, 4, 9, 8)),
    (lambda: nn.Conv2d(4, 6, (3, 2), padding=2, dilation=2, padding_mode="reflect"), (2, 4, 9, 8)),
    (lambda: nn.Conv2d(4, 4, 7, padding=3, groups=4), (2, 4, 8, 8)),
    (lambda: nn.Conv2d(4, 6, 1), (2, 4, 5, 5)),
    (lambda: nn.Conv1d(4, 4, 3, padding="same", groups=4), (2, 4, 9)),
    (lambda: nn.Conv3d(2, 3, 2, stride=(2, 1, 1)), (2, 2, 4, 4, 4)),
    (
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        (2, 4, 5, 6),
    ),
    (lambda: nn.ConvTranspose1d(4, 6, 3, stride=3, dilation=2, padding=5), (2, 4, 8)),
]


def setting(build, shape):
    """Draw a layer and its input; return its maps (M, everything) without bias too."""
    reseed()
    module = build().double()
    inputs = torch.randn(shape, dtype=torch.float64)
    maps = module(inputs) - module.bias.reshape(-1, *[1] * (len(shape) - 2))
    return module, inputs, maps.transpose(0, 1).flatten(1)


@pytest.mark.parametrize(("build", "shape"), LAYERS)
def test_windows_times_filters_are_the_layers_own_maps(build, shape):
    module, inputs, maps_MP = setting(build, shape)
    (layer,) = conv_layers(nn.Sequential(module))
    windows_GSR = sample_windows(module, layer.bank(), inputs, ALL)
    made = windows_GSR @ layer.bank().filters.flatten(2).mT
    torch.testing.assert_close(made.transpose(0, 1).flatten(1).mT, maps_MP)


@pytest.mark.parametrize(("build", "shape"), LAYERS)
def test_equals_the_correlation_of_the_layers_own_maps(build, shape):
    module, inputs, maps_MP = setting(build, shape)
    model = nn.Sequential(module)
    regularizer = Regularizer(model, ExpectedSimilarity(samples=ALL), coefficient=1.0)
    model(inputs)
    correlation = torch.corrcoef(maps_MP)
    expected = correlation[~torch.eye(len(correlation), dtype=torch.bool)].square().mean()
    torch.testing.assert_close(regularizer(), expected)


def test_without_centring_it_is_expected_similarity():
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1)).double()
    inputs = torch.rand(4, 3, 6, 6, dtype=torch.float64)
    penalty = ExpectedSimilarity(samples=ALL, centered=False)
    regularizer = Regularizer(model, penalty, coefficient=1.0)
    model(inputs)
    report = convsim.measure(model, [inputs], autocorrelation=True)
    cosine = convsim.expected_similarity(model[0].weight, report.layers[0].kernels.autocorrelation)
    expected = cosine[~torch.eye(5, dtype=torch.bool)].square().mean()
    torch.testing.assert_close(regularizer(), expected)


@pytest.mark.parametrize("centered", [True, False])
def test_gradient_is_right_and_both_routes_give_it(centered):
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3, groups=1)).double()
    regularizer = Regularizer(model, ExpectedSimilarity(samples=50, centered=centered))
    model(torch.randn(2, 3, 8, 8, dtype=torch.float64))
    regularizer().backward()
    expected = [p.grad for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    regularizer.backward_()
    actual = [p.grad for p in model.parameters() if p.grad is not None]
    torch.testing.assert_close(actual, expected)
    layer = regularizer.layers[0]
    bank = regularizer._bank(layer, layer.weight(), None)

    def value(filters):
        return regularizer.penalty.value(replace(bank, filters=filters))

    assert torch.autograd.gradcheck(value, bank.filters.detach().requires_grad_())


def test_range_and_scale():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    regularizer = Regularizer(model, "data-aware", coefficient=1.0)
    model(torch.randn(4, 3, 16, 16))
    before = regularizer()
    with torch.no_grad():
        model[0].weight.mul_(torch.tensor([1e-6, 1.0, 3.0, 1e4])[:, None, None, None])
    assert_close(regularizer(), before, terms=TERMS)
    with torch.no_grad():
        model[0].weight[:] = model[0].weight[0] * torch.tensor([1, -2, 3, 1])[:, None, None, None]
    assert_close(regularizer(), 1.0, terms=TERMS)
    with torch.no_grad():
        model[0].weight.zero_()
    assert regularizer().item() == 0
    regularizer.backward_()
    assert not model[0].weight.grad.any()


def test_minimising_it_lowers_the_correlation_of_maps_it_has_not_seen():
    model = nn.Sequential(nn.Conv2d(3, 16, 3))
    regularizer = Regularizer(model, "data-aware", coefficient=1.0)
    smooth = nn.AvgPool2d(5, stride=1)
    unseen = smooth(torch.rand(32, 3, 24, 24))

    def correlation():
        maps = model(unseen).transpose(0, 1).flatten(1).detach()
        return torch.corrcoef(maps).square().mean().item()

    before = correlation()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        model(smooth(torch.rand(32, 3, 24, 24)))
        regularizer.backward_()
        optimizer.step()
    assert correlation() < 0.5 * before


def test_it_takes_a_sample_whose_size_does_not_grow_with_the_batch():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    regularizer = Regularizer(model, ExpectedSimilarity(samples=100))
    for images in (2, 64):
        model(torch.randn(images, 3, 16, 16))
        assert regularizer._seen.inputs["0"].shape == (1, 100, 27)
    sampled = regularizer._seen.inputs["0"]
    assert len(sampled[0].unique(dim=0)) == 100
    model.eval()
    model(torch.randn(2, 3, 16, 16))
    assert regularizer._seen.inputs["0"] is sampled


@pytest.mark.parametrize("count", [1024, 4096])
@pytest.mark.parametrize(
    "shape", [(256, 4, 4), (64, 8, 8), (16, 16, 16), (128, 32, 32), (100, 7, 7), (3, 33, 31)]
)
def test_the_sample_is_even_over_images_rows_and_columns(shape, count):
    images, height, width = shape
    chosen = spread(count, images * height * width)
    assert len(chosen.unique()) == len(chosen) == min(count, images * height * width)
    places = (chosen // (height * width), chosen // width % height, chosen % width)
    for place, size in zip(places, shape, strict=True):
        share = torch.bincount(place, minlength=size) * size / len(chosen)
        assert 0.7 < share.min() <= share.max() < 1.3


def test_what_is_missing_or_wrong_is_named():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    regularizer = Regularizer(model, "data-aware")
    with pytest.raises(ConvsimError, match=r"Layer '0' has read no input yet.*forward pass"):
        regularizer()
    with pytest.raises(ConvsimError, match="there are no images before training"):
        convsim.initialize_(model, "data-aware")
    with pytest.raises(ConvsimError, match=r"samples must be an integer ≥ 2; got 1\."):
        ExpectedSimilarity(samples=1)
