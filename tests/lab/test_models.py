import pytest
import torch
from torch import nn

from convsim.errors import ConvsimError
from convsim.lab.models import MODELS, build_model


def conv_shapes(model):
    return [tuple(m.weight.shape) for m in model.modules() if isinstance(m, nn.Conv2d)]


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "vgg19"])
@pytest.mark.usefixtures("vision")
def test_convolutions_are_torchvisions(name):
    """All but the 7×7 stem, which small images do without, have torchvision's shapes."""
    from torchvision import models

    theirs = conv_shapes(models.get_model({"vgg19": "vgg19_bn"}.get(name, name), weights=None))
    ours = conv_shapes(build_model(name, classes=10))
    first = 0 if name == "vgg19" else 1
    assert sorted(ours[first:]) == sorted(theirs[first:])
    assert ours[0] == (64, 3, 3, 3)


@pytest.mark.parametrize(("name", "millions"), [("wrn28-1", 0.369), ("wrn28-10", 36.479)])
def test_wide_resnets_have_the_published_number_of_parameters(name, millions):
    assert parameters(build_model(name, classes=10)) == pytest.approx(1e6 * millions, rel=2e-3)


def test_shallow_cnn():
    model = build_model("cnn", classes=10, channels=1, width=8)
    assert conv_shapes(model) == [
        (8, 1, 3, 3), (8, 8, 3, 3), (16, 8, 3, 3), (16, 16, 3, 3), (32, 16, 3, 3),
    ]  # fmt: skip
    assert all(m.bias is None for m in model.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize("activation", ["relu", "elu", "leaky_relu"])
@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("name", [*MODELS, "wrn28-2"])
def test_every_option_trains_on_small_images(name, norm, activation):
    torch.manual_seed(0)
    model = build_model(name, classes=7, channels=1, width=4, norm=norm, activation=activation)
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == (norm == "batch")
    logits = model(torch.randn(4, 1, 8, 8))
    assert logits.shape == (4, 7)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v3_small", "timm:mobilenetv3_small_050"])
@pytest.mark.usefixtures("vision")
def test_other_libraries_by_name(name):
    model = build_model(name, classes=5).eval()
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 5)


def test_equal_seeds_build_equal_weights():
    def build():
        torch.manual_seed(3)
        return build_model("resnet18", classes=10, width=4)

    for one, other in zip(build().parameters(), build().parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet81", {}, "Unknown model 'resnet81'. Did you mean 'resnet18'"),
        ("wrn28-0", {}, "Unknown model 'wrn28-0'"),
        ("cnn", {"width": 0}, "width must be a positive integer; got 0"),
        ("cnn", {"classes": -1}, "classes must be a positive integer; got -1"),
        ("cnn", {"norm": "layer"}, "norm must be 'batch' or 'none'; got 'layer'"),
        ("cnn", {"activation": "gelu"}, "activation must be one of .* got 'gelu'"),
        ("timm:resnet18", {"width": 8}, "fixed architecture: it takes no width"),
        ("timm:nothing", {}, "timm has no model 'nothing'"),
        ("torchvision:nothing", {}, "torchvision has no classifier 'nothing'"),
        ("torchvision:resnet18", {"channels": 1}, "take 3 channels; the images have 1"),
    ],
)
@pytest.mark.usefixtures("vision")
def test_bad_input_is_refused(name, options, message):
    with pytest.raises(ConvsimError, match=message):
        build_model(name, **{"classes": 10} | options)
