"""The penalty under what training loops do to models, weights and optimizers."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from closeness import assert_close
from convsim import PRESETS, ConvsimError, Regularizer
from convsim.penalties import ActivationPenalty
from seeds import new_generator, reseed

pytestmark = pytest.mark.core

KERNEL_PENALTIES = [
    name for name, preset in PRESETS.items() if not isinstance(preset.penalty, ActivationPenalty)
]


PASS = 27 + 54 + 54 + 196
"""The sums to a loss or a penalty of the network below, one after the other."""
TRAINED = 3 * 2 * PASS
"""To a weight after three steps."""


class Network(nn.Module):
    def __init__(self, reentrant=None):
        super().__init__()
        reseed()
        self.reentrant = reentrant
        self.stem = nn.Conv2d(3, 6, 3)
        self.body = nn.Sequential(nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3))

    def forward(self, x):
        x = self.stem(x)
        if self.reentrant is None:
            return self.body(x)
        return checkpoint(self.body, x, use_reentrant=self.reentrant)


def images(seed=1):
    return torch.randn(4, 3, 9, 9, generator=new_generator(seed))


def train(
    model,
    penalty="recommended",
    in_loss=None,
    dress=lambda x: x,
    after=lambda model: None,
    run=None,
):
    regularizer = Regularizer(model, penalty, coefficient=3.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    on_maps = isinstance(regularizer.penalty, ActivationPenalty)
    in_loss = on_maps if in_loss is None else in_loss
    for step in range(3):
        optimizer.zero_grad()
        loss = (model if run is None else run)(dress(images(step))).square().mean()
        if in_loss:
            loss = loss + regularizer()
        loss.backward()
        if not in_loss:
            regularizer.backward_()
        optimizer.step()
        after(model)
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize("penalty", ["recommended", "decov", "crossed"])
def test_activation_checkpointing(penalty):
    expected = train(Network(), penalty)
    assert_close(train(Network(reentrant=False), penalty), expected, terms=TRAINED)


@pytest.mark.parametrize("penalty", ["recommended", "decov"])
def test_reentrant_checkpointing_has_no_graph_of_the_maps(penalty):
    model = Network(reentrant=True)
    regularizer = Regularizer(model, penalty, layers="body.*")
    model(images())
    with pytest.raises(ConvsimError, match="checkpoint activations with use_reentrant=False"):
        regularizer()


@pytest.mark.parametrize("penalty", ["recommended", "crossed", "cosine"])
def test_channels_last(penalty):
    model = Network().to(memory_format=torch.channels_last)
    actual = train(model, penalty, dress=lambda x: x.contiguous(memory_format=torch.channels_last))
    assert_close(actual, train(Network(), penalty), terms=TRAINED)
    assert model.stem.weight.is_contiguous(memory_format=torch.channels_last)


def test_averaged_weights_are_those_of_training_and_are_not_watched():
    averaged, trained = [], Network()
    ema = torch.optim.swa_utils.AveragedModel(
        trained, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)
    )

    def after(model):
        ema.update_parameters(model)
        ema(torch.zeros(1, 3, 9, 9))  # must not become what the penalty sees
        averaged.append([parameter.clone() for parameter in model.parameters()])

    actual = train(trained, after=after)
    assert_close(actual, train(Network()), terms=TRAINED)
    expected = averaged[0]
    for weights in averaged[1:]:
        expected = [(old + new) / 2 for old, new in zip(expected, weights, strict=True)]
    assert_close(list(ema.module.parameters()), expected, terms=2 * len(averaged))


@pytest.mark.parametrize("dress", [parametrizations.weight_norm, parametrizations.orthogonal])
def test_parametrized_weights(dress):
    model = Network()
    dress(model.body[0])
    twin = copy.deepcopy(model)
    in_place = train(model, "crossed", in_loss=False)
    assert_close(in_place, train(twin, "crossed", in_loss=True), terms=TRAINED)


class WithPenalty(nn.Module):
    """Model and penalty in one forward pass, so that both see the parameters of the call."""

    def __init__(self, penalty):
        super().__init__()
        self.model = Network()
        self.regularizer = Regularizer(self.model, penalty)

    def forward(self, x):
        return self.model(x).square().mean() + self.regularizer()


@pytest.mark.parametrize("penalty", ["recommended", "crossed", "matched", "soft", "decov"])
def test_functional_call_and_its_gradient_over_an_ensemble(penalty):
    both = WithPenalty(penalty)
    members = [Network() for _ in range(3)]
    for scale, member in enumerate(members, 1):
        nn.init.normal_(member.stem.weight, std=scale)
    parameters, _ = torch.func.stack_module_state(members)
    parameters = {f"model.{name}": value.detach() for name, value in parameters.items()}

    def loss(parameters, x):
        return torch.func.functional_call(both, parameters, (x,))

    values = torch.func.vmap(loss, in_dims=(0, None))(parameters, images())
    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(0, None))(parameters, images())
    for i, member in enumerate(members):
        alone = Regularizer(member, penalty)
        expected = member(images()).square().mean() + alone()
        assert_close(values[i], expected, terms=PASS)
        expected.backward()
        for name, parameter in member.named_parameters():
            actual = gradients[f"model.{name}"][i]
            assert_close(actual, parameter.grad, terms=2 * PASS)


@pytest.mark.traced
@pytest.mark.parametrize("penalty", KERNEL_PENALTIES)
def test_backward_compiles_into_one_graph(penalty):
    torch._dynamo.reset()
    model = Network()
    regularizer = Regularizer(model, penalty)
    model(images())
    expected = regularizer.backward_()
    gradients = [parameter.grad for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    value = torch.compile(regularizer.backward_, fullgraph=True, backend="aot_eager")()
    assert_close(value, expected, terms=PASS)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        if gradient is not None:
            assert_close(parameter.grad, gradient, terms=2 * PASS)


@pytest.mark.traced
@pytest.mark.parametrize("penalty", ["recommended", "decov"])
def test_a_compiled_model_trains_alike_also_on_batches_of_other_sizes(penalty):
    torch._dynamo.reset()
    expected = train(Network(), penalty)
    model = Network()
    run = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_close(train(model, penalty, run=run), expected, terms=TRAINED)
    regularizer = Regularizer(model)
    for count, size in ((4, 9), (3, 9), (6, 12)):
        batch = torch.randn(count, 3, size, size)
        run(batch)
        compiled = regularizer()
        model(batch)
        assert_close(compiled, regularizer(), terms=PASS)


@pytest.mark.traced
def test_a_model_that_was_compiled_and_run_before_is_looked_at():
    torch._dynamo.reset()
    model = Network()
    run = torch.compile(model, backend="aot_eager")
    run(images())
    regularizer = Regularizer(model)
    run(images())
    compiled = regularizer()
    model(images())
    assert_close(compiled, regularizer(), terms=PASS)


def test_a_second_derivative_with_a_layer_frozen_later():
    model = Network().double()
    regularizer = Regularizer(model, "crossed", layers="body.*")
    model.body[0].weight.requires_grad_(False)
    alone = Regularizer(model, "crossed", layers="body.2")
    expected = second_derivative(alone, model)
    torch.testing.assert_close(second_derivative(regularizer, model), expected)


def second_derivative(regularizer, model):
    last = model.body[2].weight
    (gradient,) = torch.autograd.grad(regularizer(), last, create_graph=True)
    return torch.autograd.grad(gradient.square().sum(), last)


class TestAttach:
    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.1)

    def test_it_leaves_and_moves(self):
        model = Network()
        first, second = self.optimizer(model), self.optimizer(model)
        regularizer = Regularizer(model, "crossed").attach(first)
        regularizer.attach(second)
        for optimizer, moves in ((first, False), (second, True)):
            before = model.stem.weight.clone()
            optimizer.zero_grad()
            optimizer.step()
            assert torch.equal(before, model.stem.weight) != moves
        regularizer.remove()
        second.zero_grad()
        second.step()
        assert model.stem.weight.grad is None

    def test_a_line_search_sees_the_penalty(self):
        model = Network()
        optimizer = torch.optim.LBFGS(model.parameters(), line_search_fn="strong_wolfe")
        regularizer = Regularizer(model, "crossed").attach(optimizer)
        before = regularizer()

        def closure():
            optimizer.zero_grad()
            loss = 0 * model(images()).square().mean()
            loss.backward()
            return loss

        assert_close(optimizer.step(closure=closure), before, terms=PASS)
        assert regularizer() < before

    def test_a_skipped_step_leaves_the_weights(self):
        model = Network()
        optimizer, scaler = self.optimizer(model), torch.amp.GradScaler("cpu")
        Regularizer(model, "crossed").attach(optimizer)
        before = model.stem.weight.clone()
        scaler.scale(model(images() * torch.inf).square().mean()).backward()
        scaler.step(optimizer)
        assert torch.equal(before, model.stem.weight)

    @pytest.mark.parametrize(
        ("penalty", "parameters", "message"),
        [
            ("crossed", lambda model: nn.Linear(2, 2).parameters(), "steps none of the regular"),
            ("crossed", lambda model: model.stem.parameters(), "not others, such as 'body.0'"),
            ("decov", lambda model: model.parameters(), "acts on feature maps, and an optimizer"),
        ],
    )
    def test_what_would_go_wrong_is_refused(self, penalty, parameters, message):
        model = Network()
        optimizer = torch.optim.SGD(parameters(model), lr=0.1)
        with pytest.raises(ConvsimError, match=message):
            Regularizer(model, penalty).attach(optimizer)

    def test_an_optimizer_that_calls_no_hooks_is_refused(self):
        class Own:
            def step(self):
                """Step without torch's wrapper."""

        with pytest.raises(
            ConvsimError, match=r"Own is no torch\.optim\.Optimizer that calls hooks"
        ):
            Regularizer(Network(), "crossed").attach(Own())
