"""Muon on kernels: the step is orthogonal, the rest is SGD's, and a resume is exact."""

import copy

import pytest
import torch
from torch import nn

from convsim.lab.datasets import load_dataset
from convsim.lab.methods import parse_method
from convsim.lab.muon import OTHERS, KernelMuon
from convsim.lab.runs import Recipe, Run
from convsim.lab.training import train


def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=2), nn.Flatten()
    return nn.Sequential(*layers, nn.LazyLinear(2))


def backward(model):
    torch.manual_seed(1)
    model(torch.randn(4, 3, 7, 7)).square().mean().backward()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_kernels_take_orthogonal_steps_and_the_rest_those_of_sgd(memory_format):
    model = network()
    backward(model)  # the lazy layer is made
    model.zero_grad()
    model.to(memory_format=memory_format)
    before = copy.deepcopy(model)
    backward(model)
    gradients = [p.grad.clone() for p in model.parameters()]
    KernelMuon(model, lr=0.1, momentum=0.9, weight_decay=0.0).step()
    for (name, now), was, gradient in zip(
        model.named_parameters(), before.parameters(), gradients, strict=True
    ):
        step = (was - now).detach()
        if now.dim() == 4:
            # Torch's five iterations leave singular values between 0.5 and 1.5 (its source).
            rows = step.flatten(1) / 0.1
            values = torch.linalg.svdvals(rows)
            assert 0.3 < values.min() <= values.max() < 1.6
            assert (rows * gradient.flatten(1)).sum() > 0
            u, _, v = torch.linalg.svd(gradient.flatten(1), full_matrices=False)
            assert torch.nn.functional.cosine_similarity(
                rows.flatten(), (u @ v).flatten(), dim=0
            ) > 0.9  # fmt: skip
        else:
            torch.testing.assert_close(step, OTHERS * 0.1 * gradient, msg=name)
        assert torch.equal(now.grad, gradient)


def test_a_resume_is_exact(tmp_path):
    class Killed(BaseException):
        pass

    def kill(epoch, total, scores):
        raise Killed

    data = load_dataset("digits").subset(train=200, test=50)
    recipe = Recipe(
        width=4, epochs=2, batch_size=32, measured_images=20, optimizer="muon", lr=0.05,
        schedule="annealed", precision="bf16",
    )  # fmt: skip
    run = Run(parse_method("crossed:0.5"), 0, recipe, data)
    whole, record = train(run)
    with pytest.raises(Killed):
        train(run, tmp_path, kill)
    resumed, _ = train(run, tmp_path)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    losses = record["result"]["train_loss"]
    assert losses[-1] < losses[0]
