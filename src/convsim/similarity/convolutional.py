"""Convolutional Similarity of filters, after Belmekki et al. 2024 (arXiv 2411.03226).

The readable reference that every faster path is checked against. Shape suffixes: G groups, M
filters of a group, C channels of a filter, n taps of a kernel (the product of its spatial shape k),
N = n² tap pairs, L classes of them, X a vector whose inner products are similarities.

For stride 1 the similarity of two filters is Σ ‖K[i,c] ⋆ K[j,c′]‖² over channel pairs, and by
Parseval ‖p ⋆ q‖² = ⟨p ⋆ p, q ⋆ q⟩. So each filter is first turned into a short vector, its
autocorrelation, and similarity becomes an inner product of such vectors: all pairs cost one pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

import torch
from torch import Tensor

from convsim.caching import kept
from convsim.errors import ConvsimError
from convsim.kernels import Geometry, KernelBank, kernel_bank
from convsim.precision import exact_dtype, full_precision

Pairs = Literal["all", "adjacent"]
Channels = Literal["crossed", "matched"]
Scale = Literal["unit", "raw"]
Reduction = Literal["mean", "sum"]


@dataclass(frozen=True)
class Options:
    """The form of Convolutional Similarity: see `convolutional_similarity`.

    Raises:
        ConvsimError: For an unknown option.
    """

    pairs: Pairs = "all"
    channels: Channels = "crossed"
    scale: Scale = "unit"
    reduction: Reduction = "mean"

    def __post_init__(self) -> None:
        for name, value, kind in (
            ("pairs", self.pairs, Pairs),
            ("channels", self.channels, Channels),
            ("scale", self.scale, Scale),
            ("reduction", self.reduction, Reduction),
        ):
            if value not in get_args(kind):
                known = " or ".join(map(repr, get_args(kind)))
                raise ConvsimError(f"{name} must be {known}; got {value!r}.")


def convolutional_similarity(
    weight: Tensor,
    *,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    transposed: bool = False,
    pairs: Pairs = "all",
    channels: Channels = "crossed",
    scale: Scale = "unit",
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute how similar a layer's feature maps can be, from its kernels alone.

    Compares every two filters i < j that share their input. With K[i,c] the kernel slice of filter
    i and channel c, and ⋆ full cross-correlation over all lags,

        matched: CS(i,j) = Σ_c ‖K[i,c] ⋆ K[j,c]‖²,   crossed: CS(i,j) = Σ_{c,c′} ‖K[i,c] ⋆ K[j,c′]‖²

    The crossed form is a worst case over inputs: for feature maps F_i = K_i ⋆ X with full zero (or
    circular) padding, |⟨F_i, F_j⟩| ≤ √CS(i,j) · ‖X ⋆ X‖ for every X. It is ≥ 0 and, for raw
    non-zero filters, > 0. With ``scale="unit"`` each filter is divided by its own norm, so the
    value ignores the norms; a zero filter (no element above the dtype's smallest normal number)
    then stays zero and is similar to none.

    Stride s keeps the lags that meet it, those b with dilation·b divisible by s: exact when the
    input's correlation is taken phase by phase. A transposed convolution keeps all lags but splits
    them by the phase of the first tap: exact too (docs/mathematics.md derives both).

    Degenerate values: one filter per group gives 0, because it has no partner; crossed and unit
    give 1 for any filters where no lag but 0 is left, as in a 1×1 convolution.

    Args:
        weight: (M, C/groups, k), or (C, M/groups, k) if `transposed`, with 1 to 3 spatial axes and
            any real floating dtype.
        stride: The layer's stride.
        dilation: The layer's dilation.
        groups: The layer's groups; pairs are formed inside a group only.
        transposed: Whether the layer is a transposed convolution.
        pairs: "all" i < j, or "adjacent" (i, i+1), as in the authors' code.
        channels: "crossed" or "matched" (the authors' code).
        scale: "unit" or "raw" (the authors' code).
        reduction: "mean" or "sum" (the authors' code) over the pairs.

    Returns:
        A scalar, float64 for a float64 weight and float32 for any other. Differentiable twice.

    Raises:
        ConvsimError: For an unknown option or a weight, stride, dilation or groups that do not fit.

    Cost: linear in M. Per filter n²·C multiplications and n² numbers of memory, crossed; n² numbers
    per filter and channel, matched.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> weight = torch.randn(8, 3, 3, 3)
        >>> torch.isclose(convolutional_similarity(weight), convolutional_similarity(9 * weight))
        tensor(True)
    """
    bank = kernel_bank(
        weight, stride=stride, dilation=dilation, groups=groups, transposed=transposed
    )
    return bank_similarity(bank, Options(pairs, channels, scale, reduction))


