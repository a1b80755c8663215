"""Where a layer's maps are looked at, and which layers there are."""

import pytest
import torch
from torch import nn

import convsim

pytestmark = pytest.mark.core


class Block(nn.Conv2d):
    """A convolution that goes on after it has convolved, in a way given."""

    def __init__(self, after):
        super().__init__(3, 6, 3)
        self.after = after

    def forward(self, x):
        return self.after(super().forward(x))


class Masked(Block):
    """A convolution that convolves with something else first, as a partial convolution does."""

    def forward(self, x):
        seen = nn.functional.conv2d((x != 0).float(), torch.ones_like(self.weight))
        return self.after(nn.Conv2d.forward(self, x) * (27 / seen.clamp(min=1)))


AFTER = {
    "in place": nn.ReLU(inplace=True),
    "normalization": nn.BatchNorm2d(6),
    "tuple": lambda y: (y, None),
    "half": lambda y: y.half(),
    "flattened": lambda y: y.flatten(1),
}


@pytest.mark.parametrize("after", AFTER.values(), ids=AFTER)
@pytest.mark.parametrize("kind", [Block, Masked])
def test_maps_are_taken_as_they_leave_the_convolution(kind, after):
    block, plain = kind(after), nn.Conv2d(3, 6, 3)
    with torch.no_grad():
        plain.weight.copy_(block.weight)
        plain.bias.copy_(block.bias)
    images = torch.randn(4, 3, 9, 9)
    assert torch.equal(
        convsim.measure(block, [images]).layers[0].matrix,
        convsim.measure(plain, [images]).layers[0].matrix,
    )


def test_a_layer_that_does_not_convolve_counts_by_what_it_puts_out():
    class Cached(nn.Conv2d):
        maps = torch.randn(4, 6, 7, 7)

        def forward(self, x):
            return self.maps if len(x) > 1 else super().forward(x)

    cached, images = Cached(3, 6, 3), torch.randn(4, 3, 9, 9)
    (layer,) = convsim.measure(cached, [images])
    (expected,) = convsim.measure(cached, [images], modules="")
    assert torch.equal(layer.matrix, expected.matrix)


def test_what_failed_and_was_caught_does_not_count():
    class Fragile(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 4, 3)

        def forward(self, x):
            try:
                self.conv(x[:, :2])
            except RuntimeError:
                nn.functional.conv2d(x, self.conv.weight)  # outside of any layer
            return self.last(x)

    with pytest.warns(convsim.ConvsimWarning, match="never reached these layers: conv"):
        report = convsim.measure(Fragile(), [torch.randn(4, 3, 9, 9)])
    assert [layer.name for layer in report] == ["last"]


def test_modules_are_judged_by_what_they_put_out():
    model = nn.Sequential(Block(nn.ReLU()))
    images = torch.randn(4, 3, 9, 9)
    (whole,) = convsim.measure(model, [images], modules="0")
    (inside,) = convsim.measure(model, [images], modules="0.after")
    assert torch.equal(whole.matrix, inside.matrix)
    assert not torch.equal(whole.matrix, convsim.measure(model, [images])["0"].matrix)


def test_layers_that_share_a_weight_are_each_measured():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.encode, self.again = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3, stride=2)
            self.decode = nn.ConvTranspose2d(8, 3, 3)
            self.again.weight = self.decode.weight = self.encode.weight

        def forward(self, x):
            return self.again(self.decode(self.encode(x).relu()))

    model, images = Tied(), torch.randn(2, 3, 9, 9)
    report = convsim.measure(model, [images])
    assert [layer.name for layer in report] == ["encode", "again", "decode"]
    (alone,) = convsim.measure(model, [images], layers=iter(["dec*"]))
    assert (alone.name, alone.filters) == ("decode", 3)
    assert alone == report["decode"]


def test_a_compiled_model_is_measured_as_it_was_before():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, 3)))
    images = torch.randn(4, 3, 9, 9)
    right = convsim.measure(model, [images])
    for compiled in (torch.compile(model, backend="eager"), compiled_inside(model)):
        compiled.eval()
        with torch.no_grad():
            compiled(images)  # so that hooks made from now on would go unseen
        assert convsim.measure(compiled, [images]) == right


def compiled_inside(model):
    model[1].compile(backend="eager")
    return model


def test_a_pattern_that_selects_nothing_is_told():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    for option in ("layers", "modules"):
        with pytest.raises(convsim.ConvsimError, match="'typo' in "):
            convsim.measure(model, [torch.randn(1, 3, 9, 9)], **{option: ["0", "typo"]})
