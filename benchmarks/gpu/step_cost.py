"""Stage: whole training steps without a penalty and with each, in bf16, timed in turn."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from accelerator import captured, free, memory_gigabytes, wait
from contenders import penalties, takes_kernels_alone
from journal import Journal
from networks import NETWORKS
from timing import beside, in_turn
from torch import Tensor, nn

from convsim import Regularizer

PLAIN = "plain"


@dataclass(frozen=True)
class Setting:
    """What is trained, and how."""

    network: str
    batch: int
    size: int
    mode: str  # "eager", "graph" (the whole step in a CUDA graph) or "compiled"
    most: int  # penalties beside the plain step

    @property
    def name(self) -> str:
        """How the results call it."""
        return f"{self.network}, batch {self.batch}, {self.size}×{self.size}, {self.mode}"


SETTINGS = (
    Setting("resnet18", 128, 32, "eager", most=9),
    Setting("resnet50", 64, 224, "eager", most=9),
    Setting("resnet18", 128, 32, "graph", most=4),
    Setting("resnet50", 64, 224, "graph", most=3),
    Setting("resnet18", 512, 32, "eager", most=6),
    Setting("resnet18", 512, 32, "compiled", most=2),
)
REHEARSED = (
    Setting("tiny", 8, 16, "eager", most=2), Setting("tiny", 8, 16, "graph", most=1),
)  # fmt: skip
_SLOW = {"srip"}  # eigenvalues, which wait for the device


def run(journal: Journal, *, rehearse: bool) -> None:
    """Take one setting after the other; compiled ones last, for they take minutes."""
    for setting in REHEARSED if rehearse else SETTINGS:
        one_setting(journal, setting, rehearse)
        free(journal.device)
    if rehearse:
        journal.attempt("compiling", lambda: compiles(journal.device), seconds=60)


def one_setting(journal: Journal, setting: Setting, rehearse: bool) -> None:
    """Build each variant, then time those that work in turn."""
    device = journal.device
    if f"{setting.name}: times" in journal.results:
        return
    names = [name for name in penalties() if name not in _SLOW][: setting.most]
    variants: dict[str, Callable[[], Any]] = {}
    for name in (PLAIN, *names, *by_hand(names, setting)):
        journal.attempt(
            f"{setting.name}: {name}, first steps",
            lambda name=name: warm(name, setting, device, variants),
            seconds=150 if setting.mode == "compiled" else 25,
            poisons=setting.mode == "graph",
            prepares=True,
        )
    if PLAIN in variants:
        journal.attempt(
            f"{setting.name}: times",
            lambda: times(variants, device, journal.left, rehearse),
            seconds=40,
        )


def by_hand(names: list[str], setting: Setting) -> list[str]:
    """Name the variants in which `backward_` adds the gradient instead of the loss."""
    plain = setting.mode == "eager"
    return [f"{name}, backward_()" for name in names if plain and takes_kernels_alone(name)][:1]


def warm(
    name: str, setting: Setting, device: torch.device, variants: dict[str, Callable[[], Any]]
) -> dict[str, Any]:
    """Build a variant, run it until it is warm, and keep it for timing."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.monotonic()
    step = build(name, setting, device)
    if setting.mode == "graph":  # at once: what ran on another stream could not be captured
        step = captured(step, device)
    step()
    wait(device)
    first = time.monotonic() - started
    for _ in range(3):
        step()
    wait(device)
    variants[name] = step
    return {"first_s": first, "peak_GB": memory_gigabytes(device)}


def build(name: str, setting: Setting, device: torch.device) -> Callable[[], Any]:
    """Build an SGD step on images that stay the same; bf16 autocast, channels last."""
    torch.manual_seed(0)
    model = NETWORKS[setting.network](10).to(device, memory_format=torch.channels_last)
    penalty, _, apart = name.partition(", ")
    regularizer = None if name == PLAIN else Regularizer(model, penalty)
    forward = compiled(model) if setting.mode == "compiled" else model
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    shape = (setting.batch, 3, setting.size, setting.size)
    images = torch.randn(shape, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (setting.batch,), device=device)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            loss = nn.functional.cross_entropy(forward(images), labels)
        if regularizer is not None and not apart:
            loss = loss + regularizer()
        loss.backward()
        if regularizer is not None and apart:
            regularizer.backward_()
        optimizer.step()

    return step


def compiled(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Compile a model apart from others of its class.

    torch.compile keeps what it has made with the code of a function, and does not tell a model that
    is watched from one that is not: so each gets a function with code of its own.
    """

    def forward(images: Tensor) -> Tensor:
        logits: Tensor = model(images)
        return logits

    code = forward.__code__.replace(co_name=f"forward_{id(model)}")
    own = FunctionType(code, forward.__globals__, code.co_name, None, forward.__closure__)
    found: Any = torch.compile(own)
    return found  # type: ignore[no-any-return]


def times(
    variants: dict[str, Callable[[], Any]], device: torch.device, left: float, rehearse: bool
) -> dict[str, Any]:
    """Time what is warm, in turn, beside the plain step."""
    samples = in_turn(
        variants,
        device,
        rounds=2 if rehearse else 25,
        until=time.monotonic() + min(12.0, left - 3),
    )
    return {"base": PLAIN, "variants": beside(samples, PLAIN)}


def compiles(device: torch.device) -> dict[str, Any]:
    """Compile something tiny, to see that it can be done as `compiled` does it."""
    models = [nn.Sequential(nn.Linear(4, 4)).to(device) for _ in range(2)]
    x = torch.randn(2, 4, device=device)
    worst = max((compiled(model)(x) - model(x)).abs().max().item() for model in models)
    if worst > 1e-5:
        raise AssertionError(f"compiled models differ by {worst}")
    return {"difference": worst}
