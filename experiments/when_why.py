"""Follow networks of experiment 19 while they train: what the penalty does to maps and gradients.

python experiments/when_why.py OUT DATA CELL METHOD…     (resumes if stopped)

A method is NAME@COEFFICIENT, with :0.5 at its end if the coefficient falls, and takes the rate that
`when.py` tuned for it. Each run appends one record to OUT/records.jsonl; after all, table.md is
written. Before and after each epoch: similarity and effective rank of every layer's maps on 256
test images, the length of the penalty's gradient over that of the loss' (over all kernels, first
batch of the next epoch), held-out accuracy.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor, nn
from when import CELLS, chosen

from convsim import Regularizer, measure
from convsim.lab.augmentation import crop_and_flip
from convsim.lab.classifier import accuracy, in_order
from convsim.lab.datasets import load_dataset
from convsim.lab.datasets.image_data import ImageData, pixel_statistics
from convsim.lab.files import locked
from convsim.lab.methods import Method, parse_method
from convsim.lab.models import build_model
from convsim.lab.records import Record, append_record, new_record, read_records, record_key
from convsim.lab.runs import Recipe
from convsim.lab.tables import markdown_table

SEED = 0
Loss = Callable[[bool, bool], Tensor]
"""The loss of one batch, with or without the task's part and the penalty's."""


class Standardised(nn.Module):
    """A network that takes uint8 images."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.mean, self.std = pixel_statistics(images)

    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 images (N, C, H, W) to logits."""
        ready = ((images.float() - self.mean) / self.std).contiguous(
            memory_format=torch.channels_last
        )
        logits: Tensor = self.model(ready)
        return logits


def kernel_gradients(network: nn.Module, loss: Tensor) -> Tensor:
    """Compute the gradient of all kernels, as one vector."""
    network.zero_grad()
    loss.backward()
    found = [p.grad.flatten() for p in network.parameters() if p.dim() == 4 and p.grad is not None]
    network.zero_grad()
    return torch.cat(found)


def follow(data: ImageData, recipe: Recipe, method: Method) -> Record:
    """Train one network and look at it after every epoch."""
    split = data.hold_out(recipe.validation, seed=0)
    torch.manual_seed(SEED)
    model = build_model(
        recipe.model, classes=len(data.classes), width=recipe.width, norm=recipe.norm
    )
    network = Standardised(model, split.train_images)
    steps = recipe.epochs * -(-len(split.train_labels) // recipe.batch_size)
    regularizer = None
    if method.regularizer is not None:
        falls = None if method.falls is None else round(method.falls * steps)
        regularizer = Regularizer(
            model, method.regularizer, coefficient=method.coefficient, decay_steps=falls
        )
    optimizer = torch.optim.SGD(
        model.parameters(), recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    looked_at = data.to_measure(recipe.measured_images).test_images
    seen: Record = {name: [] for name in ("similarity", "rank", "share", "accuracy", "loss")}

    def loss_of(
        images: Tensor, labels: Tensor, *, task: bool = True, penalty: bool = True
    ) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(network(images), labels)
        loss = loss if task else 0 * loss
        return loss + regularizer() if penalty and regularizer is not None else loss

    def look() -> None:
        seen["accuracy"].append(accuracy(network, split.test_images, split.test_labels))
        report = measure(network, looked_at.split(64))
        for name, value in (("similarity", "similarity"), ("rank", "effective_rank")):
            seen[name].append([getattr(layer, value) for layer in report])
        network.train()
        if regularizer is None:
            seen["share"].append(0.0)
            return
        kept = {name: value.clone() for name, value in network.state_dict().items()}
        batch = split.train_images[: recipe.batch_size], split.train_labels[: recipe.batch_size]
        task = kernel_gradients(network, loss_of(*batch, penalty=False))
        own = kernel_gradients(network, loss_of(*batch, task=False))
        seen["share"].append(float(own.norm() / task.norm()))
        network.load_state_dict(kept)  # BatchNorm's running means

    for epoch in range(recipe.epochs):
        look()
        network.train()
        generator = torch.Generator().manual_seed(SEED * 1_000_003 + epoch)
        losses = []
        for index in torch.randperm(len(split.train_labels), generator=generator).split(
            recipe.batch_size
        ):
            images = split.train_images[index]
            loss = loss_of(
                crop_and_flip(images) if recipe.augment else images, split.train_labels[index]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if regularizer is not None:
                regularizer.step()
            losses.append(loss.item())
        seen["loss"].append(fmean(losses))
    look()
    logits = torch.cat([network(x) for x, _ in in_order(data.test_images, data.test_labels)])
    seen["test_accuracy"] = float((logits.argmax(1) == data.test_labels).float().mean())
    return seen


def rows(record: Record) -> list[tuple[str, ...]]:
    """Lay a run out, epoch by epoch: means over layers."""
    seen = record["result"]
    method = record["configuration"]["method"]
    return [
        (
            method, f"{epoch}", f"{fmean(similarity):.3f}", f"{similarity[-1]:.3f}",
            f"{fmean(rank):.1f}", f"{rank[-1]:.1f}", f"{share:.3f}", f"{100 * score:.1f}",
        )
        for epoch, (similarity, rank, share, score) in enumerate(
            zip(seen["similarity"], seen["rank"], seen["share"], seen["accuracy"], strict=True)
        )
    ]  # fmt: skip


def main() -> None:
    """Follow what is not on record, and lay it out."""
    out, archive, name, *texts = sys.argv[1:]
    cell, folder = CELLS[name], Path(out)
    data = load_dataset(archive)
    if cell.images < len(data.train_labels):
        data = data.subset(train=cell.images, seed=0)
    tuned = replace(cell, epochs=cell.tuned_in or cell.epochs).name
    with locked(folder):
        for text in texts:
            method = parse_method(text)
            _, lr = chosen(folder.parent / tuned / "records.jsonl", method)
            configuration = {"method": text, "cell": name, "lr": lr, "seed": SEED}
            path = folder / "records.jsonl"
            if record_key(configuration) in {r["key"] for r in read_records(path)}:
                continue
            seen = follow(data, replace(cell.recipe, lr=lr), method)
            append_record(path, new_record(configuration, seen))
            print(text, seen["accuracy"], file=sys.stderr)
    head = ("method", "epochs", "similarity", "last layer", "effective rank", "rank, last layer",
            "penalty's gradient ÷ loss'", "held-out accuracy, %")  # fmt: skip
    lines = [line for record in read_records(folder / "records.jsonl") for line in rows(record)]
    (folder / "table.md").write_text(markdown_table(head, lines), encoding="utf-8")


if __name__ == "__main__":
    main()