def similarity_matrix(
    weight: Tensor,
    *,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    transposed: bool = False,
    channels: Channels = "crossed",
    scale: Scale = "unit",
) -> Tensor:
    """Compute the Convolutional Similarity of every two filters of a layer.

    Args:
        weight: As in `convolutional_similarity`, and so the other arguments.
        stride: The layer's stride.
        dilation: The layer's dilation.
        groups: The layer's groups.
        transposed: Whether the layer is a transposed convolution.
        channels: "crossed" or "matched".
        scale: "unit" or "raw".

    Returns:
        (M, M) for the layer's M filters in their order, symmetric; 0 between filters of different
        groups, which share no input. dtype as in `convolutional_similarity`.

    Raises:
        ConvsimError: As `convolutional_similarity`.

    Cost: quadratic in M, in time and memory.

    Example:
        >>> similarity_matrix(torch.ones(2, 1, 2), scale="raw")
        tensor([[6., 6.],
                [6., 6.]])
    """
    bank = kernel_bank(
        weight, stride=stride, dilation=dilation, groups=groups, transposed=transposed
    )
    options = Options(channels=channels, scale=scale)
    matrix: Tensor = torch.block_diag(*bank_matrix(bank, options))
    return matrix


def bank_matrix(bank: KernelBank, options: Options) -> Tensor:
    """Compute the similarity of every two filters of a group: (G, M, M)."""
    with full_precision(bank.filters):
        a_GMX = _autocorrelation(bank, options)
        return a_GMX @ a_GMX.mT


def bank_similarity(bank: KernelBank, options: Options) -> Tensor:
    """Compute `convolutional_similarity` of a bank: ½ Σ_i ⟨a_i, Σ of its partners' a_j⟩."""
    with full_precision(bank.filters):
        a_GMX = _autocorrelation(bank, options)
    total = (a_GMX * sum_partners(a_GMX, options.pairs)).sum()
    return 0.5 * pair_weight(bank, options) * total


