"""Small networks of every kind, and redundancy planted in them."""

import torch
from torch import Tensor, nn

from convsim.shrinking.channels import Group


class Residual(nn.Module):
    def __init__(self, inputs, outputs, stride=1, pre=False):
        super().__init__()
        self.pre = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU()) if pre else nn.Identity()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.Identity() if pre else nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.after = nn.Identity() if pre else nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(self.pre(x))
        y += self.shortcut(x)
        return self.after(y)


class Dense(nn.Module):
    def __init__(self, inputs, growth):
        super().__init__()
        self.first = nn.Conv2d(inputs, growth, 3, padding=1)
        self.second = nn.Conv2d(inputs + growth, growth, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([x, self.first(x).relu()], 1)
        return torch.cat([y, self.second(y).relu()], 1)


class Excited(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, maps):
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(maps, 4, 1), nn.Conv2d(4, maps, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class Halves(nn.Module):
    """Adds the second half of a layer's maps to the first."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv = nn.Conv2d(inputs, 2 * outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.conv(x).chunk(2, 1)
        return first.relu() + second.relu()


class Shuffled(nn.Module):
    """A unit of ShuffleNet v2: a branch on half of the maps, then both halves shuffled."""

    def __init__(self, maps):
        super().__init__()
        half = maps // 2
        self.branch = nn.Sequential(
            nn.Conv2d(half, 6, 1), nn.ReLU(), nn.Conv2d(6, half, 3, padding=1), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        kept, read = x.chunk(2, 1)
        y = torch.cat([kept, self.branch(read)], 1)
        return y.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


class FlattenedAfterPermute(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.conv(x).relu().permute(0, 2, 3, 1).flatten(1))


def _unit(inputs, outputs, kernel=3, **options):
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]


def _head(maps):
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(maps, 5)]


IMAGES = (3, 8, 8)
NETWORKS = {
    "plain": (lambda: nn.Sequential(*_unit(3, 8), *_unit(8, 12), *_head(12)), IMAGES),
    "without norm": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), nn.LeakyReLU(),
            nn.Conv2d(8, 8, 3, stride=2, dilation=2), nn.ReLU(inplace=True), *_head(8),
        ),
        IMAGES,
    ),
    "flattened": (
        lambda: nn.Sequential(
            *_unit(3, 8), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(32, 16), nn.ReLU(),
            nn.Linear(16, 5),
        ),
        IMAGES,
    ),
    "residual": (
        lambda: nn.Sequential(*_unit(3, 8), Residual(8, 8), Residual(8, 12, 2), *_head(12)),
        IMAGES,
    ),
    "residual, norm first": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), Residual(8, 8, pre=True), Residual(8, 12, 2, pre=True),
            nn.BatchNorm2d(12), nn.ReLU(), *_head(12),
        ),
        IMAGES,
    ),
    "dense": (lambda: nn.Sequential(*_unit(3, 8), Dense(8, 6), *_head(20)), IMAGES),
    "depthwise": (
        lambda: nn.Sequential(
            *_unit(3, 8), *_unit(8, 8, groups=8), *_unit(8, 12, 1), *_unit(12, 12, groups=12),
            *_unit(12, 8, 1), *_head(8),
        ),
        IMAGES,
    ),
    "grouped": (
        lambda: nn.Sequential(*_unit(3, 16), *_unit(16, 16, groups=2), *_unit(16, 8), *_head(8)),
        IMAGES,
    ),
    "excited": (lambda: nn.Sequential(*_unit(3, 8), Excited(8), *_unit(8, 8), *_head(8)), IMAGES),
    "halves": (lambda: nn.Sequential(Halves(3, 8), *_unit(8, 8), *_head(8)), IMAGES),
    "1-d": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 8, 5), nn.BatchNorm1d(8), nn.PReLU(8), nn.Conv1d(8, 8, 3, padding=1),
            nn.ReLU(), nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(8, 3),
        ),
        (2, 24),
    ),
    "3-d": (
        lambda: nn.Sequential(
            nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 6, 2), nn.ReLU(),
            nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, 3),
        ),
        (1, 5, 5, 5),
    ),
    "transposed": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(),
            nn.ConvTranspose2d(8, 8, 4, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.ConvTranspose2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 1),
        ),
        IMAGES,
    ),
}  # fmt: skip


def network(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
    """Build a network whose BatchNorms have seen images, and images for it."""
    build, shape = NETWORKS[name]
    model = build().to(dtype)
    images = torch.randn(256, *shape, dtype=dtype)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    with torch.no_grad():
        model.train()(images)
    return model.eval(), images


def plant_twins_(model: nn.Module, groups: list[Group]) -> None:
    """Let each second unit of every group be a twin of the one before, times a factor.

    A factor is drawn where one layer and one norm at most make the maps: in several it would have
    to be the same, and a depthwise convolution may have a bias.
    """
    for group in groups:
        norms = [slot for slot in group.slots if "Norm" in _kind(model, slot)]
        depthwise = any(s.key.role == "channel" and "Conv" in _kind(model, s) for s in group.slots)
        single = len(group.producers) == 1 and len(norms) < 2 and not depthwise
        twin: dict[int, int] = {}
        factor: dict[int, float] = {}
        for one, two in zip(group.units[::2], group.units[1::2], strict=False):
            twin |= zip(two, one, strict=True)
            drawn = float(torch.rand(()) + 0.5) if single else 1.0
            factor |= dict.fromkeys(two, drawn)
        scaled = norms or group.producers
        for slot in group.slots:
            if slot.key.role == "input":
                continue
            module = model.get_submodule(slot.key.name)
            place = {channel: index for index, channel in enumerate(slot.channels)}
            for name, tensor in module.state_dict().items():
                rows = _filters_first(module, tensor) if tensor.dim() > 1 else tensor
                for b, a in twin.items():
                    if b in place and rows.dim():
                        scale = name in ("weight", "bias") and slot in scaled
                        rows[place[b]] = rows[place[a]] * (factor[b] if scale else 1)


def _kind(model, slot):
    return type(model.get_submodule(slot.key.name)).__name__


def _filters_first(module, tensor):
    """See a tensor with one row for each filter."""
    return tensor.transpose(0, 1) if getattr(module, "transposed", False) else tensor
