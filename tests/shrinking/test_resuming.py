"""Forward passes that start in the middle."""

import pytest
import torch
from networks import NETWORKS, network
from torch import Tensor, nn

import convsim
from convsim.shrinking.resuming import cuts, resumed
from convsim.shrinking.topology import Additions
from convsim.shrinking.weights import reads_maps

pytestmark = pytest.mark.numeric


def layers_of(model):
    return [name for name, module in model.named_modules() if reads_maps(module)]


def noting(found):
    return lambda module, args, output: found.append((module, output))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_pass_resumed_at_any_cut_puts_out_the_same_without_what_comes_before(name):
    model, images = network(name)
    found = cuts(model, images[:2], layers_of(model))
    assert found
    for cut in found:
        maps, computed = [], []
        hook = model.get_submodule(cut.module).register_forward_hook(noting(maps))
        want = model(images)
        hook.remove()
        handles = [
            model.get_submodule(name).register_forward_hook(noting(computed))
            for name in layers_of(model)
            # those at the cut and before it hand on what they get
            if not {*cut.passed, cut.module} & {name} and name not in cut.layers
        ]
        additions = Additions(lambda *_: None)
        with torch.no_grad(), additions, resumed(model, cut, maps[0][1], additions):
            torch.testing.assert_close(model(torch.zeros_like(images)), want, rtol=0, atol=0)
        for handle in handles:
            handle.remove()
        assert not computed
        assert "forward" not in vars(model.get_submodule(cut.module))


class Skips(nn.Module):
    """Reads a map again after two layers, so that nothing between is a cut."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third, self.last = (
            nn.Conv2d(a, b, 3, padding=1) for a, b in ((3, 4), (4, 4), (4, 4), (8, 2))
        )

    def forward(self, x):
        x = self.first(x)
        return self.last(torch.cat([x, self.third(self.second(x).relu())], 1))


def test_nothing_is_a_cut_past_which_earlier_maps_are_read():
    model = Skips().eval()
    found = cuts(model, torch.randn(2, 3, 8, 8), layers_of(model))
    assert [cut.module for cut in found] == ["first"]
    assert found[0].layers == {"second", "third", "last"}


def test_a_module_that_is_used_twice_is_no_cut():
    conv = nn.Conv2d(3, 3, 3, padding=1)
    model = nn.Sequential(conv, nn.ReLU(), conv, nn.Conv2d(3, 2, 1)).eval()
    found = cuts(model, torch.randn(2, 3, 8, 8), ["3"])
    assert "0" not in [cut.module for cut in found]


class Bottleneck(nn.Module):
    """A block of ResNet-50, which adds and rectifies in place, by one ReLU."""

    def __init__(self, into: int, inside: int, out: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(into, inside, 1), nn.BatchNorm2d(inside)
        self.conv2 = nn.Conv2d(inside, inside, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(inside)
        self.conv3, self.norm3 = nn.Conv2d(inside, out, 1), nn.BatchNorm2d(out)
        self.relu, self.beside = nn.ReLU(inplace=True), nn.Conv2d(into, out, 1)

    def forward(self, maps: Tensor) -> Tensor:
        out = self.relu(self.norm1(self.conv1(maps)))
        out = self.relu(self.norm2(self.conv2(out)))
        out = self.norm3(self.conv3(out))
        out += self.beside(maps)
        return self.relu(out)


def test_what_works_in_place_leaves_the_images_as_they_are():
    torch.manual_seed(0)
    blocks = [Bottleneck(16, 8, 32), Bottleneck(32, 8, 32), Bottleneck(32, 16, 64)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    model = nn.Sequential(nn.Conv2d(3, 16, 3), *blocks, *head).eval().requires_grad_(False)
    images = torch.randn(80, 3, 9, 9)
    before = images.clone()
    for batches in ([images], [*images.split(20)]):
        shrunk = convsim.shrink(model, batches, channels=0.6)
        assert torch.equal(images, before)
        assert shrunk.report.output_error < 0.5


class Branches(nn.Module):
    """Four branches side by side, as of an Inception block."""

    largest = 0

    def __init__(self, maps):
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(maps, 2, 3, padding=1) for _ in range(4))

    def forward(self, x):
        side_by_side = torch.cat([branch(x) for branch in self.branches], 1)
        Branches.largest = max(Branches.largest, side_by_side.numel())
        return side_by_side


def test_branches_side_by_side_do_not_grow_before_a_cut():
    model = nn.Sequential(Branches(3), *(Branches(8) for _ in range(7)), nn.Conv2d(8, 2, 1)).eval()
    images = torch.randn(2, 3, 8, 8)
    Branches.largest = 0
    want = model(images)
    largest = Branches.largest
    found = cuts(model, images, layers_of(model))
    assert found
    for cut in found:
        assert Branches.largest <= 2 * largest
        maps = []
        hook = model.get_submodule(cut.module).register_forward_hook(noting(maps))
        model(images)
        hook.remove()
        additions = Additions(lambda *_: None)
        with torch.no_grad(), additions, resumed(model, cut, maps[0][1], additions):
            torch.testing.assert_close(model(images), want, rtol=0, atol=0)
    assert Branches.largest <= 2 * largest
