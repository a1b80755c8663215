"""Redundancy of a model, measured through hooks and streamed over data."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import get_args

import torch
from torch import nn

from convsim.batches import Batch, Forward, copied, images_of, require_batches, run
from convsim.errors import ConvsimError, ConvsimWarning, NonFiniteError
from convsim.kernels import LayerFilter
from convsim.redundancy.evaluation import evaluating
from convsim.redundancy.examples import ExampleImages
from convsim.redundancy.layer_measurement import LayerMeasurement
from convsim.redundancy.noise import noise
from convsim.redundancy.probes import Place, device_of, probes, watching
from convsim.report.redundancy_report import RedundancyReport
from convsim.report.verdict import NOISE


def measure(
    model: nn.Module,
    batches: Iterable[Batch] | None = None,
    *,
    input_size: Sequence[int] | None = None,
    layers: LayerFilter | Iterable[LayerFilter] | None = None,
    modules: LayerFilter | Iterable[LayerFilter] | None = None,
    examples: int = 3,
    autocorrelation: bool = False,
    forward: Forward = run,
    place: Place = "convolution",
) -> RedundancyReport:
    """Measure how alike a model's feature maps are on real inputs, and what its kernels say of it.

    A feature map is one channel of a layer's output for one image, as a vector over its pixels. One
    that is zero on an image has cosine 0 there with every other, and so has a constant one in the
    correlation. A map that is zero on every image is like nothing: its pairs are left out, as are
    maps of one pixel, which have no direction. A layer without a pair has similarity NaN and is
    left out of the model's mean.

    The model is left as it was: weights, buffers, modes, hooks, and torch's random numbers.

    Args:
        model: The model. It is put in ``eval()`` mode for the time of the call.
        batches: Batches of inputs (N, …), sequences that start with them, as a DataLoader gives, or
            mappings, of which the entries that the model's ``forward`` has names for are passed by
            name, or else "pixel_values" alone. Copied to the device of the model's first parameter.
        input_size: Instead of batches, the shape of one input, (C, H, W) for images: then 32 inputs
            of standard normal noise are measured, always the same, and the report says so. A first
            look that needs no data; maps of real inputs are more alike.
        layers: Which convolutions, as in `convsim.conv_layers`, also those that share a weight:
            their outputs, before normalization and activation. By default all that the forward pass
            reaches, with a warning of others.
        modules: Instead, modules of any kind, chosen likewise: ``"*.bn1"`` measures after that
            normalization, ``nn.ReLU`` after every such activation. Outputs must be (N, maps, …).
        examples: For how many of the first images to keep pictures and compute the certificate.
        autocorrelation: Whether to measure the autocorrelation of each convolution's inputs, for
            `convsim.expected_similarity`: (C·n)² numbers by layer of n taps, and P·(C·n)²
            multiplications for each image and layer, many times a forward pass.
        forward: How to run the model on a batch of another kind, such as
            ``lambda model, batch: model(batch["left"], batch["right"])``. The batch's first tensor
            of three axes or more counts as its images.
        place: Where maps are compared: "convolution", as they leave their convolution, before
            normalization and activation; or "reading", as the next layer reads them: after the
            normalization and activation that follow, before any sum, concatenation or pooling. Only
            at "reading" do twins show what can be dropped (`LayerRedundancy.twins`), and `spare`
            how much.

    Returns:
        The report. Sums are kept in float64, so neither the split into batches nor the order
        matters; outputs of half precision are taken as float32, of float64 as they are.

    Raises:
        ConvsimError: If there is no batch, or both batches and a size, or the size is none; if the
            model cannot be run on one, a chosen module is never reached, or an output is no
            tensor (N, maps, …) of real floating point with as many maps each time.
        NonFiniteError: If a feature map holds NaN or infinity; names the layer.

    Cost: the forward passes, and M²·P/2 multiplications for each image and layer; then M³ by layer
    for the effective rank and what can go, and C²·P products for each example image and lag of a
    kernel. Memory: a batch, a copy of the weights, 16 M² bytes by layer, and 576 M for each example
    image, however many images there are.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3))
        >>> report = measure(model, [torch.randn(4, 3, 16, 16)])
        >>> [(layer.name, layer.filters) for layer in report.layers]
        [('0', 8), ('2', 16)]
        >>> 0 < report.similarity < 1
        True
    """
    data = ""
    if input_size is not None:
        if batches is not None:
            raise ConvsimError("measure() takes batches or input_size=…, not both.")
        batches, data = noise(input_size), f"{NOISE} of shape {tuple(input_size)}"
    batches = require_batches(
        batches, "measure", ", or for a first look on noise input_size=(3, 32, 32)"
    )
    if not isinstance(model, nn.Module):
        raise ConvsimError(f"A model must be a torch.nn.Module; got {type(model).__name__}.")
    if place not in get_args(Place):
        raise ConvsimError(f"place is {' or '.join(map(repr, get_args(Place)))}; got {place!r}.")
    if place == "reading" and modules is not None:
        raise ConvsimError(
            "modules=… are measured by what they put out: leave place out, or give layers=…."
        )
    model = getattr(model, "_orig_mod", model)  # of torch.compile, which would hide the names
    shown, count = ExampleImages(examples), 0
    with evaluating(model):
        measured = [
            LayerMeasurement(
                probe, shown, autocorrelation=autocorrelation, pooled=place == "reading"
            )
            for probe in probes(model, layers, modules)
        ]
        looks = {layer.probe: layer for layer in measured}
        with watching(model, looks, place) as finish:
            for batch in batches:
                own = copied(batch, device_of(model))
                size, images = images_of(own)
                shown.take(size, images)
                with _of_size(input_size):
                    forward(model, own)
                finish()
                count += size
        if not count:
            raise ConvsimError("measure() needs at least one batch of inputs; got none.")
        _report_unreached(measured, forgive=layers is None and modules is None)
        summaries = tuple(layer.summary() for layer in measured if layer.reached)
    return RedundancyReport(
        type(model).__name__, count, summaries, shown.pictures(), data, place=place, when=_now()
    )


@contextmanager
def _of_size(input_size: Sequence[int] | None) -> Iterator[None]:
    """Name the size that somebody gave where noise of it does not fit the model."""
    try:
        yield
    except (NonFiniteError, torch.OutOfMemoryError):
        raise
    except (ConvsimError, RuntimeError, ValueError) as error:
        if input_size is None:
            raise
        raise ConvsimError(
            f"input_size={tuple(input_size)} does not fit the model: it is the shape of one input, "
            f"channels first, as (3, 224, 224). {error}"
        ) from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _report_unreached(layers: Iterable[LayerMeasurement], *, forgive: bool) -> None:
    """Warn of layers that the forward pass never reached, or refuse them if they were chosen."""
    names = ", ".join(layer.probe.name for layer in layers if not layer.reached)
    if not names:
        return
    text = f"The model's forward never reached these layers: {names}."
    if not forgive or not any(layer.reached for layer in layers):
        raise ConvsimError(f"{text} Leave them out with layers=….")
    warnings.warn(f"{text} They are left out.", ConvsimWarning, stacklevel=3)
