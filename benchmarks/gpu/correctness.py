"""Stage: every backend and every penalty on the device, against float64 on the CPU."""

from __future__ import annotations

from importlib.util import find_spec

from backend_checks import LAYERS, OPTIONS, hard, layouts, one_layer
from contenders import penalties
from journal import Journal
from network_checks import bf16_weights, in_a_graph, launched, network, twice, two_streams, waiting

REHEARSED = {
    "eager": ("3×3, 4 groups", "1×1", "9×9, matched by Fourier", "1-d", "transposed, 2 groups"),
    "fused": ("1×1", "1-d"),  # in Triton's interpreter
}


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
