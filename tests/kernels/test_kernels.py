"""Which layers count, how their weights are read, and what is refused."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import convsim
from closeness import assert_close
from convsim.kernels import (
    CONVOLUTIONS,
    KernelBank,
    conv_layers,
    kernel_bank,
    selected_modules,
)

pytestmark = pytest.mark.core

TERMS = 2 * 3 * 3
"""The products in a pixel of the layers below, which tell what weight their forwards make."""


class Squared(nn.Conv2d):
    """Convolves with its weight squared."""

    def forward(self, x):
        return self._conv_forward(x, self.weight**2, self.bias)


class OtherPadding(nn.Conv2d):
    """Pads in its own way, with the plain weight."""

    def forward(self, x):
        padded = nn.functional.pad(x, (1, 2, 1, 2))
        return nn.functional.conv2d(padded, self.weight, self.bias, self.stride)


class NoConvolution(nn.Conv2d):
    def forward(self, x):
        return x


def names(layers):
    return [layer.name for layer in layers]


def two_convolutions():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3, groups=2))


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_each_layer_type_is_seen_as_groups_of_filters(kind, d):
    layer = getattr(nn, f"{kind}{d}d")(4, 6, 3, stride=2, dilation=2, groups=2)
    (found,) = conv_layers(layer)
    bank = found.bank()
    assert bank.filters.shape == (2, 3, 2, *[3] * d)
    assert (bank.stride, bank.dilation) == ((2,) * d, (2,) * d)
    assert bank.transposed == (kind == "ConvTranspose")
    assert torch.equal(bank.to_weight(bank.filters), layer.weight)


@pytest.mark.parametrize("transposed", [False, True])
def test_filters_of_a_bank_are_the_layers_output_channels(transposed):
    """A group's filter changes its own output channel and no other."""
    make = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer = make(4, 6, 3, groups=2, bias=False)
    bank = kernel_bank(layer.weight.detach(), groups=2, transposed=transposed)
    x = torch.randn(1, 4, 5, 5)
    before = layer(x)
    filters = bank.filters.clone()
    filters[1, 2] += 1
    with torch.no_grad():
        layer.weight.copy_(bank.to_weight(filters))
        changed = (layer(x) != before).flatten(2).any(-1)[0]
    assert changed.tolist() == [False] * 5 + [True]


def test_subclasses_count_and_other_layers_do_not():
    model = nn.Sequential(nn.Linear(2, 2), OtherPadding(3, 4, 3), nn.BatchNorm2d(4))
    assert names(conv_layers(model)) == ["1"]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (None, ["a", "b.0", "b.1"]),
        ("b.*", ["b.0", "b.1"]),
        (nn.Conv1d, ["b.1"]),
        (lambda name, module: module.kernel_size == (3, 3), ["a"]),
        (["a", nn.Conv1d], ["a", "b.1"]),
    ],
    ids=["all", "pattern", "type", "predicate", "several"],
)
def test_selection(layers, expected):
    model = nn.ModuleDict(
        {"a": nn.Conv2d(1, 2, 3), "b": nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv1d(1, 2, 3))}
    )
    assert names(conv_layers(model, layers)) == expected


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("typo", r"No convolution is selected by layers='typo'\. The model's convolutions: 'stem'"),
        (["stem", "typo"], r"No convolution is selected by 'typo' in layers=\['stem', 'typo'\]"),
        (["stem", nn.Conv3d], "selected by <class '.*Conv3d'> in layers="),
        (["stem", "stm"], "Did you mean 'stem'?"),
        ("layr1.*", r"Did you mean 'layer1\.\*'"),
        ("layer1", r"Did you mean .*'layer1\.\*'"),
        (["stem", "relu"], "No convolution is selected by 'relu'"),
        (nn.Conv1d, "selected by layers=<class '.*Conv1d'>"),
        (lambda name, module: False, "No convolution is selected by layers=<function"),
        ([], r"No convolution is selected by layers=\[\]"),
        (3, "Layers are chosen by name patterns.*got 3"),
        (["stem", 3], "got 3"),
    ],
    ids=[
        "one",
        "second",
        "type",
        "near",
        "near pattern",
        "prefix",
        "no convolution",
        "other type",
        "predicate",
        "none",
        "number",
        "holds a number",
    ],
)
def test_a_filter_that_selects_nothing_is_named(layers, message):
    model = nn.ModuleDict(
        {"stem": nn.Conv2d(1, 2, 3), "relu": nn.ReLU(), "layer1": nn.Sequential(nn.Conv2d(2, 2, 3))}
    )
    for look in (conv_layers, convsim.Regularizer, convsim.initialize_):
        with pytest.raises(convsim.ConvsimError, match=message):
            look(model, layers=layers)
    with pytest.raises(convsim.ConvsimError, match=message):
        convsim.measure(model, [torch.zeros(1, 1, 8, 8)], layers=layers)


def test_a_module_pattern_that_selects_nothing_is_named():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    x = [torch.randn(2, 1, 8, 8)]
    with pytest.raises(convsim.ConvsimError, match=r"No module is selected by '9' in modules="):
        convsim.measure(model, x, modules=["1", "9"])
    assert len(selected_modules(model, None)) == 3


def test_a_pattern_that_selects_only_frozen_layers_is_no_typo():
    model = two_convolutions()
    model[0].requires_grad_(False)
    assert names(conv_layers(model, ["0", "2"], frozen=False)) == ["2"]


def test_frozen_layers_can_be_left_out():
    model = two_convolutions()
    model[0].requires_grad_(False)
    assert names(conv_layers(model)) == ["0", "2"]
    assert names(conv_layers(model, frozen=False)) == ["2"]


