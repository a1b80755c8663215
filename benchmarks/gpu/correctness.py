"""Stage: every backend and every penalty on the device, against float64 on the CPU."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import product
from typing import Any

import torch
from accelerator import captured, new_stream, on, refusing_to_wait, wait
from contenders import penalties, takes_kernels_alone
from journal import Journal
from networks import small_classifier
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from convsim import ConvolutionalSimilarity, ConvsimWarning, Regularizer, convolutional_similarity
from convsim.precision import full_precision

OPTIONS = [
    dict(zip(("pairs", "channels", "scale", "reduction"), values, strict=True))
    for values in product(
        ("all", "adjacent"), ("crossed", "matched"), ("unit", "raw"), ("mean", "sum")
    )
]
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "3×3": lambda: nn.Conv2d(16, 24, 3),
    "3×3, 256 of 256": lambda: nn.Conv2d(256, 256, 3),
    "3×3, 1,100 filters": lambda: nn.Conv2d(20, 1100, 3),
    "3×3, stride 2": lambda: nn.Conv2d(70, 33, 3, stride=2),
    "3×3, 4 groups": lambda: nn.Conv2d(16, 24, 3, groups=4),
    "3×3, depthwise, 2 filters a channel": lambda: nn.Conv2d(12, 24, 3, groups=12),
    "1×1": lambda: nn.Conv2d(24, 40, 1),
    "1×1, stride 2": lambda: nn.Conv2d(24, 40, 1, stride=2),
    "5×5, stride 2": lambda: nn.Conv2d(300, 20, 5, stride=2),
    "7×7, stride 2": lambda: nn.Conv2d(3, 64, 7, stride=2),
    "9×9, matched by Fourier": lambda: nn.Conv2d(3, 6, 9),
    "17×17, all by Fourier": lambda: nn.Conv2d(2, 5, 17),
    "1-d": lambda: nn.Conv1d(6, 9, 5, stride=3),
    "3-d": lambda: nn.Conv3d(4, 6, (2, 3, 2), stride=(1, 2, 1)),
    "3×3, stride 3, dilation 2": lambda: nn.Conv2d(6, 9, 3, stride=3, dilation=2),
    "transposed, 4×4, stride 2": lambda: nn.ConvTranspose2d(8, 12, 4, stride=2),
    "transposed, 2 groups": lambda: nn.ConvTranspose2d(8, 12, 3, stride=2, groups=2),
}
REHEARSED = {
    "eager": ("3×3, 4 groups", "1×1", "9×9, matched by Fourier", "1-d", "transposed, 2 groups"),
    "fused": ("1×1", "1-d"),  # in Triton's interpreter
}
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda w: w,
    "channels last": lambda w: w.to(memory_format=torch.channels_last),
    "every other element": lambda w: w.repeat_interleave(2, dim=-1)[..., ::2],
}
EXACT = 5e-5
"""How far float32 may be off, relative, with sums of thousands; norms are of like size."""
CLOSE = 1e-3
"""How far gradients that went through a whole network in float32 may be off."""
ROUGH = 0.1
"""How far those of a forward pass in bfloat16 may be off."""
MUST_NOT_WAIT = ("recommended", "sampled", "data-aware", "maps", "crossed", "matched", "authors")


def run(journal: Journal, *, rehearse: bool) -> None:
    """Check, in the order of worth."""
    device = journal.device
    names = penalties()[:: 7 if rehearse else 1]
    for name in names:
        journal.attempt(f"gradient, {name}", lambda name=name: network(name, device))
        half = lambda name=name: network(name, device, half=True)  # noqa: E731
        journal.attempt(f"gradient, {name}, bf16, channels last", half)
        journal.attempt(f"no waiting, {name}", lambda name=name: waiting(name, device))
    graphs(journal, names[:4])
    for backend in backends():
        one_backend(journal, backend, rehearse)
    journal.attempt("bf16 weights", lambda: bf16_weights(device))
    for name in names:
        journal.attempt(f"two streams, {name}", lambda name=name: two_streams(name, device))
        journal.attempt(f"twice the same, {name}", lambda name=name: twice(name, device))
    graphs(journal, names[4:])
    cold = lambda: in_a_graph("crossed", device, warm_up=0)  # noqa: E731
    journal.attempt("CUDA graph, crossed, captured at once", cold, poisons=True)
    if device.type == "cuda":  # last, for a profiler stays in the process
        journal.attempt("which kernels run", lambda: launched(device))


def one_backend(journal: Journal, backend: str, rehearse: bool) -> None:
    """Check one backend on every kind of layer, memory layout and hard weight."""
    device = journal.device
    options = [o for o in OPTIONS if o["channels"] == "crossed" or backend != "fused"]
    layers = REHEARSED[backend] if rehearse else LAYERS
    for layer in layers:
        journal.attempt(
            f"{backend}, {layer}",
            lambda layer=layer: one_layer(
                LAYERS[layer], backend, options[:: len(options) // 4 if rehearse else 1], device
            ),
            seconds=60,
        )
    journal.attempt(f"{backend}, layouts", lambda: layouts(backend, device, rehearse))
    journal.attempt(f"{backend}, hard weights", lambda: hard(backend, device))


def graphs(journal: Journal, names: list[str]) -> None:
    """Capture the backward pass with each penalty, but where one waits, which forbids it."""
    device = journal.device
    for name in names:
        if not journal.results.get(f"no waiting, {name}", {}).get("waits"):
            journal.attempt(
                f"CUDA graph, {name}", lambda name=name: in_a_graph(name, device), poisons=True
            )


def backends() -> list[str]:
    """List the backends to force: the compiled one is for CPUs, and fused needs Triton."""
    return ["eager"] if find_spec("triton") is None else ["fused", "eager"]


@contextmanager
def forced(backend: str) -> Iterator[None]:
    """Take one backend wherever it serves a layer."""
    before = os.environ.get("CONVSIM_BACKEND")
    os.environ["CONVSIM_BACKEND"] = backend
    try:
        yield
    finally:
        del os.environ["CONVSIM_BACKEND"]
        if before is not None:
            os.environ["CONVSIM_BACKEND"] = before


def reference(layer: Any, options: dict[str, str]) -> tuple[Tensor, Tensor]:
    """Compute value and gradient by autograd through the readable formula: float64, CPU."""
    weight = layer.weight.detach().double().cpu().contiguous().requires_grad_()
    value = convolutional_similarity(
        weight, stride=layer.stride, dilation=layer.dilation, groups=layer.groups,
        transposed=layer.transposed, **options,
    )  # fmt: skip
    if not value.requires_grad:
        return value, torch.zeros_like(weight)
    return value.detach(), torch.autograd.grad(value, weight)[0]


def errors(layer: Any, options: dict[str, str], backend: str) -> tuple[float, float]:
    """Return the relative errors of value and gradient of one layer."""
    expected, expected_gradient = reference(layer, options)
    layer.weight.grad = torch.zeros_like(layer.weight)  # of the weight's own strides
    with warnings.catch_warnings(), forced(backend):
        warnings.simplefilter("error", ConvsimWarning)
        try:
            regularizer = Regularizer(layer, ConvolutionalSimilarity(**options), coefficient=1.0)
        except ConvsimWarning:  # it cannot act on this layer
            return 0.0, 0.0
        value = regularizer.backward_().double().cpu()
    gradient = layer.weight.grad.double().cpu()
    # A gradient that nearly vanishes is judged by what it is the difference of.
    scale = max(expected_gradient.norm().item(), 0.1 * expected.item() / layer.weight.norm().item())
    off = (gradient - expected_gradient).norm().item() / max(scale, 1e-300)
    return abs(value.item() / expected.item() - 1), off


def one_layer(
    build: Callable[[], nn.Module],
    backend: str,
    options: list[dict[str, str]],
    device: torch.device,
) -> dict[str, Any]:
    """Compare one layer on every option; fail where an error is too large."""
    torch.manual_seed(0)
    layer = build().to(device)
    found = {" ".join(each.values()): errors(layer, each, backend) for each in options}
    return judged({name: max(both) for name, both in found.items()}, EXACT)


def judged(found: dict[str, float], limit: float) -> dict[str, Any]:
    """Describe the largest error and where it is.

    Raises:
        AssertionError: If it is above the limit, or no number.
    """
    worst = max(found, key=lambda name: found[name] if found[name] == found[name] else 1e300)
    described = {"worst": found[worst], "at": worst, "checks": len(found), "limit": limit}
    if not found[worst] <= limit:
        raise AssertionError(f"too far off: {described}; all: {found}")
    return described


def layouts(backend: str, device: torch.device, rehearse: bool) -> dict[str, Any]:
    """Compare filters that lie in memory in other orders."""
    found = {}
    for name, lay_out in LAYOUTS.items():
        for options in OPTIONS[:: 12 if rehearse else 2]:
            torch.manual_seed(0)
            layer: Any = nn.Conv2d(20, 6, 3).to(device)
            layer.weight = nn.Parameter(lay_out(layer.weight.detach()))
            where = f"{name}, {' '.join(options.values())}"
            found[where] = max(errors(layer, options, backend))
    return judged(found, EXACT)


def hard(backend: str, device: torch.device) -> dict[str, Any]:
    """Take a zero filter, norms from 1e-20 to 1e20, norms far apart, and NaN."""
    found = {}
    for name, change in {
        "zero filter": lambda w: w[1].zero_(),
        "tiny": lambda w: w.mul_(1e-20),
        "huge": lambda w: w.mul_(1e20),
        "far apart": lambda w: w[::2].mul_(1e-6),
    }.items():
        for channels in ("crossed", "matched"):
            torch.manual_seed(0)
            layer = nn.Conv2d(20, 6, 3).to(device)
            with torch.no_grad():
                change(layer.weight)
            options = {
                "pairs": "all", "channels": channels, "scale": "unit", "reduction": "mean",
            }  # fmt: skip
            found[f"{name}, {channels}"] = max(errors(layer, options, backend))
    layer = nn.Conv2d(20, 6, 3).to(device)
    with torch.no_grad():
        layer.weight[2, 3, 1, 1] = torch.nan
    with forced(backend):
        value = Regularizer(layer, ConvolutionalSimilarity(), coefficient=1.0).backward_()
    if value.isfinite():
        raise AssertionError(f"a NaN among the weights gave the number {value.item()}")
    return judged(found, EXACT)


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
