"""The published alternatives against plain float64 loops, and where their minimum is known."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

import convsim
from closeness import assert_close
from convsim.kernels import kernel_bank
from convsim.penalties import (
    PRESETS,
    ConvolutionalOrthogonality,
    CosineOrthogonality,
    DoubleSoftOrthogonality,
    MapSimilarity,
    MutualCoherence,
    OrthoReg,
    SoftOrthogonality,
    SpectralRestrictedIsometry,
    SquaredNorm,
)
from seeds import new_generator

pytestmark = pytest.mark.core


def groups_of(weight, groups):
    return [np.asarray(part) for part in weight.double().chunk(groups)]


def inner(a, b):
    return sum(float(x) * float(y) for x, y in zip(a.ravel(), b.ravel(), strict=True))


def excess(rows):
    """⟨row_i, row_j⟩ less 1 for i = j."""
    return np.array(
        [[inner(a, b) - (i == j) for j, b in enumerate(rows)] for i, a in enumerate(rows)]
    )


def cosine(a, b):
    return inner(a, b) / math.sqrt(inner(a, a) * inner(b, b))


def pairs(rows):
    return [(a, b) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]


def overlap(a, b, lag, dilation, stride):
    """Σ_c Σ_u a[c, u] b[c, u + lag], for a lag that the stride meets; else None."""
    if any(d * t % s for t, d, s in zip(lag, dilation, stride, strict=True)):
        return None
    total, size = 0.0, a.shape[1:]
    for c in range(len(a)):
        for u in itertools.product(*map(range, size)):
            v = tuple(x + t for x, t in zip(u, lag, strict=True))
            if all(0 <= y < n for y, n in zip(v, size, strict=True)):
                total += float(a[(c, *u)]) * float(b[(c, *v)])
    return total


def convolutional_orthogonality(filters, stride, dilation):
    lags = itertools.product(*(range(1 - k, k) for k in filters.shape[2:]))
    total = 0.0
    for lag in lags:
        for (i, a), (j, b) in itertools.product(enumerate(filters), repeat=2):
            value = overlap(a, b, lag, dilation, stride)
            if value is not None:
                total += (value - (i == j and not any(lag))) ** 2
    return total


ORACLES = {
    CosineOrthogonality("sum"): lambda f: sum(cosine(a, b) ** 2 for a, b in pairs(f)),
    SoftOrthogonality(): lambda f: (excess(f) ** 2).sum(),
    DoubleSoftOrthogonality(): lambda f: (excess(f) ** 2).sum()
    + (excess(f.reshape(len(f), -1).T) ** 2).sum(),
    MutualCoherence(): lambda f: np.abs(excess(f)).max(),
    SpectralRestrictedIsometry(): lambda f: np.linalg.norm(excess(f), 2),
    OrthoReg(): lambda f: sum(math.log1p(math.exp(10 * (cosine(a, b) - 1))) for a, b in pairs(f)),
    SquaredNorm(): lambda f: 0.5 * sum(inner(a, a) for a in f),
}  # fmt: skip


def random_weight(groups=1, kernel=(3, 2)):
    generator = new_generator()
    return torch.randn(4 * groups, 2, *kernel, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("penalty", ORACLES, ids=lambda p: type(p).__name__)
def test_value_equals_the_loops(penalty, groups):
    weight = random_weight(groups)
    expected = sum(ORACLES[penalty](filters) for filters in groups_of(weight, groups))
    assert penalty.value(kernel_bank(weight, groups=groups)).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"),
    [((3,), 1, 1), ((4,), 2, 1), ((5,), 2, 3), ((3, 2), (1, 1), (1, 1)), ((3, 3), (2, 1), (1, 2)),
     ((2, 3), (4, 3), (2, 1)), ((2, 2, 2), (1, 2, 1), (1, 1, 1))],
)  # fmt: skip
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutional_orthogonality_equals_the_loops(kernel, stride, dilation, groups):
    weight = random_weight(groups, kernel)
    bank = kernel_bank(weight, stride=stride, dilation=dilation, groups=groups)
    expected = sum(
        convolutional_orthogonality(filters, bank.stride, bank.dilation)
        for filters in groups_of(weight, groups)
    )
    assert ConvolutionalOrthogonality().value(bank).item() == pytest.approx(expected)


ORTHONORMAL = [
    CosineOrthogonality(), SoftOrthogonality(), DoubleSoftOrthogonality(), MutualCoherence(),
    SpectralRestrictedIsometry(),
]  # fmt: skip


@pytest.mark.parametrize("penalty", ORTHONORMAL, ids=lambda p: type(p).__name__)
def test_an_orthonormal_bank_is_the_minimum(penalty):
    square = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64)).Q.view(8, 2, 2, 2)
    assert penalty.value(kernel_bank(square)).item() == pytest.approx(0, abs=1e-12)
    assert penalty.value(kernel_bank(random_weight())).item() > 1e-3


@pytest.mark.parametrize("stride", [1, 2])
def test_an_identity_kernel_is_convolutionally_orthogonal(stride):
    identity = torch.zeros(4, 4, 3, 3, dtype=torch.float64)
    identity[range(4), range(4), 1, 1] = 1
    penalty = ConvolutionalOrthogonality()
    assert penalty.value(kernel_bank(identity, stride=stride)).item() == 0
    # All of a 2×2 patch, at stride 2: orthonormal; at stride 1 shifts overlap.
    patch = torch.eye(4, dtype=torch.float64).view(4, 1, 2, 2)
    value = penalty.value(kernel_bank(patch, stride=stride)).item()
    assert value == (0 if stride == 2 else pytest.approx(12))


def test_orthogonal_filters_can_overlap_when_shifted():
    weight = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    assert SoftOrthogonality().value(kernel_bank(weight)) == 0
    assert ConvolutionalOrthogonality().value(kernel_bank(weight)) == 2


def test_orthoreg_spares_negative_correlation():
    a = torch.tensor([[[1.0, 0.0]]])
    alike, opposite = torch.cat([a, a]), torch.cat([a, -a])
    penalty = OrthoReg()
    assert_close(penalty.value(kernel_bank(alike)), 2 * math.log(2), terms=4)
    assert penalty.value(kernel_bank(opposite)).item() < 1e-8
    with pytest.raises(convsim.ConvsimError, match="sharpness is λ > 0; got 0"):
        OrthoReg(sharpness=0)


ALL = {**ORACLES, ConvolutionalOrthogonality(): None}


@pytest.mark.parametrize("penalty", ALL, ids=lambda p: type(p).__name__)
def test_gradients(penalty):
    weight = random_weight(2, (2, 2)).requires_grad_()
    torch.autograd.gradcheck(lambda w: penalty.value(kernel_bank(w, groups=2)), weight)
    bank = kernel_bank(weight.detach(), groups=2)
    value, gradient = penalty.value_and_gradient(bank)
    (expected,) = torch.autograd.grad(penalty.value(kernel_bank(weight, groups=2)), weight)
    torch.testing.assert_close(bank.to_weight(gradient), expected)
    torch.testing.assert_close(value, penalty.value(bank))


@pytest.mark.parametrize("penalty", [CosineOrthogonality(), OrthoReg()], ids=str)
def test_norms_do_not_matter_to_cosines(penalty):
    weight = random_weight()
    scales = torch.tensor([1e-20, 1.0, 3.0, 1e20]).view(-1, 1, 1, 1)
    plain, scaled = (penalty.value(kernel_bank(w)) for w in (weight, weight * scales))
    torch.testing.assert_close(plain, scaled)


@pytest.mark.parametrize("penalty", ALL, ids=lambda p: type(p).__name__)
def test_zero_filters_have_a_finite_gradient(penalty):
    weight = random_weight()
    weight[1] = 0
    _, gradient = penalty.value_and_gradient(kernel_bank(weight))
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", [n for n in PRESETS if n != "authors"])
def test_every_one_is_chosen_by_name_and_a_step_lowers_it(name):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, groups=2))
    regularizer = convsim.Regularizer(model, name, coefficient=1.0)
    x = torch.randn(4, 3, 12, 12)
    model(x)
    before = regularizer()
    before.backward()
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    model(x)
    assert regularizer() < before
    assert PRESETS[name].coefficient > 0


def test_transposed_convolutions_have_no_convolutional_orthogonality():
    model = nn.ConvTranspose2d(2, 3, 3)
    with pytest.raises(
        convsim.ConvsimError, match=r"not for transposed ones\. Leave the layer out"
    ):
        convsim.Regularizer(model, "ocnn")


def test_autocast_changes_nothing():
    bank = kernel_bank(random_weight().float())
    for penalty in ALL:
        expected = penalty.value(bank)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert penalty.value(bank) == expected


def test_presets_are_fixed_and_only_those_on_directions_keep_norms():
    assert len({preset.penalty for preset in PRESETS.values()}) == len(PRESETS)  # hashable
    assert MapSimilarity().samples == 256
    pinned = {
        "recommended": 0.3, "crossed": 3, "matched": 3, "adjacent": 3,
        "authors": 0.01, "cosine": 1e3, "soft": 1e-3, "double-soft": 1e-3, "coherence": 1e-3,
        "srip": 1e-3, "ocnn": 1e-4, "orthoreg": 1e-2, "decov": 1e-4, "l2": 3e-4,
    }  # fmt: skip
    assert {name: preset.coefficient for name, preset in PRESETS.items()} == pinned
    free = {"authors", "soft", "double-soft", "coherence", "srip", "ocnn", "l2"}
    assert {name for name, preset in PRESETS.items() if not preset.keep_norm} == free
    summed = {name for name, preset in PRESETS.items() if preset.penalty.reduction == "sum"}
    assert summed == free | {"orthoreg", "decov"}


@pytest.mark.parametrize("penalty", [SoftOrthogonality(), convsim.ConvolutionalSimilarity()])
def test_gradients_are_as_many_as_layers(penalty):
    bank = kernel_bank(random_weight())
    for gradients in ([], [None, None]):
        with pytest.raises(ValueError, match="argument 2 is"):
            penalty.add_gradients_([bank], gradients, 1.0)


@pytest.mark.parametrize("penalty", [*ALL, convsim.ConvolutionalSimilarity()], ids=str)
def test_a_layer_that_needs_no_gradient_still_has_a_value(penalty):
    bank = kernel_bank(random_weight())
    (value,) = penalty.add_gradients_([bank], [None], 2.0)
    torch.testing.assert_close(value, penalty.value(bank))
    assert not value.requires_grad
    again, gradient = penalty.value_and_gradient(bank)
    torch.testing.assert_close(again, value)
    assert gradient.shape == bank.filters.shape


@pytest.mark.parametrize("groups", [1, 3])
def test_the_mean_of_squared_cosines_is_over_pairs(groups):
    bank = kernel_bank(random_weight(groups), groups=groups)
    pairs_of_a_group = 4 * 3
    expected = CosineOrthogonality("sum").value(bank) / (groups * pairs_of_a_group)
    torch.testing.assert_close(CosineOrthogonality().value(bank), expected)
    assert CosineOrthogonality().value(kernel_bank(random_weight()[:1])) == 0


KINDS = [  # weight shape, groups, transposed
    ((6, 3, 5), 1, False), ((6, 2, 3, 2), 2, False), ((8, 3, 2, 2, 2), 1, False),
    ((4, 5, 3), 1, True), ((6, 2, 3, 3), 2, True), ((2, 4, 2, 2, 2), 1, True),
    ((9, 1, 2, 2), 1, False), ((8, 1, 3, 3), 8, False), ((1, 9, 1), 1, True),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "groups", "transposed"), KINDS)
def test_the_closed_form_of_cosines_is_that_of_the_formula_by_autograd(shape, groups, transposed):
    """Filters fewer than their elements and more; one is zero."""
    weight = torch.randn(shape, dtype=torch.float64)
    bank = kernel_bank(weight, groups=groups, transposed=transposed)
    if bank.filters.shape[1] > 2:
        bank.filters[:, 1] = 0
    weight.requires_grad_()
    rows = kernel_bank(weight, groups=groups, transposed=transposed).filters.flatten(2)
    products = (rows @ rows.mT).square()
    squares = rows.square().sum(-1)
    sizes = squares[:, :, None] * squares[:, None]
    own = torch.eye(rows.shape[1], dtype=torch.bool) | (sizes == 0)
    ratios = torch.where(own, 0, products / torch.where(sizes == 0, 1, sizes))
    (expected,) = torch.autograd.grad(ratios.sum(), weight)
    value, gradient = CosineOrthogonality("sum").value_and_gradient(bank)
    torch.testing.assert_close(value, ratios.sum().detach())
    torch.testing.assert_close(bank.to_weight(gradient), expected)
    (value,) = CosineOrthogonality("sum").values(
        [kernel_bank(weight, groups=groups, transposed=transposed)]
    )
    (actual,) = torch.autograd.grad(value, weight)
    torch.testing.assert_close(actual, expected)


def test_cosines_have_a_second_derivative():
    def value(first, second):
        return tuple(CosineOrthogonality().values([kernel_bank(first), kernel_bank(second)]))

    weights = [
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in ((3, 2, 2), (4, 1, 2))
    ]
    assert torch.autograd.gradcheck(value, weights)
    assert torch.autograd.gradgradcheck(value, weights)
