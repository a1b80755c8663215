"""Convolutional Similarity against float64 oracles in plain loops, and what it promises."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

import convsim
from cases import GEOMETRIES, OPTIONS
from closeness import assert_close
from convsim.kernels import kernel_bank
from oracles import (
    feature_map,
    input_correlation_norm,
    layer_similarity,
    transposed_feature_map,
)
from oracles import similarity_matrix as oracle_matrix
from seeds import new_generator, new_numpy_generator

pytestmark = pytest.mark.core

TERMS = 4 * 2 * 3 * 3
"""The numbers of a filter in float32, in the four sums of a value and its gradient."""
EVERY_OPTION = [asdict(options) for options in OPTIONS]


def random_weight(shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=new_generator(seed), dtype=dtype)


def closed_form(bank, **options):
    """Value and gradient without a graph."""
    return convsim.ConvolutionalSimilarity(**options).value_and_gradient(bank)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("shape", "stride", "dilation", "groups"), GEOMETRIES)
def test_every_option_equals_the_oracle(shape, stride, dilation, groups, transposed):
    weight = random_weight(shape)
    geometry = {
        "stride": stride, "dilation": dilation, "groups": groups, "transposed": transposed,
    }  # fmt: skip
    for options in EVERY_OPTION:
        expected = layer_similarity(weight.numpy(), **geometry, **options)
        actual = convsim.convolutional_similarity(weight, **geometry, **options)
        assert actual.item() == pytest.approx(expected, rel=1e-10, abs=1e-12), options


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("channels", ["crossed", "matched"])
@pytest.mark.parametrize("scale", ["unit", "raw"])
def test_matrix_equals_the_oracle(channels, scale, transposed):
    weight = random_weight((4, 2, 3, 3))
    options = {"stride": 2, "groups": 2, "channels": channels, "scale": scale}
    actual = convsim.similarity_matrix(weight, transposed=transposed, **options)
    expected = oracle_matrix(weight.numpy(), dilation=1, transposed=transposed, **options)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("options", EVERY_OPTION, ids=str)
@pytest.mark.parametrize(("shape", "stride", "dilation", "groups"), GEOMETRIES)
def test_closed_form_gradient_equals_autograd(shape, stride, dilation, groups, options):
    for transposed in (False, True):
        geometry = {"stride": stride, "dilation": dilation, "groups": groups}
        weight = random_weight(shape).requires_grad_()
        value = convsim.convolutional_similarity(
            weight, transposed=transposed, **geometry, **options
        )
        (expected,) = torch.autograd.grad(value, weight)
        bank = kernel_bank(weight, transposed=transposed, **geometry)
        actual_value, gradient = closed_form(bank, **options)
        torch.testing.assert_close(actual_value, value.detach())
        torch.testing.assert_close(bank.to_weight(gradient), expected)


@pytest.mark.parametrize("options", EVERY_OPTION[::3], ids=str)
def test_gradients_against_finite_differences(options):
    def similarity(weight):
        return convsim.convolutional_similarity(weight, stride=(1, 2), groups=2, **options)

    weight = random_weight((4, 2, 3, 2)).requires_grad_()
    assert gradcheck(similarity, (weight,))
    assert gradgradcheck(similarity, (weight,))


shapes = st.tuples(
    st.integers(1, 2), st.integers(1, 3), st.integers(1, 3),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
)  # fmt: skip


@settings(max_examples=40, deadline=None, derandomize=True)
@given(shapes, st.integers(1, 3), st.integers(1, 3), st.sampled_from(EVERY_OPTION), st.booleans())
def test_any_shape_equals_the_oracle(shape, stride, dilation, options, transposed):
    groups, filters, channels, kernel = shape
    kernel = [min(k, 3 if len(kernel) > 1 else 4, 2 if len(kernel) > 2 else 4) for k in kernel]
    weight = random_weight((groups * filters, channels, *kernel))
    geometry = {"stride": stride, "dilation": dilation, "groups": groups}
    expected = layer_similarity(weight.numpy(), transposed=transposed, **geometry, **options)
    actual = convsim.convolutional_similarity(weight, transposed=transposed, **geometry, **options)
    assert actual.item() == pytest.approx(expected, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("channels", [1, 2])
def test_certificate_holds_on_random_inputs(stride, dilation, channels, transposed):
    """|⟨F_i, F_j⟩| ≤ √CS(i, j) · ‖R‖, the promise of the crossed form."""
    rng = new_numpy_generator()
    filters = rng.standard_normal((2, channels, 3, 2))
    weight = torch.from_numpy(filters.swapaxes(0, 1).copy() if transposed else filters)
    bound = convsim.similarity_matrix(
        weight, stride=stride, dilation=dilation, transposed=transposed, scale="raw"
    )[0, 1].sqrt()
    forward = transposed_feature_map if transposed else feature_map
    geometry = {"stride": (stride,) * 2, "dilation": (dilation,) * 2}
    for _ in range(10):
        image = rng.standard_normal((channels, 5, 4))
        first, second = (forward(kernel, image, **geometry) for kernel in filters)
        product_of_maps = sum(value * second.get(p, 0.0) for p, value in first.items())
        norm = input_correlation_norm(image, (3, 2), transposed=transposed, **geometry)
        assert abs(product_of_maps) <= bound.item() * norm * (1 + 1e-12)


@pytest.mark.parametrize(("difference", "reached"), [(3.0, 0.05), (0.3, 0.5)])
def test_certificate_holds_against_an_adversary(difference, reached):
    """Ascend the ratio of the certificate's two sides, by torch's own convolution.

    It stays below 1, and comes near it for filters that are nearly alike.
    """
    filters = random_weight((2, 1, 5), seed=3)
    filters[1] = filters[0] + difference * filters[1]
    bound = convsim.similarity_matrix(filters, scale="raw")[0, 1].sqrt()
    image = random_weight((1, 1, 12), seed=4).requires_grad_()
    optimizer = torch.optim.Adam([image], lr=0.05)
    for _ in range(200):
        maps = torch.nn.functional.conv1d(image, filters, padding=4)[0]
        correlation = torch.nn.functional.conv1d(image, image, padding=4)
        ratio = (maps[0] @ maps[1]).abs() / torch.linalg.vector_norm(correlation) / bound
        assert ratio <= 1 + 1e-12
        optimizer.zero_grad()
        (-ratio).backward()
        optimizer.step()
    assert ratio > reached


def test_certificate_is_met_with_equality_by_the_filter_as_image():
    kernel = random_weight((1, 1, 3, 3))
    bound = convsim.similarity_matrix(kernel, scale="raw")[0, 0].sqrt()
    energy = torch.nn.functional.conv2d(kernel, kernel, padding=2).square().sum()
    norm = input_correlation_norm(
        kernel[0].numpy(), (3, 3), stride=(1, 1), dilation=(1, 1), transposed=False
    )
    assert energy.item() == pytest.approx(bound.item() * norm)


@pytest.mark.parametrize("channels", ["crossed", "matched"])
@pytest.mark.parametrize("pairs", ["all", "adjacent"])
@pytest.mark.parametrize("ratio", [1e-4, 1e4])
def test_float32_keeps_its_digits_when_norms_differ(channels, pairs, ratio):
    weight = random_weight((3, 2, 3, 3), dtype=torch.float32)
    weight[1] *= ratio
    expected = layer_similarity(
        weight.double().numpy(), pairs=pairs, channels=channels, scale="raw", reduction="sum",
        stride=1, dilation=1, groups=1,
    )  # fmt: skip
    options = {"pairs": pairs, "channels": channels, "scale": "raw", "reduction": "sum"}
    actual = convsim.convolutional_similarity(weight, **options)
    assert_close(actual, expected, terms=TERMS)
    _, gradient = closed_form(kernel_bank(weight), **options)
    _, precise = closed_form(kernel_bank(weight.double()), **options)
    for one, exact in zip(gradient[0].double(), precise[0], strict=True):
        assert_close(one, exact, terms=TERMS, dtype=torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_weights_are_accumulated_in_float32(dtype):
    weight = random_weight((64, 16, 3, 3), dtype=dtype)
    actual = convsim.convolutional_similarity(weight)
    exact = convsim.convolutional_similarity(weight.double())
    assert actual.dtype == torch.float32
    assert exact.dtype == torch.float64
    assert_close(actual, exact, terms=4 * 16 * 9)


def test_autocast_does_not_lower_the_precision():
    weight = random_weight((16, 8, 3, 3), dtype=torch.float32)
    options = {"pairs": "all", "channels": "crossed", "scale": "unit", "reduction": "mean"}

    def compute():
        value = convsim.convolutional_similarity(weight)
        return value, convsim.similarity_matrix(weight), *closed_form(
            kernel_bank(weight), **options
        )  # fmt: skip

    expected = compute()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = compute()
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("magnitude", [1e-30, 1e-15, 1e15, 1e30])
def test_unit_scale_ignores_norms_of_any_size(magnitude):
    weight = random_weight((4, 2, 3, 3), dtype=torch.float32)
    scaled = weight * magnitude
    for channels in ("crossed", "matched"):
        value, unscaled = (
            convsim.convolutional_similarity(w, channels=channels) for w in (scaled, weight)
        )
        assert_close(value, unscaled, terms=TERMS)
    options = {"pairs": "all", "channels": "crossed", "scale": "unit", "reduction": "mean"}
    _, gradient = closed_form(kernel_bank(weight), **options)
    _, scaled_gradient = closed_form(kernel_bank(scaled), **options)
    assert_close(scaled_gradient * magnitude, gradient, terms=TERMS)


@pytest.mark.parametrize("scale", ["unit", "raw"])
@pytest.mark.parametrize("channels", ["crossed", "matched"])
def test_zero_filters_are_similar_to_none(scale, channels):
    weight = random_weight((3, 2, 3, 3))
    weight[1] = 0
    weight.requires_grad_()
    matrix = convsim.similarity_matrix(weight, scale=scale, channels=channels)
    assert (matrix[1] == 0).all()
    value = convsim.convolutional_similarity(weight, scale=scale, channels=channels)
    (gradient,) = torch.autograd.grad(value, weight)
    options = {"pairs": "all", "channels": channels, "scale": scale, "reduction": "mean"}
    _, closed = closed_form(kernel_bank(weight), **options)
    assert (gradient[1] == 0).all()
    torch.testing.assert_close(closed[0], gradient)


def test_one_filter_per_group_is_exactly_zero():
    for options in EVERY_OPTION:
        value = convsim.convolutional_similarity(random_weight((4, 1, 3, 3)), groups=4, **options)
        assert value.item() == 0.0, options


def test_crossed_unit_form_of_pointwise_kernels_is_one():
    weight = random_weight((5, 7, 1, 1))
    assert convsim.convolutional_similarity(weight).item() == pytest.approx(1)
    assert convsim.convolutional_similarity(weight, channels="matched").item() < 0.9


def test_hand_computed_case():
    """[1, 1] ⋆ [1, −1] has the values −1, 0, 1; [1, 1] ⋆ [1, 1] has 1, 2, 1."""
    weight = torch.tensor([[[1.0, 1.0]], [[1.0, -1.0]]])
    matrix = convsim.similarity_matrix(weight, scale="raw")
    assert matrix.tolist() == [[6, 2], [2, 6]]


@pytest.mark.parametrize("options", EVERY_OPTION, ids=str)
def test_minimising_it_lowers_it(options):
    weight = random_weight((6, 3, 3, 3), dtype=torch.float32).requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=0.01)
    start = convsim.convolutional_similarity(weight, **options).item()
    for _ in range(50):
        optimizer.zero_grad()
        value = convsim.convolutional_similarity(weight, **options)
        value.backward()
        optimizer.step()
    assert value.item() < 0.95 * start


def test_invariances():
    """Order of filters and of channels, sign, shift inside the window, reflection."""
    weight = random_weight((4, 3, 5))
    weight[..., 3:] = 0
    value = convsim.convolutional_similarity(weight)
    for same in (
        weight[torch.tensor([2, 0, 3, 1])],
        weight[:, [2, 0, 1]],
        weight * torch.tensor([1.0, -1, -1, 1]).view(4, 1, 1),
        weight.roll(2, dims=2),
        weight.flip(2),
    ):
        torch.testing.assert_close(convsim.convolutional_similarity(same), value)


def test_compiled_equals_eager():
    compiled = torch.compile(convsim.convolutional_similarity, backend="aot_eager")
    weight = random_weight((8, 4, 3, 3))
    torch.testing.assert_close(compiled(weight), convsim.convolutional_similarity(weight))


@pytest.mark.parametrize(
    ("weight", "options", "message"),
    [
        ([[1.0]], {}, "must be a torch.Tensor; got list"),
        (torch.ones(3, 3), {}, "has 3, 4 or 5 axes .* got 2 axes, shape \\(3, 3\\)"),
        (torch.ones(1, 1, 1, 1, 1, 1), {}, "got 6 axes"),
        (torch.ones(2, 2, 3, dtype=torch.int64), {}, "dense, real and floating point; got .*int64"),
        (torch.ones(2, 2, 3, dtype=torch.complex64), {}, "got dtype torch.complex64"),
        (torch.ones(2, 2, 3).to_sparse(), {}, "layout torch.sparse_coo"),
        (torch.ones(0, 2, 3), {}, "must not be empty; got shape \\(0, 2, 3\\)"),
        (torch.ones(4, 2, 3), {"groups": 3}, "divides the weight's first axis; got groups=3"),
        (torch.ones(4, 2, 3), {"groups": 0}, "got groups=0"),
        (torch.ones(4, 2, 3), {"stride": 0}, "stride must be a positive integer.* got 0"),
        (torch.ones(4, 2, 3), {"stride": (1, 1)}, "one for each of the 1 spatial axes"),
        (torch.ones(4, 2, 3), {"dilation": 1.5}, "dilation must be a positive integer"),
        (torch.ones(4, 2, 3), {"pairs": "some"}, "pairs must be 'all' or 'adjacent'; got 'some'"),
        (torch.ones(4, 2, 3), {"channels": "x"}, "channels must be 'crossed' or 'matched'"),
        (torch.ones(4, 2, 3), {"scale": "x"}, "scale must be 'unit' or 'raw'; got 'x'"),
        (torch.ones(4, 2, 3), {"reduction": "max"}, "reduction must be 'mean' or 'sum'"),
    ],
)
def test_bad_input_is_refused(weight, options, message):
    with pytest.raises(convsim.ConvsimError, match=message):
        convsim.convolutional_similarity(weight, **options)
