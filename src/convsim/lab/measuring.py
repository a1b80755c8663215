"""Measure a model on the test images of a data set, prepared as the model needs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from convsim.errors import ConvsimError
from convsim.lab.datasets.image_data import ImageData
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
    shape = () if isinstance(data, ImageData) else data

    def batches(data: ImageData) -> Iterator[Tensor]:
        nonlocal shape
        done, how = 0, preprocessing or Standardised.of(data.train_images)
        for batch in prepared(data.test_images, how, batch_size):
            shape = tuple(batch.shape[1:])
            yield batch
            done += len(batch)
            progress(done)

    if torch.accelerator.is_available():
        model = model.to(torch.accelerator.current_accelerator())
    try:
        report = measure(
            model,
            batches(data) if isinstance(data, ImageData) else None,
            input_size=None if isinstance(data, ImageData) else data,
            layers=layers,
            modules=modules,
            examples=examples,
            autocorrelation=autocorrelation,
            place=place,
        )
        if not isinstance(data, ImageData):
            return report
        how = preprocessing or Standardised.of(data.train_images)
        return replace(report, data=f"{data.name}, {part}, {how.description}")
    except ConvsimError:
        raise
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        wanted = wanted_size(model)
        remedy = f"It wants {wanted}×{wanted}" if wanted else "Many need a certain size"
        raise ConvsimError(
            f"The model failed on images of {shape} ({type(error).__name__}: {error}). {remedy}: "
            f"give {f'--size {wanted}' if wanted else 'one with --size'}."
        ) from error


def wanted_size(model: nn.Module) -> int | None:
    """Read the image height and width that a model of timm, transformers or torchvision names."""
    timm = getattr(model, "pretrained_cfg", None)
    size = (
        timm["input_size"][-1] if isinstance(timm, dict) and "input_size" in timm
        else getattr(getattr(model, "config", model), "image_size", None)
    )  # fmt: skip
    return size if isinstance(size, int) else None
