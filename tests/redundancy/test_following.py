"""Where the next layer reads: after normalization and activation, before sums and pooling."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import convsim
from closeness import assert_close
from seeds import reseed

IMAGES = torch.linspace(-1, 1, 3 * 3 * 9 * 9).mul(40).sin().view(3, 3, 9, 9)


class Made(nn.Module):
    """A convolution, what is done to its output, and a layer that reads it."""

    def __init__(self, after):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1)
        self.norm = nn.BatchNorm2d(6)
        self.act = nn.Identity()
        self.after = after

    def forward(self, x):
        return self.last(self.after(self, self.first(x)))


class Swish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


class Fused(nn.BatchNorm2d):
    def forward(self, x):
        return F.relu_(super().forward(x))


AFTER = {
    "nothing": lambda net, y: y,
    "batch norm, relu": lambda net, y: F.relu(net.norm(y)),
    "relu in place": lambda net, y: net.norm(y).relu_(),
    "swish by hand": lambda net, y: y * torch.sigmoid(y),
    "hard swish by hand": lambda net, y: y * F.relu6(y + 3) / 6,
    "mish by hand": lambda net, y: y * torch.tanh(F.softplus(y)),
    "half and back": lambda net, y: F.gelu(y.double().float()),
}
READERS = {
    "a layer": lambda net, y: y,
    "a sum": lambda net, y: y + torch.ones_like(y),
    "a sum in place": lambda net, y: y.add_(torch.ones_like(y)),
    "a pooling": lambda net, y: F.max_pool2d(y, 2),
    "a concatenation": lambda net, y: torch.cat([y, y], 1)[:, :6],
    "a gate of others": lambda net, y: y * y.mean((2, 3), keepdim=True),
}


def trained(model):
    """Give BatchNorm statistics other than 0 and 1."""
    reseed()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def check(model, maps):
    """Compare what is measured at the first layer with given maps."""
    measured = convsim.measure(model, [IMAGES], layers="first", place="reading")["first"]
    expected = [F.normalize(image.flatten(1).double(), dim=1) for image in maps.detach()]
    matrix = torch.stack([x @ x.T for x in expected]).abs().mean(0)
    dead = (maps == 0).flatten(2).all(2).all(0)
    live = ~dead & ~dead.unsqueeze(1)
    assert_close(measured.matrix[live], matrix[live], terms=200, size=1)
    flat = maps.detach().double().transpose(0, 1).flatten(1)
    pooled = F.normalize(flat, dim=1) @ F.normalize(flat, dim=1).T
    assert_close(measured.pooled[live], pooled[live], terms=400, size=1)
    assert_close(measured.rms, (flat.square().sum(1) / len(maps)).sqrt(), terms=400)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("after", AFTER)
def test_an_output_is_followed_to_where_it_is_read(after, reader):
    model = trained(Made(lambda net, y: READERS[reader](net, AFTER[after](net, y))))
    with torch.no_grad():
        maps = AFTER[after](model, model.first(IMAGES))
    check(model, maps)


@pytest.mark.parametrize(
    "act",
    [
        Swish(),
        Fused(6),
        nn.PReLU(6),
        nn.Dropout2d(),
        nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(inplace=True)),
    ],
)
def test_modules_that_normalize_and_activate_are_followed(act):
    model = Made(lambda net, y: net.act(y))
    model.act = act
    trained(model)
    with torch.no_grad():
        check(model, model.act(model.first(IMAGES)))


def test_outputs_that_nothing_reads_are_those_of_the_network():
    model = trained(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()))
    (read,) = convsim.measure(model, [IMAGES], place="reading")
    (put_out,) = convsim.measure(model, [IMAGES], modules="2")
    assert torch.equal(read.matrix.nan_to_num(), put_out.matrix.nan_to_num())
    assert read.kernels is not None


def test_what_is_said_of_kernels_is_the_same_at_both_places():
    model = trained(Made(AFTER["batch norm, relu"]))
    both = [convsim.measure(model, [IMAGES], place=place, autocorrelation=True)["first"]
            for place in ("convolution", "reading")]  # fmt: skip
    one, other = (layer.kernels for layer in both)
    assert torch.equal(one.similarity, other.similarity)
    assert (one.bound, one.bounded, one.energy) == (other.bound, other.bounded, other.energy)
    assert both[0].similarity != both[1].similarity
    assert both[0].pooled is None


def pair_network(*rows, bias=(0.0, 0.0, 0.0)):
    """Three maps of a 1×1 convolution with given weights, ReLU, and a layer that reads them."""
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 5, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor(rows)[..., None, None])
        model[0].bias.copy_(torch.tensor(bias))
    return model


def test_twins_can_be_folded_without_a_change_of_the_output():
    model = pair_network([1.0, -0.5, 0.2], [0.3, 0.9, -1.0], [2.0, -1.0, 0.4])
    layer = convsim.measure(model, [IMAGES], place="reading")["0"]
    (twins,) = layer.twins(0.999)
    assert (twins.kept, twins.dropped) == (2, 0)
    assert_close(twins.factor, 0.5, terms=300)
    assert_close(twins.lost, 0.0, terms=300, size=1)
    before = model(IMAGES)
    with torch.no_grad():
        model[2].weight[:, twins.kept] += twins.factor * model[2].weight[:, twins.dropped]
        model[2].weight[:, twins.dropped] = 0
    assert_close(model(IMAGES), before, terms=27, size=float(before.detach().abs().max()))


def test_what_is_alike_need_not_be_twins():
    negatives = pair_network([1.0, -0.5, 0.2], [0.3, 0.9, -1.0], [-1.0, 0.5, -0.2])
    at_convolution = convsim.measure(negatives, [IMAGES])["0"]
    (pair,) = [x for x in at_convolution.worst if (x.first, x.second) == (0, 2)]
    assert_close(pair.similarity, 1.0, terms=300)
    assert_close(pair.cosine, -1.0, terms=300)
    assert [x[:2] for x in at_convolution.duplicates(0.99)] == [(0, 2)]
    read = convsim.measure(negatives, [IMAGES], place="reading")["0"]
    pairs = [{x.kept, x.dropped} for x in read.twins(0.1)]
    assert {0, 2} not in pairs  # ReLU keeps one where the other is negative
    # The same on every image, with another factor on each: alike, and no twins.
    model = nn.Conv2d(2, 2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.eye(2)[..., None, None])
    one = torch.linspace(1, 2, 16).view(1, 1, 4, 4)
    images = torch.cat([torch.cat([one, c * one], 1) for c in (0.01, 1.0, 100.0)])
    (layer,) = convsim.measure(model, [images], place="reading")
    assert layer.similarity > 0.9999
    assert layer.twins(0.95) == []


def test_negatives_that_reach_a_reader_are_twins_with_a_negative_factor():
    model = nn.Conv2d(3, 2, 1, bias=False)
    with torch.no_grad():
        model.weight[1] = -3 * model.weight[0]
    (layer,) = convsim.measure(model, [IMAGES], place="reading")
    (twins,) = layer.twins()
    assert (twins.kept, twins.dropped) == (1, 0)
    assert_close(twins.factor, -1 / 3, terms=100)


def test_dead_maps_have_no_twins():
    model = pair_network([1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0], bias=(0.0, -1.0, -2.0))
    layer = convsim.measure(model, [IMAGES], place="reading")["0"]
    assert layer.dead == 2
    assert layer.twins(0) == []
    assert math.isnan(float(layer.pooled[0, 1]))


def test_the_place_is_said_kept_and_checked():
    model = pair_network([1.0, -0.5, 0.2], [0.3, 0.9, -1.0], [2.0, -1.0, 0.4])
    report = convsim.measure(model, [IMAGES], place="reading")
    again = convsim.RedundancyReport.from_json(report.to_json())
    assert (again.place, again.when) == ("reading", report.when)
    assert again.place == report.place
    assert [t[:2] for t in [(x.kept, x.dropped) for x in again["0"].twins(0.999)]] == [(2, 0)]
    assert "where the next layer reads them" in report.origin
    assert report.when[:10] in report.origin
    plain = convsim.measure(model, [IMAGES])
    assert "as they leave their convolution" in plain.origin
    with pytest.raises(convsim.ConvsimError, match=r"layer '0' was measured before .*'reading'"):
        plain["0"].twins()
    with pytest.raises(convsim.ConvsimError, match=r"place is 'convolution' or 'reading'; got 'x'"):
        convsim.measure(model, [IMAGES], place="x")
    with pytest.raises(convsim.ConvsimError, match="leave place out"):
        convsim.measure(model, [IMAGES], place="reading", modules="1")
    for threshold in (-0.1, 1.1):
        with pytest.raises(convsim.ConvsimError, match=r"threshold .* \[0, 1\]"):
            report["0"].twins(threshold)


def kept_by_least_squares(maps):
    """Keep the map told worst by those before, each time solved from the samples themselves."""
    flat = maps.detach().double().transpose(0, 1).flatten(1).T
    kept = [int(flat.square().sum(0).argmax())]
    while True:
        told = torch.linalg.lstsq(flat[:, kept], flat, driver="gelsd").solution
        lost = (flat - flat[:, kept] @ told).square().sum(0)
        if lost.sum() <= 0.01 * flat.square().sum():
            return len(kept)
        kept.append(int(lost.argmax()))


@pytest.mark.parametrize("noise", [0.0, 0.03, 0.3, 1.0])
def test_spare_maps_are_those_that_least_squares_tells_within_one_percent(noise):
    reseed()
    mixed = torch.randn(24, 5, dtype=torch.float64) @ torch.randn(5, 8 * 49, dtype=torch.float64)
    maps = (mixed + noise * torch.randn_like(mixed)).view(24, 8, 7, 7).transpose(0, 1).relu()
    maps[:, 3] = 0
    layer = convsim.measure(Given(24).double(), [maps[:5], maps[5:]], place="reading")["first"]
    assert layer.spare == 24 - kept_by_least_squares(maps)
    assert 1 <= layer.spare < 24


class Given(nn.Module):
    """A layer whose maps are given."""

    def __init__(self, maps):
        super().__init__()
        self.first, self.last = nn.Conv2d(maps, maps, 1, bias=False), nn.Conv2d(maps, 2, 1)
        nn.init.eye_(self.first.weight.data[:, :, 0, 0])

    def forward(self, x):
        return self.last(self.first(x).relu())


@pytest.mark.parametrize("images", [IMAGES, IMAGES.double()])
def test_half_of_a_layer_whose_maps_are_doubled_is_spare(images):
    reseed()
    model = nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 2, 1)).to(images.dtype)
    with torch.no_grad():
        model[0].weight[:6] = torch.linalg.qr(torch.randn(27, 6))[0].T.view(6, 3, 3, 3)
        model[0].weight[6:] = model[0].weight[:6] * torch.rand(6, 1, 1, 1)
        model[0].bias[:] = 0
    random = torch.randn(8, 3, 9, 9, dtype=images.dtype)
    report = convsim.measure(model, [random], place="reading")
    assert report["0"].spare == 6
    assert convsim.RedundancyReport.from_json(report.to_json())["0"].spare == 6
    assert report.to_pandas().loc["0", "spare"] == 6


def test_nothing_is_said_to_be_spare_where_maps_are_not_read_or_samples_are_few():
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 2, 1))
    images = torch.randn(8, 3, 9, 9)
    assert convsim.measure(model, [images])["0"].spare is None  # before the activation
    assert convsim.measure(model, [images], place="reading")["0"].spare > 0
    assert convsim.measure(model, [images[:5]], place="reading")["0"].spare is None  # 245 pixels
    nn.init.zeros_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    assert convsim.measure(model, [images], place="reading")["0"].spare == 63
