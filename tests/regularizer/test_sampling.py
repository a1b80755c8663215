"""Sampled maps whose gradient meets that of the loss, against plain indexing and autograd."""

import math

import pytest
import torch
from torch import nn

from closeness import assert_close
from convsim import Regularizer
from convsim.backends.maps import _places
from convsim.kernels.windows import spread
from convsim.penalties import MapSimilarity
from convsim.regularizer.sampling import sample_maps
from correlations import mean_square
from seeds import reseed

pytestmark = pytest.mark.core

LAYERS = {  # every kind of convolution, with its input
    "strided groups": (lambda: nn.Conv2d(4, 6, 3, 2, 1, groups=2), (3, 4, 9, 8)),
    "reflect": (
        lambda: nn.Conv2d(4, 6, (3, 2), padding=2, dilation=2, padding_mode="reflect"),
        (2, 4, 9, 8),
    ),
    "depthwise": (lambda: nn.Conv2d(4, 4, 7, padding=3, groups=4), (2, 4, 8, 8)),
    "pointwise": (lambda: nn.Conv2d(4, 6, 1), (2, 4, 5, 5)),
    "1-d": (lambda: nn.Conv1d(4, 4, 3, padding="same", groups=4), (2, 4, 9)),
    "3-d": (lambda: nn.Conv3d(2, 3, 2, stride=(2, 1, 1)), (2, 2, 4, 4, 4)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), (2, 4, 5, 6)),
    "transposed 1-d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=3, padding=2), (2, 4, 8)),
    "transposed 3-d": (lambda: nn.ConvTranspose3d(2, 4, 2, stride=2), (1, 2, 3, 3, 3)),
    "unbatched": (lambda: nn.Conv2d(4, 6, 3), (4, 9, 9)),
}
ENDS = {  # what becomes of the maps
    "sum": lambda maps: maps.sum(),
    "product": lambda maps: (maps * maps).mean(),
    "residual": lambda maps: (maps + nn.functional.relu(maps)).square().mean(),
    "handed on twice": lambda maps: (maps + maps).sum(),
    "concatenated": lambda maps: torch.cat([maps, maps.sin()], 1).square().mean(),
    "in place": lambda maps: nn.functional.relu_(maps).square().mean(),
    "in place, then read twice": lambda maps: torch.stack([maps.mul_(2), maps.sin()]).mean(),
    "permuted": lambda maps: maps.movedim(1, -1).contiguous().square().mean(),
    "not at all": lambda maps: None,
}
COUNT = 20
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def by_indexing(maps):
    """The penalty of the same positions, by autograd alone."""
    pixels = maps.movedim(1, -1)
    pixels = pixels.reshape(-1, pixels.shape[-1])
    return mean_square(pixels[spread(COUNT, len(pixels))])


def gradients(layer, inputs, end, penalty):
    layer.zero_grad()
    inputs = inputs.detach().requires_grad_()
    maps = layer(inputs)
    value = penalty(maps if maps.dim() == inputs.dim() == layer.weight.dim() else maps[None])
    loss = end(maps)
    (3 * (value if loss is None else value + loss)).backward()
    found = [inputs.grad, layer.weight.grad]
    return value.detach(), [*found, layer.bias.grad]


@pytest.fixture(params=["compiled", "eager"])
def backend(request, monkeypatch):
    """Read and add by the C++ where there is a compiler, and by torch."""
    monkeypatch.setenv("CONVSIM_BACKEND", request.param)
    _places.cache_clear()
    yield
    _places.cache_clear()


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_are_those_of_autograd(kind, end, last):
    build, shape = LAYERS[kind]
    reseed()
    layer, inputs = build().double(), torch.randn(shape, dtype=torch.float64)
    if last and inputs.dim() in FORMATS:
        inputs = inputs.contiguous(memory_format=FORMATS[inputs.dim()])
    expected = gradients(layer, inputs, ENDS[end], by_indexing)
    regularizer = Regularizer(layer, MapSimilarity(samples=COUNT), coefficient=1.0)
    actual = gradients(layer, inputs, ENDS[end], lambda maps: regularizer())
    torch.testing.assert_close(actual, expected)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_maps_of_half_precision_get_the_gradient_at_their_positions(dtype):
    reseed()
    maps = torch.randn(2, 4, 5, 5).to(dtype).requires_grad_()
    passed = maps * 1
    samples, meeting = sample_maps(passed, 8)
    assert meeting is not None
    (passed.float().sum() + (samples.float() * 3).sum()).backward()
    added = (maps.grad - 1).movedim(1, -1).reshape(-1, 4)
    chosen = spread(8, 50)
    assert (added[chosen] == 3).all()
    assert added.sum() == 3 * 8 * 4


