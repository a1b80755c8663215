"""How far each batch of images has come in a network, so that no layer starts from the images.

Shape suffixes: S samples, O all outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from convsim.shrinking.calibration import device_of
from convsim.shrinking.resuming import Cut, Reached, resumed
from convsim.shrinking.topology import Additions, Fate, Seen
from convsim.shrinking.verification import outputs
from convsim.shrinking.weights import rows_of

Layers = Sequence[tuple[str, Fate]]
Start = tuple[Cut, Tensor]
"""A cut, and what it put out for a batch."""

_MOST_BYTES = 2**29
"""Most bytes of maps that are kept to resume from; what takes more is computed again."""


class Road:
    """A network's forward passes over batches, in the order of its layers, each resumed.

    A batch resumes from the output of the last cut before the layers that were asked for last. So
    weights before those layers must be final: whoever changes a layer in between must afterwards
    ask for it, or for later ones.

    Args:
        model: The network, in ``eval()`` mode.
        batches: The images.
        cuts: Where its passes can be resumed, or those of a network alike but for its widths.
        since: Where a batch starts, if another network has computed the same so far.

    Memory: a cut's maps of all batches, at most 512 MiB.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Tensor],
        cuts: Sequence[Cut] = (),
        since: Callable[[int], Start | None] = lambda number: None,
    ) -> None:
        self.batches, self._cuts, self._since = batches, list(cuts), since
        self._model, self._device = model, device_of(model)
        self._reached: dict[int, Start] = {}

    def run(
        self,
        number: int,
        layers: Layers,
        positions: int,
        look: Callable[[nn.Module, Tensor], None] = lambda layer, read: None,
    ) -> dict[str, Tensor]:
        """Run a batch as far as needed; take samples of what layers should tell: (S, O) each.

        That is what a layer puts out, or the sum that its fate names.

        Args:
            number: Which batch.
            layers: Layers in the order of computation, none before those of the last call.
            positions: How many positions of every image to take.
            look: Called with what a layer reads, before it is computed; may end the pass with
                `Reached`.
        """
        end, start = self._last_cut(layers[-1][0]), self._start(number)
        with ExitStack() as stack:
            if end is not None and (start is None or _is_before(start[0], end)):
                module = self._model.get_submodule(end.module)
                stack.callback(module.register_forward_hook(self._keep(number, end)).remove)
            inputs = self._images(number)
            return _targets(self._model, layers, inputs, positions, look, start)

    def finish(self, number: int) -> list[Tensor]:
        """Run a batch to its end, and list what the network puts out."""
        additions = Additions(lambda *_: None)
        with torch.no_grad(), additions, ExitStack() as stack:
            if (start := self._start(number)) is not None:
                stack.enter_context(resumed(self._model, *start, additions))
            return outputs(self._model, self._images(number))

    def before(self, number: int, layer: str) -> Start | None:
        """Run a batch up to the last cut before a layer, and tell where it has come."""
        end, start = self._last_cut(layer), self._reached.get(number)
        if end is None or (start is not None and _is_before(end, start[0])):
            self._reached.pop(number, None)
            start = None
        if end is not None and (start is None or start[0] is not end):
            self.run(number, [(layer, Fate(None, None, linear=True))], 1, _stop)
        return self._reached.get(number)

    def _images(self, number: int) -> Tensor:
        """Copy a batch: in a resumed pass, what works in place works on what it is given."""
        return self.batches[number].to(self._device, copy=True)

    def _start(self, number: int) -> Start | None:
        """Tell where a batch resumes; None if from its images."""
        if number not in self._reached and (start := self._since(number)) is not None:
            self._reached[number] = start
        return self._reached.get(number)

    def _last_cut(self, layer: str) -> Cut | None:
        return next((cut for cut in reversed(self._cuts) if layer in cut.layers), None)

    def _keep(self, number: int, cut: Cut) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            if output.nbytes * len(self.batches) <= _MOST_BYTES:
                self._reached[number] = cut, output.clone()
            else:
                self._cuts.remove(cut)

        return hook


def _is_before(first: Cut, second: Cut) -> bool:
    return len(first.passed) < len(second.passed)


def _stop(layer: nn.Module, read: Tensor) -> None:
    raise Reached


def _targets(
    model: nn.Module,
    layers: Layers,
    inputs: Tensor,
    positions: int,
    look: Callable[[nn.Module, Tensor], None],
    start: Start | None,
) -> dict[str, Tensor]:
    """Run a network from `start` as far as needed, and take samples: (S, O) each.

    They are taken at once: what comes later may overwrite them in place.
    """
    found: dict[str, Tensor] = {}
    count = positions * len(inputs)

    def take(name: str, maps: Tensor) -> None:
        found[name] = rows_of(model.get_submodule(name), maps, count)
        if len(found) == len(layers):
            raise Reached

    def before_layer(module: nn.Module, args: Any) -> None:
        with additions.aside():
            look(module, args[0])

    def at_layer(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            with additions.aside():
                take(name, output)

        return hook

    def at_sum(number: int, first: Seen, second: Seen, result: Tensor) -> None:
        for name, fate in layers:
            if fate.addition == number:
                take(name, result)

    additions = Additions(at_sum)
    handles: list[Any] = []
    for name, fate in layers:
        module = model.get_submodule(name)
        handles.append(module.register_forward_pre_hook(before_layer))
        if fate.addition is None:
            handles.append(module.register_forward_hook(at_layer(name)))
    try:
        with torch.no_grad(), additions, ExitStack() as stack:
            if start is not None:
                stack.enter_context(resumed(model, *start, additions))
            model(inputs)
    except Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found
