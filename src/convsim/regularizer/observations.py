"""What a penalty keeps of a model's forward passes: feature maps, or windows of layers' inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from convsim.errors import ConvsimError
from convsim.kernels import ConvLayer, KernelBank, is_convolution
from convsim.kernels.windows import sample_windows
from convsim.penalties import ActivationPenalty, Penalty
from convsim.regularizer.forward_hooks import Watch


class Observations:
    """Keep the layers' last inputs, or all their maps since they were last asked for.

    Args:
        model: The model, which may run a layer's weight by several modules.
        layers: The layers to look at.
        penalty: The penalty, which says what it needs.
    """

    def __init__(self, model: nn.Module, layers: Sequence[ConvLayer], penalty: Penalty) -> None:
        self._penalty = penalty
        self._names = {layer.name for layer in layers}
        self._maps: dict[str, list[Tensor]] = {}
        self.inputs: dict[str, Tensor] = {}
        if not (isinstance(penalty, ActivationPenalty) or penalty.windows):
            self.close: Callable[[], object] = lambda: None
            return
        modules = [
            (layer.name, module)
            for layer in layers
            for module in ([layer.module] if layer.parametrized else model.modules())
            if module is layer.module
            or (is_convolution(module) and module.weight is layer.module.weight)
        ]
        maps, inputs, windows = self._maps, self.inputs, penalty.windows
        outlines = {id(module): ConvLayer(name, module).outline() for name, module in modules}

        # Neither holds on to self, so that dropping the observations ends them.
        def keep_maps(name: str, _: nn.Module, __: Tensor, output: Tensor) -> None:
            if torch.is_grad_enabled():
                maps.setdefault(name, []).append(output)

        def keep_inputs(name: str, module: nn.Module, read: Tensor, _: Tensor) -> None:
            try:
                if not read.numel():  # an empty batch
                    return
                with torch.inference_mode(False), torch.no_grad():
                    inputs[name] = sample_windows(module, outlines[id(module)], read, windows)
            except ConvsimError as error:
                raise ConvsimError(f"Layer {name!r}: {error}") from error

        self._watch = Watch(modules, keep_inputs if windows else keep_maps)
        self.close = self._watch.close

    def with_inputs(self, name: str, bank: KernelBank) -> KernelBank:
        """Complete a layer's bank by what it read last.

        Raises:
            ConvsimError: If it is looked at and has read nothing yet.
        """
        if not self._penalty.windows or name not in self._names:
            return bank
        if name not in self.inputs:
            raise ConvsimError(
                f"Layer {name!r} has read no input yet. {self._penalty} takes that of the last "
                "forward pass: call the regularizer after one, in train() mode. Leave out a layer "
                "that forward does not use, with layers=…. If the model is compiled, make the "
                "regularizer before it first runs, and call torch._dynamo.reset() if another model "
                "of its class was compiled without one."
            )
        return replace(bank, inputs=self.inputs[name].to(bank.filters))

    def take_maps(self, name: str) -> list[Tensor]:
        """Hand over a layer's maps (N, M, …) of each forward pass since the last call.

        Raises:
            ConvsimError: If there was none.
        """
        maps = self._maps.pop(name, [])
        if not maps:
            raise ConvsimError(
                f"Layer {name!r} has put out no feature maps since the last call. "
                f"{self._penalty} takes those of the forward pass: call regularizer() once after "
                "it, in train() mode, and checkpoint activations with use_reentrant=False."
            )
        return maps

    def forget_maps(self) -> None:
        """Drop the maps that nobody has asked for."""
        self._maps.clear()
