"""Shrinking whole networks."""

import pytest
import torch
from networks import NETWORKS, network, plant_twins_
from torch import nn

import convsim
from convsim.shrinking.groups import channel_groups
from convsim.shrinking.verification import verified

ALL = 10**9
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-9}


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_planted_redundancy_goes_without_a_trace(name, dtype):
    model, images = network(name, dtype)
    groups, _ = channel_groups(model, images[:2])
    groups, refuted = verified(model, groups, images[:2])
    assert not refuted
    plant_twins_(model, groups)
    shrunk = convsim.shrink(model, images.split(100), channels=0.5, uniformly=True, positions=ALL)
    for group in groups:
        for slot in group.producers:
            module = shrunk.model.get_submodule(slot.key.name)
            left = module.out_features if isinstance(module, nn.Linear) else module.out_channels
            assert left == len(slot.channels) // 2
    fresh = torch.randn_like(images[:20])
    with torch.no_grad():
        torch.testing.assert_close(
            shrunk.model(fresh), model(fresh), rtol=0, atol=TOLERANCES[dtype]
        )
