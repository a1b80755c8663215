"""Convolutional Similarity by its definitions: slow, float64, plain loops.

What the library computes fast is computed here the long way round, from the definitions alone:
never through autocorrelations, spectra or Gram matrices. Nothing here imports the library.

Notation. `K[c, u]` is a kernel, `c` its input channel and `u` its tap (one integer per spatial
axis); `X[c, x]` an image, zero outside its bounds; `s` the stride and `d` the dilation, one integer
per axis; `t = v − u` the lag, in taps, between the taps `u` of one filter and `v` of another.
Products, sums and remainders of such tuples are taken axis by axis.
"""

import itertools
import math

import numpy as np


def _indices(shape):
    """Return every index tuple of an array of this shape."""
    return list(itertools.product(*(range(n) for n in shape)))


def _lags(shape):
    """Return every lag t with |t| ≤ k − 1 on each axis."""
    return list(itertools.product(*(range(1 - k, k) for k in shape)))


def _per_axis(value, dims):
    """Return one int per axis from an int or a sequence."""
    return (int(value),) * dims if np.isscalar(value) else tuple(int(v) for v in value)


def _phase(u, stride, dilation):
    """Return d·u mod s: where, within a stride, the tap u reads the image."""
    return tuple(d * n % s for n, s, d in zip(u, stride, dilation, strict=True))


def _phases(kernel_shape, stride, dilation):
    """Return the set {d·u mod s} over the taps u, sorted."""
    return sorted({_phase(u, stride, dilation) for u in _indices(kernel_shape)})


def _inside(x, shape):
    return all(0 <= n < size for n, size in zip(x, shape, strict=True))


