"""The oracles against independent references, the theorem, and one another."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.signal import correlate
from torch.nn import functional

from oracles import (
    cross_correlation,
    feature_map,
    filter_similarity,
    input_correlation,
    input_correlation_norm,
    kernel_correlation,
    layer_similarity,
    similarity_matrix,
    transposed_feature_map,
)
from seeds import new_numpy_generator

CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
CONV_TRANSPOSE = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}

# kernel, image, stride, dilation, channels
CASES = [
    ((3,), (8,), (1,), (1,), 1),
    ((3,), (8,), (1,), (1,), 3),
    ((4,), (9,), (1,), (2,), 2),
    ((3,), (8,), (2,), (1,), 2),
    ((4,), (9,), (2,), (2,), 2),
    ((5,), (11,), (3,), (1,), 2),
    ((4,), (10,), (3,), (2,), 2),
    ((5,), (9,), (4,), (2,), 2),
    ((2,), (9,), (3,), (1,), 2),
    ((1,), (7,), (2,), (1,), 3),
    ((3, 3), (5, 6), (1, 1), (1, 1), 3),
    ((2, 3), (5, 4), (2, 2), (1, 1), 2),
    ((3, 2), (6, 5), (2, 1), (1, 2), 2),
    ((4, 3), (5, 6), (2, 3), (2, 1), 2),
    ((3, 3), (6, 5), (3, 2), (2, 2), 2),
    ((2, 2, 2), (3, 4, 3), (1, 1, 1), (1, 1, 1), 2),
    ((2, 1, 3), (3, 3, 4), (2, 1, 2), (1, 2, 1), 2),
]
LAYERS = pytest.mark.parametrize(("kernel", "size", "stride", "dilation", "C"), CASES)


@pytest.fixture
def one_thread():
    """Keep torch to one thread: on tensors this small, several only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def draw(*shape, seed=0):
    return new_numpy_generator(seed, *shape).normal(size=shape)


def inner(a, b):
    assert a.keys() == b.keys()
    return sum(value * b[key] for key, value in a.items())


def as_torch_map(values):
    """Lay a dict from position to value out as an array, its first position at index 0."""
    positions = np.array(list(values))
    result = np.full(np.ptp(positions, axis=0) + 1, np.nan)
    for position, value in values.items():
        result[tuple(np.array(position) - positions.min(axis=0))] = value
    return result


@pytest.mark.parametrize(
    ("shape", "other"),
    [
        *((shape, shape) for shape in [(1,), (4,), (3, 3), (2, 5), (1, 4), (2, 3, 2)]),
        *(((2,), (5,)), ((5,), (2,)), ((2, 4), (3, 1)), ((1, 3, 2), (2, 2, 3))),
    ],
)
def test_cross_correlation_is_scipys(shape, other):
    a, b = draw(*shape), draw(*other, seed=1)
    assert min(cross_correlation(a, b)) == tuple(1 - n for n in shape)
    ours = as_torch_map(cross_correlation(a, b))
    # scipy's lag is u − v: correlate(b, a)[t] = Σ_u b[u + t] a[u].
    np.testing.assert_allclose(ours, correlate(b, a, method="direct"), atol=1e-12)


def test_cross_correlation_by_hand():
    assert cross_correlation([1, 2], [3, 5]) == {(-1,): 6, (0,): 13, (1,): 5}
    assert cross_correlation([1, 2], [3, 5, 7]) == {(-1,): 6, (0,): 13, (1,): 19, (2,): 7}
    with pytest.raises(ValueError, match="axes"):
        cross_correlation([1, 2], [[1, 2]])


