"""What a model is given of a batch, and what is said where the two do not fit."""

from collections import UserDict, namedtuple
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import convsim

pytestmark = pytest.mark.core

IMAGES = torch.linspace(-1, 1, 4 * 3 * 9 * 9).sin().view(4, 3, 9, 9)


class Two(nn.Module):
    """A network of two inputs."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(self, left, right):
        return {"sum": self.left(left) + self.right(right)}


class Detector(nn.Module):
    """A network of a list of images, with targets that it may do without."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, images, targets=None):
        assert targets is None
        return [self.conv(image.unsqueeze(0)) for image in images]


class Stepped(nn.Module):
    """A network that must be told a step, by name, as diffusion networks are."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, sample, *, step):
        return self.conv(sample * step)


def test_a_network_takes_the_inputs_that_it_requires():
    model, other = Two(), IMAGES.flip(0)
    report = convsim.measure(model, [(IMAGES, other)])
    for name in ("left", "right"):
        (alone,) = convsim.measure(getattr(model, name), [IMAGES if name == "left" else other])
        assert report[name] == replace(alone, name=name)
    named = {"left": IMAGES, "right": other, "labels": torch.zeros(4)}
    pair = namedtuple("Pair", ["a", "b", "label"])(IMAGES, other, torch.zeros(4))
    for batch in (named, UserDict(named), pair, [IMAGES, other, torch.zeros(4)]):
        assert convsim.measure(model, [batch]) == report
    assert (
        convsim.measure(
            model, [{"a": IMAGES, "b": other}], forward=lambda net, x: net(x["a"], x["b"])
        )
        == report
    )


def test_lists_of_images_as_detectors_take_them():
    images = [*IMAGES, torch.ones(3, 5, 7)]
    report = convsim.measure(Detector(), [(images, [{"boxes": torch.zeros(1, 4)}] * 5)])
    assert report.images == 5
    assert report.examples.shape == (3, 3, 9, 9)


def test_batches_of_another_kind_by_a_forward_of_ones_own():
    model = Stepped()
    with pytest.raises(convsim.ConvsimError, match=r"Stepped.forward takes sample, step.*forward="):
        convsim.measure(model, [IMAGES])
    report = convsim.measure(model, [IMAGES], forward=lambda net, x: net(x, step=2.0))
    assert report == convsim.measure(model, [{"sample": IMAGES, "step": 2.0}])
    assert report.images == 4


def test_labels_are_passed_on_where_forward_requires_them():
    class Trained(nn.Sequential):
        def forward(self, pixel_values, labels):
            assert labels.shape == (4,)
            return super().forward(pixel_values)

    batch = {"pixel_values": IMAGES, "labels": torch.zeros(4)}
    assert convsim.measure(Trained(nn.Conv2d(3, 4, 3)), [batch]).images == 4


def test_a_forward_in_place_spares_the_batch():
    class InPlace(nn.Sequential):
        def forward(self, x):
            return super().forward(x.sub_(0.5).div_(0.2))

    given = {"images": IMAGES.clone()}
    convsim.measure(
        InPlace(nn.Conv2d(3, 4, 3)), [given], forward=lambda net, batch: net(batch["images"])
    )
    assert torch.equal(given["images"], IMAGES)


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        (IMAGES.byte(), r"batch is torch.uint8 .* weights are torch.float32: .* / 255\.$"),
        (IMAGES.double(), r"batch is torch.float64 .* images.to\(torch.float32\)\.$"),
        ((torch.zeros(4).long(), IMAGES), r"shape \(4,\), torch.int64, as labels.* \(images, lab"),
        ((torch.zeros(4), IMAGES), r"shape \(4,\), torch.float32, as labels have"),
        ({"image": IMAGES}, r"forward takes \(input\); got a dict with 'image'.*batch\['image'\]"),
        (UserDict(x=IMAGES), r"got a UserDict with 'x'\. Give forward="),
        ("images", r"got a str\. Give forward="),
        ([], r"got a list\. Give forward="),
        (None, r"got a NoneType\. Give forward="),
        (IMAGES.numpy(), r"numpy array: give torch\.from_numpy\(batch\)"),
        (IMAGES.movedim(1, -1), r"'0', takes 3 channels, .*channels first, images\.movedim\(-1, 1"),
        (IMAGES[:, :1], r"takes 3 channels, .* of grey ones images\.repeat_interleave\(3, 1\)"),
        (IMAGES[None], r"takes \(N, 3, H, W\): 4 axes, of which the first counts images"),
    ],
    ids=lambda value: "" if isinstance(value, str) else None,
)
def test_what_does_not_fit_is_told_with_its_remedy(batch, said):
    with pytest.raises(convsim.ConvsimError, match=said):
        convsim.measure(nn.Sequential(nn.Conv2d(3, 4, 3)), [batch])
    with pytest.raises(convsim.ConvsimError, match=said):
        convsim.shrink(nn.Sequential(nn.Conv2d(3, 4, 3)), [batch], channels=0.5)


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        (IMAGES, r"got Tensor\. Give \[batch\]"),
        ({"images": IMAGES}, r"got dict\. Give \[batch\]"),
        ("photographs/", r"got str\. .*ImageFolder and a DataLoader"),
        (TensorDataset(IMAGES), r"got TensorDataset\. Give torch\.utils\.data\.DataLoader\("),
        (None, r"got NoneType\. Give \[batch\]"),
    ],
    ids=lambda value: "" if isinstance(value, str) else None,
)
def test_what_is_no_iterable_of_batches_is_told_with_its_remedy(batches, said):
    with pytest.raises(convsim.ConvsimError, match=rf"^measure\(\) takes an iterable.* {said}"):
        convsim.measure(nn.Sequential(nn.Conv2d(3, 4, 3)), batches)
    with pytest.raises(convsim.ConvsimError, match=rf"^shrink\(\) takes an iterable.* {said}"):
        convsim.shrink(nn.Sequential(nn.Conv2d(3, 4, 3)), batches, channels=0.5)


def test_too_few_inputs_are_told():
    with pytest.raises(convsim.ConvsimError, match=r"Two.forward takes left, right.* one input: "):
        convsim.measure(Two(), [IMAGES])
    with pytest.raises(convsim.ConvsimError, match=r"takes left, right.* \(left, right\), or for"):
        convsim.measure(Two(), [[IMAGES]])


def test_a_network_that_fails_for_another_reason_says_so_itself():
    with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
        convsim.measure(nn.Sequential(nn.Conv2d(3, 4, 30)), [IMAGES])


def test_an_empty_batch_counts_for_nothing():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    assert convsim.measure(model, [IMAGES[:0], IMAGES]) == convsim.measure(model, [IMAGES])
    with pytest.raises(convsim.ConvsimError, match="at least one batch"):
        convsim.measure(model, [IMAGES[:0]])


def test_a_size_that_does_not_fit_is_told_as_the_size_that_it_is():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(convsim.ConvsimError, match=r"^input_size=\(9, 9, 3\) does not fit the mod"):
        convsim.measure(model, input_size=(9, 9, 3))
    with pytest.raises(convsim.ConvsimError, match=r"^input_size=\(3, 2, 2\) does not .* Kernel"):
        convsim.measure(model, input_size=(3, 2, 2))
    model[0].bias.data.fill_(float("nan"))
    with pytest.raises(convsim.NonFiniteError, match=r"^Layer '0' put out"):
        convsim.measure(model, input_size=(3, 9, 9))


class Blocks(nn.Module):
    """A network with numbers of its own that are called as those of a convolution."""

    in_channels, kernel_size = 7, 3

    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(3, 4, 3)

    def forward(self, images):
        return self.inner(images)


class ChannelsLast(Blocks):
    """A network that puts the channels first itself."""

    def forward(self, images):
        return self.inner(images.movedim(-1, 1))


class Full(Blocks):
    """A network that finds no memory."""

    def forward(self, images):
        raise torch.OutOfMemoryError("none left")


@pytest.mark.parametrize(
    ("model", "batch", "kind", "said"),
    [
        (Blocks(), IMAGES[:, :1], convsim.ConvsimError, "convolution, 'inner', takes 3 ch"),
        (ChannelsLast(), torch.zeros(4, 2, 2, 3), RuntimeError, "Kernel size can't be greater"),
        (ChannelsLast(), IMAGES[:, :2], RuntimeError, "expected input"),
        (Full(), IMAGES.byte(), torch.OutOfMemoryError, "none left"),
        (Blocks(), torch.zeros(4).long(), convsim.ConvsimError, r"as \[\(images, labels\)\], not"),
    ],
)  # fmt: skip
def test_only_what_torch_says_of_these_very_inputs_is_told_anew(model, batch, kind, said):
    with pytest.raises(kind, match=said):
        convsim.measure(model, [batch])
