"""No look at a model changes it: state, modes, attributes, hooks, random numbers."""

import copy

import pytest
import torch
from torch import nn
from torch.ao.quantization import FakeQuantize
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

import convsim
from convsim.redundancy.evaluation import evaluating
from needs import need_module

pytestmark = pytest.mark.core


class LoRA(nn.Module):
    """Merges its weights in eval() and takes them apart in train(), by rounding not exactly."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3).requires_grad_(False)
        self.a, self.b = nn.Parameter(torch.randn(2, 27)), nn.Parameter(torch.randn(6, 2))
        self.merged = False

    def train(self, mode=True):
        if mode == self.merged:
            low = (self.b @ self.a).view_as(self.conv.weight).data
            self.conv.weight.data += -low if mode else low
            self.merged = not mode
        return super().train(mode)

    def forward(self, x):
        low = 0 if self.merged else (self.b @ self.a).view_as(self.conv.weight)
        return self.conv._conv_forward(x, self.conv.weight + low, self.conv.bias)


class Observed(nn.Module):
    """Sets its scale by the first batch that it ever sees, and counts them."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.scale, self.calibrated, self.calls = nn.Parameter(torch.ones(())), False, 0
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("last", None)

    def forward(self, x):
        if not self.calibrated:
            self.scale.data.copy_(x.abs().mean())
            self.calibrated = True
        self.calls += 1
        self.seen = self.seen + 1
        self.last = x.mean((0, 2, 3))
        return self.conv(x / self.scale)


class Calibrated(nn.Conv2d):
    """Sets its scale by the first batch that it ever sees, in a forward of its own."""

    def __init__(self):
        super().__init__(3, 6, 3)
        self.scale, self.calibrated = nn.Parameter(torch.zeros(())), False

    def forward(self, x):
        if not self.calibrated:
            self.scale.data.copy_(x.abs().mean())
            self.calibrated = True
        return super().forward(x / self.scale)


class Actnorm(nn.Conv2d):
    """Initialises itself by data, as flows do, and registers a buffer when it does."""

    def forward(self, x):
        y = super().forward(x)
        if "mean" not in self._buffers:
            self.register_buffer("mean", y.mean((0, 2, 3), keepdim=True))
        return y - self.mean


class Standardized(nn.Conv2d):
    def forward(self, x):
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, w / w.std((1, 2, 3), keepdim=True), self.bias)


class Dropped(nn.Module):
    """Draws random numbers in eval() too."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)

    def forward(self, x):
        return self.conv(nn.functional.dropout(x, 0.5, training=True))


class FrozenNorm(nn.Sequential):
    """Keeps its normalization in eval() when it trains."""

    def train(self, mode=True):
        super().train(mode)
        self[1].eval()
        return self


class Ema(nn.Module):
    """Changes its weights for their mean in eval()."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.register_buffer("mean", torch.randn(6, 3, 3, 3))

    def train(self, mode=True):
        if mode != self.training:
            kept = self.conv.weight.data.clone()
            self.conv.weight.data.copy_(self.mean)
            self.mean.copy_(kept)
        return super().train(mode)

    def forward(self, x):
        return self.conv(x)


class Low(nn.Module):
    def forward(self, weight):
        return weight + 0.1 * weight.mean()


def quantized():
    conv = nn.Conv2d(3, 6, 3)
    parametrize.register_parametrization(conv, "weight", FakeQuantize())
    return conv


def fake_quantized_input():
    return nn.Sequential(FakeQuantize(), nn.Conv2d(3, 6, 3))


def quantization_aware():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU()).train()
    model.qconfig = torch.ao.quantization.get_default_qat_qconfig("x86")
    return torch.ao.quantization.prepare_qat(model)


def parametrized(step):
    conv = nn.Conv2d(3, 6, 3)
    parametrize.register_parametrization(conv, "weight", step)
    return conv


def lazy_head():
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2))


def mixed_modes():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Sequential(nn.BatchNorm2d(6)))
    model[2].eval()
    model[2][0].train()
    return model


def merged_lora():
    model = nn.Sequential(LoRA(), LoRA())
    model[0].eval()
    return nn.Sequential(model[0])


def hooked():
    model = nn.Sequential(nn.Conv2d(3, 6, 3))
    model[0].register_forward_hook(lambda module, args, output: output + 1)
    model[0].register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    return model


def pruned():
    conv = nn.Conv2d(3, 6, 3)
    prune.l1_unstructured(conv, "weight", 0.5)
    return conv


