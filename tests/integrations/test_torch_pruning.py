"""Redundancy inside Torch-Pruning's own pruners."""

import copy
import sys
from pathlib import Path

import pytest
import torch
import torch_pruning

import convsim
from convsim.integrations.torch_pruning import RedundancyImportance, compensate, kept_channels
from convsim.shrinking.groups import channel_groups

sys.path.append(str(Path(__file__).parents[1] / "shrinking"))
from networks import network, plant_twins_


def pruned(model, images, importance, **options):
    small = copy.deepcopy(model)
    head = [m for m in small.modules() if isinstance(m, torch.nn.Linear)][-1:]
    pruner = torch_pruning.pruner.BasePruner(
        small, images[:2], importance=importance(small), ignored_layers=head, **options
    )
    pruner.step()
    return small, pruner


@pytest.mark.parametrize("name", ["plain", "residual", "depthwise", "1-d"])
def test_a_pruner_drops_twins_and_compensation_makes_up_for_them(name):
    model, images = network(name)
    groups, _ = channel_groups(model, images[:2])
    plant_twins_(model, groups)
    small, pruner = pruned(
        model, images, lambda m: RedundancyImportance(m, [images], positions=10**9),
        pruning_ratio=0.5,
    )  # fmt: skip
    for group in groups:
        (slot, *_) = group.producers
        count = len(small.get_submodule(slot.key.name).weight)
        assert count == len(slot.channels) // 2
    shrunk = compensate(model, pruner.DG.pruning_history(), [images], positions=10**9)
    assert [p.shape for p in shrunk.model.parameters()] == [p.shape for p in small.parameters()]
    with torch.no_grad():
        torch.testing.assert_close(shrunk.model(images), model(images), rtol=0, atol=1e-4)
        assert (small(images) - model(images)).abs().max() > 1e-2


def test_it_ranks_over_layers_and_surveys_anew_after_each_step():
    model, images = network("plain")
    small, pruner = pruned(
        model, images, lambda m: RedundancyImportance(m, [images]),
        pruning_ratio=0.5, global_pruning=True, iterative_steps=2,
    )  # fmt: skip
    once = sum(p.numel() for p in small.parameters())
    pruner.step()
    assert sum(p.numel() for p in small.parameters()) < once
    small(images)


def test_any_pruner_is_made_better_by_compensation():
    model, images = network("plain")
    small, pruner = pruned(
        model, images, lambda m: torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.5,
    )  # fmt: skip
    shrunk = compensate(model, pruner.DG.pruning_history(), [images])
    with torch.no_grad():
        want = model(images)
        bare, made_up = (
            float((net(images) - want).square().mean()) for net in (small, shrunk.model)
        )
    assert made_up < bare / 4


def test_a_history_in_steps_is_put_together():
    model, _ = network("plain")
    kept = kept_channels(model, [["0", True, [0, 2]], ["0", True, [0]], ["3", True, [11]]])
    assert kept == {"0": [3, 4, 5, 6, 7], "3": list(range(11))}


@pytest.mark.parametrize("step", [["0", False, [0]], ["x", True, [0]], ["1", True, [0]]])
def test_a_history_that_cannot_be_compensated_for_is_refused(step):
    model, images = network("plain")
    with pytest.raises(convsim.ConvsimError, match=f"of '{step[0]}'; only"):
        compensate(model, [step], [images])
