"""The model-level penalty: its two routes to one gradient, its coefficient, its layers."""

import copy
import math
import pickle
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import convsim
from closeness import assert_close
from convsim import PRESETS, ConvolutionalSimilarity, Regularizer
from correlations import mean_square
from seeds import reseed

pytestmark = pytest.mark.core

TERMS = 8 * 3 * 3 * 3
"""The numbers that enter a value: of the layers below, a weight's."""


class Standardised(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight - self.weight.mean((1, 2, 3), True), self.bias)


def model_of_all_kinds():
    reseed()
    model = nn.ModuleDict(
        {
            "plain": nn.Conv2d(3, 8, 3),
            "strided": nn.Conv2d(8, 8, 3, stride=2, groups=2),
            "depthwise": nn.Conv2d(8, 8, 3, groups=8),
            "pointwise": nn.Conv2d(8, 8, 1),
            "one_d": nn.Conv1d(2, 4, 5, dilation=2),
            "three_d": nn.Conv3d(1, 4, 2),
            "transposed": nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2),
            "normed": parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
            "standardised": Standardised(3, 4, 3),
        }
    )
    model["shared"] = nn.Conv2d(3, 8, 3)
    model["shared"].weight = model["plain"].weight
    return model


PENALTIES = [
    "crossed",
    "authors",
    ConvolutionalSimilarity(channels="matched"),
    ConvolutionalSimilarity(scale="raw"),
]


def gradients(model):
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_both_routes_give_the_same_value_and_gradients(penalty, dtype):
    model = model_of_all_kinds().to(dtype)
    twin = copy.deepcopy(model)
    value = Regularizer(model, penalty, coefficient=0.7)()
    value.backward()
    closed = Regularizer(twin, penalty, coefficient=0.7).backward_()
    assert_close(closed, value, terms=TERMS)
    assert not closed.requires_grad
    expected, actual = gradients(model), gradients(twin)
    assert actual.keys() == expected.keys()
    assert any("normed" in name for name in actual)
    assert any("standardised" in name for name in actual)
    assert not any("depthwise" in name for name in actual)
    for name, gradient in expected.items():
        assert actual[name].dtype == dtype
        # A norm's gradient is what is left of its directions'.
        layer = [g for other, g in expected.items() if other.split(".")[0] == name.split(".")[0]]
        size = max(g.abs().max().item() for g in layer)
        terms = 2 if dtype == torch.bfloat16 else TERMS
        assert_close(actual[name], gradient, terms=terms, size=size)


def test_backward_adds_to_gradients_and_scales():
    model = nn.Conv2d(3, 8, 3)
    regularizer = Regularizer(model, "crossed")
    regularizer.backward_()
    once = model.weight.grad.clone()
    value = regularizer.backward_(scale=1024.0)
    assert_close(model.weight.grad, 1025 * once, terms=2)
    assert_close(value, regularizer(), terms=TERMS)


def test_it_sums_or_averages_over_the_layers_it_acts_on():
    model = model_of_all_kinds()
    for name, reduce in (("crossed", "mean"), ("authors", "sum")):
        preset = PRESETS[name]
        regularizer = Regularizer(model, name, coefficient=2.0)
        values = regularizer.values()
        left_out = {"depthwise", "pointwise"} if name == "crossed" else {"depthwise"}
        acting = [value for layer, value in values.items() if layer not in left_out]
        total = sum(acting) / (len(acting) if reduce == "mean" else 1)
        assert_close(regularizer(), 2 * total, terms=TERMS)
        assert preset.penalty.reduction == reduce
    assert "shared" not in values
    assert values["depthwise"] == 0


def test_the_matched_form_acts_on_pointwise_kernels():
    model = nn.Conv2d(8, 8, 1)
    regularizer = Regularizer(model, ConvolutionalSimilarity(channels="matched"))
    regularizer.backward_()
    assert model.weight.grad.any()


