"""Weights that layers compute are read as they convolve, and written where they can be."""

import warnings

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrizations, parametrize

import convsim
from closeness import assert_close
from convsim.kernels import ConvLayer, conv_layers
from needs import need_module
from odd_layers import (
    KINDS,
    Clamped,
    Counting,
    FromBuffer,
    LimitedNorm,
    LowRank,
    MaskFirst,
    MovingMean,
    NormInside,
    Offsets,
    Standardized,
    StepFromFirstBatch,
)

pytestmark = pytest.mark.core

TERMS = 8 * 3 * 3 * 3
"""The numbers of a weight, which enter a value; fewer enter a computed weight."""
OWN = [
    *("Conv2d", "MaskFirst", "StepFromFirstBatch", "NormInside", "NormBefore", "Counting"),
    *("LazyObserver", "Offsets", "Conv2dSame", "accelerate", "accelerate, own forward"),
]
MADE = {
    "Standardized": lambda layer: (
        (layer.weight - layer.weight.mean((1, 2, 3), keepdim=True))
        / layer.weight.std((1, 2, 3), keepdim=True)
    ),
    "LowRank": lambda layer: layer.weight + layer.delta(),
    "LimitedNorm": lambda layer: torch.renorm(layer.weight, 2, 0, 0.5),
    "LimitedInPlace": lambda layer: layer.weight.clamp(-0.1, 0.1),
    "FromBuffer": lambda layer: layer.eight_bits * layer.scale,
    "patched": lambda layer: 2 * layer.weight,
    "pruned": lambda layer: layer.weight_orig * layer.weight_mask,
    "MovingMean": lambda layer: (
        layer.parametrizations.weight.original - layer.parametrizations.weight[0].mean
    ),
    "DropWeights": lambda layer: layer.parametrizations.weight.original,
    "weight_norm of an own forward": lambda layer: layer.weight,
}


def weight_of(layer):
    return ConvLayer("", layer).weight()


@pytest.mark.usefixtures("vision")
@pytest.mark.parametrize("kind", OWN)
def test_a_parameter_that_convolves_as_it_is_is_the_weight(kind):
    layer = KINDS[kind]()
    assert weight_of(layer) is layer.weight
    assert not ConvLayer("", layer).parametrized
    assert ConvLayer("", layer).parameters() == [layer.weight]


@pytest.mark.parametrize("kind", MADE)
def test_a_computed_weight_is_what_convolves(kind):
    layer = KINDS[kind]()
    assert_close(weight_of(layer), MADE[kind](layer), terms=TERMS)
    assert ConvLayer("", layer).parametrized


@pytest.mark.parametrize("kind", MADE)
def test_gradients_go_to_what_a_weight_is_computed_from(kind):
    layer, twin = KINDS[kind](), KINDS[kind]()
    twin.load_state_dict(layer.state_dict())
    coefficients = torch.randn(8, 3, 3, 3)
    (weight_of(layer) * coefficients).sum().backward()
    if kind.startswith("Limited"):  # through .data or no_grad, the gradient is that of the weight
        assert_close(layer.weight.grad, coefficients, terms=1)
        return
    (MADE[kind](twin) * coefficients).sum().backward()
    for (name, one), other in zip(layer.named_parameters(), twin.parameters(), strict=True):
        if other.grad is None:
            assert one.grad is None, name
        else:
            assert_close(one.grad, other.grad, terms=TERMS)


def test_a_helper_convolution_is_not_taken_for_the_layers_own():
    for kind in (MaskFirst, Offsets):
        odd, plain = kind(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)
        plain.load_state_dict(odd.state_dict(), strict=False)
        value = convsim.Regularizer(odd, "crossed", layers=kind).backward_()
        assert_close(value, convsim.Regularizer(plain, "crossed").backward_(), terms=TERMS)
        assert_close(odd.weight.grad, plain.weight.grad, terms=TERMS)
    frozen = MaskFirst(3, 8, 3).requires_grad_(False)
    assert weight_of(frozen) is frozen.weight


def test_a_quantizer_is_not_calibrated_by_a_look():
    layer = StepFromFirstBatch(3, 8, 3)
    convsim.Regularizer(layer, "crossed").values()
    assert (layer.step.item(), layer.ready) == (1, False)
    assert layer(torch.randn(2, 3, 9, 9)).isfinite().all()


