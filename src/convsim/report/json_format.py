"""A report as JSON and back. Numbers are plain; tensors are base64 of compressed little endian."""

from __future__ import annotations

import base64
import json
import math
import sys
import zlib
from typing import Any

import torch
from torch import Tensor

import convsim
from convsim.errors import ConvsimError
from convsim.report.raw import tensor_bytes
from convsim.report.redundancy_report import (
    KernelRedundancy,
    LayerRedundancy,
    MapPair,
    Pictures,
    RedundancyReport,
)

SCHEMA = 1
_DTYPES = {
    "uint8": torch.uint8,
    "int8": torch.int8,
    "float16": torch.float16,
    "float32": torch.float32,
}
_MOST_BYTES = 2**31

Object = dict[str, Any]


def to_json(report: RedundancyReport) -> str:
    """Write a report: ``{"schema": 1, "convsim": version, "model", "images", "layers": […]}``."""
    content = {
        "schema": SCHEMA,
        "convsim": convsim.__version__,
        "model": report.model,
        "images": report.images,
        "similarity": _number(report.similarity),
        "correlation": _number(report.correlation),
        "rank_correlations": {
            name: {"layers": _number(value.layers), "pairs": _number(value.pairs)}
            for name, value in report.rank_correlations.items()
        },
        "layers": [_layer_to_json(layer) for layer in report.layers],
        "examples": _tensor_to_json(report.examples),
    }
    return json.dumps(content, allow_nan=False, indent=1)


def from_json(text: str) -> RedundancyReport:
    """Read a report, refusing what is none with an error that says why."""
    try:
        content = json.loads(text)
        schema = content["schema"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConvsimError(
            f"This is no report of convsim ({type(error).__name__}: {error})."
        ) from error
    if schema != SCHEMA:
        raise ConvsimError(
            f"The report has schema {schema!r}; convsim {convsim.__version__} reads {SCHEMA}. "
            "Measure again, or read it with the version that wrote it."
        )
    try:
        return RedundancyReport(
            model=_is(content["model"], str),
            images=_is(content["images"], int),
            layers=tuple(_layer_from_json(layer) for layer in content["layers"]),
            examples=_tensor_from_json(content["examples"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
        raise ConvsimError(
            f"The report is damaged ({type(error).__name__}: {error}). Measure again."
        ) from error


def _layer_to_json(layer: LayerRedundancy) -> Object:
    kernels, pictures = layer.kernels, layer.pictures
    return {
        **{name: getattr(layer, name) for name in ("name", "kind", "filters", "pixels", "dead")},
        **{
            name: _number(getattr(layer, name))
            for name in ("similarity", "correlation", "effective_rank")
        },
        "histogram": list(layer.histogram),
        "worst": [
            {name: _number(value) for name, value in vars(pair).items()} for pair in layer.worst
        ],
        "matrix": _triangle_to_json(layer.matrix),
        "kernels": None if kernels is None else {
            "groups": kernels.groups,
            **{name: _number(getattr(kernels, name)) for name in _KERNEL_NUMBERS},
            "energy": None if kernels.energy is None else {
                name: _number(share) for name, share in kernels.energy.items()
            },
            "norms": _tensor_to_json(kernels.norms),
            "cosine": _triangle_to_json(kernels.cosine),
            "similarity": _triangle_to_json(kernels.similarity),
        },
        "pictures": None if pictures is None else {
            "maps": _tensor_to_json(pictures.maps), "kernels": _tensor_to_json(pictures.kernels)
        },
    }  # fmt: skip


_PAIR_NUMBERS = ("similarity", "kernel_cosine", "convolutional_similarity")
_KERNEL_NUMBERS = (
    "mean_cosine", "mean_similarity", "cosine_rank_correlation", "similarity_rank_correlation",
    "bound", "bounded",
)  # fmt: skip


def _layer_from_json(content: Object) -> LayerRedundancy:
    kernels, pictures = content["kernels"], content["pictures"]
    filters = _is(content["filters"], int)
    return LayerRedundancy(
        name=_is(content["name"], str),
        kind=_is(content["kind"], str),
        filters=filters,
        pixels=_is(content["pixels"], int),
        similarity=_float(content["similarity"]),
        correlation=_float(content["correlation"]),
        effective_rank=_float(content["effective_rank"]),
        dead=_is(content["dead"], int),
        histogram=tuple(_is(count, int) for count in content["histogram"]),
        worst=tuple(
            MapPair(
                _is(pair["first"], int),
                _is(pair["second"], int),
                *(_float(pair[name]) for name in _PAIR_NUMBERS),
            )
            for pair in content["worst"]
        ),
        matrix=_triangle_from_json(content["matrix"], filters),
        kernels=None if kernels is None else KernelRedundancy(
            groups=_is(kernels["groups"], int),
            norms=_tensor_from_json(kernels["norms"]),
            cosine=_triangle_from_json(kernels["cosine"], filters),
            similarity=_triangle_from_json(kernels["similarity"], filters),
            **_floats(kernels),
            energy=None if kernels["energy"] is None else {
                _is(name, str): _float(share) for name, share in kernels["energy"].items()
            },
        ),
        pictures=None if pictures is None else Pictures(
            _tensor_from_json(pictures["maps"]), _tensor_from_json(pictures["kernels"])
        ),
    )  # fmt: skip


def _number(value: float) -> float | None:
    """JSON has no NaN: an undefined value is null."""
    return None if math.isnan(value) else value


def _floats(kernels: Object) -> Object:
    return {name: _float(kernels[name]) for name in _KERNEL_NUMBERS}


def _float(value: Any) -> float:
    return math.nan if value is None else float(_is(value, int | float))


def _is(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{value!r:.80} where a {kind} belongs")
    return value


def _tensor_to_json(tensor: Tensor) -> Object:
    return {
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "zlib": base64.b64encode(zlib.compress(tensor_bytes(tensor), 6)).decode(),
    }


def _tensor_from_json(content: Object) -> Tensor:
    dtype, shape = _DTYPES[content["dtype"]], [_is(n, int) for n in content["shape"]]
    size = math.prod(shape) * dtype.itemsize
    if not 0 <= size <= _MOST_BYTES or any(n < 0 for n in shape):
        raise ValueError(f"a tensor of shape {shape}")
    data = zlib.decompressobj().decompress(
        base64.b64decode(content["zlib"], validate=True), size + 1
    )
    if len(data) != size:
        raise ValueError(f"a tensor of shape {shape} that holds {len(data)} bytes")
    if not size:
        return torch.empty(shape, dtype=dtype)
    values = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, dtype.itemsize)
    if sys.byteorder == "big":
        values = values.flip(1)
    return values.contiguous().view(dtype).reshape(shape)


def _triangle_to_json(matrix: Tensor) -> Object:
    """Keep the upper triangle of a symmetric matrix, row by row with its diagonal."""
    upper = torch.triu_indices(*matrix.shape)
    values = matrix[upper[0], upper[1]].half()
    return _tensor_to_json(values.masked_fill(values.isnan(), math.nan))  # one NaN of the many


def _triangle_from_json(content: Object, size: int) -> Tensor:
    values = _tensor_from_json(content).float()
    if len(values) != size * (size + 1) // 2:
        raise ValueError(f"{len(values)} numbers for the pairs of {size} filters")
    matrix = torch.zeros(size, size)
    upper = torch.triu_indices(size, size)
    matrix[upper[0], upper[1]] = values
    matrix[upper[1], upper[0]] = values
    return matrix
