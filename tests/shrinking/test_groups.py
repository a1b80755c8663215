"""Which channels belong together, and what is left whole."""

import copy

import pytest
import torch
from networks import NETWORKS, FlattenedAfterPermute, Halves, Residual, Shuffled, network
from torch import nn

from convsim.shrinking.channels import cut_, kept_axes
from convsim.shrinking.groups import channel_groups
from convsim.shrinking.verification import disagreement, verified

pytestmark = pytest.mark.numeric


def found(model, images):
    groups, left = channel_groups(model, images[:2])
    return {group.name: group for group in groups}, {one.layer: one.reason for one in left}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_group_cut_is_the_network_with_those_channels_zeroed(name):
    model, images = network(name)
    groups, _ = channel_groups(model, images[:2])
    exact = copy.deepcopy(model).double()
    for group in groups:
        for unit in range(len(group.units)):
            kept = [c for n, u in enumerate(group.units) if n != unit for c in u]
            assert disagreement(exact, [(group, kept)], images[:2].double()) is None


def test_a_residual_stream_is_one_group_with_all_its_producers():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), Residual(8, 8), Residual(8, 8)).eval()
    model.append(nn.Conv2d(8, 2, 1))
    groups, left = found(model, torch.randn(2, 3, 8, 8))
    stream = groups["0"]
    assert {s.key.name for s in stream.producers} == {"0", "1.body.3", "2.body.3"}
    assert {s.key.name for s in stream.consumers} == {"1.body.0", "2.body.0", "3"}
    assert set(left) == {"3"}


def test_maps_added_to_others_of_their_layer_are_tied():
    model = nn.Sequential(Halves(3, 4), nn.Conv2d(4, 2, 1)).eval()
    groups, _ = found(model, torch.randn(2, 3, 8, 8))
    assert sorted(groups["0.conv"].units) == [(0, 4), (1, 5), (2, 6), (3, 7)]


def test_groups_of_a_grouped_convolution_keep_as_many_channels_each():
    model, images = network("grouped")
    groups, _ = found(model, images)
    assert sorted(groups["0"].units) == [(c, c + 8) for c in range(8)]


def test_a_group_that_the_graph_mistakes_is_refuted():
    model = FlattenedAfterPermute().eval()
    images = torch.randn(2, 3, 8, 8)
    groups, _ = channel_groups(model, images)
    sound, refuted = verified(model, groups, images)
    assert not sound
    assert [group.name for group, _ in refuted] == ["conv"]
    assert "differs from zeroing" in refuted[0][1]


def test_branches_are_found_between_shuffles_of_channels():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *(Shuffled(8) for _ in range(3)))
    model.append(nn.Conv2d(8, 2, 1)).eval()
    images = torch.randn(2, 3, 8, 8)
    groups, left = channel_groups(model, images)
    sound, _ = verified(model, groups, images)
    assert {f"{n}.branch.0" for n in (1, 2, 3)} <= {group.name for group in sound}
    assert "0" in {one.layer for one in left} | {group.name for group in sound}


def test_one_wrong_group_among_many_is_the_only_one_refuted():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.good, self.wrong = nn.Conv2d(3, 6, 3, padding=1), FlattenedAfterPermute()
            self.wrong.conv = nn.Conv2d(6, 8, 3, padding=1)

        def forward(self, x):
            return self.wrong(self.good(x).relu())

    model, images = Both().eval(), torch.randn(2, 3, 8, 8)
    groups, _ = channel_groups(model, images)
    sound, refuted = verified(model, groups, images)
    assert [group.name for group in sound] == ["good"]
    assert [group.name for group, _ in refuted] == ["wrong.conv"]


class UsedTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.again = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.last(self.again(self.again(self.first(x)).relu()).relu())


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.two.weight = self.one.weight
        self.last = nn.Conv2d(3, 2, 1)

    def forward(self, x):
        return self.last(self.two(self.one(x).relu()).relu())


LEFT_WHOLE = {
    "the network's outputs": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1)), "0", "no layer reads them",
    ),
    "a norm across channels": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.Conv2d(4, 2, 1)),
        "0", "works across channels",
    ),
    "a layer used twice": (UsedTwice, "first", "is used 2 times"),
    "a shared parameter": (Tied, "one", "shares a parameter"),
    "a parametrized weight": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 1), nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 2, 1))
        ),
        "0", "computes its weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT_WHOLE)
def test_what_cannot_be_cut_is_left_whole_with_the_reason(case):
    build, layer, reason = LEFT_WHOLE[case]
    groups, left = found(build().eval(), torch.randn(2, 3, 8, 8))
    assert layer not in groups
    assert reason in left[layer]


def test_cutting_keeps_frozen_parameters_frozen_and_the_rest_as_it_is():
    model, images = network("residual")
    model[0].weight.requires_grad_(False)
    groups, _ = channel_groups(model, images[:2])
    cut_(model, kept_axes([(groups[0], range(4))]))
    assert not model[0].weight.requires_grad
    assert model[1].weight.requires_grad
    assert model[0].weight.shape == (4, 3, 3, 3)
    assert model[1].running_mean.shape == (4,)
