"""What `loss + regularizer()` leaves in a small network, against float64 on the CPU and itself."""

from __future__ import annotations

import copy
from typing import Any

import torch
from accelerator import captured, new_stream, on, refusing_to_wait, wait
from backend_checks import judged
from contenders import penalties, takes_kernels_alone
from networks import small_classifier
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from convsim import Regularizer
from convsim.precision import full_precision

CLOSE = 1e-3
"""How far gradients that went through a whole network in float32 may be off."""
ROUGH = 0.1
"""How far those of a forward pass in bfloat16 may be off."""
MUST_NOT_WAIT = ("recommended", "crossed", "matched", "authors")


def bf16_weights(device: torch.device) -> dict[str, Any]:
    """Compare a network whose weights are bfloat16: gradients have that precision too."""
    found = {}
    for name in filter(takes_kernels_alone, penalties()):
        torch.manual_seed(0)
        model = small_classifier().to(device, torch.bfloat16)
        exact = copy.deepcopy(model).double().cpu()
        for each in (model, exact):
            Regularizer(each, name, coefficient=1.0).backward_()
        found[name] = difference([p.grad for p in model.parameters()], exact)
    return judged(found, ROUGH)


def difference(gradients: Any, exact: nn.Module) -> float:
    """Return ‖gradients − exact‖ / ‖exact‖ over all parameters; none counts as 0."""
    own, theirs = [], []
    for gradient, parameter in zip(gradients, exact.parameters(), strict=True):
        zero = torch.zeros_like(parameter, device="cpu")
        own.append((zero if gradient is None else gradient.double().cpu()).flatten())
        theirs.append((zero if parameter.grad is None else parameter.grad.cpu()).flatten())
    expected = torch.cat(theirs)
    return ((torch.cat(own) - expected).norm() / expected.norm()).item()


def images(count: int, device: torch.device, seed: int = 1) -> Tensor:
    """Draw images with structure, so that maps correlate as those of photographs do."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 3, 8, 8, generator=generator)
    smooth = nn.functional.interpolate(noise, size=16, mode="bilinear")
    return (smooth + 0.3 * torch.randn(count, 3, 16, 16, generator=generator)).to(device)


class Example:
    """A small network with a penalty, and what one backward pass of both leaves."""

    def __init__(self, name: str, device: torch.device, *, half: bool = False) -> None:
        torch.manual_seed(0)
        self.half = half
        self.model = small_classifier().to(device)
        if half:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.regularizer = Regularizer(self.model, name, coefficient=1.0)
        self.images = images(16, device)

    def exact(self, name: str) -> Example:
        """Copy it to the CPU, in float64."""
        twin = Example.__new__(Example)
        twin.half, twin.model = False, small_classifier().double()
        twin.model.load_state_dict(self.model.state_dict())
        twin.regularizer = Regularizer(twin.model, name, coefficient=1.0)
        twin.images = self.images.double().cpu()
        return twin

    def backward(self) -> None:
        """Add the gradients of a small loss plus the penalty."""
        with torch.autocast(self.images.device.type, torch.bfloat16, enabled=self.half):
            loss = self.model(self.images).float().square().mean()
        (1e-3 * loss + self.regularizer()).backward()

    def gradients(self) -> list[Tensor]:
        """Run a backward pass from no gradients on, and return what it leaves."""
        self.model.zero_grad(set_to_none=True)
        self.backward()
        return [
            torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for p in self.model.parameters()
        ]


def network(name: str, device: torch.device, *, half: bool = False) -> dict[str, Any]:
    """Compare the gradients of `loss + regularizer()`, in float32 or under autocast to bf16."""
    example = Example(name, device, half=half)
    exact = example.exact(name)
    exact.backward()
    if half:
        found = example.gradients()
    else:
        with full_precision(example.images):
            found = example.gradients()
    return judged({name: difference(found, exact.model)}, ROUGH if half else CLOSE)


def waiting(name: str, device: torch.device) -> dict[str, Any]:
    """Tell whether a training step waits for the device.

    Raises:
        RuntimeError: If it does, and must not.
    """
    example = Example(name, device, half=True)
    optimizer = torch.optim.SGD(example.model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        example.backward()
        if takes_kernels_alone(name):
            example.regularizer.backward_()
        optimizer.step()

    for _ in range(2):
        step()
    try:
        with refusing_to_wait(device):
            step()
    except RuntimeError as error:
        if name in MUST_NOT_WAIT:
            raise
        return {"waits": True, "where": str(error)[:200]}
    return {"waits": False}


def two_streams(name: str, device: torch.device) -> dict[str, Any]:
    """Run two networks on two streams at once, many times, and compare with one after the other."""
    examples = [Example(name, device) for _ in range(2)]
    examples[1].images = images(16, device, seed=2)
    with full_precision(examples[0].images):
        alone = [example.gradients() for example in examples]
        wait(device)
        streams = [new_stream(device) for _ in examples]
        found = {}
        for turn in range(5):
            together: list[list[Tensor]] = []
            for example, stream in zip(examples, streams, strict=True):
                with on(stream):
                    together.append(example.gradients())
            wait(device)
            found[f"turn {turn}"] = max(
                distance(one, other) for one, other in zip(together, alone, strict=True)
            )
    return judged(found, CLOSE)


def distance(found: list[Tensor], expected: list[Tensor]) -> float:
    """Return ‖found − expected‖ / ‖expected‖."""
    own, theirs = (torch.cat([g.flatten() for g in each]) for each in (found, expected))
    return ((own - theirs).norm() / theirs.norm()).item()


def twice(name: str, device: torch.device) -> dict[str, Any]:
    """Tell whether two runs agree bit by bit; they need not, for cuDNN's own sums may not."""
    example = Example(name, device)
    first, second = example.gradients(), example.gradients()
    same = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    return {"bit for bit": same, **judged({name: distance(second, first)}, CLOSE)}


def in_a_graph(name: str, device: torch.device, warm_up: int = 3) -> dict[str, Any]:
    """Capture a backward pass, replay it on other images, and compare with one that is not."""
    example, plain = Example(name, device), Example(name, device)
    if not warm_up:
        example.gradients()  # cuDNN and cuBLAS are set up, but not on the stream that captures
    with full_precision(example.images):
        example.model.zero_grad(set_to_none=True)
        replay = captured(example.backward, device, warm_up=warm_up)
        found = {}
        for seed in (3, 4):
            for each in (example, plain):
                each.images.copy_(images(16, device, seed))
            for parameter in example.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.zero_()
            replay()
            wait(device)
            graphed = [
                torch.zeros_like(p) if p.grad is None else p.grad.clone()
                for p in example.model.parameters()
            ]
            found[f"images {seed}"] = distance(graphed, plain.gradients())
    return judged(found, CLOSE)


def launched(device: torch.device) -> dict[str, Any]:
    """List the kernels that one `backward_` of the crossed penalty launches."""
    model = small_classifier().to(device)
    regularizer = Regularizer(model, "crossed")
    for _ in range(2):
        regularizer.backward_()
    wait(device)
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        regularizer.backward_()
        wait(device)
    kernels: dict[str, int] = {}
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            kernels[event.name[:80]] = kernels.get(event.name[:80], 0) + 1
    fused = any(name.startswith("autocorrelate") for name in kernels)
    if not fused:
        raise AssertionError(f"the Triton kernels did not run; these did: {kernels}")
    return {"launches": sum(kernels.values()), "kernels": kernels}
