"""In what numbers a run computes, and in what order its images lie in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Precision = Literal["float32", "float32-channels-last", "bf16"]


@dataclass(frozen=True)
class Arithmetic:
    """What a precision means for a training run.

    Attributes:
        lightning: What Lightning's Trainer calls it.
        memory_format: How weights and maps of images lie.
    """

    lightning: Literal["32-true", "bf16-mixed"]
    memory_format: torch.memory_format


ARITHMETIC: dict[Precision, Arithmetic] = {
    "float32": Arithmetic("32-true", torch.contiguous_format),
    "float32-channels-last": Arithmetic("32-true", torch.channels_last),
    "bf16": Arithmetic("bf16-mixed", torch.channels_last),
}
"""Name → what it means. Units that multiply bfloat16 want the channels of a pixel side by side."""


def choose_precision() -> tuple[Precision, str]:
    """Choose what is fastest on this hardware, and say why.

    AVX-512 BF16 alone does not speed up bf16: on a Xeon that has it but no AMX, a small CNN trained
    in bf16 at 0.9 times the speed of float32, and in float32 with channels last at 1.25 times.
    """
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", f"{name} multiplies bfloat16"
        return "float32", f"{name} does not multiply bfloat16"
    if torch.cpu._is_amx_tile_supported():
        return "bf16", "this processor has AMX"
    if torch.backends.mkldnn.is_available():
        return "float32-channels-last", "this processor has no AMX, and oneDNN likes channels last"
    return "float32", "this processor has no AMX, and torch no oneDNN"


class FirstMaps:
    """Reads back, once, what the first convolution of a model puts out.

    Attributes:
        found: Its dtype and memory format; empty until the model has run.
    """

    def __init__(self, model: nn.Module) -> None:
        self.found: dict[str, str] = {}
        first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
        self._hook = None if first is None else first.register_forward_hook(self._look)

    def _look(self, module: nn.Module, inputs: object, maps: Tensor) -> None:
        last = maps.is_contiguous(memory_format=torch.channels_last) and not maps.is_contiguous()
        self.found = {
            "computed_in": str(maps.dtype).removeprefix("torch."),
            "memory_format": "channels_last" if last else "contiguous",
        }
        self.remove()

    def remove(self) -> None:
        """Look no more."""
        if self._hook is not None:
            self._hook.remove()
