"""Which modules of a model are measured, and the hooks that watch their outputs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from convsim.errors import ConvsimError
from convsim.kernels import (
    ConvLayer,
    KernelBank,
    LayerFilter,
    conv_layers,
    is_convolution,
    selected_modules,
)
from convsim.kernels.computed_weight import CONVOLUTION_CALLS
from convsim.kernels.sharding import is_sharded
from convsim.precision import at_least_float32, full_precision
from convsim.redundancy.following import Follower, is_followed


@dataclass(frozen=True, eq=False)
class Probe:
    """A module that is measured.

    Attributes:
        name: Its name in the model.
        module: The module.
        bank: Its filters, if it is a convolution.
        whole: Whether its output counts, and not what leaves its convolution.
    """

    name: str
    module: nn.Module
    bank: KernelBank | None
    whole: bool

    def convolves_with(self, weight: Any) -> bool:
        """Tell whether a weight is this layer's: a forward may convolve with others too."""
        if weight is self.module._parameters.get("weight"):
            return True
        if self.bank is None or is_sharded(weight) or weight.device != self.bank.filters.device:
            return False
        own = self.bank.to_weight(self.bank.filters)
        return weight.shape == own.shape and torch.equal(at_least_float32(weight), own)


Place = Literal["convolution", "reading"]
"""Where maps are looked at: as they leave their convolution, or where the next layer reads them."""


class Look(Protocol):
    """What is done with a layer's feature maps (N, maps, …)."""

    def convolve(self, inputs: tuple[Any, ...], maps: Tensor) -> None:
        """Look at the layer's inputs and at what it made of them."""

    def add(self, maps: Tensor) -> None:
        """Look at the maps, at the place that was asked for."""


def probes(
    model: nn.Module,
    layers: LayerFilter | Iterable[LayerFilter] | None,
    modules: LayerFilter | Iterable[LayerFilter] | None,
) -> list[Probe]:
    """Choose convolutions, also those that share a weight, or modules of any kind.

    Raises:
        ConvsimError: If both are given, or nothing is selected.
    """
    if modules is None:
        layers = list(layers) if isinstance(layers, Iterator) else layers
        conv_layers(model, layers)  # refuses what cannot be read
        everything = model.named_modules() if layers is None else selected_modules(model, layers)
        chosen = [(name, module) for name, module in everything if is_convolution(module)]
    elif layers is None:
        chosen = selected_modules(model, modules)
    else:
        raise ConvsimError("measure() takes layers=… or modules=…, not both.")
    return [
        Probe(
            name,
            module,
            bank=_bank(name, module) if is_convolution(module) else None,
            whole=modules is not None,
        )
        for name, module in chosen
    ]


def _bank(name: str, module: nn.Module) -> KernelBank:
    bank = ConvLayer(name, module).bank()
    return bank.with_filters(bank.filters.detach())


def device_of(model: nn.Module) -> torch.device | None:
    """Find the device of a model's first tensor; None if it has none, or they are elsewhere."""
    tensors = (*model.parameters(), *model.buffers())
    return next((tensor.device for tensor in tensors if not tensor.is_meta), None)


@contextmanager
def watching(
    model: nn.Module, looks: Mapping[Probe, Look], place: Place = "convolution"
) -> Iterator[Callable[[], None]]:
    """Call a look for each time that its probe's module runs.

    At "convolution", a layer's maps are looked at as they leave its convolution, before its
    module's own forward does anything else with them (a normalization, an activation in place, a
    tuple around them). If a module calls no torch convolution with its weight, its output is looked
    at. At "reading", maps are followed through normalization and activation.

    Yields:
        What is to be called when a forward pass is over.
    """
    watch = _Watch(looks, place)
    with ExitStack() as stack:
        for probe in looks:
            module = probe.module
            for handle in (
                module.register_forward_pre_hook(partial(watch.begin, probe), with_kwargs=True),
                module.register_forward_hook(
                    partial(watch.end, probe), with_kwargs=True, always_call=True
                ),
            ):
                stack.callback(handle.remove)
        for module in model.modules() if place == "reading" else ():
            if is_followed(module):
                for handle in (
                    module.register_forward_pre_hook(watch.enter, with_kwargs=True),
                    module.register_forward_hook(watch.leave),
                ):
                    stack.callback(handle.remove)
        stack.enter_context(watch)
        yield watch.finish


@dataclass(eq=False)
class _Run:
    """One run of a probe's module, up to now."""

    probe: Probe
    inputs: tuple[Any, ...]
    convolved: bool = False


class _Running(threading.local):
    """Runs inside one another, by thread: nn.DataParallel has one for each device."""

    def __init__(self) -> None:
        self.stack: list[_Run] = []
        self.follower = Follower()


class _Watch(TorchFunctionMode):
    """Sees the modules of probes begin and end, and the convolutions in between."""

    def __init__(self, looks: Mapping[Probe, Look], place: Place) -> None:
        super().__init__()
        self._looks, self._place = looks, place
        self._running = _Running()

    def finish(self) -> None:
        """Look at what no layer has read."""
        self._running.follower.finish()

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
        self._running.follower.enter(module, (*args, *kwargs.values()))

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._running.follower.leave(module, output)

    def begin(self, probe: Probe, module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
        self._running.stack.append(_Run(probe, (*args, *kwargs.values())))

    def end(self, probe: Probe, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        run = self._running.stack.pop()
        if not run.convolved and output is not None:  # it raised, and that is not ours to tell
            self._look(run, output)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        output = self._running.follower.call(func, args, kwargs)
        if func in CONVOLUTION_CALLS and self._running.stack:
            run = self._running.stack[-1]
            weight = kwargs["weight"] if "weight" in kwargs else args[1]
            if not run.probe.whole and run.probe.convolves_with(weight):
                run.convolved = True
                self._look(run, output)
        return output

    def _look(self, run: _Run, output: Any) -> None:
        probe = run.probe
        spatial = len(probe.bank.kernel) if probe.bank is not None else None
        is_maps = isinstance(output, Tensor) and output.is_floating_point() and output.dim() > 2
        if not is_maps or spatial not in (None, output.dim() - 2):
            shape = tuple(output.shape) if isinstance(output, Tensor) else ""
            raise ConvsimError(
                f"Module {probe.name!r} ({type(probe.module).__name__}) put out {_kind(output)} "
                f"{shape}; feature maps (N, maps, …) of real floating point can be measured. Pass "
                "inputs in batches, or leave the module out."
            )
        look = self._looks[probe]
        with full_precision(output):
            look.convolve(run.inputs, output.detach())
        if self._place == "convolution":
            self._add(look, output)
        else:
            self._running.follower.start(output, partial(self._add, look))

    def _add(self, look: Look, maps: Tensor) -> None:
        with full_precision(maps):
            look.add(maps.detach())


def _kind(output: Any) -> str:
    return str(output.dtype) if isinstance(output, Tensor) else f"a {type(output).__name__}"