def pair_count(bank: KernelBank, pairs: Pairs) -> int:
    """Count the pairs of filters that a bank's similarity sums over."""
    groups, filters = bank.counts
    return groups * (filters * (filters - 1) // 2 if pairs == "all" else filters - 1)


def can_vary(bank: KernelBank, options: Options) -> bool:
    """Tell whether a bank's similarity depends on its filters at all.

    It does not where there are no pairs, nor in the crossed, unit form where lag 0 alone is left:
    Σ_{c,c′} ‖K[i,c]‖²‖K[j,c′]‖² is then the product of two norms.
    """
    crossed_and_unit = options.channels == "crossed" and options.scale == "unit"
    only_norms = crossed_and_unit and _classes(bank)[1] == 1
    return pair_count(bank, options.pairs) > 0 and not only_norms


def _autocorrelation(bank: KernelBank, options: Options) -> Tensor:
    """Turn filters into vectors (G, M, X) whose inner products are Convolutional Similarities."""
    if bank.share is not None:
        raise ConvsimError(
            "These are one rank's filters of a sharded layer. Here, as for a second derivative, "
            "those of all ranks are needed: gather the weight with full_tensor()."
        )
    w_GMCn = scaled_filters(bank.filters.flatten(3), options.scale)[0]
    return pool_by_class(tap_products(w_GMCn, options.channels), bank).flatten(2)


def unit_filters(bank: KernelBank) -> Tensor:
    """Divide every filter by its norm, a zero filter staying zero: (G, M, C, n)."""
    return scaled_filters(bank.filters.flatten(3), "unit")[0]


def scaled_filters(w_GMCn: Tensor, scale: Scale) -> tuple[Tensor, Tensor, Tensor]:
    """Divide filters by their norm, ‖filter‖ = peak · norm, and return norm and peak too.

    Dividing by the largest element first keeps the squares of filters of norm 1e±30 in range.
    """
    if scale == "raw":
        one = w_GMCn.new_ones((1, 1, 1, 1))
        return w_GMCn, one, one
    peak = torch.linalg.vector_norm(w_GMCn.detach(), torch.inf, dim=(-2, -1), keepdim=True)
    # Divided by infinity, a zero filter stays zero; its norm, 0, is made 1.
    peak = torch.where(peak < torch.finfo(peak.dtype).tiny, torch.inf, peak)
    w_GMCn = w_GMCn / peak
    norm = torch.linalg.vector_norm(w_GMCn, dim=(-2, -1), keepdim=True).clamp(min=1)
    return w_GMCn / norm, norm, peak


def filter_norms(filters_GMCk: Tensor) -> Tensor:
    """Compute every filter's norm, however large or small: (G, M), float64 but on MPS."""
    exact = exact_dtype(filters_GMCk.device)
    norms: Tensor = torch.linalg.vector_norm(filters_GMCk.flatten(2), dim=2, dtype=exact)
    return norms


def tap_products(w_GMCn: Tensor, channels: Channels) -> Tensor:
    """Multiply every two taps: (G, M, 1, n, n) summed over channels, or (G, M, C, n, n)."""
    if channels == "matched":
        return w_GMCn.unsqueeze(-1) * w_GMCn.unsqueeze(-2)
    return (w_GMCn.mT @ w_GMCn).unsqueeze(2)


def pool_by_class(gram_nn: Tensor, bank: KernelBank) -> Tensor:
    """Sum the products of tap pairs of one class: (…, n, n) → (…, L)."""
    class_N, count = _classes(bank)
    # Pairs left out are summed behind the last class, and dropped.
    pooled = gram_nn.new_zeros((*gram_nn.shape[:-2], count + 1))
    return pooled.index_add(-1, class_N, gram_nn.flatten(-2))[..., :count]


def expand_classes(a_L: Tensor, bank: KernelBank) -> Tensor:
    """Expand a vector over classes to tap pairs, the adjoint of `pool_by_class`."""
    class_N, _ = _classes(bank)
    taps = bank.geometry.taps
    padded = torch.nn.functional.pad(a_L, (0, 1))  # pairs left out read this 0
    pairs: Tensor = padded[..., class_N]
    return pairs.reshape(*a_L.shape[:-1], taps, taps)


def _classes(bank: KernelBank) -> tuple[Tensor, int]:
    return _classes_on(bank.geometry, bank.filters.device)


@kept(64)  # a copy to a GPU at every call would wait for it
def _classes_on(geometry: Geometry, device: torch.device) -> tuple[Tensor, int]:
    index, count = tap_pair_classes(geometry)
    return index.to(device), count


@kept(64)
def tap_pair_classes(geometry: Geometry) -> tuple[Tensor, int]:
    """Sort the pairs (u, v) of a kernel's taps into the classes that autocorrelation sums over.

    A convolution sums by the lag v − u and keeps the lags b with dilation·b divisible by the
    stride. A transposed one keeps all lags, and sums by the lag and the phase of u.

    Returns:
        The class of each of the n² pairs, where `count` stands for a pair left out, and `count`.
    """
    step = geometry.lag_steps
    taps = list(product(*map(range, geometry.kernel)))
    number: dict[tuple[int, ...], int] = {}
    classes = []
    for u, v in product(taps, taps):
        lag = tuple(b - a for a, b in zip(u, v, strict=True))
        if geometry.transposed:
            lag += tuple(a % q for a, q in zip(u, step, strict=True))
        elif any(b % q for b, q in zip(lag, step, strict=True)):
            classes.append(-1)
            continue
        classes.append(number.setdefault(lag, len(number)))
    index = torch.tensor(classes, device="cpu")
    return torch.where(index < 0, len(number), index), len(number)


def sum_partners(a_GMX: Tensor, pairs: Pairs) -> Tensor:
    """Sum each filter's partners: of all the others, or of the one before and the one after.

    Sums from either side rather than the total less a_i: subtracting would lose every digit of a
    small filter beside a large one.
    """
    # Shifted by one filter either way, zeros at the ends; summed up, all that come before or after.
    before = torch.nn.functional.pad(a_GMX, (0, 0, 1, 0))[:, :-1]
    after = torch.nn.functional.pad(a_GMX, (0, 0, 0, 1))[:, 1:]
    if pairs == "adjacent":
        return before + after
    return before.cumsum(1) + after.flip(1).cumsum(1).flip(1)


def pair_weight(bank: KernelBank, options: Options) -> float:
    """Compute what the sum over pairs is multiplied by: 1, or 1 over their number."""
    count = pair_count(bank, options.pairs)
    return 1.0 if options.reduction == "sum" else 1.0 / max(1, count)