def cross_correlation(a, b):
    """Full cross-correlation of two arrays with equally many axes, as a dict from lag to value.

    (a ⋆ b)[t] = Σ_u a[u] · b[u + t], over every lag t at which they overlap: from 1 − k_a to
    k_b − 1 on each axis, with k_a and k_b their sizes; for equal sizes |t| ≤ k − 1.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != b.ndim:
        raise ValueError(f"the numbers of axes differ: {a.shape} and {b.shape}")
    lags = itertools.product(*(range(1 - m, n) for m, n in zip(a.shape, b.shape, strict=True)))
    result = dict.fromkeys(lags, 0.0)
    for u in _indices(a.shape):
        for v in _indices(b.shape):
            lag = tuple(n - m for m, n in zip(u, v, strict=True))
            result[lag] += float(a[u]) * float(b[v])
    return result


def feature_map(kernel_Ck, image_Cx, stride, dilation):
    """One filter's feature map under full zero padding, as a dict from output position to value.

    F[p] = Σ_c Σ_u K[c, u] · X[c, s·p + d·u], over every integer p where the dilated kernel's extent
    [s·p, s·p + d·(k − 1)] meets the image. Position p = 0 puts the kernel's first tap on the
    image's first pixel, so p also takes negative values.
    """
    kernel_Ck = np.asarray(kernel_Ck, dtype=np.float64)
    image_Cx = np.asarray(image_Cx, dtype=np.float64)
    taps, size = kernel_Ck.shape[1:], image_Cx.shape[1:]
    positions = itertools.product(
        *(
            range(-(d * (k - 1) // s), (n - 1) // s + 1)
            for k, n, s, d in zip(taps, size, stride, dilation, strict=True)
        )
    )
    result = {}
    for p in positions:
        total = 0.0
        for u in _indices(taps):
            x = tuple(s * m + d * n for m, n, s, d in zip(p, u, stride, dilation, strict=True))
            if _inside(x, size):
                for c in range(len(kernel_Ck)):
                    total += float(kernel_Ck[(c, *u)]) * float(image_Cx[(c, *x)])
        result[p] = total
    return result


def transposed_feature_map(kernel_Ck, image_Cx, stride, dilation):
    """One filter's feature map under a transposed convolution, as a dict from position to value.

    F[s·x + d·u] += K[c, u] · X[c, x] over every c, x and u, without padding; the positions are
    0 … s·(n − 1) + d·(k − 1) on each axis, those that nothing reaches included, as 0.
    """
    kernel_Ck = np.asarray(kernel_Ck, dtype=np.float64)
    image_Cx = np.asarray(image_Cx, dtype=np.float64)
    taps, size = kernel_Ck.shape[1:], image_Cx.shape[1:]
    shape = [
        s * (n - 1) + d * (k - 1) + 1
        for k, n, s, d in zip(taps, size, stride, dilation, strict=True)
    ]
    result = dict.fromkeys(_indices(shape), 0.0)
    for x in _indices(size):
        for u in _indices(taps):
            p = tuple(s * m + d * n for m, n, s, d in zip(x, u, stride, dilation, strict=True))
            for c in range(len(kernel_Ck)):
                result[p] += float(kernel_Ck[(c, *u)]) * float(image_Cx[(c, *x)])
    return result


def kernel_correlation(Ki_Ck, Kj_Ck, *, stride, dilation, transposed=False):
    """The kernels' half of ⟨F_i, F_j⟩ = Σ D · R, as a dict from (c, c′, φ, t) to value.

    Convolution: D[c, c′, φ, t] = Σ_{u: d·u ≡ φ mod s} K_i[c, u] · K_j[c′, u + t]: the first filter
    masked by phase, cross-correlated with the whole second one, over every phase φ in {d·u mod s}
    and every lag t. At stride 1 the only phase is 0.

    Transposed: D[c, c′, 0, t] = (K_i[c] ⋆ K_j[c′])[t], over the lags t with d·t ≡ 0 mod s alone.
    """
    Ki_Ck, Kj_Ck = np.asarray(Ki_Ck, dtype=np.float64), np.asarray(Kj_Ck, dtype=np.float64)
    taps = Ki_Ck.shape[1:]
    zero = (0,) * len(taps)
    result = {}
    for c, other in itertools.product(range(len(Ki_Ck)), range(len(Kj_Ck))):
        if transposed:
            for t, value in cross_correlation(Ki_Ck[c], Kj_Ck[other]).items():
                if _phase(t, stride, dilation) == zero:
                    result[c, other, zero, t] = value
            continue
        for phase in _phases(taps, stride, dilation):
            masked = np.zeros(taps)
            for u in _indices(taps):
                if _phase(u, stride, dilation) == phase:
                    masked[u] = Ki_Ck[(c, *u)]
            for t, value in cross_correlation(masked, Kj_Ck[other]).items():
                result[c, other, phase, t] = value
    return result


def input_correlation(image_Cx, kernel_shape, *, stride, dilation, transposed=False):
    """The input's half of ⟨F_i, F_j⟩ = Σ D · R, on the same keys as `kernel_correlation`.

    Convolution: R[c, c′, φ, t] = Σ_p X[c, s·p + φ] · X[c′, s·p + φ + d·t], over all integers p; at
    stride 1, Σ_x X[c, x] · X[c′, x + d·t].

    Transposed: R[c, c′, 0, t] = Σ_x X[c, x] · X[c′, x − d·t / s] for the lags with d·t ≡ 0 mod s.
    The sign: s·x + d·u and s·x′ + d·v are one output position when s·(x′ − x) = −d·(v − u). It
    swaps t with −t, so it matters to R and not to its norm.
    """
    image_Cx = np.asarray(image_Cx, dtype=np.float64)
    size = image_Cx.shape[1:]
    zero = (0,) * len(size)
    result = {}
    for t in _lags(kernel_shape):
        if transposed:
            if _phase(t, stride, dilation) != zero:
                continue
            phases = [zero]
            shift = [-d * n // s for n, s, d in zip(t, stride, dilation, strict=True)]
        else:
            phases = _phases(kernel_shape, stride, dilation)
            shift = [d * n for n, d in zip(t, dilation, strict=True)]
        for c, other in itertools.product(range(len(image_Cx)), repeat=2):
            for phase in phases:
                total = 0.0
                for x in _indices(size):
                    y = tuple(m + n for m, n in zip(x, shift, strict=True))
                    in_phase = transposed or phase == tuple(
                        n % s for n, s in zip(x, stride, strict=True)
                    )
                    if in_phase and _inside(y, size):
                        total += float(image_Cx[(c, *x)]) * float(image_Cx[(other, *y)])
                result[c, other, phase, t] = total
    return result


def input_correlation_norm(image_Cx, kernel_shape, *, stride, dilation, transposed):
    """The norm ‖R‖ of the certificate |⟨F_i, F_j⟩| ≤ √CS_crossed(i, j) · ‖R‖.

    ‖R‖² = Σ_{c, c′, φ, t} R[c, c′, φ, t]², with R as in `input_correlation`. The feature maps are
    those of `feature_map` or `transposed_feature_map`. The bound
    always holds and is seldom met: R[c, c′, φ, t] = R[c′, c, φ + d·t mod s, −t], so only the part
    of D with that symmetry counts.

    A strided layer whose padding P on the left is no multiple of s reads the image from another
    phase: its certificate is that of the image shifted by P pixels.
    """
    R = input_correlation(
        image_Cx, kernel_shape, stride=stride, dilation=dilation, transposed=transposed
    )
    return math.sqrt(sum(value**2 for value in R.values()))


def filter_similarity(Ki_Ck, Kj_Ck, *, stride, dilation, channels, transposed=False):
    """Convolutional Similarity of two filters, by its definition.

    CS(i, j) = Σ D[c, c′, φ, t]² with D as in `kernel_correlation`, over c = c′ alone
    (`channels="matched"`) or every pair (c, c′) (`channels="crossed"`). Thus at stride 1
    Σ_c ‖K[i, c] ⋆ K[j, c]‖² and Σ_{c, c′} ‖K[i, c] ⋆ K[j, c′]‖².
    """
    if channels not in {"matched", "crossed"}:
        raise ValueError(f"channels: {channels!r}")
    D = kernel_correlation(Ki_Ck, Kj_Ck, stride=stride, dilation=dilation, transposed=transposed)
    return sum(
        value**2 for (c, other, _, _), value in D.items() if channels == "crossed" or c == other
    )


def filters_by_group(weight, *, groups=1, transposed=False):
    """Return the filters of each group, a list of lists of (C, *k) float64 arrays.

    Convolution: the weight is (M, C/groups, *k) and group g owns M/groups consecutive filters.
    Transposed: it is (in, out/groups, *k); group g owns in/groups consecutive entries of axis 0,
    which are its input channels, and each entry of axis 1 is one of its filters.
    """
    weight = np.asarray(weight, dtype=np.float64)
    size = len(weight) // groups
    result = []
    for g in range(groups):
        block = weight[g * size : (g + 1) * size]
        if transposed:
            result.append([block[:, m] for m in range(block.shape[1])])
        else:
            result.append([block[m] for m in range(size)])
    return result


def _scaled(kernel_Ck, scale):
    """Return K / ‖K‖ ("unit"; a zero filter stays zero) or K ("raw")."""
    if scale not in {"unit", "raw"}:
        raise ValueError(f"scale: {scale!r}")
    norm = math.sqrt(sum(float(value) ** 2 for value in kernel_Ck.flat))
    return kernel_Ck / norm if scale == "unit" and norm > 0 else kernel_Ck


def similarity_matrix(weight, *, stride=1, dilation=1, groups=1, channels, scale, transposed=False):
    """The matrix of CS(i, j) over all filters of a layer, its diagonal CS(i, i) included.

    0 between filters of different groups. `scale="unit"` divides every filter by its own L2 norm.
    """
    dims = np.ndim(weight) - 2
    stride, dilation = _per_axis(stride, dims), _per_axis(dilation, dims)
    banks = filters_by_group(weight, groups=groups, transposed=transposed)
    total = sum(len(bank) for bank in banks)
    result = np.zeros((total, total))
    first = 0
    for bank in banks:
        unit = [_scaled(kernel, scale) for kernel in bank]
        for i, j in itertools.product(range(len(bank)), repeat=2):
            result[first + i, first + j] = filter_similarity(
                unit[i],
                unit[j],
                stride=stride,
                dilation=dilation,
                channels=channels,
                transposed=transposed,
            )
        first += len(bank)
    return result


def layer_similarity(
    weight,
    *,
    stride=1,
    dilation=1,
    groups=1,
    transposed=False,
    pairs,
    channels,
    scale,
    reduction,
):
    """Σ CS(i, j), or its mean, over a layer's pairs of filters; 0.0 if there are none.

    `pairs="all"`: every i < j within a group; `"adjacent"`: (i, i + 1) within a group. The mean is
    over the pairs of all the groups together.
    """
    if pairs not in {"all", "adjacent"}:
        raise ValueError(f"pairs: {pairs!r}")
    if reduction not in {"sum", "mean"}:
        raise ValueError(f"reduction: {reduction!r}")
    dims = np.ndim(weight) - 2
    stride, dilation = _per_axis(stride, dims), _per_axis(dilation, dims)
    values = []
    for bank in filters_by_group(weight, groups=groups, transposed=transposed):
        unit = [_scaled(kernel, scale) for kernel in bank]
        for i, j in itertools.combinations(range(len(bank)), 2):
            if pairs == "all" or j == i + 1:
                values.append(
                    filter_similarity(
                        unit[i],
                        unit[j],
                        stride=stride,
                        dilation=dilation,
                        channels=channels,
                        transposed=transposed,
                    )
                )
    if not values:
        return 0.0
    return sum(values) / (len(values) if reduction == "mean" else 1)
