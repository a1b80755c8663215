"""What a penalty on maps keeps of forward passes, and for how long."""

import gc
import weakref

import pytest
import torch
from torch import nn

from convsim import ConvsimError, ConvsimWarning, Regularizer
from seeds import new_generator, reseed

pytestmark = pytest.mark.core


def network():
    reseed()
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3)).double()


def images(seed=1, count=3):
    return torch.randn(count, 2, 7, 7, dtype=torch.float64, generator=new_generator(seed))


PENALTIES = pytest.mark.parametrize("penalty", ["recommended", "decov"])


@PENALTIES
def test_it_asks_for_a_forward_pass_that_records_gradients(penalty):
    model = network()
    regularizer = Regularizer(model, penalty)
    with torch.no_grad():
        model(images())
    for ask in (regularizer, regularizer.values):
        with pytest.raises(ConvsimError, match=r"No layer has put out feature maps yet.*forward"):
            ask()
    model(images())
    assert regularizer() > 0
    with pytest.raises(ConvsimError, match=r"acts on feature maps.*loss \+ regularizer\(\)"):
        regularizer.backward_()


@PENALTIES
def test_several_forward_passes_are_averaged(penalty):
    model = network()
    regularizer = Regularizer(model, penalty)
    values = []
    for seed in (1, 2):
        model(images(seed))
        values.append(regularizer())
    model(images(1))
    model(images(2))
    torch.testing.assert_close(regularizer(), (values[0] + values[1]) / 2)


@PENALTIES
def test_a_layer_that_a_step_skips_adds_nothing_to_it(penalty):
    model = network()
    regularizer = Regularizer(model, penalty, coefficient=1.0)
    (model(images(1)).square().mean() + regularizer()).backward()
    model.zero_grad()
    (model[0](images(2)).square().mean() + regularizer()).backward()
    assert model[0].weight.grad.any()
    assert model[2].weight.grad is None
    assert regularizer.values()["2"] == 0


@PENALTIES
def test_fine_tuning_in_eval_mode_is_penalised(penalty):
    model = network().eval()
    regularizer = Regularizer(model, penalty)
    model(images())
    regularizer().backward()
    assert model[0].weight.grad.any()


def test_an_empty_batch_changes_nothing():
    model = network()
    regularizer = Regularizer(model)
    model(images())
    expected = regularizer()
    model(images())
    model(images(count=0))
    assert regularizer() == expected
    model(images(count=0))
    assert regularizer() == 0


def test_graphs_are_let_go_after_the_backward_pass_and_do_not_pile_up():
    model = network()
    regularizer = Regularizer(model)
    graphs = []
    for _ in range(40):
        output = model(images())
        graphs.append(weakref.ref(output.grad_fn))
        del output
    gc.collect()
    assert sum(graph() is not None for graph in graphs) <= 16
    assert regularizer() > 0
    model.eval()
    for _ in range(5):
        model(images())
    (model(images()).square().mean() + regularizer()).backward()
    gc.collect()
    assert not any(graph() is not None for graph in graphs)


@pytest.mark.parametrize("asked", [True, False])
def test_a_skipped_batch_does_not_count_in_the_next_penalty(asked):
    model = network()
    regularizer = Regularizer(model)
    model(images(1))
    expected = regularizer()
    loss = model(images(2) * torch.nan).square().mean()
    if asked:  # loss = … + regularizer(), and then the check
        assert (loss + regularizer()).isnan()
    else:
        regularizer.forget()
    model(images(1))
    assert regularizer() == expected


def test_asked_twice_it_answers_the_same_and_a_second_backward_is_refused():
    model = network()
    regularizer = Regularizer(model)
    loss = model(images()).square().mean()
    first, second = regularizer(), regularizer()
    assert first == second
    (loss + first).backward()
    value = regularizer()
    assert value == first  # to look
    with pytest.raises(ConvsimError, match="The backward pass of these feature maps is over"):
        value.backward()


def test_two_losses_of_one_forward_pass():
    model = network()
    regularizer = Regularizer(model)
    output = model(images())
    (output.mean() + regularizer()).backward(retain_graph=True)
    once = model[0].weight.grad.clone()
    output.square().mean().backward()
    model.zero_grad()
    output = model(images())
    torch.testing.assert_close(
        torch.autograd.grad(output.mean() + regularizer(), model[0].weight)[0], once
    )