def test_a_shared_weight_counts_once():
    model = two_convolutions()
    model.append(nn.Conv2d(4, 6, 3, groups=2, stride=2))
    model[3].weight = model[2].weight
    model.append(model[0])
    assert names(conv_layers(model)) == ["0", "2"]


@pytest.mark.parametrize(
    "wrap",
    [parametrizations.weight_norm, parametrizations.spectral_norm, torch.nn.utils.weight_norm],
    ids=["weight_norm", "spectral_norm", "old weight_norm"],
)
def test_computed_weights_are_read_as_they_convolve(wrap):
    layer = wrap(nn.Conv2d(2, 3, 3)).eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    (found,) = conv_layers(layer)
    assert found.parametrized
    x = torch.randn(1, 2, 4, 4)
    assert_close(nn.functional.conv2d(x, found.weight(), layer.bias), layer(x), terms=2 * 18)
    found.weight().square().sum().backward()
    assert any(p.grad is not None for n, p in layer.named_parameters() if "weight" in n)


def test_a_weight_that_forward_makes_is_read_from_forward():
    layer = Squared(2, 3, 3)
    assert_close(conv_layers(layer)[0].weight(), layer.weight**2, terms=TERMS)
    plain = OtherPadding(2, 3, (1, 5), dilation=2)
    assert conv_layers(plain)[0].weight() is plain.weight


@pytest.mark.parametrize("base", CONVOLUTIONS)
def test_a_weight_that_forward_makes_is_read_for_every_type(base):
    class Doubled(base):
        def forward(self, x):
            return 2 * super().forward(x)

    class Negated(base):
        def forward(self, x):
            name = base.__name__.lower().replace("transpose", "_transpose")
            return getattr(nn.functional, name)(x, -self.weight, stride=self.stride)

    for made in (Doubled, Negated):
        layer = made(2, 3, 2, stride=2)
        sign = 1 if made is Doubled else -1
        assert_close(conv_layers(layer)[0].weight(), sign * layer.weight, terms=TERMS)


def test_defaults_are_those_of_a_convolution():
    weight = torch.randn(4, 2, 5)
    for options in ({}, {"stride": 2}, {"dilation": 3}):
        spelled = {"stride": 1, "dilation": 1, "groups": 1, "transposed": False} | options
        bank = kernel_bank(weight, **options)
        assert (bank.stride, bank.dilation) == ((spelled["stride"],), (spelled["dilation"],))
        assert not KernelBank(bank.filters, bank.stride, bank.dilation).transposed
        for compute in (convsim.convolutional_similarity, convsim.similarity_matrix):
            assert torch.equal(compute(weight, **options), compute(weight, **spelled))


@pytest.mark.usefixtures("vision")
def test_standardised_weights_of_timm():
    from timm import layers

    layer = layers.ScaledStdConv2d(3, 8, 3, padding=0)
    x = torch.randn(1, 3, 6, 6)
    expected = layer(x)
    weight = conv_layers(layer)[0].weight()
    assert_close(nn.functional.conv2d(x, weight, layer.bias), expected, terms=27)
    assert not torch.allclose(weight, layer.weight)


def test_writing_weights():
    for layer in (nn.Conv2d(2, 3, 3), parametrizations.weight_norm(nn.Conv2d(2, 3, 3))):
        weight = torch.randn(3, 2, 3, 3)
        conv_layers(layer)[0].set_weight(weight)
        assert_close(layer.weight, weight, terms=2 * 18)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_what_cannot_be_written_is_refused_by_name():
    one_way = nn.Sequential(nn.Conv2d(2, 3, 3))
    parametrize.register_parametrization(one_way[0], "weight", Doubled())
    for model, message in (
        (one_way, "Layer '0': its parametrization cannot be assigned to"),
        (nn.Sequential(Squared(2, 3, 3)), "Layer '0' .Squared.: its forward makes the weight"),
    ):
        with pytest.raises(convsim.ConvsimError, match=message):
            conv_layers(model)[0].set_weight(torch.ones(3, 2, 3, 3))


@pytest.mark.parametrize(
    ("model", "layers", "message"),
    [
        (nn.Linear(2, 2), None, r"The model \(Linear\) has no convolution"),
        (two_convolutions(), "head.*", "No convolution is selected by layers='head.*'.*'0', '2'"),
        (nn.Sequential(nn.LazyConv2d(3, 3)), None, "Layer '0' .LazyConv2d. is lazy"),
    ],
    ids=["no convolution", "none selected", "lazy"],
)
def test_bad_models_are_refused(model, layers, message):
    with pytest.raises(convsim.ConvsimError, match=message):
        conv_layers(model, layers)


def test_bad_weights_are_refused_with_the_layers_name():
    model = nn.Sequential(nn.ReLU(), nn.Conv2d(2, 3, 3))
    model[1].weight = nn.Parameter(torch.ones(3, 2, 3, 3, dtype=torch.complex64))
    with pytest.raises(convsim.ConvsimError, match="Layer '1': A weight must be dense, real"):
        conv_layers(model)[0].bank()
    with pytest.raises(convsim.ConvsimError, match=r"Layer ''.*calls no torch convolution"):
        conv_layers(NoConvolution(2, 3, 3))[0].bank()
    with pytest.raises(convsim.ConvsimError, match="lazy and not initialised"):
        kernel_bank(nn.LazyConv2d(3, 3).weight)


def test_all_frozen_says_so():
    model = two_convolutions().requires_grad_(False)
    with pytest.raises(
        convsim.ConvsimError,
        match=r"is frozen, so nothing can be trained",
    ):
        conv_layers(model, frozen=False)
