"""Convolutions whose weight or forward is more than plain, of the kinds that libraries have."""

import types
import warnings

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune


class Standardized(nn.Conv2d):
    """Convolves with its weight standardised, as in weight standardisation."""

    def forward(self, x):
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        deviation = self.weight.std((1, 2, 3), keepdim=True)
        return self._conv_forward(x, (self.weight - mean) / deviation, self.bias)


class MaskFirst(nn.Conv2d):
    """Convolves its input's mask before the input, as partial convolution does."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.register_buffer("ones", torch.ones_like(self.weight), persistent=False)

    def forward(self, x):
        with torch.no_grad():
            mask = (x != 0).to(x)
            seen = nn.functional.conv2d(mask, self.ones, None, self.stride, self.padding)
        return super().forward(x) * (self.ones[0].numel() / seen.clamp(min=1))


class StepFromFirstBatch(nn.Conv2d):
    """Sets the step of its activations from its first batch, as LSQ does."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.step, self.ready = nn.Parameter(torch.ones(())), False

    def forward(self, x):
        if self.training and not self.ready:
            self.step.data = 2 * x.detach().abs().mean() / 7**0.5
            self.ready = True
        x = x / self.step
        x = x + (x.clamp(-8, 7).round() - x).detach()
        return self._conv_forward(x * self.step, self.weight, self.bias)


class NormInside(nn.Conv2d):
    """Has its normalization and activation inside, as detectron2's Conv2d has."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.norm = nn.BatchNorm2d(self.out_channels)

    def forward(self, x):
        x = nn.functional.conv2d(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )
        return self.norm(x).relu()


class NormBefore(nn.Conv2d):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.norm = nn.BatchNorm2d(self.in_channels)

    def forward(self, x):
        return super().forward(self.norm(x))


class LowRank(nn.Conv2d):
    """Adds two small matrices' product to a frozen weight, merged in eval mode, as LoRA does."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        rows, columns = self.weight.flatten(1).shape
        self.down = nn.Parameter(torch.randn(2, columns) / 3)
        self.up = nn.Parameter(torch.randn(rows, 2) / 3)
        self.weight.requires_grad_(False)
        self.merged = False

    def train(self, mode=True):
        super().train(mode)
        if self.merged == mode:
            self.weight.data += (-1 if mode else 1) * self.delta()
            self.merged = not mode
        return self

    def delta(self):
        return (self.up @ self.down).view_as(self.weight)

    def forward(self, x):
        weight = self.weight if self.merged else self.weight + self.delta()
        return self._conv_forward(x, weight, self.bias)


class NoisyKernel(nn.Conv2d):
    """Adds noise to its weight, from torch's generator or one of its own."""

    generator = None

    def forward(self, x):
        noise = torch.randn(self.weight.shape, generator=self.generator)
        return self._conv_forward(x, self.weight + 0.1 * noise, self.bias)


class LimitedNorm(nn.Conv2d):
    """Limits its filters' norms as it runs, as networks for EEG do."""

    def forward(self, x):
        self.weight.data = torch.renorm(self.weight.data, 2, 0, 0.5)
        return super().forward(x)


class LimitedInPlace(nn.Conv2d):
    def forward(self, x):
        with torch.no_grad():
            self.weight.clamp_(-0.1, 0.1)
        return super().forward(x)


class Counting(nn.Conv2d):
    """Counts its runs in all the ways that there are, and holds its last output."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.runs, self.history, self.last = 0, [], None
        self.register_buffer("count", torch.zeros(()))
        self.plain_count = torch.zeros(())

    def forward(self, x):
        self.runs += 1
        self.history.append(x.shape)
        self.count += 1
        self.plain_count += 1
        self.last = super().forward(x)
        return self.last


class LazyObserver(nn.Conv2d):
    """Makes a buffer for the range of its inputs when it first runs."""

    def forward(self, x):
        if not hasattr(self, "range"):
            self.register_buffer("range", torch.zeros(2))
        self.range.copy_(torch.stack([x.detach().min(), x.detach().max()]))
        return super().forward(x)


class Offsets(nn.Conv2d):
    """Asks another convolution for offsets first, as deformable ones do."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.offsets = nn.Conv2d(self.in_channels, 2, self.kernel_size, padding=self.padding)

    def forward(self, x):
        return super().forward(x) + self.offsets(x).mean(1, keepdim=True)


