"""Feature-map similarity of a model, measured through hooks and streamed over data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from convsim.errors import ConvsimError, NonFiniteError
from convsim.kernels import LayerFilter, conv_layers


@dataclass(frozen=True)
class LayerRedundancy:
    """How much the feature maps of one convolution repeat each other.

    Attributes:
        name: The layer's name in the model.
        filters: Its number of feature maps.
        similarity: Mean absolute cosine similarity of two different feature maps of one image, over
            all pairs and images; in [0, 1]. NaN for a layer with one filter.
        correlation: The same with each map's mean over its pixels removed first.
        effective_rank: exp of the entropy of the eigenvalues, divided by their sum, of the maps'
            Gram matrix over all images (Roy and Vetterli 2007): how many directions the maps
            really use, in [1, filters]. 0 if every map is zero.
        dead: Number of maps that are zero on every image.
        matrix: (filters, filters), float64, on the CPU: the mean over images of the absolute cosine
            of every two maps. Left out of comparisons by ``==``.
    """

    name: str
    filters: int
    similarity: float
    correlation: float
    effective_rank: float
    dead: int
    matrix: Tensor = field(repr=False, compare=False)

    def duplicates(self, threshold: float = 0.95) -> list[tuple[int, int, float]]:
        """List the pairs of maps whose mean absolute cosine is at least `threshold`.

        Returns:
            (i, j, value) with i < j, the most alike first.

        Raises:
            ConvsimError: If the threshold is outside [0, 1].
        """
        if not 0 <= threshold <= 1:
            raise ConvsimError(f"threshold is an absolute cosine, in [0, 1]; got {threshold!r}.")
        above = torch.ones_like(self.matrix).triu(1).bool() & (self.matrix >= threshold)
        pairs = [(i, j, float(self.matrix[i, j])) for i, j in above.nonzero().tolist()]
        return sorted(pairs, key=lambda pair: -pair[2])


@dataclass(frozen=True)
class RedundancyReport:
    """Feature-map redundancy of a model on some images, by layer in the order of its modules."""

    layers: tuple[LayerRedundancy, ...]
    images: int

    @property
    def similarity(self) -> float:
        """Mean of the layers' similarity, over the layers with two filters or more."""
        values = [layer.similarity for layer in self.layers if layer.filters > 1]
        return sum(values) / len(values) if values else float("nan")


def measure(
    model: nn.Module,
    batches: Iterable[Tensor | Sequence[Any]],
    *,
    layers: LayerFilter | Iterable[LayerFilter] | None = None,
) -> RedundancyReport:
    """Measure how alike a model's feature maps are on real inputs.

    A feature map is one channel of a convolution's output (before normalization and activation)
    for one image, as a vector over its pixels. A map that is zero everywhere has cosine 0 with
    every other, and so has a constant map in the correlation.

    Args:
        model: The model. It is put in ``eval()`` mode for the time of the call.
        batches: Batches of inputs (N, …), or sequences that start with one, as a DataLoader gives.
            They are moved to the device of the model's first parameter.
        layers: Which convolutions, as in `convsim.conv_layers`.

    Returns:
        The report. Sums are kept in float64, so the split into batches does not matter.

    Raises:
        ConvsimError: If there is no batch, or a selected layer is never reached.
        NonFiniteError: If a feature map holds NaN or infinity; names the layer.

    Cost: a forward pass, and for each image and layer 3 M² products of maps in float64, then one
    eigendecomposition (M³) by layer. Memory: one batch, and 3 M² numbers by layer.
    """
    chosen = conv_layers(model, layers)
    device = next(model.parameters()).device
    sums: dict[str, Tensor] = {}
    maps: dict[str, int] = {layer.name: 0 for layer in chosen}
    images = 0

    def record(name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        value = _pair_sums(output.detach())
        if not value.isfinite().all():
            raise NonFiniteError(
                f"Layer {name!r} put out a feature map with NaN or infinite values. Check the "
                "inputs and the weights before it."
            )
        sums[name] = sums.get(name, 0) + value
        maps[name] += output.shape[0]

    training = {module: module.training for module in model.modules()}

    def restore_modes() -> None:
        for module, mode in training.items():
            module.training = mode

    with ExitStack() as stack, torch.no_grad():
        for layer in chosen:
            hook = layer.module.register_forward_hook(partial(record, layer.name))
            stack.callback(hook.remove)
        stack.callback(restore_modes)
        model.eval()
        for batch in batches:
            inputs = batch if isinstance(batch, Tensor) else batch[0]
            model(inputs.to(device))
            images += len(inputs)
    if not images:
        raise ConvsimError("measure() needs at least one batch of inputs; got none.")
    unreached = [name for name, count in maps.items() if not count]
    if unreached:
        raise ConvsimError(
            f"The model's forward never reached these layers: {', '.join(unreached)}. Leave them "
            "out with layers=…."
        )

    return RedundancyReport(
        tuple(_summarize(layer.name, sums[layer.name], maps[layer.name]) for layer in chosen),
        images,
    )


def _pair_sums(output_NMx: Tensor) -> Tensor:
    """Sum |cosine|, |correlation| and inner product of every two maps over images: (3, M, M)."""
    total_3MM: Tensor | int = 0
    most = max(1, _CHUNK // output_NMx.shape[1] ** 2)
    for chunk_NMx in output_NMx.split(most):
        maps_NMP = chunk_NMx.double().flatten(2)
        centered_NMP = maps_NMP - maps_NMP.mean(-1, keepdim=True)
        # What is left of a constant map is float32 rounding: it has no direction.
        rounding_NM1 = 1e-6 * maps_NMP.abs().amax(-1, keepdim=True)
        constant_NM1 = centered_NMP.abs().amax(-1, keepdim=True) <= rounding_NM1
        centered_NMP = torch.where(constant_NM1, 0, centered_NMP)
        gram_MM = (maps_NMP @ maps_NMP.mT).sum(0)
        total_3MM = total_3MM + torch.stack([_cosines(maps_NMP), _cosines(centered_NMP), gram_MM])
    assert isinstance(total_3MM, Tensor)
    return total_3MM


_CHUNK = 2**24
"""Most numbers in the pair matrices of the images handled at once (128 MiB in float64)."""


def _cosines(maps_NMP: Tensor) -> Tensor:
    unit_NMP = nn.functional.normalize(maps_NMP, dim=-1, eps=torch.finfo(torch.float64).tiny)
    return (unit_NMP @ unit_NMP.mT).abs().sum(0)


def _summarize(name: str, sums_3MM: Tensor, images: int) -> LayerRedundancy:
    cosine_MM, correlation_MM, gram_MM = (sums_3MM / images).cpu()
    filters = len(gram_MM)
    pairs = filters * (filters - 1)

    def mean_over_pairs(values_MM: Tensor) -> float:
        return float(values_MM.sum() - values_MM.trace()) / pairs if pairs else float("nan")

    return LayerRedundancy(
        name,
        filters,
        mean_over_pairs(cosine_MM),
        mean_over_pairs(correlation_MM),
        _effective_rank(gram_MM),
        int((gram_MM.diagonal() == 0).sum()),
        cosine_MM,
    )


def _effective_rank(gram_MM: Tensor) -> float:
    """Return exp of the entropy of a Gram matrix's eigenvalues over their sum, 0 if all are 0."""
    eigenvalues = torch.linalg.eigvalsh(gram_MM).clamp_min(0)
    if not eigenvalues.sum():
        return 0.0
    share = eigenvalues / eigenvalues.sum()
    return float(torch.special.entr(share).sum().exp())
