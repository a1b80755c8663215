"""What only a GPU has, and what stands for it on a CPU: events, graphs, streams, waiting."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch


def milliseconds(run: Callable[[], Any], device: torch.device, times: int = 1) -> float:
    """Time `times` calls from the first launch to the end of the last kernel; the mean of one."""
    if device.type != "cuda":
        started = time.perf_counter()
        for _ in range(times):
            run()
        return 1e3 * (time.perf_counter() - started) / times
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(times):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / times


def wait(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


@contextmanager
def refusing_to_wait(device: torch.device) -> Iterator[None]:
    """Make an error of every operation that would wait for the device."""
    wait(device)
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def new_stream(device: torch.device) -> torch.cuda.Stream | None:
    """Make a stream of its own; None on a CPU."""
    return torch.cuda.Stream() if device.type == "cuda" else None


def on(stream: torch.cuda.Stream | None) -> AbstractContextManager[Any]:
    """Run a block on a stream."""
    return nullcontext() if stream is None else torch.cuda.stream(stream)


def captured(
    step: Callable[[], Any],
    device: torch.device,
    *,
    stream: torch.cuda.Stream | None = None,
    warm_up: int = 3,
    errors: str = "global",
) -> Callable[[], Any]:
    """Capture what a step launches in a CUDA graph, and return what replays it; the step on a CPU.

    Args:
        step: What to capture; it is called `warm_up` times before.
        device: Where it runs.
        stream: On which stream to warm up and capture; a new one if None.
        warm_up: How many calls come before, on the same stream.
        errors: As `torch.cuda.graph` takes it: whose forbidden calls count.
    """
    if device.type != "cuda":
        for _ in range(warm_up):
            step()
        return step
    before = torch.cuda.current_stream()
    stream = stream or torch.cuda.Stream()
    stream.wait_stream(before)
    with torch.cuda.stream(stream):
        for _ in range(warm_up):
            step()
    before.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream, capture_error_mode=errors):
            step()
    except BaseException:
        torch.cuda.set_stream(before)  # which a capture that failed does not
        raise

    def replay(_kept: object = step) -> None:  # the graph reads the step's tensors
        graph.replay()

    return replay


class Mark:
    """A place in what a stream was given, to wait for; on a CPU, long passed."""

    def __init__(self, stream: torch.cuda.Stream | None) -> None:
        self._event = None if stream is None else stream.record_event()

    def wait(self) -> None:
        """Wait until the stream has come here."""
        if self._event is not None:
            self._event.synchronize()


def memory_gigabytes(device: torch.device) -> float:
    """Tell the most that tensors have taken; 0 on a CPU."""
    return torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else 0.0


def free(device: torch.device) -> None:
    """Hand memory that nothing uses back to the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
