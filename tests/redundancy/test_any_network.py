"""Networks of other kinds: detection, segmentation, diffusion, concatenation, 3-d, waveforms."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torchmetrics.functional import pairwise_cosine_similarity

import convsim
from closeness import assert_close
from seeds import reseed


class Residual(nn.Module):
    """A block of a diffusion U-Net: normalization, activation, convolution, the step added."""

    def __init__(self, inputs, outputs, step):
        super().__init__()
        self.norm, self.conv = nn.GroupNorm(4, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.step, self.skip = nn.Linear(step, outputs), nn.Conv2d(inputs, outputs, 1)

    def forward(self, x, step):
        return self.conv(F.silu(self.norm(x))) + self.step(step)[..., None, None] + self.skip(x)


class DiffusionUNet(nn.Module):
    """What predicts noise from a noisy image, a time step and a class, as keywords."""

    def __init__(self):
        super().__init__()
        self.embed, self.classes = nn.Linear(8, 16), nn.Embedding(5, 16)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.down, self.middle = Residual(8, 16, 16), Residual(16, 16, 16)
        self.up, self.last = Residual(24, 8, 16), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, sample, timestep, class_labels):
        frequencies = timestep[:, None] / 10.0 ** torch.arange(4)
        step = self.embed(torch.cat([frequencies.sin(), frequencies.cos()], 1))
        step = step + self.classes(class_labels)
        first = self.first(sample)
        inner = self.middle(F.avg_pool2d(self.down(first, step), 2), step)
        joined = torch.cat([F.interpolate(inner, scale_factor=2), first], 1)
        return {"noise": self.last(self.up(joined, step))}


class Yolo(nn.Module):
    """A backbone whose stages split, meet by concatenation, and predict at two scales."""

    def __init__(self):
        super().__init__()
        self.stem = self.unit(3, 16, 3, 2)
        self.split, self.inner = self.unit(16, 16, 1), self.unit(8, 8, 3)
        self.join, self.down = self.unit(24, 16, 1), self.unit(16, 16, 3, 2)
        self.fuse = self.unit(32, 16, 1)
        self.heads = nn.ModuleList(nn.Conv2d(16, 7, 1) for _ in range(2))

    @staticmethod
    def unit(inputs, outputs, kernel, stride=1):
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.SiLU(inplace=True))

    def forward(self, x):
        one, other = self.split(self.stem(x)).chunk(2, 1)
        fine = self.join(torch.cat([one, other, self.inner(other)], 1))
        coarse = self.down(fine)
        above = F.interpolate(coarse, scale_factor=2)
        return [self.heads[0](self.fuse(torch.cat([above, fine], 1))), self.heads[1](coarse)]


class VolumeUNet(nn.Module):
    """Segments volumes: 3-d convolutions, instance norm, a transposed convolution on the way up."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv3d(1, 6, 3, padding=1), nn.InstanceNorm3d(6), nn.PReLU(6))
        self.inner = nn.Sequential(nn.Conv3d(6, 8, 3, 2, 1), nn.InstanceNorm3d(8), nn.PReLU(8))
        self.up, self.last = nn.ConvTranspose3d(8, 6, 2, 2), nn.Conv3d(12, 3, 1)

    def forward(self, volume):
        down = self.down(volume)
        return self.last(torch.cat([down, self.up(self.inner(down))], 1))


class WaveEncoder(nn.Module):
    """Layers of strided 1-d convolutions on waveforms, then attention, as wav2vec 2.0."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv1d(1 if n == 0 else 8, 8, k, s, bias=False)
            for n, (k, s) in enumerate([(10, 5), (3, 2), (3, 2)])
        )
        self.norm = nn.GroupNorm(8, 8)
        self.position = nn.Conv1d(8, 8, 4, padding=2, groups=2)
        self.attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, input_values):
        x = input_values.unsqueeze(1)
        for n, conv in enumerate(self.convs):
            x = conv(x)
            x = F.gelu(self.norm(x) if n == 0 else x)
        x = x + F.gelu(self.position(x)[..., :-1])
        return self.attention(x.transpose(1, 2))


def images(*shape):
    return torch.linspace(-1, 1, math.prod(shape)).mul(99).sin().view(shape)


NETWORKS = {
    "diffusion": (DiffusionUNet, lambda: {
        "sample": images(2, 3, 16, 16), "timestep": torch.tensor([3.0, 400.0]),
        "class_labels": torch.tensor([0, 4])}),
    "yolo": (Yolo, lambda: images(2, 3, 32, 32)),
    "volumes": (VolumeUNet, lambda: images(2, 1, 8, 8, 8)),
    "waveforms": (WaveEncoder, lambda: {"input_values": images(2, 800)}),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("place", ["convolution", "reading"])
def test_every_layer_is_measured_at_both_places(name, place):
    make, batch = NETWORKS[name]
    reseed()
    model = make().eval()
    given = batch()
    report = convsim.measure(model, [given], place=place)
    found = {n for n, m in model.named_modules() if convsim.kernels.is_convolution(m)}
    assert {layer.name for layer in report} == found
    assert report.images == 2
    outputs = {}
    for layer, module in model.named_modules():
        if layer in found:
            module.register_forward_hook(
                lambda m, i, out, layer=layer: outputs.setdefault(layer, out.clone())
            )
    with torch.no_grad():
        model(**given) if isinstance(given, dict) else model(given)
    for layer in report:
        assert 0 <= layer.similarity <= 1 or layer.filters - layer.dead < 2
        if place == "convolution":
            maps = [x.double().flatten(1) for x in outputs[layer.name]]
            matrix = torch.stack([pairwise_cosine_similarity(x, zero_diagonal=False) for x in maps])
            assert_close(layer.matrix, matrix.abs().mean(0), terms=200, size=1)


@pytest.mark.usefixtures("vision")
@pytest.mark.parametrize("place", ["convolution", "reading"])
def test_detection_and_segmentation_of_torchvision(place):
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    reseed()
    detector = ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=3, detections_per_img=1,
        score_thresh=0.99,
    )  # fmt: skip
    photographs = [images(3, 40, 60), images(3, 50, 30)]
    report = convsim.measure(detector, [(photographs, None)], place=place, layers="backbone.*.0")
    assert report.images == 2
    assert len(report) > 20
    segmenter = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)
    report = convsim.measure(segmenter, [images(2, 3, 64, 64)], place=place)
    assert len(report) > 40
    assert all(0 <= layer.similarity <= 1 for layer in report if layer.pixels > 1
               and layer.filters - layer.dead > 1)  # fmt: skip
