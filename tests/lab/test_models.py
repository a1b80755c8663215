import sys

import pytest
import torch
from torch import nn

from convsim.errors import ConvsimError, MissingExtraError
from convsim.lab.models import MODELS, build_model


def conv_shapes(model):
    return [tuple(m.weight.shape) for m in model.modules() if isinstance(m, nn.Conv2d)]


def conv_geometry(model):
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    return [(tuple(m.weight.shape), m.stride, m.padding) for m in convolutions]


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "convolutions"), [("resnet18", 20), ("resnet34", 36), ("resnet50", 53)]
)
@pytest.mark.usefixtures("vision")
def test_resnets_are_torchvisions_but_for_the_stem(name, convolutions):
    from torchvision import models

    with torch.device("meta"):
        theirs = models.get_model(name, weights=None)
        ours = build_model(name, classes=1000)
    assert len(conv_geometry(ours)) == convolutions
    assert sorted(conv_geometry(ours)[1:]) == sorted(conv_geometry(theirs)[1:])
    assert conv_geometry(ours)[0] == ((64, 3, 3, 3), (1, 1), (1, 1))
    assert parameters(theirs) - parameters(ours) == 64 * 3 * (7 * 7 - 3 * 3)


@pytest.mark.usefixtures("vision")
def test_vgg19_has_torchvisions_convolutions_and_one_linear_layer():
    from torchvision import models

    with torch.device("meta"):
        theirs = models.get_model("vgg19_bn", weights=None)
        ours = build_model("vgg19", classes=10)
    assert conv_geometry(ours) == conv_geometry(theirs)
    assert len(conv_geometry(ours)) == 16
    norms = [sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) for net in (ours, theirs)]
    assert norms == [16, 16]
    linear = [m for m in ours.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(512, 10)]


# 25 convolutions and a projection for each group that widens: with K = 1 the first does not.
@pytest.mark.parametrize(
    ("name", "millions", "convolutions"), [("wrn28-1", 0.369, 27), ("wrn28-10", 36.479, 28)]
)
def test_wide_resnets_have_the_published_number_of_parameters(name, millions, convolutions):
    with torch.device("meta"):
        model = build_model(name, classes=10)
    assert parameters(model) == pytest.approx(1e6 * millions, rel=2e-3)
    assert len(conv_shapes(model)) == convolutions


def test_shallow_cnn():
    model = build_model("cnn", classes=10, channels=1, width=8)
    assert conv_shapes(model) == [
        (8, 1, 3, 3), (8, 8, 3, 3), (16, 8, 3, 3), (16, 16, 3, 3), (32, 16, 3, 3),
    ]  # fmt: skip
    pooled_after = [i for i, m in enumerate(model) if isinstance(m, nn.MaxPool2d)]
    assert [len(conv_shapes(model[:i])) for i in pooled_after] == [2, 4]


@pytest.mark.parametrize(
    ("name", "width"), [("cnn", 16), ("resnet18", 64), ("vgg19", 64), ("wrn28-1", 16)]
)
def test_default_width(name, width):
    with torch.device("meta"):
        model = build_model(name, classes=2)
    assert conv_shapes(model)[0] == (width, 3, 3, 3)


@pytest.mark.parametrize("name", ["resnet18", "vgg19", "wrn28-2"])
def test_convolutions_start_at_the_kaiming_scale(name):
    torch.manual_seed(0)
    for module in build_model(name, classes=10, width=16).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 4000:
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("name", ["cnn", "resnet18", "resnet50", "vgg19", "wrn28-1"])
def test_feature_maps_kept_by_a_hook_are_not_overwritten(name, norm):
    torch.manual_seed(0)
    model = build_model(name, classes=2, width=2, norm=norm).eval()
    kept = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, __, maps: kept.append((maps, maps.clone())))
    with torch.no_grad():
        model(torch.randn(1, 3, 16, 16))
    assert len(kept) == len(conv_shapes(model))
    assert all(torch.equal(maps, copy) for maps, copy in kept)