@LAYERS
def test_feature_map_is_torchs(kernel, size, stride, dilation, C):
    K, X = draw(C, *kernel), draw(C, *size, seed=1)
    padding = []
    for k, s, d in reversed(list(zip(kernel, stride, dilation, strict=True))):
        # The left padding is a multiple of the stride, so that some output reads pixel 0 first.
        padding += [d * (k - 1) // s * s, d * (k - 1)]
    theirs = CONV[len(size)](
        functional.pad(torch.from_numpy(X), padding)[None],
        torch.from_numpy(K)[None],
        stride=stride,
        dilation=dilation,
    )
    ours = as_torch_map(feature_map(K, X, stride, dilation))
    np.testing.assert_allclose(ours, theirs[0, 0].numpy(), atol=1e-12)


@LAYERS
def test_transposed_feature_map_is_torchs(kernel, size, stride, dilation, C):
    K, X = draw(C, *kernel), draw(C, *size, seed=1)
    theirs = CONV_TRANSPOSE[len(size)](
        torch.from_numpy(X)[None],
        torch.from_numpy(K)[:, None],
        stride=stride,
        dilation=dilation,
    )
    ours = as_torch_map(transposed_feature_map(K, X, stride, dilation))
    np.testing.assert_allclose(ours, theirs[0, 0].numpy(), atol=1e-12)


@pytest.mark.parametrize("transposed", [False, True])
@LAYERS
def test_theorem_and_certificate(kernel, size, stride, dilation, C, transposed):
    Ki, Kj, X = draw(C, *kernel), draw(C, *kernel, seed=1), draw(C, *size, seed=2)
    layer = {"stride": stride, "dilation": dilation, "transposed": transposed}
    output = transposed_feature_map if transposed else feature_map
    similarity = inner(output(Ki, X, stride, dilation), output(Kj, X, stride, dilation))

    D = kernel_correlation(Ki, Kj, **layer)
    R = input_correlation(X, kernel, **layer)
    assert similarity == pytest.approx(inner(D, R), rel=1e-10, abs=1e-10)

    crossed = filter_similarity(Ki, Kj, channels="crossed", **layer)
    norm = input_correlation_norm(X, kernel, **layer)
    assert abs(similarity) <= math.sqrt(crossed) * norm * (1 + 1e-12)


@pytest.mark.parametrize("C", [1, 3])
@pytest.mark.parametrize(("kernel", "size"), [((4,), (7,)), ((2, 3), (4, 5))])
def test_stride_1_theorem_in_its_plain_form(kernel, size, C):
    """⟨F_i, F_j⟩ = Σ_{c, c′} ⟨K_i[c] ⋆ K_j[c′], X[c] ⋆ X[c′]⟩ on the kernel's lags."""
    Ki, Kj, X = draw(C, *kernel), draw(C, *kernel, seed=1), draw(C, *size, seed=2)
    one = (1,) * len(size)
    expected = 0.0
    for c, other in itertools.product(range(C), repeat=2):
        R = cross_correlation(X[c], X[other])
        for t, value in cross_correlation(Ki[c], Kj[other]).items():
            expected += value * R[t]
    similarity = inner(feature_map(Ki, X, one, one), feature_map(Kj, X, one, one))
    assert similarity == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    ("kernel", "size", "stride", "dilation"),
    [((3,), (9,), (3,), (1,)), ((3,), (8,), (3,), (2,)), ((3, 2), (5, 6), (3, 2), (1, 1))],
)
def test_padding_off_the_stride_shifts_the_phase_of_the_input(kernel, size, stride, dilation):
    """With torch's padding = d·(k − 1) the theorem and the certificate are the shifted image's."""
    Ki, Kj, X = draw(2, *kernel), draw(2, *kernel, seed=1), draw(2, *size, seed=2)
    padding = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    assert any(p % s for p, s in zip(padding, stride, strict=True))
    # One more pixel-row of zeros past the end, so that every position that meets the image counts.
    end = [p + s for p, s in zip(padding, stride, strict=True)]
    padded = np.pad(X, [(0, 0), *zip(padding, end, strict=True)])
    maps = CONV[len(size)](
        torch.from_numpy(padded)[None],
        torch.from_numpy(np.stack([Ki, Kj])),
        stride=stride,
        dilation=dilation,
    )[0]
    similarity = float((maps[0] * maps[1]).sum())

    layer = {"stride": stride, "dilation": dilation}
    D = kernel_correlation(Ki, Kj, **layer)
    shifted = input_correlation(padded, kernel, **layer)
    unshifted = input_correlation(X, kernel, **layer)
    assert similarity == pytest.approx(inner(D, shifted), rel=1e-10)
    assert similarity != pytest.approx(inner(D, unshifted), rel=1e-3)


@pytest.mark.parametrize(
    ("stride", "dilation", "size", "exact"),
    [(1, 1, 7, True), (1, 2, 5, True), (2, 1, 8, True), (3, 2, 9, True), (2, 1, 7, False)],
)
def test_circular_theorem_needs_a_stride_that_divides_the_size(stride, dilation, size, exact):
    Ki, Kj, X = draw(4), draw(4, seed=1), draw(size, seed=2)
    layer = {"stride": (stride,), "dilation": (dilation,)}
    starts = range(0, size, stride)
    taps = [[(p + dilation * u) % size for u in range(4)] for p in starts]
    similarity = float((X[taps] @ Ki) @ (X[taps] @ Kj))

    expected = 0.0
    for (_, _, (phase,), (t,)), value in kernel_correlation(Ki[None], Kj[None], **layer).items():
        first = [(p + phase) % size for p in starts]
        second = [(x + dilation * t) % size for x in first]
        expected += value * float(X[first] @ X[second])
    assert (similarity == pytest.approx(expected, rel=1e-10)) is exact


