"""Training many networks of one kind, one after the other, by one captured step.

A lane is a network, an optimizer and a penalty whose whole step, with its images, learning rate and
coefficient, reads tensors at fixed places: a counter says which row. So a CUDA graph captured once
serves every seed, budget and coefficient, nothing is sent to the device between steps, and several
lanes run at once, each on a stream of its own.

Shape suffixes: T steps, B images of a batch, E epochs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerator import captured, new_stream, on
from contenders import coefficient
from photographs import Photographs
from recipes import MARGIN, RECIPES, Order, learning_rates, order, penalty_shares
from torch import Tensor, nn

from convsim import Regularizer

_MEAN, _DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of CIFAR-10's channels
_EVALUATED = 1000  # images at a time
_WARMING = 8  # steps that capturing may take, however short the run


@dataclass(frozen=True)
class Run:
    """One training run: what decides its outcome."""

    network: str
    recipe: str
    penalty: str  # a preset, or "none"
    falling: bool  # whether the coefficient falls to 0 by half
    factor: float  # what the preset's coefficient is multiplied by
    epochs: int
    seed: int
    tuning: bool  # then no test image is looked at

    @property
    def lane(self) -> tuple[str, str, str, bool]:
        """What runs must share to be trained by one lane, one after the other."""
        return self.network, self.recipe, self.penalty, self.falling


class Gallery:
    """Photographs on the device: padded, and with their colours last, for windows are cut."""

    def __init__(self, photographs: Photographs, device: torch.device) -> None:
        self.source = photographs.source
        self.labels = photographs.labels.to(device)
        self.size = photographs.images.shape[-1]
        padded = torch.empty(
            len(self.labels), self.size + 2 * MARGIN, self.size + 2 * MARGIN, 3,
            dtype=torch.uint8, device=device,
        )  # fmt: skip
        padded[:] = (torch.tensor(_MEAN) * 255).round().byte().to(device)
        inside = slice(MARGIN, MARGIN + self.size)
        padded[:, inside, inside] = photographs.images.permute(0, 2, 3, 1).to(device)
        self.padded = padded
        self.held_out = {
            "validation": (photographs.validation_images, photographs.validation_labels),
            "test": (photographs.test_images, photographs.test_labels),
        }
        self.held_out = {
            name: (images.permute(0, 2, 3, 1).to(device), labels.to(device))
            for name, (images, labels) in self.held_out.items()
        }
        self._pixels = torch.arange(self.size, device=device)
        self._mean = 255 * torch.tensor(_MEAN, device=device)
        self._deviation = 255 * torch.tensor(_DEVIATION, device=device)

    def normalized(self, images_BHWC: Tensor) -> Tensor:
        """Turn bytes into (B, C, H, W), channels last in memory."""
        return ((images_BHWC.float() - self._mean) / self._deviation).permute(0, 3, 1, 2)

    def cut(self, index_B: Tensor, top_B: Tensor, left_B: Tensor, mirrored_B: Tensor) -> Tensor:
        """Cut a window of each image, mirrored or not."""
        columns_BW = torch.where(
            mirrored_B[:, None].bool(), self._pixels.flip(0), self._pixels
        ) + left_B[:, None]  # fmt: skip
        rows_BH = self._pixels + top_B[:, None]
        return self.normalized(
            self.padded[index_B[:, None, None], rows_BH[:, :, None], columns_BW[:, None]]
        )


class Lane:
    """A step that trains one run after another.

    Args:
        run: The first run, whose lane this is.
        build: What makes its network.
        gallery: The images.
        most_steps: Of its longest run.
        most_epochs: Of its longest run.
        graph: Whether to capture the step.
    """

    def __init__(
        self,
        run: Run,
        build: Callable[[int], nn.Module],
        gallery: Gallery,
        *,
        most_steps: int,
        most_epochs: int,
        graph: bool,
    ) -> None:
        self.recipe = RECIPES[run.recipe]
        self._build, self._gallery = build, gallery
        device = gallery.labels.device
        self.stream = new_stream(device)
        with on(self.stream):
            self.model = build(10).to(device, memory_format=torch.channels_last)
            self.parameters = list(self.model.parameters())
            self._momenta = [torch.zeros_like(p) for p in self.parameters]
            self._regularizer = None
            if run.penalty != "none":
                self._regularizer = Regularizer(
                    self.model, run.penalty, coefficient=coefficient(run.penalty)
                )
            rows = (most_steps + _WARMING, self.recipe.batch)
            self._order_TB = [
                torch.zeros(rows, dtype=dtype, device=device)
                for dtype in (torch.int32, torch.uint8, torch.uint8, torch.uint8)
            ]
            self._rate_T, self._share_T, self._loss_T, self._penalty_T = torch.zeros(
                4, most_steps + _WARMING, device=device
            ).unbind()
            self._at = torch.zeros(1, dtype=torch.int64, device=device)
            self._correct_E = torch.zeros(most_epochs + 1, device=device)
        if device.type == "cuda":
            torch.cuda.synchronize()
        self._start(run)
        self.step: Callable[[], Any] = self._step
        if graph:
            self.step = captured(self._step, device, stream=self.stream, errors="thread_local")

    def begin(self, run: Run) -> int:
        """Make everything ready for a run; return how many steps an epoch has."""
        with on(self.stream):
            return self._start(run)

    @torch.no_grad()
    def _start(self, run: Run) -> int:
        torch.manual_seed(run.seed)
        fresh = self._build(10)
        for own, new in zip(
            (*self.model.parameters(), *self.model.buffers()),
            (*fresh.parameters(), *fresh.buffers()),
            strict=True,
        ):
            own.copy_(new)
        for momentum in self._momenta:
            momentum.zero_()
        images = len(self._gallery.labels)
        epoch_steps = images // self.recipe.batch
        steps = epoch_steps * run.epochs
        drawn = order(self.recipe, images, run.epochs, run.seed)
        for own, new in zip(
            self._order_TB, (drawn.index, drawn.top, drawn.left, drawn.mirrored), strict=True
        ):
            own[:steps].copy_(new.to(own.dtype))
        shares = penalty_shares(steps, falling=run.falling)
        self._rate_T[:steps].copy_(torch.tensor(learning_rates(self.recipe, steps)))
        self._share_T[:steps].copy_(run.factor * torch.tensor(shares))
        self._at.zero_()
        self._correct_E.zero_()
        self.model.train()
        return epoch_steps

    def _step(self) -> None:
        """Take one step: everything on the device, nothing that depends on the host."""
        rows = (table.index_select(0, self._at)[0].long() for table in self._order_TB)
        drawn = Order(*rows)
        images = self._gallery.cut(drawn.index, drawn.top, drawn.left, drawn.mirrored)
        labels = self._gallery.labels.index_select(0, drawn.index)
        with torch.autocast(images.device.type, torch.bfloat16, cache_enabled=False):
            logits = self.model(images)
        loss = task = nn.functional.cross_entropy(logits.float(), labels)
        if self._regularizer is not None:
            penalty = self._regularizer()
            loss = task + self._share_T.index_select(0, self._at)[0] * penalty
            self._penalty_T.index_copy_(0, self._at, penalty.detach().float().view(1))
        gradients = torch.autograd.grad(loss, self.parameters)
        self._loss_T.index_copy_(0, self._at, task.detach().view(1))
        self._update(list(gradients), self._rate_T.index_select(0, self._at)[0])
        self._at.add_(1)

    @torch.no_grad()
    def _update(self, gradients: list[Tensor], rate: Tensor) -> None:
        """Step as `torch.optim.SGD` does, with a learning rate that lies on the device."""
        recipe = self.recipe
        if recipe.decay:
            gradients = list(torch._foreach_add(gradients, self.parameters, alpha=recipe.decay))
        torch._foreach_mul_(self._momenta, recipe.momentum)
        torch._foreach_add_(self._momenta, gradients)
        ahead = self._momenta
        if recipe.nesterov:
            ahead = list(torch._foreach_add(gradients, self._momenta, alpha=recipe.momentum))
        torch._foreach_sub_(self.parameters, list(torch._foreach_mul(ahead, rate)))

    @torch.no_grad()
    def look(self, epoch: int) -> None:
        """Count the validation images that are classified rightly after an epoch."""
        with on(self.stream):
            self._correct_E[epoch].copy_(self._right("validation"))

    def _right(self, split: str) -> Tensor:
        images, labels = self._gallery.held_out[split]
        right = torch.zeros((), device=labels.device)
        self.model.eval()
        with torch.autocast(labels.device.type, torch.bfloat16, cache_enabled=False):
            for some, theirs in zip(
                images.split(_EVALUATED), labels.split(_EVALUATED), strict=True
            ):
                right += (self.model(self._gallery.normalized(some)).argmax(1) == theirs).sum()
        self.model.train()
        return right

    @torch.no_grad()
    def result(self, run: Run) -> dict[str, Any]:
        """Read a finished run's results, which waits for this lane; test images only if it may."""
        with on(self.stream):
            steps = len(self._gallery.labels) // self.recipe.batch
            total = len(self._gallery.held_out["validation"][1])
            found: dict[str, Any] = {
                "validation_accuracy": [
                    right / total for right in self._correct_E[: run.epochs].tolist()
                ],
                "train_loss": self._by_epoch(self._loss_T, steps, run.epochs),
            }
            if self._regularizer is not None:
                found["penalty"] = self._by_epoch(self._penalty_T, steps, run.epochs)
                found["coefficient"] = run.factor * coefficient(run.penalty)
            if not run.tuning:
                tested = len(self._gallery.held_out["test"][1])
                found["test_accuracy"] = self._right("test").item() / tested
        return found

    @staticmethod
    def _by_epoch(values_T: Tensor, steps: int, epochs: int) -> list[float]:
        means: list[float] = values_T[: steps * epochs].view(epochs, steps).mean(1).tolist()
        return means