def test_authors_form_equals_the_published_formula():
    """Σ over layers, adjacent filters and matched channels of ‖K[i,c] ⋆ K[i+1,c]‖², by conv2d."""
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 5))
    expected = 0.0
    for layer in model:
        weight = layer.weight.detach().double()
        for one, other in pairwise(weight):
            for a, b in zip(one, other, strict=True):
                product = nn.functional.conv2d(a[None, None], b[None, None], padding=a.shape[0] - 1)
                expected += product.square().sum().item()
    assert_close(Regularizer(model, "authors", coefficient=1)(), expected, terms=TERMS)


def test_schedule_counts_calls_of_step_and_resumes():
    model = nn.Conv2d(1, 4, 3)
    regularizer = Regularizer(model, "crossed", coefficient=lambda step: 0.1 * step)
    assert regularizer().item() == 0
    for _ in range(3):
        regularizer.step()
    assert regularizer.coefficient == pytest.approx(0.3)
    resumed = Regularizer(model, "crossed", coefficient=lambda step: 0.1 * step)
    resumed.load_state_dict(regularizer.state_dict())
    assert resumed().item() == regularizer().item() > 0


def test_training_with_either_line_is_the_same_and_lowers_the_penalty():
    def train(closed_form):
        reseed()
        model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
        x = torch.randn(4, 1, 8, 8)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        regularizer = Regularizer(model, "crossed", coefficient=1.0)
        before = regularizer().item()
        for _ in range(30):
            optimizer.zero_grad()
            loss = 0 * model(x).square().mean()
            if closed_form:
                loss.backward()
                regularizer.backward_()
            else:
                (loss + regularizer()).backward()
            optimizer.step()
        assert regularizer().item() < before
        return [p.detach() for p in model.parameters()]

    for one, other in zip(train(True), train(False), strict=True):
        assert_close(one, other, terms=30 * TERMS)


def test_frozen_layers_get_no_gradient():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3))
    regularizer = Regularizer(model, "crossed")
    model[0].weight.requires_grad_(False)  # after the regularizer was made
    regularizer.backward_()
    assert model[0].weight.grad is None
    assert model[1].weight.grad is not None


def test_a_notebook_shows_the_layers_with_names_as_text():
    model = nn.Sequential()
    model.add_module("<b>", nn.Conv2d(3, 4, 3))
    page = Regularizer(model)._repr_html_()
    assert "<b>Regularizer(MapSimilarity(" in page
    assert "<tr><td>&lt;b&gt;</td><td>Conv2d, 1 × 4 filters of 3 × 3×3</td></tr>" in page


def test_repr_lists_the_layers_and_says_which_are_left_out():
    text = repr(Regularizer(model_of_all_kinds(), "crossed"))
    assert "plain: Conv2d, 1 × 8 filters of 3 × 3×3\n" in text
    assert "depthwise: Conv2d, 8 × 1 filters of 1 × 3×3 (left out: constant)" in text
    assert "coefficient=3" in text


@pytest.mark.parametrize("penalty", ["crossed", "authors"])
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_auto_makes_the_first_gradient_as_long_as_the_losss(penalty, scale):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3).bfloat16().float())
    regularizer = Regularizer(model, penalty, coefficient="auto")
    (scale * model(torch.randn(4, 3, 9, 9)).square().mean()).backward()
    loss = torch.cat([layer.weight.grad.flatten() for layer in (model[0], model[2])])
    value = regularizer.backward_(scale=scale)
    both = torch.cat([layer.weight.grad.flatten() for layer in (model[0], model[2])])
    # Of a sum that rounds, its part is told by less digits.
    assert_close((both - loss).norm(), loss.norm(), terms=2 * TERMS)
    plain = Regularizer(model, penalty, coefficient=regularizer.coefficient)
    assert_close(value, plain(), terms=TERMS)
    model.zero_grad()
    plain.backward_(scale)
    own = torch.cat([layer.weight.grad.flatten() for layer in (model[0], model[2])])
    assert_close(own, both - loss, terms=2 * TERMS)
    assert f"coefficient={regularizer.coefficient:g}" in repr(regularizer)


