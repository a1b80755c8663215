"""No crash and no silent wrong number, whatever a weight holds and however it lies in memory."""

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, target
from hypothesis import strategies as st
from torch import nn

import convsim
from closeness import assert_close
from convsim import PRESETS, ConvsimError, Regularizer, backends
from convsim.kernels import conv_layers, kernel_bank
from convsim.similarity import Options
from oracles import layer_similarity
from oracles import similarity_matrix as oracle_matrix
from seeds import new_generator

pytestmark = pytest.mark.core

SPECIAL = [
    0.0, -0.0, 1.0, -1.0, 0.3, -2.5, 7.0, 1e-45, 1e-40, 1.2e-38, 1e-30, -1e-20, 1e-10, 1e10, 1e20,
    -1e30, 3.4e38, math.nan, math.inf, -math.inf,
]  # fmt: skip
DTYPES = [
    torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn,
    torch.float8_e5m2,
]  # fmt: skip
LAYOUTS = {
    "as it is": lambda w: w,
    "axes swapped": lambda w: w.transpose(0, 1).contiguous().transpose(0, 1),
    "every other": lambda w: w.repeat_interleave(2, dim=-1)[..., ::2],
    "expanded": lambda w: w[:1].expand_as(w),
    "overlapping": lambda w: w.contiguous().flatten().as_strided(w.shape, [1] * w.dim()),
    "offset": lambda w: torch.cat([w[:1], w])[1:],
}
SUMS = 18 + 72 + 72
"""In the penalties of a layer of 4 filters: a pixel of a map, its norm, the product of two."""
TINY, HUGE = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max


def options_of(pairs, channels, scale, reduction):
    return {"pairs": pairs, "channels": channels, "scale": scale, "reduction": reduction}


options = st.builds(
    options_of,
    st.sampled_from(["all", "adjacent"]), st.sampled_from(["crossed", "matched"]),
    st.sampled_from(["unit", "raw"]), st.sampled_from(["mean", "sum"]),
)  # fmt: skip


@st.composite
def weights(draw):
    """A weight of any numbers, dtype and layout, with a geometry that fits it."""
    dims, groups = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    kernel = [draw(st.integers(1, 3)) for _ in range(dims)]
    shape = (groups * draw(st.integers(1, 3)), draw(st.integers(1, 2)), *kernel)
    count = math.prod(shape)
    ordinary = st.floats(-3, 3, width=32)
    element = draw(st.sampled_from([ordinary, st.sampled_from(SPECIAL)]))
    values = draw(st.lists(element, min_size=count, max_size=count))
    dtype = draw(st.sampled_from(DTYPES))
    weight = torch.tensor(values, dtype=torch.float64).reshape(shape)
    weight = weight.to(torch.float32).to(dtype) if dtype.itemsize == 1 else weight.to(dtype)
    lay_out = LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))]
    weight = lay_out(weight) if dtype.itemsize > 1 else weight
    stride, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    geometry = {"stride": stride, "dilation": dilation, "groups": groups}
    return weight, geometry | {"transposed": draw(st.booleans())}


def check_number(weight, geometry, form):
    """Compare a similarity with the oracle; return its relative error, 0 where none is due.

    NaN and infinity in the weight show in the number. In the raw form a number that float32 cannot
    hold shows as infinity or NaN. Products below its smallest number count as nothing, and where
    terms of a sum cancel their size counts: that of the filters' norms.
    """
    precise = weight.double().contiguous() if weight.dtype != torch.float64 else weight.contiguous()
    number = convsim.convolutional_similarity(weight, **geometry, **form).item()
    if not precise.isfinite().all():
        grouped = kernel_bank(precise, groups=geometry["groups"], transposed=geometry["transposed"])
        alone = grouped.filters.shape[1] == 1  # no partner: 0
        assert not math.isfinite(number) or alone
        return 0.0
    exact = precise.dtype == weight.dtype
    known = precise.clone()
    bank = kernel_bank(known, groups=geometry["groups"], transposed=geometry["transposed"])
    peaks = bank.filters.flatten(2).abs().amax(-1)
    nothing = peaks < (torch.finfo(torch.float64).tiny if exact else TINY)
    bank.filters[nothing] = 0  # no number above the smallest normal one
    if form["scale"] == "unit":  # the oracle squares: keep it in range
        peaks = torch.where(nothing, 1, peaks)
        known = bank.to_weight(bank.filters / peaks.reshape(*peaks.shape, *[1] * (known.dim() - 1)))
    with np.errstate(over="ignore", invalid="ignore"):
        expected = layer_similarity(known.numpy(), **geometry, **form)
    if not math.isfinite(number):
        assert form["scale"] == "raw", (number, expected)
        largest = peaks.max().item()
        assert exact or largest**4 * known.numel() ** 2 > HUGE, (number, expected)
        return 0.0
    largest = peaks.max().item() if form["scale"] == "raw" else 1.0
    products = known.numel() ** 2 * math.prod(known.shape[2:]) ** 2
    smallest = torch.finfo(torch.float64).tiny if exact else TINY
    slack = smallest * products * (1 + min(largest, 1e150) ** 2)
    rounding = 1e-12 if exact else 1e-5
    slack += rounding * _size(kernel_bank(known, **geometry).filters, form)
    error = abs(number - expected)
    assert error <= 1e-4 * abs(expected) + slack, (number, expected)
    return error / abs(expected) if expected > slack * 1e6 else 0.0


