"""What a penalty on real inputs keeps of a model's forward passes: windows of layers' inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from convsim.errors import ConvsimError
from convsim.kernels import ConvLayer, KernelBank
from convsim.kernels.windows import sample_windows
from convsim.penalties import Penalty
from convsim.regularizer.forward_hooks import Watch, modules_of


class Observations:
    """Keep windows of the layers' last inputs, where a penalty asks for them.

    Args:
        model: The model, which may run a layer's weight by several modules.
        layers: The layers to look at.
        penalty: The penalty, which says what it needs.
    """

    def __init__(self, model: nn.Module, layers: Sequence[ConvLayer], penalty: Penalty) -> None:
        self._penalty = penalty
        self._names = {layer.name for layer in layers}
        self.inputs: dict[str, Tensor] = {}
        if not penalty.windows:
            self.close: Callable[[], object] = lambda: None
            return
        modules = modules_of(model, layers)
        inputs, windows = self.inputs, penalty.windows
        outlines = {id(module): ConvLayer(name, module).outline() for name, module in modules}

        # It does not hold on to self, so that dropping the observations ends it.
        def keep_inputs(name: str, module: nn.Module, read: Tensor, _: Tensor) -> None:
            try:
                if not read.numel():  # an empty batch
                    return
                with torch.inference_mode(False), torch.no_grad():
                    inputs[name] = sample_windows(module, outlines[id(module)], read, windows)
            except ConvsimError as error:
                raise ConvsimError(f"Layer {name!r}: {error}") from error

        self._watch = Watch(modules, keep_inputs)
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