def test_a_scaler_sees_a_penalty_that_is_no_number():
    model = network()
    regularizer = Regularizer(model)
    scaler, optimizer = torch.amp.GradScaler("cpu"), torch.optim.SGD(model.parameters(), lr=0.1)
    before = [parameter.clone() for parameter in model.parameters()]
    x = images()
    x[0, 0, 3, 3] = torch.nan
    loss = model(x)[1:].square().mean() + regularizer()
    assert loss.isnan()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


class TestAttach:
    """To a criterion, or to a model that returns its loss."""

    def step(self, model, criterion, optimizer, parts=1):
        optimizer.zero_grad()
        for part in range(parts):
            (criterion(model(images(part)), torch.zeros(3, 3, 3, 3).double()) / parts).backward()
        optimizer.step()

    @pytest.mark.parametrize("parts", [1, 2])
    def test_it_is_loss_plus_penalty(self, parts):
        trained = []
        for attached in (False, True):
            model, criterion = network(), nn.MSELoss()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            regularizer = Regularizer(model)
            both = criterion if attached else lambda *x, c=criterion, r=regularizer: c(*x) + r()
            if attached:
                regularizer.attach(criterion)
            for _ in range(3):
                self.step(model, both, optimizer, parts)
            trained.append([parameter.detach() for parameter in model.parameters()])
        torch.testing.assert_close(*trained)

    def test_a_cell_run_three_times_counts_once(self):
        model, criterion = network(), nn.MSELoss()
        target = torch.zeros(3, 3, 3, 3).double()
        values = []
        for _ in range(3):
            Regularizer(model).attach(criterion)
            values.append(criterion(model(images()), target).item())
        assert values == [values[0]] * 3
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        steps = []
        for _ in range(3):
            Regularizer(model, "crossed").attach(optimizer)
            model.zero_grad()
            model(images()).sum().mul(0).backward()
            before = model[0].weight.detach().clone()
            optimizer.step()
            steps.append((model[0].weight - before).norm().item())
            with torch.no_grad():
                model[0].weight.copy_(before)
        assert steps == pytest.approx([steps[0]] * 3, rel=1e-3)

    def test_evaluation_and_other_models_are_left_alone(self):
        model, criterion = network(), nn.MSELoss()
        regularizer = Regularizer(model).attach(criterion)
        target = torch.zeros(3, 3, 3, 3).double()
        with torch.no_grad():
            assert criterion(model(images()), target) == model(images()).square().mean()
        output = network()(images())
        with pytest.warns(ConvsimWarning, match="attached to a loss, but its layers have put out"):
            loss = criterion(output, target)
        assert loss == output.square().mean()
        regularizer.remove()
        output = model(images())
        assert criterion(output, target) == output.square().mean()

    def test_a_model_that_returns_its_loss(self):
        class WithLoss(nn.Module):
            def __init__(self):
                super().__init__()
                self.body = network()

            def forward(self, x):
                output = self.body(x)
                return {"loss": output.square().mean(), "logits": output}

        model = WithLoss()
        plain = model(images())["loss"]
        regularizer = Regularizer(model, coefficient=2.0).attach(model)
        loss = model(images())["loss"]
        loss.backward()
        assert loss > plain
        assert loss.item() == pytest.approx(plain.item() + regularizer().item())

    def test_what_would_go_wrong_is_refused(self):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with pytest.raises(ConvsimError, match="an optimizer comes after their backward pass"):
            Regularizer(model).attach(optimizer)
        criterion = nn.MSELoss(reduction="none")
        Regularizer(model).attach(criterion)
        with pytest.raises(ConvsimError, match="added to a loss of one number"):
            criterion(model(images()), torch.zeros(3, 3, 3, 3).double())
        Regularizer(model).attach(model)
        with pytest.raises(ConvsimError, match="returned a tensor of shape"):
            model(images())

    def test_a_schedule_advances_with_the_optimizer(self):
        model, criterion = network(), nn.MSELoss()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        regularizer = Regularizer(model, coefficient=2.0, decay_steps=4)
        regularizer.attach(criterion, optimizer=optimizer)
        seen = []
        for _ in range(5):
            seen.append(regularizer.coefficient)
            self.step(model, criterion, optimizer)
        assert seen == [2.0, 1.5, 1.0, 0.5, 0.0]