def test_valid_window_breaks_the_theorem():
    Ki, Kj, X = draw(1, 3), draw(1, 3, seed=1), draw(1, 6, seed=2)
    maps = functional.conv1d(torch.from_numpy(X)[None], torch.from_numpy(np.stack([Ki, Kj])))[0]
    layer = {"stride": (1,), "dilation": (1,)}
    full = inner(kernel_correlation(Ki, Kj, **layer), input_correlation(X, (3,), **layer))
    assert float((maps[0] * maps[1]).sum()) != pytest.approx(full, rel=1e-3)


@LAYERS
def test_autocorrelation_identity(kernel, size, stride, dilation, C):
    """CS(i, j) = Σ a_i[b] · a_j[b] over the lags b with d·b divisible by s."""
    Ki, Kj = draw(C, *kernel), draw(C, *kernel, seed=1)
    layer = {"stride": stride, "dilation": dilation}
    ai = [cross_correlation(K, K) for K in Ki]
    aj = [cross_correlation(K, K) for K in Kj]
    lags = [
        b for b in ai[0] if all(d * n % s == 0 for n, s, d in zip(b, stride, dilation, strict=True))
    ]
    matched = sum(ai[c][b] * aj[c][b] for c in range(C) for b in lags)
    crossed = sum(sum(a[b] for a in ai) * sum(a[b] for a in aj) for b in lags)
    assert filter_similarity(Ki, Kj, channels="matched", **layer) == pytest.approx(matched)
    assert filter_similarity(Ki, Kj, channels="crossed", **layer) == pytest.approx(crossed)


def phase_autocorrelation(slice_k, period):
    """B[φ, t] = Σ_{u ≡ φ mod q} K[u] · K[u + t]."""
    result = {}
    for u, v in itertools.product(np.ndindex(slice_k.shape), repeat=2):
        phase = tuple(m % q for m, q in zip(u, period, strict=True))
        key = phase, tuple(n - m for m, n in zip(u, v, strict=True))
        result[key] = result.get(key, 0.0) + slice_k[u] * slice_k[v]
    return result


@LAYERS
def test_transposed_autocorrelation_identity(kernel, size, stride, dilation, C):
    """CS(i, j) = Σ_{φ, t} B_i[φ, t] · B_j[φ, t] with the period q = s / gcd(s, d)."""
    Ki, Kj = draw(C, *kernel), draw(C, *kernel, seed=1)
    layer = {"stride": stride, "dilation": dilation, "transposed": True}
    period = [s // math.gcd(s, d) for s, d in zip(stride, dilation, strict=True)]
    Bi = [phase_autocorrelation(K, period) for K in Ki]
    Bj = [phase_autocorrelation(K, period) for K in Kj]
    matched = sum(inner(Bi[c], Bj[c]) for c in range(C))
    crossed = sum(sum(B[key] for B in Bi) * sum(B[key] for B in Bj) for key in Bi[0])
    assert filter_similarity(Ki, Kj, channels="matched", **layer) == pytest.approx(matched)
    assert filter_similarity(Ki, Kj, channels="crossed", **layer) == pytest.approx(crossed)


@pytest.mark.parametrize("transposed", [False, True])
def test_stride_that_divides_the_dilation_changes_nothing(transposed):
    Ki, Kj = draw(2, 3, 2), draw(2, 3, 2, seed=1)
    strided = filter_similarity(
        Ki, Kj, stride=(2, 3), dilation=(4, 3), channels="crossed", transposed=transposed
    )
    plain = filter_similarity(Ki, Kj, stride=(1, 1), dilation=(1, 1), channels="crossed")
    assert strided == pytest.approx(plain)


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"), [((1, 1), 1, 1), ((2, 2), 2, 1), ((2, 3), (4, 3), (2, 2))]
)
def test_no_lag_but_zero_makes_unit_crossed_constant(kernel, stride, dilation):
    """Where k ≤ s / gcd(s, d) on every axis it has no gradient; the transposed layer differs."""
    weight = draw(4, 3, *kernel)
    layer = {"stride": stride, "dilation": dilation, "channels": "crossed", "scale": "unit"}
    np.testing.assert_allclose(similarity_matrix(weight, **layer), np.ones((4, 4)))
    if kernel != (1, 1):
        transposed = similarity_matrix(weight, transposed=True, **layer)
        assert transposed.shape == (3, 3)
        assert transposed.max() < 0.99


