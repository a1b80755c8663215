"""Measure a model on the test images of a data set, prepared as the model needs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from convsim.errors import ConvsimError
from convsim.lab.datasets.image_data import ImageData, Images
from convsim.lab.loading import prepared
from convsim.lab.preprocessing import Preprocessing, Standardised
from convsim.redundancy import Place, measure
from convsim.report import RedundancyReport


def measure_on(
    model: nn.Module,
    data: ImageData | tuple[int, ...],
    *,
    preprocessing: Preprocessing | None = None,
    batch_size: int = 32,
    layers: Sequence[str] | None = None,
    modules: Sequence[str] | None = None,
    examples: int = 3,
    autocorrelation: bool = False,
    place: Place = "convolution",
    part: str = "test images",
    progress: Callable[[int], None] = lambda done: None,
) -> RedundancyReport:
    """Measure a model on the test images, on an accelerator if there is one.

    Args:
        model: The model; it is moved to that device.
        data: The images, in memory or in their files; or, for a first look, the shape (C, H, W) of
            one input of noise.
        preprocessing: How they reach the model; standardised by mean and standard deviation of the
            training part if None.
        batch_size: Images at once. It does not change the result.
        layers: As in `convsim.measure`, and so the next two.
        modules: As in `convsim.measure`.
        examples: As in `convsim.measure`.
        autocorrelation: As in `convsim.measure`.
        place: As in `convsim.measure`.
        part: What the report calls the images.
        progress: Called with the number of images done.

    Raises:
        ConvsimError: If the model fails on such images, and as `convsim.measure`.
        DataError: If an image cannot be read and may not be left out.
        NonFiniteError: As `convsim.measure`.
    """
    shape: tuple[int, ...] = ()

    def batches(images: Images, how: Preprocessing) -> Iterator[Tensor]:
        nonlocal shape
        done = 0
        for batch in prepared(images, how, batch_size):
            shape = tuple(batch.shape[1:])
            yield batch
            done += len(batch)
            progress(done)

    if isinstance(data, ImageData):
        how = preprocessing or Standardised.of(data.train_images)
        given: dict[str, Any] = {"batches": batches(data.test_images, how)}
        said = f"{data.name}, {part}, {how.description}"
    else:
        given, said, shape = {"input_size": data}, "", data
    if torch.accelerator.is_available():
        model = model.to(torch.accelerator.current_accelerator())
    try:
        report = measure(
            model,
            **given,
            layers=layers,
            modules=modules,
            examples=examples,
            autocorrelation=autocorrelation,
            place=place,
        )
        return replace(report, data=said) if said else report
    except ConvsimError:
        raise
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise failed_on(model, shape, error) from error


def failed_on(model: nn.Module, shape: tuple[int, ...], error: Exception) -> ConvsimError:
    """Say that a model failed on images of a shape, and which size it wants."""
    wanted = wanted_size(model)
    remedy = f"It wants {wanted}×{wanted}" if wanted else "Many need a certain size"
    return ConvsimError(
        f"The model failed on images of {shape} ({type(error).__name__}: {error}). {remedy}: "
        f"give {f'--size {wanted}' if wanted else 'one with --size'}."
    )


def wanted_size(model: nn.Module) -> int | None:
    """Read the image height and width that a model of timm, transformers or torchvision names."""
    timm = getattr(model, "pretrained_cfg", None)
    size = (
        timm["input_size"][-1] if isinstance(timm, dict) and "input_size" in timm
        else getattr(getattr(model, "config", model), "image_size", None)
    )  # fmt: skip
    return size if isinstance(size, int) else None
