"""Feature-map similarity of a model, measured through hooks and streamed over data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
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
    """

    name: str
    filters: int
    similarity: float
    correlation: float


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

    Cost: a forward pass, and for each image and layer M² products of maps; memory for one batch.
    """
    chosen = conv_layers(model, layers)
    device = next(model.parameters()).device
    sums: dict[str, Tensor] = {}
    maps: dict[str, int] = {layer.name: 0 for layer in chosen}
    images = 0

    def record(name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        value = _pair_similarities(output.detach())
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

    def layer_redundancy(name: str, filters: int) -> LayerRedundancy:
        pairs = filters * (filters - 1)
        similarity, correlation = sums[name] / (pairs * maps[name]) if pairs else [float("nan")] * 2
        return LayerRedundancy(name, filters, float(similarity), float(correlation))

    return RedundancyReport(
        tuple(layer_redundancy(layer.name, layer.module.out_channels) for layer in chosen),  # type: ignore[arg-type]
        images,
    )


def _pair_similarities(output_NMx: Tensor) -> Tensor:
    """Sum |cosine| over ordered pairs of different maps and over images: raw, and less the mean."""
    maps_NMP = output_NMx.double().flatten(2)
    centered_NMP = maps_NMP - maps_NMP.mean(-1, keepdim=True)
    # What is left of a constant map is float32 rounding: it has no direction.
    rounding_NM1 = 1e-6 * maps_NMP.abs().amax(-1, keepdim=True)
    constant_NM1 = centered_NMP.abs().amax(-1, keepdim=True) <= rounding_NM1
    centered_NMP = torch.where(constant_NM1, 0, centered_NMP)
    return torch.stack([_off_diagonal(maps_NMP), _off_diagonal(centered_NMP)])


def _off_diagonal(maps_NMP: Tensor) -> Tensor:
    unit_NMP = nn.functional.normalize(maps_NMP, dim=-1, eps=torch.finfo(torch.float64).tiny)
    cosine_NMM = (unit_NMP @ unit_NMP.mT).abs()
    return cosine_NMM.sum() - cosine_NMM.diagonal(dim1=1, dim2=2).sum()