class FromBuffer(nn.Conv2d):
    """Keeps its weight as 8-bit numbers and one scale for each filter."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        scale = self.weight.detach().abs().amax((1, 2, 3), keepdim=True) / 127
        self.scale = nn.Parameter(scale)
        self.register_buffer("eight_bits", (self.weight.detach() / scale).round().to(torch.int8))
        self.weight.requires_grad_(False)

    def forward(self, x):
        return self._conv_forward(x, self.eight_bits * self.scale, self.bias)


class MovingMean(nn.Module):
    """A parametrization that takes out a running mean, which each call moves."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, weight):
        if self.training:
            self.mean.lerp_(weight.detach().mean(), 0.5)
        return weight - self.mean


class DropWeights(nn.Module):
    def forward(self, weight):
        return nn.functional.dropout(weight, 0.5, self.training)


class Clamped(nn.Module):
    """A parametrization that projects what it is given."""

    def forward(self, weight):
        return weight.clamp(-0.1, 0.1)

    def right_inverse(self, weight):
        return weight


def patched():
    """A layer whose forward is replaced on the object, as code without a class of its own does."""

    def forward(self, x):
        return self._conv_forward(x, 2 * self.weight, self.bias)

    layer = nn.Conv2d(3, 8, 3, padding=1)
    layer.forward = types.MethodType(forward, layer)
    return layer


def pruned():
    return prune.l1_unstructured(nn.Conv2d(3, 8, 3, padding=1), "weight", 0.3)


def old_norm(wrap):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return wrap(nn.Conv2d(3, 8, 3, padding=1))


def parametrized(kind):
    layer = nn.Conv2d(3, 8, 3, padding=1)
    parametrize.register_parametrization(layer, "weight", kind())
    return layer


def fake_quantized():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from torch.ao.nn.qat import Conv2d
        from torch.ao.quantization import get_default_qat_qconfig

        return Conv2d(3, 8, 3, padding=1, qconfig=get_default_qat_qconfig("x86"))


def with_generator():
    layer = NoisyKernel(3, 8, 3, padding=1)
    layer.generator = torch.Generator()
    return layer


def timms(name, **options):
    def make():
        from timm import layers

        return getattr(layers, name)(3, 8, 3, **options)

    return make


def offloaded_by_accelerate(inner=lambda: nn.Conv2d(3, 8, 3, padding=1)):
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    return add_hook_to_module(inner(), AlignDevicesHook(execution_device=torch.device("cpu")))


def of_type(kind):
    return lambda: kind(3, 8, 3, padding=1)


KINDS = {
    **{kind.__name__: of_type(kind)
       for kind in (nn.Conv2d, Standardized, MaskFirst, StepFromFirstBatch, NormInside, NormBefore,
                    LowRank, NoisyKernel, LimitedNorm, LimitedInPlace, Counting, LazyObserver,
                    Offsets, FromBuffer)},
    "weight_norm": lambda: parametrizations.weight_norm(nn.Conv2d(3, 8, 3, padding=1)),
    "weight_norm of an own forward": lambda: parametrizations.weight_norm(NormInside(3, 8, 3)),
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Conv2d(3, 8, 3, padding=1)),
    "spectral_norm, transposed": lambda: parametrizations.spectral_norm(
        nn.ConvTranspose2d(3, 8, 3)
    ),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Conv2d(3, 8, 3, padding=1)),
    "old weight_norm": lambda: old_norm(nn.utils.weight_norm),
    "old spectral_norm": lambda: old_norm(nn.utils.spectral_norm),
    "MovingMean": lambda: parametrized(MovingMean),
    "DropWeights": lambda: parametrized(DropWeights),
    "Clamped": lambda: parametrized(Clamped),
    "pruned": pruned,
    "patched": patched,
    "fake quantized": fake_quantized,
    "with a generator": with_generator,
    "StdConv2d": timms("StdConv2d"),
    "StdConv2dSame": timms("StdConv2dSame"),
    "ScaledStdConv2d": timms("ScaledStdConv2d", padding=1),
    "ScaledStdConv2dSame": timms("ScaledStdConv2dSame"),
    "Conv2dSame": timms("Conv2dSame"),
    "accelerate": offloaded_by_accelerate,
    "accelerate, own forward": lambda: offloaded_by_accelerate(of_type(NormInside)),
}  # fmt: skip
"""By name, what makes a layer of 3 input maps and 8 output maps of at least 6 × 6 from 8 × 8."""