def symmetric_part_norm(D, stride, dilation):
    """The norm of D's part with the symmetry R[c, c′, φ, t] = R[c′, c, φ + d·t mod s, −t] of R."""
    total = 0.0
    for (c, other, phase, t), value in D.items():
        turned = tuple(
            (m + d * n) % s for m, n, s, d in zip(phase, t, stride, dilation, strict=True)
        )
        # Without a mirror key no tap of that phase meets the lag, and the value is 0.
        mirror = D.get((other, c, turned, tuple(-n for n in t)), 0.0)
        total += ((value + mirror) / 2) ** 2
    return math.sqrt(total)


def most_alike(Ki, Kj, size, stride, dilation, transposed, sign):
    """Search by gradient ascent for the image that maximises sign · ⟨F_i, F_j⟩ / ‖R‖.

    Every R[c, c′, φ, t] is a bilinear form of the image's channels: 1 where a pixel of phase φ
    meets the pixel t taps away.
    """
    correlation = kernel_correlation(
        Ki, Kj, stride=stride, dilation=dilation, transposed=transposed
    )
    keys = sorted({(phase, t) for _, _, phase, t in correlation})
    pixels = np.array(list(np.ndindex(*size)))
    forms = np.zeros((len(keys), len(pixels), len(pixels)))
    for n, (phase, t) in enumerate(keys):
        shift = np.array(dilation) * t // (-np.array(stride) if transposed else 1)
        in_phase = transposed or (pixels % stride == phase).all(axis=1)[:, None]
        forms[n] = in_phase & (pixels[:, None] + shift == pixels).all(axis=2)
    C = range(len(Ki))
    D = np.array([[[correlation[c, other, *key] for other in C] for c in C] for key in keys])
    forms, D = torch.from_numpy(forms), torch.from_numpy(D)
    X = torch.from_numpy(draw(len(C), len(pixels), seed=2)).requires_grad_()
    optimizer = torch.optim.Adam([X], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        R = X @ forms @ X.T
        (-sign * (D * R).sum() / R.norm()).backward()
        optimizer.step()
    return X.detach().numpy().reshape(-1, *size)


# kernel, image, stride, dilation, channels, transposed
ADVERSARIES = [
    ((3,), (24,), (1,), (1,), 1, False),
    ((5,), (24,), (1,), (1,), 1, False),
    ((2,), (16,), (1,), (2,), 1, False),
    ((3, 3), (7, 7), (1, 1), (1, 1), 1, False),
    ((2, 3), (6, 7), (1, 1), (1, 1), 1, False),
    ((3,), (16,), (1,), (1,), 3, False),
    ((3,), (24,), (2,), (1,), 1, False),
    ((4,), (24,), (3,), (2,), 1, False),
    ((4,), (16,), (2,), (1,), 1, True),
    ((3, 3), (5, 5), (2, 2), (1, 1), 1, True),
]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("kernel", "size", "stride", "dilation", "C", "transposed"), ADVERSARIES)
def test_certificate_withstands_adversarial_inputs(kernel, size, stride, dilation, C, transposed):
    Ki, Kj = draw(C, *kernel), draw(C, *kernel, seed=1)
    layer = {"stride": stride, "dilation": dilation, "transposed": transposed}
    bound = math.sqrt(filter_similarity(Ki, Kj, channels="crossed", **layer))
    sharper = symmetric_part_norm(kernel_correlation(Ki, Kj, **layer), stride, dilation)
    output = transposed_feature_map if transposed else feature_map

    worst = 0.0
    for sign in (1, -1):
        X = most_alike(Ki, Kj, size, stride, dilation, transposed, sign)
        similarity = inner(output(Ki, X, stride, dilation), output(Kj, X, stride, dilation))
        worst = max(worst, abs(similarity) / input_correlation_norm(X, kernel, **layer))
    assert 0.6 * sharper <= worst <= sharper * (1 + 1e-9)
    assert sharper <= bound * (1 + 1e-12)


