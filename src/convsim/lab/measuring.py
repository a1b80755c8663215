"""Measure a model on the test images of a data set, prepared as training prepares them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from convsim.errors import ConvsimError
from convsim.lab.datasets.image_data import ImageData, pixel_statistics
from convsim.redundancy import measure
from convsim.report import RedundancyReport


def measure_on(
    model: nn.Module,
    data: ImageData,
    *,
    size: int | None = None,
    batch_size: int = 32,
    layers: Sequence[str] | None = None,
    modules: Sequence[str] | None = None,
    examples: int = 3,
    autocorrelation: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> RedundancyReport:
    """Measure a model on the test images, on an accelerator if there is one.

    Args:
        model: The model; it is moved to that device.
        data: The images; standardised by mean and standard deviation of the training part.
        size: Height and width to scale images to; as they are if None.
        batch_size: Images at once. It does not change the result.
        layers: As in `convsim.measure`, and so the next two.
        modules: As in `convsim.measure`.
        examples: As in `convsim.measure`.
        autocorrelation: As in `convsim.measure`.
        progress: Called with the number of images done.

    Raises:
        ConvsimError: If the model fails on such images, and as `convsim.measure`.
        NonFiniteError: As `convsim.measure`.
    """
    mean, std = pixel_statistics(data.train_images)

    def batches() -> Iterator[Tensor]:
        done = 0
        for images in data.test_images.split(batch_size):
            prepared = (images.float() - mean) / std
            if size is not None:
                prepared = nn.functional.interpolate(
                    prepared, (size, size), mode="bilinear", antialias=True
                )
            yield prepared
            done += len(images)
            progress(done)

    if torch.accelerator.is_available():
        model = model.to(torch.accelerator.current_accelerator())
    try:
        report = measure(
            model,
            batches(),
            layers=layers,
            modules=modules,
            examples=examples,
            autocorrelation=autocorrelation,
        )
        return replace(report, data=f"{data.name}, test images")
    except ConvsimError:
        raise
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        shape = tuple(data.test_images.shape[1:]) if size is None else (size, size)
        wanted = wanted_size(model)
        remedy = f"It wants {wanted}×{wanted}" if wanted else "Many need a certain size"
        raise ConvsimError(
            f"The model failed on images of {shape} ({type(error).__name__}: {error}). {remedy}: "
            f"give {f'--size {wanted}' if wanted else 'one with --size'}."
        ) from error


def wanted_size(model: nn.Module) -> int | None:
    """Read what height and width of images a model of timm, transformers or torchvision names."""
    timm = getattr(model, "pretrained_cfg", None)
    size = (
        timm["input_size"][-1] if isinstance(timm, dict) and "input_size" in timm
        else getattr(getattr(model, "config", model), "image_size", None)
    )  # fmt: skip
    return size if isinstance(size, int) else None
