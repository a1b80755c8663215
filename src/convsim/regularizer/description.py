"""A regularizer in words: which layers are in, and why others are not."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from convsim.errors import ConvsimWarning
from convsim.kernels import ConvLayer
from convsim.penalties import ActivationPenalty, Penalty
from convsim.visible import visible

_FEW = 0.5  # of the layers, on which a penalty that acts is worth its name


@dataclass(frozen=True)
class Description:
    """What a regularizer says of itself.

    Attributes:
        head: The penalty and its coefficient.
        layers: Each selected layer, the shape (G, M, C, …) of its filters, and whether the penalty
            can act on it.
    """

    head: str
    layers: Sequence[tuple[ConvLayer, tuple[int, ...], bool]]

    def text(self) -> str:
        """Write a line a layer."""
        return "\n".join([self.head, *(f"  {name}: {what}" for name, what in self._rows())])

    def html(self) -> str:
        """Write a table, for a notebook."""
        rows = "".join(
            f"<tr><td>{escape(name)}</td><td>{escape(what)}</td></tr>"
            for name, what in self._rows()
        )
        return f"<div><b>{escape(self.head)}</b><table>{rows}</table></div>"

    def _rows(self) -> list[tuple[str, str]]:
        """List names, and what the penalty sees of each layer."""
        rows = []
        for layer, (groups, filters, channels, *kernel), able in self.layers:
            out = "" if able else " (left out: constant)"
            out = out if layer.trains else " (left out: frozen)"
            what = (
                f"{type(layer.module).__name__}, {groups} × {filters} filters of "
                f"{channels} × {'×'.join(map(str, kernel))}{out}"
            )
            rows.append((visible(layer.name), what))
        return rows


def warn_of_few(
    penalty: Penalty | ActivationPenalty, layers: Sequence[ConvLayer], able: Sequence[ConvLayer]
) -> None:
    """Warn where a penalty can act on half of the layers or fewer."""
    if len(able) > _FEW * len(layers):
        return
    many = f"only {len(able)}" if able else "none"
    warnings.warn(
        f"{penalty} acts on {many} of the {len(layers)} selected layers: the others have one "
        "filter per group or no lag but 0 (as 1×1 kernels), where it is constant. Take "
        '"recommended", which looks at feature maps, or for kernels alone a form that acts on '
        '1×1 kernels, such as "matched"; or select other layers.',
        ConvsimWarning,
        stacklevel=3,
    )
