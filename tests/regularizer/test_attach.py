"""A regularizer that is attached, and called as well."""

import pytest
import torch
from torch import nn

import convsim


def test_called_beside_a_criterion_it_is_attached_to_it_adds_no_second_gradient():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Flatten(), nn.Linear(6 * 36, 3))
    images, labels = torch.randn(8, 1, 8, 8), torch.randint(3, (8,))
    gradients = []
    for beside in (False, True):
        criterion = nn.CrossEntropyLoss()
        regularizer = convsim.Regularizer(model).attach(criterion)
        loss = criterion(model(images), labels)
        (gradient,) = torch.autograd.grad(loss + regularizer() if beside else loss, model[0].weight)
        gradients.append(gradient)
        regularizer.remove()
    assert torch.equal(*gradients)


def test_a_function_cannot_be_attached_to():
    regularizer = convsim.Regularizer(nn.Sequential(nn.Conv2d(3, 4, 3)))
    with pytest.raises(convsim.ConvsimError, match=r"takes a module, .* got cross_entropy\."):
        regularizer.attach(nn.functional.cross_entropy)
