"""What a penalty keeps of a model's forward passes: samples of the layers' feature maps."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from convsim.errors import ConvsimError
from convsim.kernels import ConvLayer, is_convolution
from convsim.kernels.layer import takes_any_gradient
from convsim.kernels.sharding import is_sharded
from convsim.penalties import ActivationPenalty
from convsim.regularizer.forward_hooks import Watch
from convsim.regularizer.sampling import Balance, Meeting, sample_maps

_RUNS = 16  # of one layer that are kept


class _Since:
    """What has happened to the forward passes that are kept."""

    def __init__(self) -> None:
        self.asked = self.passed = False


class _Run:
    """One forward pass of one layer, whose graph is let go when the backward pass has been there.

    Attributes:
        samples: (S, M).
        over: Whether the backward pass has been there.
    """

    def __init__(self, samples_SM: Tensor, meeting: Meeting | None, since: _Since) -> None:
        self.samples = samples_SM
        self.over = False
        self._since = since
        if meeting is not None:  # which the graph holds: a strong reference would hold the graph
            meeting.run = weakref.ref(self)

    def end(self) -> None:
        """Keep the numbers alone."""
        self.over = self._since.passed = True
        self.samples = self.samples.detach()


class _Over(torch.autograd.Function):
    """Samples to look at, of a forward pass whose backward pass is over."""

    @staticmethod
    def forward(ctx: Any, samples_SM: Tensor) -> Tensor:
        return samples_SM.clone()

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> None:
        raise ConvsimError(
            "The backward pass of these feature maps is over. Call the regularizer once after each "
            "forward pass, before loss.backward(), and add it to the loss."
        )


class Samples:
    """Keep samples of maps until they have been asked for and the next forward pass begins.

    Of a layer that ran more than 16 times, the last 16 are kept; in eval() mode only the last, so
    that an evaluation that records gradients piles up no graphs.

    Args:
        modules: The modules to look at, each with its layer's name.
        penalty: The penalty, which says at how many positions.
        balance: Where gradients are weighed while the coefficient is to be found.
    """

    def __init__(
        self,
        modules: Iterable[tuple[str, nn.Module]],
        penalty: ActivationPenalty,
        balance: Balance,
    ) -> None:
        self.modules = tuple(modules)
        self._runs: dict[str, list[_Run]] = {}
        self._since = _Since()
        runs, since = self._runs, self._since  # not self: dropping it must end the watch

        def look(name: str, module: nn.Module, output: Tensor) -> None:
            maps_NMx = _require_maps(name, module, output)
            if since.asked or since.passed:
                runs.clear()
            since.asked = since.passed = False
            own = runs.setdefault(name, [])
            if not takes_any_gradient(module):
                return
            del own[: -(_RUNS - 1) if module.training else None]
            if maps_NMx.numel():
                own.append(_Run(*sample_maps(maps_NMx, penalty.samples, balance), since))

        self._watch = Watch(self.modules, look)
        self.close = self._watch.close
        weakref.finalize(self, self.close)  # what torch.compile has traced may hold the watch
        _forget_compiled()

    def ask(self) -> dict[str, list[Tensor]]:
        """Return the layers' samples (S, M) of each forward pass since they were asked for last.

        Passes whose backward pass is over count only if there are no others. Asked again before the
        next forward pass, it returns the same.

        Raises:
            ConvsimError: If there has been no forward pass yet.
        """
        if not self._runs:
            raise ConvsimError(
                "No layer has put out feature maps yet: call the regularizer after a forward pass "
                "that records gradients (not under torch.no_grad()), and checkpoint activations "
                "with use_reentrant=False."
            )
        self._since.asked = True
        every = [run for own in self._runs.values() for run in own]
        over = all(run.over for run in every)
        return {
            name: [
                _Over.apply(run.samples.requires_grad_()) if over else run.samples  # type: ignore[no-untyped-call]
                for run in own
                if over or not run.over
            ]
            for name, own in self._runs.items()
        }

    @property
    def ran(self) -> bool:
        """Whether any layer has been seen in a forward pass."""
        return bool(self._runs)

    @property
    def fresh(self) -> bool:
        """Whether there are maps whose backward pass is still to come."""
        return any(not run.over for own in self._runs.values() for run in own)

    def forget(self) -> None:
        """Drop what is kept."""
        self._runs.clear()


def modules_of(model: nn.Module, layers: Iterable[ConvLayer]) -> list[tuple[str, nn.Module]]:
    """List the modules that convolve with the layers' weights, which several may share."""
    return [
        (layer.name, module)
        for layer in layers
        for module in ([layer.module] if layer.parametrized else model.modules())
        if module is layer.module
        or (is_convolution(module) and module.weight is layer.module.weight)
    ]


def _require_maps(name: str, module: nn.Module, output: Any) -> Tensor:
    spatial = len(module.kernel_size)  # type: ignore[arg-type]
    if is_sharded(output) and all(placed.is_replicate() for placed in output.placements):
        output = output.to_local()
    if not isinstance(output, Tensor) or not output.is_floating_point() or is_sharded(output):
        dtype = f" of {output.dtype}" if type(output) is Tensor else ""
        raise ConvsimError(
            f"Layer {name!r} ({type(module).__name__}) put out a {type(output).__name__}{dtype}; "
            "a penalty on feature maps takes a whole tensor (N, maps, …) of real floating point. "
            "Leave it out with layers=…."
        )
    if output.dim() == spatial + 1:
        return output.unsqueeze(0)
    if output.dim() != spatial + 2:
        raise ConvsimError(
            f"Layer {name!r} ({type(module).__name__}) put out a tensor of shape "
            f"{tuple(output.shape)}, which does not have the {spatial + 2} axes (N, maps, …) of "
            "its convolution. Leave it out with layers=…."
        )
    return output


def _forget_compiled() -> None:
    """Have torch.compile look at the models again: what it compiled before calls no new hook."""
    if "torch._dynamo" in sys.modules and torch._dynamo.utils.counters["frames"]["total"]:
        torch._dynamo.reset()