def _size(filters, form):
    """Sum, or average, ‖K_i‖²·‖K_j‖² over pairs: what a similarity is at most, up to the taps."""
    energy = filters.flatten(2).square().sum(-1)
    products = (energy.unsqueeze(1) * energy.unsqueeze(2)).triu(1)
    if form["pairs"] == "adjacent":
        products = products.tril(1)
    pairs = max(1, int(products.count_nonzero())) if form["reduction"] == "mean" else 1
    return products.sum().nan_to_num().item() / pairs


def check_gradient(weight, geometry, form):
    """Compare the closed form, by the backend that serves, with autograd through the reference."""
    bank = kernel_bank(weight, **geometry)
    reference = bank.filters.detach().clone().requires_grad_()
    value = convsim.similarity.bank_similarity(bank.with_filters(reference), Options(**form))
    (expected,) = torch.autograd.grad(value, reference)
    gradient = torch.zeros_like(reference)
    (number,) = backends.add_gradients_(
        [bank.with_filters(reference.detach().clone())], [gradient], 1.0, Options(**form)
    )
    if not (value.isfinite() and expected.isfinite().all()):
        return
    if form["scale"] == "raw" and bank.filters.abs().max() > 1e9:
        return  # a sum of products may leave the range on one way and not on the other
    torch.testing.assert_close(number, value.detach(), rtol=1e-4, atol=1e-30)
    per_filter = gradient.flatten(2), expected.flatten(2)
    peak = per_filter[1].abs().amax(-1, keepdim=True)
    weight_peak = bank.filters.flatten(2).abs().amax(-1, keepdim=True)
    # A unit filter's gradient is what is left of two terms of size value / norm.
    slack = value.abs() / weight_peak.clamp(min=TINY) if form["scale"] == "unit" else 1e-30
    assert ((per_filter[0] - per_filter[1]).abs() <= 1e-4 * peak + 1e-4 * slack).all()


@settings(
    max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
@given(weights(), options)
def test_any_weight_gives_the_oracles_number_or_none(case, form):
    weight, geometry = case
    target(check_number(weight, geometry, form), label="relative error")


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(weights(), options)
def test_both_ways_to_the_gradient_agree_on_any_weight(case, form):
    check_gradient(*case, form)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("penalty", PRESETS)
def test_a_weight_that_is_no_number_shows_in_every_penalty(penalty, bad):
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 3))
    regularizer = Regularizer(model, penalty)
    with torch.no_grad():
        model[1].weight[1, 2, 0, 1] = bad
    model(torch.randn(2, 2, 8, 8))
    assert not regularizer().isfinite()


@pytest.mark.parametrize("size", [1e-30, 1e-18, 1e18, 1e30])
@pytest.mark.parametrize("name", ["recommended", "crossed", "matched", "cosine", "orthoreg"])
def test_penalties_on_directions_ignore_the_size_of_filters_and_inputs(name, size):
    model = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False))
    images = torch.randn(2, 2, 8, 8)
    if name == "recommended":
        size = max(size, 1.0)  # below its floor of the variance it falls, as its own tests have it
        images = 1e4 * images
    regularizer = Regularizer(model, name, coefficient=3.0)
    model(images)
    expected = regularizer()
    gradient = torch.autograd.grad(expected, model[0].weight)[0]
    model(images * size)
    assert_close(regularizer(), expected, terms=SUMS)
    with torch.no_grad():
        model[0].weight.mul_(size)
    model(images)
    value = regularizer()
    assert_close(value, expected, terms=SUMS)
    actual = torch.autograd.grad(value, model[0].weight)[0]
    assert_close(actual * size, gradient, terms=2 * SUMS)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_expected_similarity_ignores_sizes(size):
    weight, factor = torch.randn(4, 2, 3), torch.randn(1, 6, 6)
    inputs = factor @ factor.mT
    expected = convsim.expected_similarity(weight, inputs)
    for scaled in (
        (weight * size, inputs),
        (weight, inputs * size),
        (weight * size, inputs * size),
    ):
        assert_close(convsim.expected_similarity(*scaled), expected, terms=2 * 36)
    assert convsim.expected_similarity(weight, inputs * math.nan).isnan().any()


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_initialization_keeps_norms_of_any_size(size):
    model = nn.Sequential(nn.Conv2d(2, 4, 3))
    with torch.no_grad():
        model[0].weight.mul_(size)
    before = torch.linalg.vector_norm(model[0].weight.detach().double().flatten(1), dim=1)
    history = convsim.initialize_(model, steps=3)
    after = torch.linalg.vector_norm(model[0].weight.detach().double().flatten(1), dim=1)
    assert_close(after, before, terms=4 * 18, dtype=torch.float32)
    assert_close(history.norm_ratio["0"], 1.0, terms=4 * 18)
    report = convsim.measure(nn.Sequential(model[0]), [torch.randn(2, 2, 5, 5) / size])
    assert_close(report.layers[0].kernels.norms, before, terms=4 * 18)