def test_memory_that_others_read_is_not_written_to():
    """A gradient that autograd hands to two layers stays as it is for the other."""
    reseed()
    one, other = nn.Conv2d(3, 4, 3).double(), nn.Conv2d(3, 4, 3).double()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    (one(x) + other(x)).square().mean().backward()
    expected = other.weight.grad.clone()
    other.zero_grad()
    regularizer = Regularizer(one)
    ((one(x) + other(x)).square().mean() + regularizer()).backward()
    torch.testing.assert_close(other.weight.grad, expected)
    kept = []
    maps = one(x)
    maps.register_hook(kept.append)  # a stranger's, which keeps the gradient
    before = torch.autograd.grad(maps.square().mean(), maps, retain_graph=True)[0]
    (maps.square().mean() + regularizer()).backward()
    assert len(kept) == 2
    torch.testing.assert_close(kept[-1], before)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_as_large_as_the_maps_is_copied(dtype, last):
    """Counted by torch's profiler, beside the same step without the penalty."""
    reseed()
    layout = torch.channels_last if last else torch.contiguous_format
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
    model, x = model.to(dtype, memory_format=layout), torch.randn(4, 3, 32, 32, dtype=dtype)
    x = x.contiguous(memory_format=layout)
    large = 4 * 8 * 28 * 28

    def copies(penalty):
        loss = model(x).square().mean()
        loss = loss + penalty()
        with torch.profiler.profile(record_shapes=True) as profiler:
            loss.backward()
        copied = [
            event
            for event in profiler.events()
            if event.name == "aten::copy_" and math.prod(event.input_shapes[0]) >= large
        ]
        return len(copied)

    plain = copies(lambda: 0)
    assert copies(Regularizer(model)) == plain


def test_two_backward_passes_and_two_regularizers_add_up():
    reseed()
    layer = nn.Conv2d(3, 4, 3).double()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    first, second = Regularizer(layer), Regularizer(layer, "decov", coefficient=0.5)
    layer(x)
    one, two = (
        torch.autograd.grad(r(), layer.weight, retain_graph=True)[0] for r in (first, second)
    )
    maps = layer(x)
    loss = maps.square().mean()
    (plain,) = torch.autograd.grad(loss, layer.weight, retain_graph=True)
    loss.backward(retain_graph=True)
    torch.testing.assert_close(layer.weight.grad, plain)
    layer.zero_grad()
    layer(x).square().mean().add(first() + second()).backward()
    torch.testing.assert_close(layer.weight.grad, plain + one + two)


def test_a_second_derivative_is_that_of_autograd():
    reseed()
    layer = nn.Conv2d(2, 4, 3).double()
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)

    def norm_of_gradient(penalty):
        maps = layer(x)
        value = maps.square().mean() + penalty(maps)
        (gradient,) = torch.autograd.grad(value, layer.weight, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), layer.weight)[0]

    expected = norm_of_gradient(by_indexing)
    regularizer = Regularizer(layer, MapSimilarity(samples=COUNT))
    torch.testing.assert_close(norm_of_gradient(lambda maps: regularizer()), expected)


def test_a_compiled_network_gives_the_same_gradient():
    torch._dynamo.reset()
    reseed()
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3))
    x = torch.randn(4, 3, 9, 9)
    model(x)
    regularizer = Regularizer(model)
    (model(x).square().mean() + regularizer()).backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    run = torch.compile(model, fullgraph=True, backend="aot_eager")
    (run(x).square().mean() + regularizer()).backward()
    terms = 27 + 54 + 256
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert_close(parameter.grad, gradient, terms=terms, size=gradient.abs().max().item())


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