def test_certificate_is_loose_where_the_filters_correlation_is_odd():
    """(1, 1) and (1, −1) are orthogonal on every input, and yet CS = 2."""
    Ki, Kj = np.array([[1.0, 1.0]]), np.array([[1.0, -1.0]])
    layer = {"stride": (1,), "dilation": (1,)}
    assert filter_similarity(Ki, Kj, channels="crossed", **layer) == 2
    assert symmetric_part_norm(kernel_correlation(Ki, Kj, **layer), (1,), (1,)) == 0
    for seed in range(3):
        X = draw(1, 9, seed=seed)
        similarity = inner(feature_map(Ki, X, (1,), (1,)), feature_map(Kj, X, (1,), (1,)))
        assert similarity == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("C", "kernel"), [(1, (4,)), (3, (3,)), (2, (2, 3))])
def test_symmetric_part_in_closed_form(C, kernel):
    """At stride 1 it is ½ · (CS + Σ_t E[t] · E[−t]), with E = Σ_c K_i[c] ⋆ K_j[c]."""
    Ki, Kj, one = draw(C, *kernel), draw(C, *kernel, seed=1), (1,) * len(kernel)
    layer = {"stride": one, "dilation": one}
    slices = [cross_correlation(a, b) for a, b in zip(Ki, Kj, strict=True)]
    E = {t: sum(values[t] for values in slices) for t in slices[0]}
    mirrored = sum(value * E[tuple(-n for n in t)] for t, value in E.items())
    expected = (filter_similarity(Ki, Kj, channels="crossed", **layer) + mirrored) / 2
    square = symmetric_part_norm(kernel_correlation(Ki, Kj, **layer), one, one) ** 2
    assert square == pytest.approx(expected)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("angle", [0.0, 0.7, math.pi / 2, 2.5])
def test_direction_matters_to_a_1x1_kernel_on_arbitrary_inputs(angle):
    """CS is 1 at every angle, but the worst input of two unit filters gives (1 + |cos|) / 2."""
    Ki, Kj = np.array([[1.0], [0.0]]), np.array([[math.cos(angle)], [math.sin(angle)]])
    one, layer = (1,), {"stride": (1,), "dilation": (1,), "transposed": False}
    assert filter_similarity(Ki, Kj, channels="crossed", **layer) == pytest.approx(1)

    worst = 0.0
    for sign in (1, -1):
        X = most_alike(Ki, Kj, (4,), one, one, transposed=False, sign=sign)
        similarity = inner(feature_map(Ki, X, one, one), feature_map(Kj, X, one, one))
        worst = max(worst, abs(similarity) / input_correlation_norm(X, one, **layer))
    assert worst == pytest.approx((1 + abs(math.cos(angle))) / 2, rel=1e-3)


def test_certificate_is_attained():
    """A 1×1 filter pair that spans the input's correlation meets the bound."""
    K, X = np.array([[1.0], [0.0]]), np.array([[2.0, 3.0], [0.0, 0.0]])
    layer = {"stride": (1,), "dilation": (1,), "transposed": False}
    output = feature_map(K, X, (1,), (1,))
    bound = math.sqrt(filter_similarity(K, K, channels="crossed", **layer))
    assert inner(output, output) == pytest.approx(bound * input_correlation_norm(X, (1,), **layer))


def test_matched_form_certifies_nothing_across_channels():
    """Filters on disjoint channels: matched 0, yet alike feature maps on alike channels."""
    Ki, Kj = np.array([[1.0, 2.0], [0.0, 0.0]]), np.array([[0.0, 0.0], [1.0, 2.0]])
    X = np.tile(draw(1, 6), (2, 1))
    layer = {"stride": (1,), "dilation": (1,)}
    assert filter_similarity(Ki, Kj, channels="matched", **layer) == 0
    assert filter_similarity(Ki, Kj, channels="crossed", **layer) > 0
    assert inner(feature_map(Ki, X, (1,), (1,)), feature_map(Kj, X, (1,), (1,))) > 1


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("scale", ["raw", "unit"])
@pytest.mark.parametrize("channels", ["matched", "crossed"])
def test_similarity_matrix_of_groups(channels, scale, transposed):
    weight = draw(4, 3, 2, 3)
    options = {
        "stride": 2,
        "dilation": (1, 2),
        "channels": channels,
        "scale": scale,
        "transposed": transposed,
    }
    whole = similarity_matrix(weight, groups=2, **options)
    first = similarity_matrix(weight[:2], **options)
    second = similarity_matrix(weight[2:], **options)
    n = len(first)
    assert n == (3 if transposed else 2)
    np.testing.assert_array_equal(whole[:n, :n], first)
    np.testing.assert_array_equal(whole[n:, n:], second)
    assert not whole[:n, n:].any()
    assert not whole[n:, :n].any()
    np.testing.assert_allclose(whole, whole.T, rtol=1e-12)