def test_spectral_norm_is_read_as_the_last_step_made_it():
    layer = parametrizations.spectral_norm(nn.Conv2d(3, 8, 3))
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        layer.parametrizations.weight.original.normal_()
    for _ in range(3):
        output = layer(x)
        for _ in range(2):
            convolved = nn.functional.conv2d(x, weight_of(layer), layer.bias)
            assert_close(convolved, output, terms=TERMS)


def test_low_rank_weights_train_whichever_mode_they_are_read_in():
    layer = LowRank(3, 8, 3)
    regularizer = convsim.Regularizer(layer, "crossed")
    regularizer().backward()
    assert layer.down.grad.any()
    assert layer.up.grad.any()
    assert layer.weight.grad is None


def test_a_module_that_holds_results_can_be_read_again():
    layer = Counting(3, 8, 3)
    layer(torch.randn(1, 3, 8, 8))
    assert not layer.last.is_leaf
    assert weight_of(layer) is layer.weight


def test_caching_parametrizations_keeps_no_weight_of_a_copy():
    for layer in (KINDS["weight_norm"](), KINDS["weight_norm of an own forward"]()):
        with parametrize.cached():
            for scale in (1.0, 2.0, 3.0):
                with torch.no_grad():
                    layer.parametrizations.weight.original0.fill_(scale)
                norms = weight_of(layer).flatten(1).norm(dim=1)
                assert_close(norms, torch.full((8,), scale), terms=TERMS)


@pytest.mark.traced
@pytest.mark.parametrize("kind", ["NormInside", "Standardized", "spectral_norm", "old weight_norm"])
def test_a_compiled_regularizer_reads_the_same(kind):
    torch.compiler.reset()
    regularizer = convsim.Regularizer(KINDS[kind](), "crossed")
    compiled = torch.compile(regularizer, backend="aot_eager")
    assert_close(compiled(), regularizer(), terms=TERMS)


def test_traced_and_inferring_modes_read_computed_weights():
    def values():
        model = nn.Sequential(Standardized(3, 8, 3), NormInside(8, 8, 3), KINDS["weight_norm"]())
        return convsim.Regularizer(model, "crossed")()

    with FakeTensorMode():
        assert values().shape == ()
    with torch.inference_mode():
        assert values() > 0


def test_old_weight_norm_with_a_padding_of_reflections():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        layer = nn.utils.weight_norm(nn.Conv1d(4, 8, 3, padding=3, padding_mode="reflect"))
    assert_close(weight_of(layer), layer.weight, terms=TERMS)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular", "replicate"])
def test_an_own_forward_with_any_padding(mode):
    layer = Counting(4, 8, 3, padding=3, padding_mode=mode)
    assert weight_of(layer) is layer.weight


class Masked(nn.Conv2d):
    """Masks its weight as it runs, as autoregressive networks do."""

    def forward(self, x):
        self.weight.data *= torch.ones(3, 3).tril()
        return super().forward(x)


def test_a_weight_that_forward_masks_is_read_masked_and_left_as_it_is():
    layer = Masked(3, 8, 3)
    before = layer.weight.detach().clone()
    assert weight_of(layer).equal(before.tril())
    assert layer.weight.equal(before)
    history = convsim.initialize_(layer, steps=3)
    layer(torch.randn(1, 3, 8, 8))
    value = convsim.convolutional_similarity(layer.weight.detach()).item()
    assert_close(history.values[""][-1], value, terms=TERMS)


class Styled(nn.Conv2d):
    def forward(self, x, style):
        return super().forward(x * style[:, :, None, None])


class Separable(nn.Conv2d):
    """Convolves depthwise, then pointwise."""

    def forward(self, x):
        x = nn.functional.conv2d(x, self.weight[:3, :1], groups=3)
        return nn.functional.conv2d(x, self.weight[..., :1, :1], self.bias)


class OnlyAConstant(nn.Conv2d):
    def forward(self, x):
        return nn.functional.conv2d(x, torch.ones(1, 3, 3, 3))


