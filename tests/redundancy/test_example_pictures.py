"""The first images, as pictures, and what the certificate says on them."""

import pytest
import torch
from torch import nn

import convsim
from convsim.redundancy.pictures import image_pictures, map_pictures

pytestmark = pytest.mark.core


def network():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))


def test_pictures_are_of_the_first_images_whatever_the_batches():
    model, images = network(), torch.randn(7, 3, 12, 12)
    report = convsim.measure(model, images.split(2))
    assert torch.equal(report.examples, image_pictures(images[:3]))
    maps = map_pictures(model[0](images[:3]).detach())
    drawn = report["0"].pictures.maps
    assert drawn.shape == (3, 8, 2, 10, 10)
    for n, pair in enumerate(report["0"].worst):
        expected = maps[:, [pair.first, pair.second]].int()
        assert (
            drawn[:, n].int() - expected
        ).abs().max() <= 1  # rounding of a batch of another size


def test_images_of_another_size_are_no_examples():
    model, small, large = network(), torch.randn(1, 3, 8, 8), torch.randn(4, 3, 12, 12)
    report = convsim.measure(model, [small, large, small])
    assert torch.equal(report.examples, image_pictures(torch.cat([small, small])))
    assert report["0"].pictures.maps.shape[0] == 2


def test_none_are_kept_if_none_are_wanted():
    report = convsim.measure(network(), [torch.randn(4, 3, 12, 12)], examples=0)
    assert len(report.examples) == 0
    assert report["0"].pictures is None
    assert report["0"].kernels.bound != report["0"].kernels.bound


def test_a_batch_that_cannot_be_cut_is_run_once_and_whole():
    class Shift(nn.Module):
        """Clips of four frames in one batch."""

        def __init__(self):
            super().__init__()
            self.conv, self.runs = nn.Conv2d(3, 8, 3), []

        def forward(self, x):
            self.runs.append(len(x))
            y = self.conv(x)
            return torch.roll(y.view(-1, 4, *y.shape[1:]), 1, 1).flatten(0, 1)

    model, images = Shift(), torch.randn(8, 3, 9, 9)
    report = convsim.measure(model, [images])
    assert model.runs == [8]
    assert report["conv"].pictures.maps.shape[0] == 3
    plain = convsim.measure(nn.Sequential(model.conv), [images])
    assert report.similarity == pytest.approx(plain.similarity, rel=1e-12)


def test_an_input_changed_in_place_stays_an_example():
    class InPlace(nn.Sequential):
        def forward(self, x):
            return super().forward(x.sub_(0.5).div_(0.2))

    class OutOfPlace(nn.Sequential):
        def forward(self, x):
            return super().forward((x - 0.5) / 0.2)

    conv, images = nn.Conv2d(3, 8, 3), torch.rand(4, 3, 9, 9)
    got, right = (convsim.measure(m(conv), [images]) for m in (InPlace, OutOfPlace))
    assert got["0"].kernels == right["0"].kernels
    assert torch.equal(got.examples, right.examples)
    assert torch.equal(got["0"].pictures.maps, right["0"].pictures.maps)


@pytest.mark.parametrize("times", [2, 3])
def test_maps_of_another_batch_axis_are_no_pictures_of_images(times):
    class Windowed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x):
            return self.conv(x.repeat(times, 1, 1, 1))

    (layer,) = convsim.measure(Windowed(), [torch.randn(4, 3, 9, 9)])
    assert layer.pictures is None
    assert layer.kernels.bound > 0


def test_a_layer_that_one_batch_skips_has_no_pictures():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)

        def forward(self, x):
            y = self.first(x)
            return self.second(y) if len(x) > 1 else y

    report = convsim.measure(Sometimes(), torch.randn(3, 3, 9, 9).split([1, 2]))
    assert report["first"].pictures.maps.shape[0] == 3
    assert report["second"].pictures is None


def test_an_encoder_used_twice_keeps_its_first_run():
    class Siamese(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x, y):
            return self.conv(x) - self.conv(y)

    model = Siamese()
    x, y = torch.randn(2, 4, 3, 9, 9)
    siamese, alone = convsim.measure(model, [(x, y)]), convsim.measure(model.conv, [x])
    assert siamese["conv"].pictures.maps.shape == (3, 8, 2, 7, 7)
    assert siamese["conv"].kernels.bound == alone[""].kernels.bound
    both = convsim.measure(model.conv, [x, y])
    assert siamese.similarity == pytest.approx(both.similarity, rel=1e-12)
