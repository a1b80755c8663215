"""Optimizers that climb before they descend, as SAM does: the penalty never goes missing."""

import pytest
import torch
from torch import nn

from convsim import ConvsimError, Regularizer
from seeds import new_generator, reseed

pytestmark = pytest.mark.core

RHO, RATE = 0.05, 0.1


class TwoStep(torch.optim.Optimizer):
    """Sharpness-aware minimisation (Foret et al. 2021), in two calls or with a closure."""

    def __init__(self, parameters, kept_as="base_optimizer"):
        super().__init__(parameters, {})
        vars(self)[kept_as] = torch.optim.SGD(self.param_groups, lr=RATE)
        self.descend = vars(self)[kept_as].step

    @torch.no_grad()
    def first_step(self):
        self.climb = [p.grad * RHO for group in self.param_groups for p in group["params"]]
        self.move(1)
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        self.move(-1)
        self.descend()
        self.zero_grad()

    @torch.no_grad()
    def move(self, sign):
        parameters = [p for group in self.param_groups for p in group["params"]]
        torch._foreach_add_(parameters, self.climb, alpha=sign)

    def step(self, closure):
        self.first_step()
        with torch.enable_grad():
            closure()
        self.second_step()


class Alone(TwoStep):
    """One that descends by itself, and never calls an optimizer's step."""

    def __init__(self, parameters):
        super().__init__(parameters)
        del self.base_optimizer
        self.descend = self.step_alone

    def step_alone(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(RATE * parameter.grad)


def network():
    reseed()
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).double()


def train(penalty=None, by_hand=False, with_closure=False, **options):
    """Take three steps; return the weights."""
    model, criterion = network(), nn.MSELoss()
    optimizer = TwoStep(model.parameters(), **options)
    regularizer = Regularizer(model, penalty) if penalty else None
    on_maps = penalty == "recommended"
    if regularizer and not by_hand:
        regularizer.attach(criterion if on_maps else optimizer)
    for step in range(3):
        images = torch.randn(2, 3, 9, 9, generator=new_generator(step)).double()

        def half(images=images):
            maps = model(images)
            loss = criterion(maps, torch.zeros_like(maps))
            (loss + regularizer() if by_hand and on_maps else loss).backward()

        half()
        if with_closure:
            optimizer.step(half)
            continue
        optimizer.first_step()
        half()
        if by_hand and not on_maps:
            optimizer.move(-1)  # the penalty is added where the descent starts from
            regularizer.backward_()
            optimizer.move(1)
        optimizer.second_step()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("options", [{}, {"with_closure": True}, {"kept_as": "inner"}])
@pytest.mark.parametrize("penalty", ["recommended", "crossed"])
def test_an_attached_penalty_enters_the_descent(penalty, options):
    expected = train(penalty, by_hand=True)
    torch.testing.assert_close(train(penalty, **options), expected, rtol=1e-12, atol=1e-12)
    assert (train() - expected).norm() > 1e-3 * expected.norm()


def test_an_optimizer_that_would_take_nothing_is_refused():
    model = network()
    with pytest.raises(ConvsimError, match="attach the regularizer to the criterion"):
        Regularizer(model).attach(TwoStep(model.parameters()))
    with pytest.raises(
        ConvsimError, match=r"Alone takes its steps in first_step\(\) and second_st"
    ):
        Regularizer(model, "crossed").attach(Alone(model.parameters()))