class CannotBeCopied(nn.Conv2d):
    def __init__(self, *args):
        super().__init__(*args)
        self.lock = (each for each in ())  # a generator

    def forward(self, x):
        return super().forward(x)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Styled, r"its forward, given zeros of shape \(1, 3, 3, 3\), raised TypeError.*'style'"),
        (Separable, r"convolves with several, of shapes \(3, 1, 3, 3\), \(8, 3, 1, 1\)"),
        (OnlyAConstant, "calls no torch convolution with a weight of its own"),
        (CannotBeCopied, "TypeError: cannot pickle 'generator' object"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(kind, reason):
    model = nn.Sequential(nn.ReLU(), kind(3, 8, 3))
    with pytest.raises(convsim.ConvsimError, match=rf"Layer '1' \({kind.__name__}\).*{reason}"):
        convsim.Regularizer(model, "crossed")


def test_a_slice_of_its_weight_is_what_a_slimmed_layer_convolves_with():
    class Slimmed(nn.Conv2d):
        def forward(self, x):
            return nn.functional.conv2d(x[:, :2], self.weight[:4, :2], self.bias[:4])

    layer = Slimmed(3, 8, 3)
    assert_close(weight_of(layer), layer.weight[:4, :2], terms=TERMS)


@pytest.mark.usefixtures("vision")
@pytest.mark.parametrize(
    "kind", ["NormInside", "Conv2dSame", "LimitedNorm", "weight_norm of an own forward"]
)
def test_an_own_forward_with_its_own_weight_is_initialised(kind):
    layer = KINDS[kind]()
    history = convsim.initialize_(layer, steps=5)
    assert history.values[""][-1] < history.values[""][0]
    now = convsim.convolutional_similarity(weight_of(layer).detach()).item()
    assert_close(history.values[""][-1], now, terms=TERMS)


def test_auto_takes_an_own_forward_with_its_own_weight():
    model = nn.Sequential(NormInside(3, 8, 3), nn.Conv2d(8, 4, 3))
    regularizer = convsim.Regularizer(model, "crossed", coefficient="auto")
    model(torch.randn(2, 3, 8, 8)).square().mean().backward()
    regularizer.backward_()
    assert regularizer.coefficient > 0


def test_a_frozen_weight_is_frozen_though_the_norm_inside_trains():
    model = nn.Sequential(NormInside(3, 8, 3), nn.Conv2d(8, 4, 3))
    model[0].weight.requires_grad_(False)
    assert [layer.name for layer in conv_layers(model, frozen=False)] == ["1"]


def test_a_made_weight_is_not_written():
    for kind in (Standardized, FromBuffer, LowRank):
        with pytest.raises(convsim.ConvsimError, match="its forward makes the weight"):
            convsim.initialize_(kind(3, 8, 3), steps=1)


@pytest.mark.parametrize("limit", [LimitedNorm, Clamped])
def test_what_a_layer_makes_of_what_is_written_is_told(limit):
    layer = limit(3, 8, 3) if limit is LimitedNorm else KINDS["Clamped"]()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(3)  # so that the limit is in effect
    before = weight_of(layer).detach().flatten(1).norm(dim=1).mean()
    history = convsim.initialize_(layer, steps=20)
    now = weight_of(layer).detach()
    value = convsim.convolutional_similarity(now.double()).item()
    assert_close(history.values[""][-1], value, terms=TERMS)
    ratio = (now.flatten(1).norm(dim=1).mean() / before).item()
    assert_close(history.norm_ratio[""], ratio, terms=TERMS)


@pytest.mark.parametrize("wrap", [parametrizations.orthogonal, parametrizations.spectral_norm])
@pytest.mark.parametrize("training", [True, False])
def test_a_projection_is_told_as_it_is(wrap, training):
    layer = wrap(nn.Conv2d(3, 8, 3)).train(training)
    before = weight_of(layer).detach().flatten(1).norm(dim=1).mean()
    history = convsim.initialize_(layer, steps=20)
    now = weight_of(layer).detach()
    value = convsim.convolutional_similarity(now.double()).item()
    assert_close(history.values[""][-1], value, terms=TERMS)
    ratio = (now.flatten(1).norm(dim=1).mean() / before).item()
    assert_close(history.norm_ratio[""], ratio, terms=TERMS)


def test_half_precision_is_told_as_it_is_rounded():
    layer = nn.Conv2d(3, 8, 3).bfloat16()
    history = convsim.initialize_(layer, steps=5)
    value = convsim.convolutional_similarity(layer.weight.detach().double()).item()
    assert_close(history.values[""][-1], value, terms=TERMS)


class Refusing(nn.Module):
    def forward(self, weight):
        return weight + 0

    def right_inverse(self, weight):
        raise NotImplementedError("no inverse of this")


def test_if_one_layer_cannot_be_written_none_is():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    with torch.no_grad():
        parametrize.register_parametrization(model[1], "weight", MovingMean())
    model[1].parametrizations.weight[0] = Refusing()
    before = model[0].weight.clone()
    with pytest.raises(convsim.ConvsimError, match=r"Layer '1'.*no inverse of this"):
        convsim.initialize_(model, steps=2)
    assert model[0].weight.equal(before)


def test_tied_weights_count_once_whatever_they_are_computed_by():
    plain, transposed = nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 3, 3)
    transposed.weight = plain.weight
    assert len(conv_layers(nn.Sequential(plain, transposed))) == 1

    one, other = KINDS["weight_norm"](), KINDS["weight_norm"]()
    assert len(conv_layers(nn.Sequential(one, other))) == 2
    for name in ("original0", "original1"):
        weights = one.parametrizations.weight
        setattr(other.parametrizations.weight, name, getattr(weights, name))
    assert len(conv_layers(nn.Sequential(one, other))) == 1

    one, other = KINDS["old weight_norm"](), KINDS["old weight_norm"]()
    other.weight_g, other.weight_v = one.weight_g, one.weight_v
    assert len(conv_layers(nn.Sequential(one, other))) == 1


