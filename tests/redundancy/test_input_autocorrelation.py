"""Similarity on known inputs against the feature maps that layers really put out."""

import pytest
import torch
from torch import nn

import convsim
from closeness import assert_close
from convsim.kernels import kernel_bank
from convsim.redundancy.input_autocorrelation import energy_by_class
from seeds import new_generator

pytestmark = pytest.mark.core

LAYERS = [
    nn.Conv2d(3, 5, 3),
    nn.Conv2d(3, 5, 3, padding=1),
    nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2),
    nn.Conv2d(3, 4, 3, padding="same", dilation=2),
    nn.Conv2d(3, 4, 3, padding=2, padding_mode="circular", bias=False),
    nn.Conv2d(3, 4, 4, padding="same", padding_mode="reflect"),
    nn.Conv2d(4, 4, 3, groups=4),
    nn.Conv2d(3, 6, 1),
    nn.Conv1d(2, 4, 5, stride=2, padding=2),
    nn.Conv3d(2, 3, 2, padding=1),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_it_equals_the_mean_inner_product_of_real_maps(layer):
    layer.double().reset_parameters()
    dims = layer.weight.dim() - 2
    images = torch.randn(5, layer.in_channels, *[8] * dims, dtype=torch.float64) + 0.3
    report = convsim.measure(layer, [images[:2], images[2:]], autocorrelation=True)
    r = report.layers[0].kernels.autocorrelation
    with torch.no_grad():
        maps = layer(images)
        if layer.bias is not None:
            maps = maps - layer.bias.view(-1, *[1] * dims)
    maps = maps.flatten(2)
    expected = (maps @ maps.mT).mean(0)
    group = torch.arange(layer.out_channels) // (layer.out_channels // layer.groups)
    expected = expected * (group[:, None] == group)
    weight = layer.weight.detach()
    raw = convsim.expected_similarity(weight, r, groups=layer.groups, scale="raw")
    torch.testing.assert_close(raw, expected, rtol=1e-10, atol=1e-10)
    unit = convsim.expected_similarity(weight, r, groups=layer.groups)
    norms = expected.diagonal().sqrt()
    torch.testing.assert_close(unit, expected / norms[:, None] / norms)


def test_white_inputs_give_kernel_orthogonality_back():
    weight = torch.randn(6, 2, 3, 3, generator=new_generator())
    white = torch.eye(18).unsqueeze(0)
    flat = weight.flatten(1)
    raw = convsim.expected_similarity(weight, white, scale="raw")
    assert_close(raw, flat @ flat.T, terms=18)
    unit = nn.functional.normalize(flat)
    assert_close(convsim.expected_similarity(weight, white), unit @ unit.T, terms=2 * 18)


def test_zero_filters_and_wrong_shapes():
    weight = torch.zeros(2, 1, 2, requires_grad=True)
    white = torch.eye(2).unsqueeze(0)
    value = convsim.expected_similarity(weight, white)
    assert not value.any()
    value.sum().backward()
    assert weight.grad.isfinite().all()
    with pytest.raises(convsim.ConvsimError, match=r"= \(1, 2, 2\) for a weight .* got \(2, 2\)"):
        convsim.expected_similarity(weight, white[0])
    with pytest.raises(convsim.ConvsimError, match="scale must be"):
        convsim.expected_similarity(weight, white, scale="big")


def shares(inputs):
    layer = nn.Conv1d(inputs.shape[1], 2, 3)
    return convsim.measure(layer, [inputs], autocorrelation=True).layers[0].kernels.energy


def test_energy_lies_where_inputs_of_a_class_put_it():
    generator = new_generator()
    white = torch.randn(400, 3, 200, generator=generator)
    smooth = nn.functional.avg_pool1d(white, 3, 1)
    by_channel = torch.cat([white[:, :1, :-2], 3 * smooth[:, 1:2], 0.3 * smooth[:, 2:]], 1)
    assert shares(white)["white"] > 0.99
    common = shares(smooth)
    assert common["white"] < 0.6
    assert common["common"] > 0.99
    matched = shares(by_channel)
    assert matched["common"] < 0.7
    assert matched["matched"] > 0.99
    mixed = shares(white[:, :1] + 0.1 * white)
    assert mixed["matched"] < 0.5


def test_energy_by_hand():
    # Two channels, one tap: R = [[2, 1], [1, 4]].
    bank = kernel_bank(torch.ones(1, 2, 1))
    energy = energy_by_class(torch.tensor([[[2.0, 1.0], [1.0, 4.0]]]), bank)
    assert_close(energy, {"white": 18 / 22, "common": 18 / 22, "matched": 20 / 22}, terms=6)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(convsim.ConvsimError, match="'' is a transposed convolution"):
        convsim.measure(nn.ConvTranspose2d(1, 2, 3), [], autocorrelation=True)

    class Padded(nn.Conv2d):
        def forward(self, x):
            return super().forward(nn.functional.pad(x, (1, 1, 1, 1)))

    with pytest.raises(convsim.ConvsimError, match=r"'' \(Padded\) put out 36 .* make 16"):
        convsim.measure(Padded(1, 2, 3), [torch.randn(1, 1, 6, 6)], autocorrelation=True)


def test_a_report_shows_and_keeps_the_shares():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    report = convsim.measure(model, [torch.randn(2, 3, 9, 9)], autocorrelation=True)
    again = convsim.RedundancyReport.from_json(report.to_json())
    assert again.layers[1].kernels.energy == report.layers[1].kernels.energy
    assert again.layers[1].kernels.autocorrelation is None
    _, table, _ = report.table().renderables
    headings = [column.header for column in table.columns]
    assert headings[-3:] == ["white", "common", "matched"]