def test_large_layers():
    many = torch.randn(4096, 2, 3, 3)
    value = convsim.convolutional_similarity(many)
    exact = convsim.convolutional_similarity(many.double())
    assert_close(value, exact, terms=many.numel())
    wide = torch.randn(3, 1, 31, 31)
    autograd = convsim.convolutional_similarity(wide.double().requires_grad_())
    for form in (
        Options("all", "crossed", "unit", "mean"),
        Options("all", "crossed", "raw", "sum"),
    ):
        (number,) = backends.add_gradients_([kernel_bank(wide)], [None], 1.0, form)
        matrix = convsim.similarity_matrix(wide.double(), scale=form.scale)
        pairs = matrix.triu(1).sum() / (3 if form.reduction == "mean" else 1)
        assert_close(number, pairs, terms=wide.numel())
    assert autograd.isfinite()


def test_the_matrix_on_weights_with_every_kind_of_number_but_nan():
    weight = torch.tensor(SPECIAL[:16], dtype=torch.float64).reshape(4, 1, 4)
    actual = convsim.similarity_matrix(weight).numpy()
    np.testing.assert_allclose(
        actual,
        oracle_matrix(weight.numpy(), channels="crossed", scale="unit"),
        rtol=1e-10,
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: torch.nested.nested_tensor([w, w]), "must be dense; got a nested tensor"),
        (lambda w: w.to(torch.int8), "dense, real and floating point"),
        (lambda w: w > 0, "dense, real and floating point; got dtype torch.bool"),
        (lambda w: w[:, :0], r"must not be empty; got shape \(4, 0, 3\)"),
        (lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8), "dense, real and floating"),
        (lambda w: w.to_sparse(), "layout torch.sparse_coo"),
        (lambda w: w.to(torch.complex64), "got dtype torch.complex64"),
    ],
)
def test_weights_of_other_kinds_are_refused(call, message):
    with pytest.raises(ConvsimError, match=message):
        convsim.convolutional_similarity(call(torch.ones(4, 2, 3)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: conv_layers("model"), r"must be a torch\.nn\.Module; got str"),
        (lambda: convsim.measure(None, []), r"must be a torch\.nn\.Module; got NoneType"),
        (
            lambda: convsim.measure(None, [], modules="*"),
            r"must be a torch\.nn\.Module; got NoneType",
        ),
        (lambda: conv_layers(nn.Conv2d(1, 2, 3), 3), "name patterns, layer types or predic.*got 3"),
        (lambda: Regularizer(nn.Conv2d(1, 2, 3), ["crossed"]), "penalty must be a Penalty or one"),
        (
            lambda: Regularizer(nn.Conv2d(1, 2, 3), "crossed", coefficient=torch.ones(2)),
            "coefficient must be a finite number",
        ),
        (lambda: convsim.initialize_(nn.Conv2d(1, 2, 3), lr="fast"), "lr must be a finite number"),
        (
            lambda: convsim.convolutional_similarity(torch.ones(2, 1, 3), stride=torch.tensor(2)),
            "stride must be a positive integer",
        ),
        (
            lambda: convsim.convolutional_similarity(torch.ones(2, 1, 3), groups=True),
            "groups must be a positive integer",
        ),
        (
            lambda: convsim.expected_similarity(torch.ones(2, 2, 1), torch.full((1, 2, 2), 1j)),
            "must be a real torch.Tensor",
        ),
    ],
)
def test_arguments_of_other_kinds_are_refused(call, message):
    with pytest.raises(ConvsimError, match=message):
        call()


@pytest.mark.skipif(
    not hasattr(torch, "float4_e2m1fn_x2"), reason="needs torch 2.8, the first with float4"
)
def test_packed_numbers_are_refused():
    with pytest.raises(ConvsimError, match=r"cannot read numbers of dtype torch\.float4"):
        convsim.convolutional_similarity(torch.empty(4, 2, 3, dtype=torch.float4_e2m1fn_x2))


def test_meta_weights_give_meta_numbers_and_a_model_of_them_an_error():
    model = nn.Sequential(nn.Conv2d(2, 4, 3, device="meta"))
    assert convsim.convolutional_similarity(model[0].weight).is_meta
    with pytest.raises(ConvsimError, match=r"Layer '0'.*on the meta device and has no numbers"):
        Regularizer(model, "crossed")()


@pytest.mark.parametrize("scale", ["unit", "raw"])
@pytest.mark.parametrize("channels", ["crossed", "matched"])
def test_torch_alone_gives_the_same(channels, scale, monkeypatch):
    monkeypatch.setenv("CONVSIM_BACKEND", "eager")
    generator = new_generator()
    for groups in (1, 2):
        weight = torch.randn(4, 2, 3, generator=generator, dtype=torch.float64)
        geometry = {"stride": 1, "dilation": 1, "groups": groups, "transposed": False}
        check_gradient(weight, geometry, options_of("all", channels, scale, "mean"))