def test_auto_acts_on_a_penalty_of_any_size():
    model = nn.Sequential(nn.Conv2d(3, 8, 3))
    with torch.no_grad():
        model[0].weight.mul_(0.01)
    regularizer = Regularizer(model, "authors", coefficient="auto")
    model(torch.randn(2, 3, 9, 9)).square().mean().backward()
    loss = model[0].weight.grad.clone()
    regularizer.backward_()
    assert_close((model[0].weight.grad - loss).norm(), loss.norm(), terms=2 * TERMS)


def test_auto_says_what_it_needs():
    model = nn.Sequential(nn.Conv2d(3, 8, 3))
    regularizer = Regularizer(model, "crossed", coefficient="auto")
    with pytest.raises(convsim.ConvsimError, match=r"call loss\.backward\(\) before"):
        regularizer.backward_()
    with pytest.raises(convsim.ConvsimError, match=r"Use loss\.backward\(\); regularizer\.back"):
        regularizer()
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(model[0]))
    with pytest.raises(convsim.ConvsimError, match="Layer '0' computes its weight from others"):
        Regularizer(normed, "crossed", coefficient="auto")


def test_auto_is_found_once_and_goes_into_a_checkpoint():
    model = nn.Sequential(nn.Conv2d(3, 8, 3))
    regularizer = Regularizer(model, "crossed", coefficient="auto")
    assert "coefficient=auto" in repr(regularizer)
    assert regularizer.coefficient == 0
    model(torch.randn(2, 3, 9, 9)).square().mean().backward()
    regularizer.backward_()
    found = regularizer.coefficient
    assert found > 0
    model[0].weight.grad.mul_(100)
    regularizer.backward_()
    assert regularizer.coefficient == found
    resumed = Regularizer(model, "crossed", coefficient="auto")
    resumed.load_state_dict(regularizer.state_dict())
    assert resumed().item() > 0
    assert resumed.coefficient == found


def test_auto_on_maps_is_found_by_the_first_backward_and_serves_from_the_second_on():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3)).double()
    x = torch.randn(4, 3, 9, 9, dtype=torch.float64)
    by_maps = [gradients_of_maps(model, x, penalty) for penalty in (False, True)]
    regularizer = Regularizer(model, coefficient="auto")
    (model(x).square().mean() + regularizer()).backward()
    loss_alone = model[0].weight.grad.clone()
    loss, own = (math.hypot(*(g.norm().item() for g in found)) for found in by_maps)
    assert regularizer.coefficient == pytest.approx(loss / own)
    model.zero_grad()
    model(x).square().mean().backward()
    torch.testing.assert_close(model[0].weight.grad, loss_alone)  # nothing was added at first
    model.zero_grad()
    (model(x).square().mean() + regularizer()).backward()
    assert not torch.allclose(model[0].weight.grad, loss_alone)
    assert f"coefficient={regularizer.coefficient:g}" in repr(regularizer)


def gradients_of_maps(model, x, penalty):
    """The gradient of the loss, or of the mean over layers of the penalty, at the layers' maps."""
    first = model[0](x)
    last = model[2](model[1](first))
    value = (correlation(first) + correlation(last)) / 2 if penalty else last.square().mean()
    if penalty:  # each layer's own, at its own maps
        return torch.autograd.grad(correlation(first) / 2, first) + torch.autograd.grad(
            correlation(last) / 2, last
        )
    return torch.autograd.grad(value, (first, last))


def correlation(maps):
    """Mean ρ² of all pairs, with every position of every image a sample."""
    return mean_square(maps.movedim(1, -1).flatten(0, -2))


