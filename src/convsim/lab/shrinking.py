"""Shrink a model on the training images of a data set, and train the smaller one further."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from convsim.errors import ConvsimError, NonFiniteError
from convsim.lab.arithmetic import ARITHMETIC, Precision
from convsim.lab.augmentation import crop_and_flip
from convsim.lab.datasets.image_data import ImageData
from convsim.lab.loading import prepared
from convsim.lab.measuring import failed_on
from convsim.lab.models import logits_of
from convsim.lab.preprocessing import Preprocessing, Standardised
from convsim.shrinking import Shrunk, shrink


def shrink_on(
    model: nn.Module,
    data: ImageData,
    *,
    images: int,
    target: str,
    share: float,
    preprocessing: Preprocessing | None = None,
    batch_size: int = 100,
    layers: Sequence[str] | None = None,
    multiple_of: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Shrunk:
    """Shrink a model on class-balanced training images; labels only balance the classes.

    Args:
        model: The model.
        data: The images.
        images: How many; at most all.
        target: "channels", "parameters" or "macs".
        share: The share to keep.
        preprocessing: How images reach the model; standardised by the training part if None.
        batch_size: Images at once.
        layers: As in `convsim.shrink`.
        multiple_of: As in `convsim.shrink`.
        progress: As in `convsim.shrink`.

    Raises:
        ConvsimError: If the model fails on such images, and as `convsim.shrink`.
        NonFiniteError: As `convsim.shrink`.
    """
    preprocessing = preprocessing or Standardised.of(data.train_images)
    chosen = data.subset(train=min(images, len(data.train_labels)), seed=0).train_images
    batches = [*prepared(chosen, preprocessing, batch_size)]
    try:
        return shrink(
            model, batches, **{target: share},  # type: ignore[arg-type]
            layers=layers, multiple_of=multiple_of, progress=progress,
        )  # fmt: skip
    except ConvsimError:
        raise
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise failed_on(model, tuple(batches[0].shape[1:]), error) from error


@torch.no_grad()
def accuracy_on(
    model: nn.Module,
    data: ImageData,
    batch_size: int = 100,
    preprocessing: Preprocessing | None = None,
) -> float:
    """Compute the share of test images that a model labels correctly, in ``eval()`` mode."""
    preprocessing, model = preprocessing or Standardised.of(data.train_images), model.eval()
    batches = prepared(data.test_images, preprocessing, batch_size)
    pairs = zip(batches, data.test_labels.split(batch_size), strict=True)
    right = sum(int((logits_of(model(x)).argmax(1) == y).sum()) for x, y in pairs)
    return right / len(data.test_labels)


def train_on_(
    model: nn.Module,
    data: ImageData,
    *,
    epochs: int,
    lr: float,
    teacher: nn.Module | None = None,
    preprocessing: Preprocessing | None = None,
    batch_size: int = 128,
    augment: bool = False,
    precision: Precision = "float32",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Train a model further, with SGD (momentum 0.9) whose learning rate falls to 0 by a cosine.

    Args:
        model: The model, trained in place.
        data: Its training images.
        epochs: Passes over them.
        lr: The learning rate at the start.
        teacher: If given, the model learns the teacher's outputs by their mean square difference,
            without labels. If None, it learns the labels by cross-entropy.
        preprocessing: As in `shrink_on`.
        batch_size: Images a step.
        augment: Whether images are cropped and mirrored at random.
        precision: As in `convsim.lab.runs.Recipe`.
        progress: Called with the steps done and to do.

    Raises:
        ConvsimError: If images that stay in their files should be cropped at random.
        NonFiniteError: If the loss stops being finite.
    """
    if augment and not isinstance(data.train_images, Tensor):
        raise ConvsimError(
            "Images are cropped at random after they were scaled to one size: give --size, or "
            "leave out --augment."
        )
    preprocessing = preprocessing or Standardised.of(data.train_images)
    steps = epochs * (len(data.train_labels) // batch_size)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    layout = ARITHMETIC[precision].memory_format
    model.to(memory_format=layout)  # type: ignore[call-overload]
    rounded = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    model.train()
    batches = _shuffled(data, preprocessing, epochs, batch_size, augment)
    for done, (images, labels) in enumerate(batches, 1):
        inputs = images.contiguous(memory_format=layout)
        with rounded:
            logits = logits_of(model(inputs)).float()
            if teacher is None:
                loss = nn.functional.cross_entropy(logits, labels)
            else:
                with torch.no_grad():
                    wanted = logits_of(teacher.eval()(inputs)).float()
                loss = nn.functional.mse_loss(logits, wanted)
        if not loss.isfinite():
            raise NonFiniteError(
                f"The loss became {loss.item()} in step {done}. Lower the learning rate (now {lr})."
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress(done, steps)
    model.eval()


def _shuffled(
    data: ImageData, preprocessing: Preprocessing, epochs: int, batch_size: int, augment: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the training images in an order that depends on the epoch alone."""
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(epoch)
        order = torch.randperm(len(data.train_labels), generator=generator)
        # Whole batches: BatchNorm cannot train on a single image.
        order = order[: len(order) // batch_size * batch_size]
        images = data.train_images
        if isinstance(images, Tensor) and augment:
            parts = (crop_and_flip(images[index]) for index in order.split(batch_size))
            batches = chain.from_iterable(prepared(x, preprocessing, batch_size) for x in parts)
        else:
            batches = chain(prepared(images[order], preprocessing, batch_size))
        yield from zip(batches, data.train_labels[order].split(batch_size), strict=True)
