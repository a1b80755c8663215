"""Stage: the networks that the evidence has trained, made smaller, on the device."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from accelerator import wait
from journal import Journal
from networks import NETWORKS
from photographs import draw, load
from session import NETWORK_FILE
from torch import Tensor, nn
from training import Gallery

import convsim

_KEPT = (0.75, 0.5, 0.25)  # of the parameters
_CALIBRATION = 2000  # images


def run(journal: Journal, *, rehearse: bool, data: Path) -> None:
    """Shrink each network that is there to each share of its parameters."""
    if not hasattr(convsim, "shrink"):
        journal.attempt("shrink", lambda: {"status": "not built yet"})
        return
    if rehearse:
        draw(data, train=570, test=20, size=16)
        trained = {"tiny": NETWORKS["tiny"](10)}
    else:
        trained = read_networks(data)
    gallery = Gallery(load(data, patience=90), journal.device)
    for name, model in trained.items():
        model = model.to(journal.device).eval()  # noqa: PLW2901
        journal.attempt(
            f"{name}: whole",
            lambda model=model: {"test_accuracy": accuracy(model, gallery), **size(model)},
        )
        for share in _KEPT[: 1 if rehearse else None]:
            journal.attempt(
                f"{name}: {share:.0%} of the parameters",
                lambda model=model, share=share: shrink(model, gallery, share),
                seconds=60,
            )


def read_networks(data: Path) -> dict[str, nn.Module]:
    """Read what the evidence has left."""
    found = {}
    for path in sorted(data.glob(NETWORK_FILE.format(network="*", penalty="*"))):
        saved = torch.load(path, weights_only=True, map_location="cpu")
        model = NETWORKS[saved["run"]["network"]](10)
        model.load_state_dict(saved["state"])
        found[path.stem] = model
    return found


def shrink(model: nn.Module, gallery: Gallery, share: float) -> dict[str, Any]:
    """Shrink one network, without labels and without training."""
    drawn = torch.randperm(len(gallery.padded), generator=torch.Generator().manual_seed(0))
    some = drawn[:_CALIBRATION].to(gallery.padded.device)  # photographs may be sorted by class
    middle = gallery.padded[some, 4:-4, 4:-4]
    batches = [gallery.normalized(some) for some in middle.split(250)]
    wait(gallery.labels.device)
    started = time.monotonic()
    try:
        smaller: Any = convsim.shrink(model, batches, parameters=share)
    except convsim.MissingExtraError as error:
        return {"status": str(error)}
    wait(gallery.labels.device)
    took = time.monotonic() - started
    return {
        "shrinking_s": took, "test_accuracy": accuracy(smaller.model, gallery),
        **size(smaller.model),
    }  # fmt: skip


@torch.no_grad()
def accuracy(model: nn.Module, gallery: Gallery) -> float:
    """Return the share of test images that a network classifies rightly."""
    images, labels = gallery.held_out["test"]
    right: Tensor = sum(
        (model(gallery.normalized(some)).argmax(1) == theirs).sum()
        for some, theirs in zip(images.split(1000), labels.split(1000), strict=True)
    )  # type: ignore[assignment]
    return right.item() / len(labels)


def size(model: nn.Module) -> dict[str, Any]:
    """Count parameters."""
    return {"parameters": sum(p.numel() for p in model.parameters())}