def test_auto_adds_nothing_where_nothing_is_left_or_the_step_is_lost():
    model = nn.Sequential(nn.Conv2d(4, 1, 3))
    with pytest.warns(convsim.ConvsimWarning, match="acts on none of the 1 selected layers"):
        alone = Regularizer(model, "crossed", coefficient="auto")
    assert alone.backward_() == 0
    model = nn.Sequential(nn.Conv2d(3, 8, 3))
    regularizer = Regularizer(model, "crossed", coefficient="auto")
    model(torch.randn(2, 3, 9, 9)).square().sum().backward()
    loss = model[0].weight.grad.clone()
    model[0].weight.grad.zero_()
    with pytest.warns(convsim.ConvsimWarning, match="not found yet"):
        regularizer.backward_()
    assert not model[0].weight.grad.any()
    model[0].weight.grad.fill_(math.inf)  # a GradScaler will skip this step
    assert regularizer.backward_().isfinite()
    assert regularizer.coefficient == 0
    model[0].weight.grad.copy_(loss)
    assert regularizer.backward_() > 0


def test_auto_weighs_by_the_layers_that_the_loss_reached():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    regularizer = Regularizer(model, "crossed", coefficient="auto")
    model[0](torch.randn(2, 3, 9, 9)).square().mean().backward()
    loss = model[0].weight.grad.clone()
    regularizer.backward_()
    added = model[0].weight.grad - loss
    assert_close(added.norm(), loss.norm(), terms=2 * TERMS)
    assert model[1].weight.grad.any()


@pytest.mark.parametrize("scale", [1e-30, 1e15])
def test_auto_serves_a_loss_of_any_scale(scale):
    model = nn.Sequential(nn.Conv2d(3, 8, 3))
    regularizer = Regularizer(model, "crossed", coefficient="auto")
    (scale * model(torch.randn(2, 3, 9, 9)).square().mean()).backward()
    loss = model[0].weight.grad.clone()
    regularizer.backward_()
    added = (model[0].weight.grad - loss).double()
    assert_close(added.norm(), loss.double().norm(), terms=2 * TERMS, dtype=torch.float32)


@pytest.mark.skipif(
    not hasattr(torch.Tensor, "grad_dtype"), reason="needs torch 2.10, the first with grad_dtype"
)
def test_a_gradient_of_another_dtype_than_its_weight_is_kept():
    layer = nn.Conv2d(3, 4, 3)
    layer.weight.grad_dtype = torch.bfloat16
    layer.weight.grad = torch.zeros_like(layer.weight, dtype=torch.bfloat16)
    Regularizer(layer, "crossed").backward_()
    assert layer.weight.grad.any()


@pytest.mark.parametrize("state", [{}, {"steps": 1, "coefficient": math.nan}, {"steps": "1"}])
def test_what_is_no_state_is_refused(state):
    with pytest.raises(convsim.ConvsimError, match="Not a regularizer state"):
        Regularizer(nn.Conv2d(3, 4, 3), "crossed").load_state_dict(state)


def test_an_unknown_reduction_is_refused():
    with pytest.raises(convsim.ConvsimError, match="reduction must be 'mean' or 'sum'; got 'max'"):
        convsim.penalties.CosineOrthogonality(reduction="max")


@pytest.mark.parametrize("penalty", ["crossed", "recommended"])
def test_a_layer_counts_while_it_is_not_frozen(penalty):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    model[0].requires_grad_(False)
    regularizer = Regularizer(model, penalty, coefficient=1.0)
    x = torch.randn(2, 3, 9, 9)
    assert "0: Conv2d, 1 × 4 filters of 3 × 3×3 (left out: frozen)" in repr(regularizer)
    assert [layer.name for layer in regularizer.acting] == ["1"]
    model(x)
    assert regularizer().item() == pytest.approx(regularizer.values()["1"])
    model[0].requires_grad_(True)
    model(x)
    values = regularizer.values()
    assert regularizer().item() == pytest.approx((values["0"] + values["1"]) / 2)
    assert values["0"] > 0
    regularizer().backward()
    assert model[0].weight.grad.any()
    with pytest.raises(convsim.ConvsimError, match="is frozen, so nothing can be trained"):
        Regularizer(model.requires_grad_(False), penalty)


