"""Redundancy of a model, measured through hooks and streamed over data.

Shape suffixes: N images, M maps, P pixels.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from convsim.errors import ConvsimError, ConvsimWarning, NonFiniteError
from convsim.kernels import KernelBank, LayerFilter
from convsim.redundancy.input_autocorrelation import InputAutocorrelation
from convsim.redundancy.layer_summary import summarize_layer, worst_pairs
from convsim.redundancy.pair_statistics import PairStatistics
from convsim.redundancy.pictures import image_pictures, kernel_pictures, map_pictures
from convsim.redundancy.probes import Probe, probes, watching
from convsim.report.layer_redundancy import MapPair, Pictures
from convsim.report.redundancy_report import RedundancyReport
from convsim.similarity.certificate import certified_cosines

Batch = Tensor | Sequence[Any] | Mapping[str, Any]


def measure(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    layers: LayerFilter | Iterable[LayerFilter] | None = None,
    modules: LayerFilter | Iterable[LayerFilter] | None = None,
    examples: int = 3,
    autocorrelation: bool = False,
) -> RedundancyReport:
    """Measure how alike a model's feature maps are on real inputs, and what its kernels say of it.

    A feature map is one channel of a layer's output for one image, as a vector over its pixels. A
    map that is zero everywhere has cosine 0 with every other, and so has a constant map in the
    correlation. Maps of one pixel have no direction, and one map has no partner: similarity is then
    NaN, and left out of the model's mean.

    Args:
        model: The model. It is put in ``eval()`` mode for the time of the call.
        batches: Batches of inputs (N, …), sequences that start with one, as a DataLoader gives, or
            mappings with "pixel_values", as transformers has them. They are moved to the device of
            the model's first parameter.
        layers: Which convolutions, as in `convsim.conv_layers`: their outputs, before normalization
            and activation. By default all that the forward pass reaches, with a warning of others.
        modules: Instead, modules of any kind, chosen likewise: ``"*.bn1"`` measures after that
            normalization, ``nn.ReLU`` after every such activation. Outputs must be (N, maps, …).
        examples: Of how many first images to keep pictures and to compute the certificate.
        autocorrelation: Whether to measure the autocorrelation of each convolution's inputs, for
            `convsim.expected_similarity`: (C·n)² numbers by layer of n taps, and P·(C·n)²
            multiplications for each image and layer, many times a forward pass.

    Returns:
        The report. Sums are kept in float64, so neither the split into batches nor the order
        matters; outputs of half precision are taken as float32, of float64 as they are.

    Raises:
        ConvsimError: If there is no batch, a chosen module is never reached, or an output is no
            tensor (N, maps, …) of real floating point with as many maps each time.
        NonFiniteError: If a feature map holds NaN or infinity; names the layer.

    Cost: the forward passes, and M²·P/2 multiplications for each image and layer; then M³ by layer
    for the effective rank, and a pass over the examples with C²·P products for each lag of a
    kernel. Memory: one batch and 16 M² bytes by layer, however many images there are.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3))
        >>> report = measure(model, [torch.randn(4, 3, 16, 16)])
        >>> [(layer.name, layer.filters) for layer in report.layers]
        [('0', 8), ('2', 16)]
        >>> 0 < report.similarity < 1
        True
    """
    if isinstance(batches, Tensor) or not isinstance(batches, Iterable):
        raise ConvsimError(
            "measure() takes an iterable of batches, such as [images]; got "
            f"{type(batches).__name__}."
        )
    chosen = probes(model, layers, modules)
    statistics: dict[str, PairStatistics] = {}
    autocorrelations = {
        probe.name: InputAutocorrelation(probe.name, probe.module, probe.bank)
        for probe in chosen
        if autocorrelation and probe.bank is not None
    }

    def add(probe: Probe, inputs: tuple[Any, ...], output: Tensor) -> None:
        maps = output.shape[1]
        if probe.name not in statistics:
            statistics[probe.name] = PairStatistics(maps, output.device)
        known = len(statistics[probe.name].live)
        if known != maps:
            raise ConvsimError(
                f"Module {probe.name!r} put out {known} maps and then {maps}: it is used in "
                "several places. Choose modules that are used in one."
            )
        if probe.name in autocorrelations:
            autocorrelations[probe.name].add(inputs[0], output[0, 0].numel())
        if not statistics[probe.name].add(output.flatten(2)):
            raise NonFiniteError(
                f"Layer {probe.name!r} put out a feature map with NaN or infinite values. Check "
                "the inputs and the weights before it."
            )

    first: list[Tensor] = []
    images = 0
    with watching(model, chosen, add):
        for batch in batches:
            inputs = _inputs(batch)
            model(inputs.to(_device(model)))
            images += len(inputs)
            missing = examples - sum(map(len, first))
            if not first or (missing > 0 and inputs.shape[1:] == first[0].shape[1:]):
                first.append(inputs[: max(0, missing)].detach().cpu())
    if not images:
        raise ConvsimError("measure() needs at least one batch of inputs; got none.")
    reached = [probe for probe in chosen if probe.name in statistics]
    _report_unreached(chosen, reached, forgive=layers is None and modules is None)

    worst = {probe.name: worst_pairs(probe, statistics[probe.name]) for probe in reached}
    shown = torch.cat(first)
    pictures, certificates = _look_at(model, reached, shown, worst)
    return RedundancyReport(
        type(model).__name__,
        images,
        tuple(
            summarize_layer(
                probe,
                statistics[probe.name],
                worst[probe.name],
                pictures.get(probe.name),
                certificates.get(probe.name, (math.nan, math.nan)),
                autocorrelations[probe.name].mean() if probe.name in autocorrelations else None,
            )
            for probe in reached
        ),
        image_pictures(shown),
    )


def _inputs(batch: Batch) -> Tensor:
    """Take the inputs out of a batch."""
    found: Any = batch
    if isinstance(batch, Mapping):
        found = batch.get("pixel_values")
    elif isinstance(batch, Sequence) and batch:
        found = batch[0]
    if not isinstance(found, Tensor):
        holds = f" with {', '.join(map(repr, batch))}" if isinstance(batch, Mapping) else ""
        raise ConvsimError(
            "A batch must be a tensor, a sequence that starts with one, or a mapping with "
            f"'pixel_values'; got a {type(batch).__name__}{holds}."
        )
    return found


def _device(model: nn.Module) -> torch.device:
    tensors = (*model.parameters(), *model.buffers())
    return tensors[0].device if tensors else torch.device("cpu")


def _report_unreached(chosen: list[Probe], reached: list[Probe], *, forgive: bool) -> None:
    """Warn of layers that the forward pass never reached, or refuse them if they were chosen."""
    names = ", ".join(probe.name for probe in chosen if probe not in reached)
    if not names:
        return
    text = f"The model's forward never reached these layers: {names}."
    if not forgive or not reached:
        raise ConvsimError(f"{text} Leave them out with layers=….")
    warnings.warn(f"{text} They are left out.", ConvsimWarning, stacklevel=3)


def _look_at(
    model: nn.Module,
    reached: list[Probe],
    images: Tensor,
    worst: Mapping[str, tuple[MapPair, ...]],
) -> tuple[dict[str, Pictures], dict[str, tuple[float, float]]]:
    """Run the example images once more, for pictures of the worst pairs and for the certificate."""
    pictures: dict[str, Pictures] = {}
    certificates: dict[str, tuple[float, float]] = {}

    def look(probe: Probe, inputs: tuple[Any, ...], output: Tensor) -> None:
        pairs = worst[probe.name]
        if pairs and probe.name not in pictures:
            kernels = torch.empty(len(pairs), 2, 0, 1, 1, dtype=torch.int8)
            if probe.bank is not None:
                kernels = kernel_pictures(probe.bank, pairs)
            pictures[probe.name] = Pictures(map_pictures(output, pairs), kernels)
        if probe.bank is not None and inputs and probe.name not in certificates:
            certificates[probe.name] = _mean_certificate(probe.bank, inputs[0])

    if len(images):
        with watching(model, reached, look):
            model(images.to(_device(model)))
    return pictures, certificates


def _mean_certificate(bank: KernelBank, inputs: Tensor) -> tuple[float, float]:
    """Average the certificate's bound, and the cosine it bounds, over pairs and images."""
    filters = bank.filters.shape[1]
    if filters == 1:
        return math.nan, math.nan
    upper = torch.ones(filters, filters, dtype=torch.bool, device=inputs.device).triu(1)
    sides = [
        torch.stack(certified_cosines(bank, image.unsqueeze(0)))[..., upper].nanmean(-1)
        for image in inputs
    ]
    bound, measured = torch.cat(sides, 1).flatten(1).nanmean(1).tolist()
    return bound, measured
