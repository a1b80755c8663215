"""Unmodified networks of torchvision and timm: both routes agree, and a step lowers the penalty."""

import pytest
import torch
from torch import nn

import convsim
from closeness import assert_close
from convsim.lab.models import build_model

pytestmark = pytest.mark.numeric

LONGEST = 4 * 1024 * 9
"""The numbers of a filter, in the four sums of a value and its gradient."""
NAMES = [
    "torchvision:resnet18",
    "torchvision:googlenet",
    "timm:mobilenetv3_small_050",  # depthwise, squeeze and excitation
    "timm:resnetv2_50",  # pre-activation
    "timm:nf_resnet26",  # scaled weight standardisation
    "timm:resnext26ts",  # groups
    "timm:ghostnet_050",
]


@pytest.mark.usefixtures("vision")
def test_convnext_has_nothing_for_the_crossed_form():
    """Its convolutions are depthwise, pointwise, or as wide as their stride."""
    model = build_model("timm:convnext_atto", classes=10)
    with pytest.warns(convsim.ConvsimWarning, match="acts on none of the 40 selected layers"):
        assert convsim.Regularizer(model, "crossed")() == 0
    matched = convsim.ConvolutionalSimilarity(channels="matched")
    assert convsim.Regularizer(model, matched)() > 0


@pytest.mark.usefixtures("vision")
@pytest.mark.filterwarnings("ignore:The default weight initialization of GoogleNet")
@pytest.mark.filterwarnings("ignore:.*acts on only")
@pytest.mark.parametrize("name", NAMES)
def test_both_routes_agree(name):
    model = build_model(name, classes=10)
    regularizer = convsim.Regularizer(model, "crossed", coefficient=1.0)
    weights = [p for p in model.parameters() if p.dim() > 2]
    value = regularizer()
    expected = torch.autograd.grad(value, weights, allow_unused=True)
    assert_close(regularizer.backward_(), value, terms=LONGEST)
    largest = max(float(own.abs().max()) for own in expected if own is not None)
    for weight, gradient in zip(weights, expected, strict=True):
        if gradient is not None:
            # A standardised kernel of one tap has gradient 0: what is left of it is rounding.
            assert_close(weight.grad, gradient, terms=LONGEST, size=largest)
        else:
            assert weight.grad is None
    torch.optim.SGD(weights, lr=1.0).step()
    assert regularizer().item() < value.item()


@pytest.mark.usefixtures("vision")
@pytest.mark.filterwarnings("ignore:The default weight initialization of GoogleNet")
@pytest.mark.parametrize("name", NAMES)
def test_steps_lower_the_correlation_of_maps(name):
    model = build_model(name, classes=10)
    regularizer = convsim.Regularizer(model, coefficient=1.0)
    images = nn.functional.interpolate(torch.randn(8, 3, 8, 8), size=64, mode="bilinear")
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    values = []
    for _ in range(6):
        optimizer.zero_grad()
        model(images)
        value = regularizer()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < values[0]
    report = convsim.measure(
        model, [torch.randn(2, 3, 64, 64)], layers=[layer.name for layer in regularizer.layers[:3]]
    )
    assert all(0 <= layer.similarity <= 1 for layer in report.layers if layer.pixels > 1)