@pytest.mark.parametrize("penalty", ["cosine", "soft", "srip", "crossed"])
def test_autocast_does_not_touch_the_closed_form(penalty):
    model = nn.Conv2d(16, 16, 3)
    regularizer = Regularizer(model, penalty)
    regularizer.backward_()
    expected = model.weight.grad.clone()
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        regularizer.backward_()
    assert_close(model.weight.grad, expected, terms=16 * 9 * 16)


def test_inference_mode_leaves_nothing_that_training_cannot_use():
    model = nn.Sequential(nn.Conv2d(3, 5, (2, 3)))
    regularizer = Regularizer(model)
    with torch.inference_mode():
        Regularizer(model, "crossed").values()
        model(torch.randn(2, 3, 9, 9))
    model(torch.randn(2, 3, 9, 9))
    (regularizer() + Regularizer(model, "crossed")()).backward()
    with torch.device("meta"):
        Regularizer(nn.Conv2d(3, 5, (3, 1)), "crossed")
    assert Regularizer(nn.Conv2d(3, 5, (3, 1)), "crossed")() > 0


def test_nothing_to_act_on_warns_and_is_zero():
    with pytest.warns(convsim.ConvsimWarning, match="acts on none of the 1 selected layers"):
        regularizer = Regularizer(nn.Conv2d(4, 4, 3, groups=4), "crossed")
    assert regularizer().item() == 0
    assert regularizer.backward_().item() == 0


def test_a_penalty_that_acts_on_few_layers_says_so():
    pointwise = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 1))
    with pytest.warns(convsim.ConvsimWarning, match="acts on only 1 of the 3 selected layers"):
        Regularizer(pointwise, "crossed")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalty": "best"}, "penalty must be a Penalty or one of 'recommended'"),
        ({"coefficient": -1}, "coefficient must be a finite number ≥ 0; got -1"),
        ({"coefficient": math.nan}, "got nan at step 0"),
        ({"coefficient": lambda step: "x"}, "got 'x' at step 0"),
        ({"layers": "no*"}, "No convolution is selected"),
        ({"decay_steps": 0}, "decay_steps must be an integer ≥ 1; got 0"),
    ],
    ids=["penalty", "negative", "nan", "schedule", "layers", "decay"],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(convsim.ConvsimError, match=message):
        Regularizer(nn.Conv2d(1, 2, 3), **options)


def test_non_finite_weights_show_in_the_value():
    model = nn.Conv2d(1, 4, 3)
    regularizer = Regularizer(model, "crossed")
    with torch.no_grad():
        model.weight[0] = math.nan
    assert regularizer().isnan()
    assert regularizer.backward_().isnan()


@pytest.mark.traced
@pytest.mark.parametrize("penalty", ["crossed", "cosine"])
def test_both_routes_compile_into_one_graph(penalty):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 6, 3, stride=2))
    regularizer = Regularizer(model, penalty, coefficient=3.0)
    model.zero_grad()
    expected = regularizer()
    expected.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]

    compiled = torch.compile(regularizer, fullgraph=True, backend="aot_eager")
    model.zero_grad()
    value = compiled()
    value.backward()
    assert_close(value, expected, terms=TERMS)
    actual = [p.grad for p in model.parameters() if p.grad is not None]
    assert_close(actual, gradients, terms=TERMS)

    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    compiled = torch.compile(regularizer.backward_, fullgraph=True, backend="aot_eager")
    assert_close(compiled(), expected, terms=TERMS)
    assert_close([model[i].weight.grad for i in (0, 2)], gradients, terms=TERMS)