def test_a_layer_may_be_pruned_after_the_regularizer_was_made():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), NormInside(8, 8, 3))
    regularizer = convsim.Regularizer(model, "crossed", coefficient=1.0)
    model[0].weight = nn.Parameter(model[0].weight.detach()[:5])
    model[1].weight = nn.Parameter(model[1].weight.detach()[:, :5])
    expected = [convsim.convolutional_similarity(layer.weight.detach()) for layer in model]
    assert_close(regularizer(), sum(expected) / 2, terms=TERMS)
    assert_close(regularizer.backward_(), sum(expected) / 2, terms=TERMS)
    assert model[0].weight.grad.shape == (5, 3, 3, 3)


def test_a_weight_without_numbers_is_refused_by_name():
    for layer in (nn.Conv2d(3, 8, 3), NormInside(3, 8, 3), KINDS["weight_norm"]()):
        model = nn.Sequential(layer.to("meta"))
        regularizer = convsim.Regularizer(model, "crossed")  # weights may be loaded later
        with pytest.raises(
            convsim.ConvsimError, match=r"Layer '0'.*on the meta device.*accelerate"
        ):
            regularizer.values()
        with pytest.raises(convsim.ConvsimError, match=r"Layer '0'.*on the meta device"):
            convsim.initialize_(model, steps=1)


def test_a_model_that_accelerate_has_offloaded_is_refused_by_name():
    accelerate = need_module("accelerate")
    model = nn.Sequential(NormInside(3, 8, 3), nn.Conv2d(8, 8, 3))
    x = torch.randn(2, 3, 9, 9)
    similarity = convsim.measure(model, [x]).similarity
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    with pytest.raises(convsim.ConvsimError, match=r"Layer '0'.*remove_hook_from_module"):
        convsim.measure(model, [x])
    accelerate.hooks.remove_hook_from_module(model, recurse=True)
    assert convsim.measure(model, [x]).similarity == similarity


@pytest.mark.usefixtures("vision")
@pytest.mark.parametrize("name", ["tf_efficientnet_b0", "tf_mobilenetv3_small_075"])
def test_tensorflows_networks_of_timm_are_initialised(name):
    import timm

    model = timm.create_model(name, pretrained=False)
    assert not any(layer.parametrized for layer in conv_layers(model))
    history = convsim.initialize_(model, steps=1, layers="conv_stem")
    assert history.values["conv_stem"][1] < history.values["conv_stem"][0]
