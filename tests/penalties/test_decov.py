"""DeCov, the penalty that needs a forward pass."""

import pytest
import torch
from torch import nn

import convsim
from seeds import reseed

pytestmark = pytest.mark.core


def by_loops(maps):
    """½ Σ_{i≠j} Cov(i, j)², over images and positions."""
    samples = [image[:, p].tolist() for image in maps.flatten(2) for p in range(image[0].numel())]
    count, size = len(samples), len(samples[0])
    mean = [sum(s[i] for s in samples) / count for i in range(size)]
    total = 0.0
    for i in range(size):
        for j in range(size):
            if i != j:
                total += (sum((s[i] - mean[i]) * (s[j] - mean[j]) for s in samples) / count) ** 2
    return total / 2


def network():
    reseed()
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3, groups=1)).double()


def test_it_equals_the_loops_and_its_gradient_reaches_the_weights():
    model, images = network(), torch.randn(3, 2, 7, 7, dtype=torch.float64)
    regularizer = convsim.Regularizer(model, "decov", coefficient=2.0)
    output = model(images)
    value = regularizer()
    first = model[0].eval()(images)
    expected = by_loops(first.detach()) + by_loops(output.detach())
    assert value.item() == pytest.approx(2 * expected)
    value.backward()
    assert all(p.grad.abs().sum() > 0 for n, p in model.named_parameters() if "weight" in n)


@pytest.mark.training
def test_training_with_it_lowers_it():
    from convsim.lab.datasets import load_dataset
    from convsim.lab.methods import METHODS
    from convsim.lab.runs import Recipe, Run
    from convsim.lab.training import train

    digits = load_dataset("digits").subset(train=150, seed=0)
    recipe = Recipe(width=4, epochs=4, batch_size=32)
    method = METHODS["decov"]
    records = {}
    for coefficient in (0.0, 0.3):
        run = Run(type(method)("decov", "decov", None, (coefficient,)), 0, recipe, digits)
        model, _ = train(run)
        model.train()
        regularizer = convsim.Regularizer(model, "decov", coefficient=1.0)
        model(digits.train_images.float() / 8 - 1)
        records[coefficient] = regularizer().item()
    assert records[0.3] < 0.7 * records[0.0]
    assert "decov-init" not in METHODS
