"""Keep the user's reduced precision out of convsim's own sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor


@contextmanager
def full_precision(tensor: Tensor) -> Iterator[None]:
    """Multiply in a tensor's own precision inside a block, on its device.

    Autocast would multiply matrices in half precision; TF32 and its like
    (`torch.set_float32_matmul_precision`) keep 10 bits of a float32, or 7. Under `torch.compile`,
    which cannot trace such a switch, only autocast is kept out.

    These settings belong to the whole process. They are off while any thread is inside, and
    restored when the last one leaves; a setting that was inherited is inherited again.
    """
    kind = tensor.device.type
    known = torch.amp.is_autocast_available(kind)
    with torch.autocast(kind, enabled=False) if known else nullcontext():
        if torch.compiler.is_compiling():
            yield
            return
        _SWITCHES.enter(kind)
        try:
            yield
        finally:
            _SWITCHES.leave()


def at_least_float32(tensor: Tensor) -> Tensor:
    """Convert half precision to float32; leave float64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def exact_dtype(device: torch.device) -> torch.dtype:
    """Return the widest dtype that a device computes in: float64, except on MPS."""
    return torch.float32 if device.type == "mps" else torch.float64


def divisor(sizes: Tensor) -> Tensor:
    """Put 1 where a norm or peak is 0, so that dividing by it leaves zeros."""
    return torch.where(sizes > 0, sizes, 1)


class _Setting(NamedTuple):
    """One of torch's settings of the precision of float32 products, and its full value."""

    read: Callable[[], Any]
    write: Callable[[Any], None]
    full: Any


class _Switches:
    """All settings, with their values before the first thread came in."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._inside = 0
        self._before: list[tuple[_Setting, Any]] = []
        self._chains = _chains()

    def enter(self, kind: str) -> None:
        with self._lock:
            self._inside += 1
            for chain in self._chains.get(kind, ()):
                self._switch(chain)

    def _switch(self, chain: list[_Setting]) -> None:
        """Switch the last setting of a chain to full, with all that it may inherit from.

        From the top: a setting reads as what it inherits, so its own value shows only once those
        above it are full.
        """
        if chain[-1].read() in (chain[-1].full, "none"):
            return
        for setting in chain:
            value = setting.read()
            if value != setting.full:
                self._before.append((setting, value))
                setting.write(setting.full)

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            while self._before and not self._inside:
                setting, value = self._before.pop()
                if setting.read() == setting.full:  # else the user has set it in the meantime
                    setting.write(value)


def _chains() -> dict[str, list[list[_Setting]]]:
    """List the settings of each kind of device, each after those that it inherits from."""
    torch_wide: Any = torch.backends
    cuda, cudnn, mkldnn = torch_wide.cuda, torch_wide.cudnn, torch_wide.mkldnn
    if not hasattr(cuda.matmul, "fp32_precision"):  # torch < 2.9
        products = _Setting(
            torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"
        )
        return {"cpu": [[products]], "cuda": [[products], [_attribute(cudnn, "allow_tf32", False)]]}
    owners = {
        "cpu": [(torch_wide, mkldnn, mkldnn.matmul), (torch_wide, mkldnn, mkldnn.conv)],
        "cuda": [(torch_wide, cudnn, cuda.matmul), (torch_wide, cudnn, cudnn.conv)],
    }
    return {
        kind: [[_attribute(owner, "fp32_precision", "ieee") for owner in chain] for chain in chains]
        for kind, chains in owners.items()
    }


def _attribute(owner: Any, name: str, full: Any) -> _Setting:
    return _Setting(partial(getattr, owner, name), partial(setattr, owner, name), full)


_SWITCHES = _Switches()