def test_the_penalty_works_under_function_transforms():
    model = nn.Conv2d(3, 8, 3)
    regularizer = Regularizer(model, "crossed")
    regularizer().backward()

    def penalty(parameters):
        with torch.nn.utils.stateless._reparametrize_module(model, parameters):
            return regularizer()

    gradients = torch.func.grad(penalty)({k: v.detach() for k, v in model.named_parameters()})
    assert_close(gradients["weight"], model.weight.grad, terms=TERMS)


def test_a_second_derivative_is_right():
    model = nn.Conv2d(3, 8, 3).double()
    (gradient,) = torch.autograd.grad(
        Regularizer(model, "crossed")(), model.weight, create_graph=True
    )
    (actual,) = torch.autograd.grad(gradient.square().sum(), model.weight)
    value = 3.0 * convsim.convolutional_similarity(model.weight)
    (gradient,) = torch.autograd.grad(value, model.weight, create_graph=True)
    (expected,) = torch.autograd.grad(gradient.square().sum(), model.weight)
    assert_close(actual, expected, terms=TERMS)


def test_an_attached_regularizer_is_not_added_twice():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer = Regularizer(model, "crossed").attach(optimizer)
    with pytest.raises(convsim.ConvsimError, match="it would count twice"):
        regularizer.backward_()
    assert not regularizer().requires_grad  # loss + regularizer() adds nothing
    optimizer.step()
    regularizer.remove()
    assert regularizer().requires_grad
    assert regularizer.backward_() > 0


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan])
def test_a_scale_that_is_none_is_refused(scale):
    with pytest.raises(convsim.ConvsimError, match="scale must be a finite number > 0"):
        Regularizer(nn.Conv2d(3, 4, 3), "crossed").backward_(scale)


def test_a_coefficient_may_fall_to_zero():
    model = nn.Conv2d(3, 4, 3)
    regularizer = Regularizer(model, "crossed", coefficient=2.0, decay_steps=4)
    seen = []
    for _ in range(6):
        seen.append(regularizer.coefficient)
        regularizer.step()
    assert seen == [2.0, 1.5, 1.0, 0.5, 0.0, 0.0]
    assert regularizer.backward_() == 0


@pytest.mark.parametrize("penalty", ["crossed", "recommended"])
def test_a_layer_that_was_replaced_is_no_longer_looked_at(penalty):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    regularizer = Regularizer(model, penalty)
    model[1] = nn.Conv2d(4, 4, 3)
    model(torch.randn(2, 3, 9, 9))
    with pytest.raises(convsim.ConvsimError, match="Layer '1' was replaced after the regularizer"):
        regularizer()


@pytest.mark.parametrize("penalty", ["crossed", "recommended", "decov"])
def test_it_goes_through_pickle_and_copies_with_its_model(penalty):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    regularizer = Regularizer(model, penalty)
    x = torch.randn(2, 3, 9, 9)
    model(x)
    value = regularizer().item()
    for twin, its in (
        pickle.loads(pickle.dumps((model, regularizer))),
        copy.deepcopy((model, regularizer)),
    ):
        twin(x)
        assert its().item() == pytest.approx(value)
        with torch.no_grad():
            twin[0].weight.fill_(1)
        twin(x)
        assert its().item() != pytest.approx(value)  # it looks at the copy


def test_what_is_no_optimizer_or_filter_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for wrong in (None, "sgd", torch.optim.lr_scheduler.ConstantLR(optimizer)):
        with pytest.raises(convsim.ConvsimError, match="or the optimizer that steps the model"):
            Regularizer(model, "crossed").attach(wrong)
    with pytest.raises(convsim.ConvsimError, match="Layers are chosen by name patterns"):
        Regularizer(model, layers=model[0])
    with pytest.raises(convsim.ConvsimError, match="takes an iterable of batches"):
        convsim.measure(model, torch.randn(2, 3, 8, 8))