@pytest.mark.parametrize("activation", ["relu", "elu", "leaky_relu"])
@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("name", [*MODELS, "wrn28-2"])
def test_every_option_trains_on_small_images(name, norm, activation):
    torch.manual_seed(0)
    model = build_model(name, classes=7, channels=1, width=4, norm=norm, activation=activation)
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == (norm == "batch")
    kinds = {"relu": nn.ReLU, "elu": nn.ELU, "leaky_relu": nn.LeakyReLU}
    used = {type(m) for m in model.modules()} & set(kinds.values())
    assert used == {kinds[activation]}
    biased = {m.bias is not None for m in model.modules() if isinstance(m, nn.Conv2d)}
    assert biased == {norm == "none"}
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


@pytest.mark.usefixtures("vision")
def test_timm_takes_grey_images():
    model = build_model("timm:mobilenetv3_small_050", classes=5, channels=1).eval()
    assert model(torch.randn(1, 1, 64, 64)).shape == (1, 5)


@pytest.mark.parametrize(
    ("name", "module"), [("timm:resnet18", "timm"), ("torchvision:resnet18", "torchvision.models")]
)
def test_missing_library_names_the_extra(name, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, module.partition(".")[0], None)
    with pytest.raises(MissingExtraError, match=r"pip install '\.\[vision\]'"):
        build_model(name, classes=2)


def test_equal_seeds_build_equal_weights():
    def build():
        torch.manual_seed(3)
        return build_model("resnet18", classes=10, width=4)

    for one, other in zip(build().parameters(), build().parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "resnet81",
            {},
            r"Unknown model 'resnet81'\. Did you mean 'resnet18' or .* cnn, resnet20, resnet18",
        ),
        ("WRN28-10", {}, r"Did you mean 'wrn28-10'\?"),
        ("wrn28-0", {}, "K in 'wrn28-K' is a number of 1 or more, as in 'wrn28-10'; got 'wrn28-0'"),
        ("wrn28-K", {}, "is a number of 1 or more, as in 'wrn28-10'; got 'wrn28-K'"),
        ("torchvision:", {}, "torchvision has no classifier ''"),
        ("", {}, r"Unknown model ''\. The models are cnn, "),
        ("cnn", {"width": 0}, r"width must be a positive integer; got 0\. Pass an int of 1"),
        ("cnn", {"classes": -1}, "classes must be a positive integer; got -1"),
        ("cnn", {"classes": True}, "classes must be a positive integer; got True"),
        ("cnn", {"channels": 1.0}, r"channels must be a positive integer; got 1\.0"),
        ("timm:resnet18", {"classes": 0}, "classes must be a positive integer; got 0"),
        ("cnn", {"norm": "layer"}, "norm must be one of 'batch', 'none'; got 'layer'"),
        ("cnn", {"norm": ""}, "norm must be one of 'batch', 'none'; got ''"),
        ("cnn", {"activation": "gelu"}, "activation must be one of 'relu', .* got 'gelu'"),
        ("timm:resnet18", {"width": 8}, r"it takes no width\. Leave that out"),
        ("torchvision:resnet18", {"norm": "batch"}, "fixed architecture: it takes no norm"),
        (
            "torchvision:resnet18",
            {"norm": "none", "activation": "elu"},
            "it takes no norm, activation",
        ),
        ("timm:nothing", {}, r"timm has no model 'nothing'; timm\.list_models\(\) lists them"),
        ("torchvision:nothing", {}, "torchvision has no classifier 'nothing'; see"),
        ("torchvision:resnet18", {"channels": 1}, "take 3 channels; the images have 1.* timm:NAME"),
    ],
)
@pytest.mark.usefixtures("vision")
def test_bad_input_is_refused(name, options, message):
    with pytest.raises(ConvsimError, match=message):
        build_model(name, **{"classes": 10} | options)
