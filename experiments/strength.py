"""How long a penalty's gradient is beside the loss', layer by layer, in the first batch.

python experiments/strength.py DATA PENALTY     (prints; with the code at PYTHONPATH, of any commit)
"""

import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import convsim
from convsim.lab.datasets import load_dataset
from convsim.lab.models import build_model

COEFFICIENT = 3.0


def kernel_gradients(
    images: Tensor, labels: Tensor, activation: str, *, bf16: bool, penalty: str | None
) -> list[Tensor]:
    """Compute what the first step of experiment 20's network has as gradient of its kernels."""
    torch.manual_seed(0)
    order = torch.channels_last if bf16 else torch.contiguous_format
    model = build_model("cnn", classes=10, width=16, norm="batch", activation=activation)  # type: ignore[arg-type]
    model = model.to(memory_format=order)  # type: ignore[call-overload]
    own = None if penalty is None else convsim.Regularizer(model, penalty, coefficient=COEFFICIENT)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = nn.functional.cross_entropy(model(images.contiguous(memory_format=order)), labels)
    if own is not None:
        loss = loss + own()
    loss.backward()
    return [p.grad.float() for p in model.parameters() if p.dim() == 4 and p.grad is not None]


def main() -> None:
    """Print the lengths for both activations, in both precisions."""
    archive, penalty = sys.argv[1:]
    data = load_dataset(archive).subset(train=10000, seed=0)
    batch = torch.randperm(10000, generator=torch.Generator().manual_seed(0))[:128]
    images, labels = data.train_images[batch].float() / 62 - 2, data.train_labels[batch]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(convsim.__file__).parent, capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    for activation in ("relu", "elu"):
        for bf16 in (False, True):
            plain, whole = (
                kernel_gradients(images, labels, activation, bf16=bf16, penalty=one)
                for one in (None, penalty)
            )
            lengths = [
                " ".join(f"{float(g.norm()):.3f}" for g in gradients)
                for gradients in ([a - b for a, b in zip(whole, plain, strict=True)], plain)
            ]
            precision = "bf16" if bf16 else "float32"
            print(f"{commit} {penalty} {activation} {precision}: {lengths[0]}; loss {lengths[1]}")


if __name__ == "__main__":
    main()