MODELS = {
    "plain": lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Dropout(0.5)),
    "batch norm without momentum": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, momentum=None)
    ),
    "instance norm": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.InstanceNorm2d(6, track_running_stats=True)
    ),
    "mixed modes": mixed_modes,
    "frozen norm": lambda: FrozenNorm(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)),
    "lora": LoRA,
    "merged lora": merged_lora,
    "ema": Ema,
    "observer": Observed,
    "calibrated": Calibrated,
    "initialised by data": lambda: Actnorm(3, 6, 3),
    "standardized": lambda: Standardized(3, 6, 3),
    "random": Dropped,
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Conv2d(3, 6, 3)),
    "old spectral norm": lambda: spectral_norm(nn.Conv2d(3, 6, 3)),
    "spectral norm of transposed": lambda: parametrizations.spectral_norm(
        nn.ConvTranspose2d(3, 6, 3)
    ),
    "weight norm": lambda: parametrizations.weight_norm(nn.Conv2d(3, 6, 3)),
    "old weight norm": lambda: weight_norm(nn.Conv2d(3, 6, 3)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Conv2d(3, 6, 3)),
    "parametrized": lambda: parametrized(Low()),
    "quantizer of weights": quantized,
    "quantizer of inputs": fake_quantized_input,
    "quantization-aware": quantization_aware,
    "pruned": pruned,
    "hooked": hooked,
    "1-d": lambda: nn.Conv1d(3, 6, 3),
    "half": lambda: nn.Conv2d(3, 6, 3).bfloat16(),
    "head": lazy_head,
}


def seen(model):
    """Everything of a model that a look could change."""
    modules = dict(model.named_modules())
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")
    return (
        {key: value.clone() for key, value in model.state_dict().items()},
        {key: id(value) for key, value in model.named_parameters()},
        {key: id(value) for key, value in model.named_buffers()},
        {
            name: {k: v for k, v in vars(m).items() if isinstance(v, bool | int | float | str)}
            for name, m in modules.items()
        },
        {(name, kind): list(getattr(m, kind)) for name, m in modules.items() for kind in hooks},
        {name: type(m) for name, m in modules.items()},
        torch.get_rng_state(),
    )


def assert_same(before, after):
    for key, value in before[0].items():
        assert torch.equal(value, after[0][key]), key
    assert before[0].keys() == after[0].keys()
    assert before[1:-1] == after[1:-1]
    assert torch.equal(before[-1], after[-1])


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_look_changes_nothing(make, mode):
    model = make()
    if not mode:
        model.eval()
    shape = (4, 3, 9) if any(isinstance(m, nn.Conv1d) for m in model.modules()) else (4, 3, 9, 9)
    images = torch.randn(shape).to(next(model.parameters()).dtype)
    modules = "" if any(isinstance(m, LoRA) for m in model.modules()) else None
    before = seen(model)
    convsim.measure(model, [images], modules=modules)
    assert_same(before, seen(model))


def test_nor_does_one_that_fails():
    model, images = nn.Sequential(LoRA(), Observed()).train(), torch.randn(4, 3, 9, 9)
    before = seen(model)
    with pytest.raises(RuntimeError, match="expected input"):
        convsim.measure(model, [images])
    assert_same(before, seen(model))


def test_lora_trains_on_after_it():
    model = nn.Sequential(LoRA()).train()
    twin = copy.deepcopy(model)
    images = torch.randn(2, 3, 9, 9)
    measured = convsim.measure(model, [images], modules="0")
    twin.eval()
    with torch.no_grad():
        merged = convsim.measure(nn.Identity(), [twin(images)], modules="")
    assert measured.similarity == pytest.approx(merged.similarity, rel=1e-12)
    model(images).sum().backward()
    assert model[0].a.grad is not None


def test_an_override_is_asked_in_the_order_of_the_modules():
    called = []

    class Told(nn.Sequential):
        def train(self, mode=True):
            called.append(mode)
            return super().train(mode)

    with evaluating(nn.Sequential(Told(Told()), Told().eval())):
        assert called.pop(0) is False  # by the test
        assert called == [False, False, False]
    assert called[3:] == [True, True, True, False]


def test_random_numbers_are_given_back():
    model, images = Dropped(), torch.randn(2, 3, 9, 9)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    convsim.measure(model, (torch.rand_like(images) for _ in range(2)))
    assert torch.equal(torch.rand(3), expected)


TIMM = ["StdConv2d", "StdConv2dSame", "ScaledStdConv2d", "ScaledStdConv2dSame", "Conv2dSame"]


@pytest.mark.parametrize("kind", TIMM)
def test_nor_does_a_look_at_the_convolutions_of_timm(vision, kind):
    layers = need_module("timm.layers")
    model, images = nn.Sequential(getattr(layers, kind)(3, 6, 3)), torch.randn(4, 3, 9, 9)
    before = seen(model)
    (layer,) = convsim.measure(model, [images])
    assert_same(before, seen(model))
    (whole,) = convsim.measure(model, [images], modules="0")
    assert torch.equal(layer.matrix, whole.matrix)