@pytest.mark.parametrize("transposed", [False, True])
def test_transposed_layout_is_torchs(transposed):
    """With groups, filter m of the layer sees its group's input channels and no others."""
    groups, weight, X = 2, draw(4, 3, 2), draw(4 if transposed else 6, 5, seed=1)
    conv = functional.conv_transpose1d if transposed else functional.conv1d
    maps = conv(
        torch.from_numpy(X)[None],
        torch.from_numpy(weight),
        groups=groups,
        padding=0 if transposed else 1,
    )[0]
    for g, (kernels, images) in enumerate(
        zip(np.split(weight, groups), np.split(X, groups), strict=True)
    ):
        filters = kernels.swapaxes(0, 1) if transposed else kernels
        for m, K in enumerate(filters):
            output = transposed_feature_map if transposed else feature_map
            ours = as_torch_map(output(K, images, (1,), (1,)))
            np.testing.assert_allclose(maps[g * len(filters) + m].numpy(), ours, atol=1e-12)


def test_unit_scale_ignores_norms_and_keeps_zero_filters():
    weight = draw(3, 2, 3)
    rescaled = weight * np.array([0.1, 5.0, 0.0])[:, None, None]
    unit = similarity_matrix(weight, channels="crossed", scale="unit")
    other = similarity_matrix(rescaled, channels="crossed", scale="unit")
    np.testing.assert_allclose(other[:2, :2], unit[:2, :2])
    assert not other[2].any()
    assert not other[:, 2].any()
    raw = similarity_matrix(weight, channels="crossed", scale="raw")
    squares = (weight**2).sum(axis=(1, 2))
    np.testing.assert_allclose(raw, unit * np.outer(squares, squares))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("channels", ["matched", "crossed"])
@pytest.mark.parametrize("groups", [1, 2])
def test_layer_similarity_reduces_the_matrix(groups, channels, transposed):
    weight = draw(3, 4, 2) if transposed and groups == 1 else draw(6, 4, 2)
    options = {"groups": groups, "channels": channels, "scale": "unit", "transposed": transposed}
    matrix = similarity_matrix(weight, stride=2, **options)
    size = len(matrix) // groups
    pairs = [(i, j) for i, j in itertools.combinations(range(len(matrix)), 2)]
    chosen = {
        "all": [(i, j) for i, j in pairs if i // size == j // size],
        "adjacent": [(i, j) for i, j in pairs if i // size == j // size and j == i + 1],
    }
    for name, ij in chosen.items():
        values = [matrix[pair] for pair in ij]
        assert len(values) == groups * (size * (size - 1) // 2 if name == "all" else size - 1)
        for reduction, expected in (("sum", np.sum(values)), ("mean", np.mean(values))):
            ours = layer_similarity(weight, stride=2, pairs=name, reduction=reduction, **options)
            assert ours == pytest.approx(expected)


def test_layer_without_pairs_is_zero():
    for pairs, reduction in itertools.product(("all", "adjacent"), ("sum", "mean")):
        options = {"pairs": pairs, "channels": "crossed", "scale": "unit", "reduction": reduction}
        assert layer_similarity(draw(1, 2, 3), **options) == 0.0
        assert layer_similarity(draw(4, 1, 3), groups=4, **options) == 0.0


def test_values_by_hand():
    weight = np.array([[[1.0, 2.0]], [[3.0, -1.0]]])
    # K_0 ⋆ K_1 = (6, 1, −1) at the lags −1, 0, 1.
    options = {"channels": "crossed", "scale": "raw"}
    assert similarity_matrix(weight, **options)[0, 1] == pytest.approx(36 + 1 + 1)
    # Stride 2: tap 0 alone gives (3, −1), tap 1 alone (6, −2).
    assert similarity_matrix(weight, stride=2, **options)[0, 1] == pytest.approx(9 + 1 + 36 + 4)
    # Transposed, stride 2: only lag 0 is left.
    value = similarity_matrix(weight.swapaxes(0, 1), stride=2, transposed=True, **options)[0, 1]
    assert value == pytest.approx(1)


def test_unknown_options_are_refused():
    options = {"pairs": "all", "channels": "crossed", "scale": "unit", "reduction": "sum"}
    for name in options:
        with pytest.raises(ValueError, match=name):
            layer_similarity(draw(2, 1, 2), **{**options, name: "other"})
