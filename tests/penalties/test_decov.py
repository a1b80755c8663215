"""DeCov, the penalty that needs a forward pass."""

import pytest
import torch
from torch import nn

import convsim
from convsim.penalties import DeCov
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
    expected = by_loops(model[0](images).detach()) + by_loops(output.detach())
    regularizer.forget()
    assert value.item() == pytest.approx(2 * expected)
    value.backward()
    assert all(p.grad.abs().sum() > 0 for n, p in model.named_parameters() if "weight" in n)


def test_gradcheck():
    maps = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(DeCov().maps_value, maps)
    independent = torch.tensor([[[1.0, -1, 1, -1], [1, 1, -1, -1]]])
    assert DeCov().maps_value(independent) == 0


def test_it_asks_for_a_forward_pass():
    model = network()
    regularizer = convsim.Regularizer(model, "decov")
    with pytest.raises(convsim.ConvsimError, match=r"'0' has put out no feature maps .* forward"):
        regularizer()
    model(torch.randn(1, 2, 7, 7, dtype=torch.float64))
    regularizer()
    with pytest.raises(convsim.ConvsimError, match="has put out no feature maps"):
        regularizer()  # they were used up
    with pytest.raises(convsim.ConvsimError, match=r"needs feature maps.*loss \+ regularizer\(\)"):
        regularizer.backward_()
    with pytest.raises(convsim.ConvsimError, match="needs feature maps"):
        regularizer.values()
    with pytest.raises(convsim.ConvsimError, match="needs feature maps"):
        convsim.initialize_(model, "decov")
    with torch.no_grad():
        model(torch.randn(1, 2, 7, 7, dtype=torch.float64))
    model.eval()(torch.randn(1, 2, 7, 7, dtype=torch.float64))
    with pytest.raises(convsim.ConvsimError, match="has put out no feature maps"):
        regularizer()


def test_several_forward_passes_are_averaged():
    model = network()
    a, b = (torch.randn(2, 2, 7, 7, dtype=torch.float64) for _ in range(2))
    regularizer = convsim.Regularizer(model, "decov")
    values = []
    for batch in (a, b):
        model(batch)
        values.append(regularizer())
    model(a)
    model(b)
    torch.testing.assert_close(regularizer(), (values[0] + values[1]) / 2)


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
