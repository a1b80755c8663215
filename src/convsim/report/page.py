"""A report, or several, as one HTML page that needs nothing else, and no network."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from convsim.report.heat_map import binned, similarity_order
from convsim.report.html import document, source_hash
from convsim.report.raw import tensor_bytes
from convsim.report.verdict import alike, most_repeated, unrelated, verdict
from convsim.version import __version__
from convsim.visible import visible

if TYPE_CHECKING:
    from convsim.report.layer_redundancy import LayerRedundancy
    from convsim.report.model_redundancy import ModelRedundancy

WHOLE = 256
"""Most filters whose matrix is shown as it is."""
BINS = 128
"""Rows and columns of a larger one."""

_DIGITS = 5


def html_page(reports: Mapping[str, ModelRedundancy]) -> str:
    """Make the page: a summary across layers, heat maps, and the worst pairs on example images.

    Names reach the page as JSON and are shown as text; scripts and styles are bound by their
    hashes, and no other source is allowed.

    Args:
        reports: One report, or several of one model by name, in the order they are shown in.
    """
    parts = files("convsim.report") / "assets"
    script, style, body = (
        (parts / f"page.{kind}").read_text("utf-8") for kind in ("js", "css", "html")
    )
    # The last report's order for all, so that a filter is at one place in every heat map.
    orders = {
        layer.name: similarity_order(layer.matrix)
        for report in reports.values()
        for layer in report
    }
    last = [*reports.values()][-1]
    content = [{"label": visible(name), **_report(each, orders)} for name, each in reports.items()]
    data = json.dumps({"convsim": __version__, "reports": content}, allow_nan=False)
    body += f"""
<script type="application/json" id="data">{data.replace("<", chr(92) + "u003c")}</script>
<script>{script}</script>"""
    bound = f"script-src '{source_hash(script)}'"
    return document(f"Redundancy of {last.model}", style, body, bound)


def _report(report: ModelRedundancy, orders: dict[str, list[int]]) -> dict[str, Any]:
    return {
        "model": visible(report.model),
        "images": report.images,
        "verdict": verdict(report),
        "first": _first(report),
        "origin": visible(report.origin),
        "pairs": "twins" if report.place == "reading" else "alike",
        "silent": [visible(name) for name in report.silent],
        "similarity": _number(report.similarity),
        "ranks": [
            [name, _number(value.layers), _number(value.pairs)]
            for name, value in report.rank_correlations.items()
        ],
        "layers": [_layer(layer, orders[layer.name]) for layer in report.layers],
        "examples": {
            **dict(
                zip(("count", "channels", "height", "width"), report.examples.shape, strict=True)
            ),
            "values": _base64(report.examples),
        },
    }


def _first(report: ModelRedundancy) -> int:
    """Return the place of the layer to open the page with: the one that the verdict names."""
    layer = most_repeated(report)
    return 0 if layer is None else [*report].index(layer)


def _layer(layer: LayerRedundancy, order: list[int]) -> dict[str, Any]:
    kernels, pictures = layer.kernels, layer.pictures
    bins = len(layer.matrix) if len(layer.matrix) <= WHOLE else BINS
    if len(order) != layer.filters:  # it lost or gained filters since
        order = similarity_order(layer.matrix)
    matrices = {} if layer.matrix.isnan().all() else {"maps": layer.matrix}
    if kernels is not None:
        matrices |= {"cosine": kernels.cosine, "similarity": kernels.similarity}
    content: dict[str, Any] = {
        **{name: getattr(layer, name) for name in ("filters", "dead", "histogram")},
        "name": visible(layer.name),
        "kind": visible(layer.kind),
        **{
            name: _number(getattr(layer, name))
            for name in ("similarity", "correlation", "effective_rank")
        },
        "twins": alike(layer),
        "spare": layer.spare,
        "unrelated": _number(unrelated(max(1, layer.pixels))),
        "bins": len(binned(layer.matrix, bins)),
        "width": -(-len(layer.matrix) // bins),
        "order": order,
        "matrices": {name: _matrix(matrix, bins, order) for name, matrix in matrices.items()},
        "worst": [
            {name: _number(value) for name, value in asdict(pair).items()} for pair in layer.worst
        ],
        "why": _why_nothing(layer),
    }
    if kernels is not None:
        content |= {
            name: _number(getattr(kernels, name))
            for name in ("mean_cosine", "mean_similarity", "bound")
        }
    if pictures is not None:
        images, _, _, height, width = pictures.maps.shape
        _, _, slices, kernel_height, kernel_width = pictures.kernels.shape
        content["pictures"] = {
            "images": images, "height": height, "width": width, "maps": _base64(pictures.maps),
            "slices": slices, "kernel_height": kernel_height, "kernel_width": kernel_width,
            "kernels": _base64(pictures.kernels),
        }  # fmt: skip
    return content


def _why_nothing(layer: LayerRedundancy) -> str:
    """Say why a layer has no pairs, or else why it has no matrix of its kernels."""
    if layer.pixels == 1:
        return "its maps have one pixel, so that any two have |cosine| 1."
    if layer.filters == 1:
        return "it has one map."
    if layer.dead == layer.filters:
        return "all its maps are zero on every image."
    if layer.dead == layer.filters - 1:
        return "all its maps but one are zero on every image."
    return "it is no convolution."


def _matrix(matrix: Tensor, bins: int, order: list[int]) -> dict[str, Any]:
    """Keep 8 bits of a matrix's upper triangle; of a binned one also as binned after ordering."""
    top = max(1.0, float(matrix.nan_to_num().max()))

    def triangle(values: Tensor) -> str:
        upper = torch.triu_indices(*values.shape)
        return _base64(
            (values.nan_to_num()[upper[0], upper[1]] / top * 255)
            .round()
            .clamp(0, 255)
            .to(torch.uint8)
        )

    content: dict[str, Any] = {"top": top, "values": triangle(binned(matrix, bins))}
    undefined = matrix.diagonal().isnan().nonzero().flatten().tolist()
    if undefined and len(matrix) <= bins:
        content["undefined"] = undefined
    if len(matrix) > bins:
        content["ordered"] = triangle(binned(matrix[order][:, order], bins))
    return content


def _base64(tensor: Tensor) -> str:
    return base64.b64encode(tensor_bytes(tensor)).decode()


def _number(value: float) -> float | None:
    """Round to what is shown; JSON has no NaN, so an undefined value is null."""
    return None if math.isnan(value) else round(value, _DIGITS)
