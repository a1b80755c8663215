"""Which modules of a model are measured, and the hooks that watch their outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from convsim.errors import ConvsimError
from convsim.kernels import (
    ConvLayer,
    KernelBank,
    LayerFilter,
    conv_layers,
    is_convolution,
    selected_modules,
)
from convsim.precision import full_precision


@dataclass(frozen=True, eq=False)
class Probe:
    """A module whose output is measured, with its layer and filters if it is a convolution."""

    name: str
    module: nn.Module
    bank: KernelBank | None


Look = Callable[[Probe, tuple[Any, ...], Tensor], None]
"""Called with a probe, its module's inputs, and the feature maps (N, maps, …) it put out."""


def probes(
    model: nn.Module,
    layers: LayerFilter | Iterable[LayerFilter] | None,
    modules: LayerFilter | Iterable[LayerFilter] | None,
) -> list[Probe]:
    """Choose convolutions, or modules of any kind.

    Raises:
        ConvsimError: If both are given, or nothing is selected.
    """
    if modules is None:
        chosen = [(layer.name, layer.module) for layer in conv_layers(model, layers)]
    elif layers is None:
        chosen = selected_modules(model, modules)
    else:
        raise ConvsimError("measure() takes layers=… or modules=…, not both.")
    return [
        Probe(name, module, _bank(name, module) if is_convolution(module) else None)
        for name, module in chosen
    ]


def _bank(name: str, module: nn.Module) -> KernelBank:
    bank = ConvLayer(name, module).bank()
    return bank.with_filters(bank.filters.detach())


@contextmanager
def watching(model: nn.Module, probes: Iterable[Probe], look: Look) -> Iterator[None]:
    """Call `look` on every probe's output; in ``eval()`` mode, without gradients."""

    def hook(
        probe: Probe,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
    ) -> None:
        spatial = len(probe.bank.kernel) if probe.bank is not None else None
        is_maps = isinstance(output, Tensor) and output.is_floating_point() and output.dim() > 2
        if not is_maps or spatial not in (None, output.dim() - 2):
            shape = tuple(output.shape) if isinstance(output, Tensor) else ""
            raise ConvsimError(
                f"Module {probe.name!r} ({type(module).__name__}) put out {_kind(output)} {shape}; "
                "feature maps (N, maps, …) of real floating point can be measured. Pass inputs in "
                "batches, or leave the module out."
            )
        with full_precision(output):
            look(probe, (*args, *kwargs.values()), output.detach())

    modes = {module: module.training for module in model.modules()}
    with ExitStack() as stack, torch.no_grad():
        for probe in probes:
            handle = probe.module.register_forward_hook(partial(hook, probe), with_kwargs=True)
            stack.callback(handle.remove)
        for module, mode in modes.items():
            stack.callback(setattr, module, "training", mode)
        model.eval()
        yield


def _kind(output: Any) -> str:
    return str(output.dtype) if isinstance(output, Tensor) else f"a {type(output).__name__}"
