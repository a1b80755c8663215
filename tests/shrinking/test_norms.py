"""BatchNorms that follow what the smaller network computes."""

import copy
import sys

import pytest
import torch
from networks import network, plant_twins_
from torch import nn
from torch.nn import functional as F  # noqa: N812

import convsim
from convsim.shrinking.groups import channel_groups
from convsim.shrinking.norms import follow_norms_

pytestmark = pytest.mark.numeric


def moments(maps):
    return maps.mean((0, 2, 3)), maps.var((0, 2, 3))


def test_statistics_move_as_those_of_the_calibration_images_do():
    model, images = network("plain", torch.float64)
    small, images = copy.deepcopy(model), images[:40] * 2 + 1
    with torch.no_grad():
        small[0].weight.mul_(1.5)
        small[3].weight.add_(0.1)
        read = {}
        for net in (model, small):
            first = net[0](images)
            second = net[3](F.relu(F.batch_norm(first, None, None, *net[1].parameters(), True)))
            read[net] = [moments(first), moments(second)]
    follow_norms_(small, model, {}, [images])
    for place, norm in enumerate((1, 4)):
        (mean, variance), (old_mean, old_variance) = read[small][place], read[model][place]
        trained = model[norm]
        torch.testing.assert_close(small[norm].running_mean, trained.running_mean + mean - old_mean)
        torch.testing.assert_close(
            small[norm].running_var,
            trained.running_var * (variance + trained.eps) / (old_variance + trained.eps),
        )


@pytest.mark.parametrize("name", ["plain", "residual, norm first", "depthwise"])
def test_where_nothing_is_lost_nothing_moves_whatever_the_images(name):
    model, images = network(name, torch.float64)
    groups, _ = channel_groups(model, images[:2])
    plant_twins_(model, groups)
    shrunk = convsim.shrink(
        model, (images * 2 + 1).split(100), channels=0.5, uniformly=True, in_sequence=False
    )
    with torch.no_grad():
        torch.testing.assert_close(shrunk.model(images), model(images), rtol=0, atol=1e-9)


def test_without_the_fit_in_sequence_following_norms_keep_more(monkeypatch):
    torch.manual_seed(0)
    model, images = network("residual")
    errors = []
    for follow in (follow_norms_, lambda *given: None):
        monkeypatch.setattr(sys.modules["convsim.shrinking.shrink"], "follow_norms_", follow)
        shrunk = convsim.shrink(
            model, images.split(64), channels=0.4, uniformly=True, in_sequence=False
        )
        errors.append(shrunk.report.output_error)
    assert errors[0] < 0.9 * errors[1]


def test_single_images_and_norms_without_statistics_are_left_alone():
    model, images = network("plain")
    small = copy.deepcopy(model)
    follow_norms_(small, model, {}, images[:3].split(1))
    assert all(torch.equal(a, b) for a, b in zip(small.buffers(), model.buffers(), strict=True))
    bare = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    follow_norms_(copy.deepcopy(bare), bare, {}, [images])
