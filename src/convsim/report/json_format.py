"""A report as JSON and back. Numbers are plain; tensors are base64 of compressed little endian."""

from __future__ import annotations

import base64
import json
import math
import sys
import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from convsim import strict_json
from convsim.errors import ConvsimError
from convsim.report.layer_redundancy import (
    HISTOGRAM_BINS,
    INPUT_CLASSES,
    KernelRedundancy,
    LayerRedundancy,
    MapPair,
    Pictures,
)
from convsim.report.model_redundancy import ModelRedundancy
from convsim.report.raw import tensor_bytes
from convsim.version import __version__

SCHEMA = 1
_DAMAGE = (LookupError, ValueError, TypeError, ArithmeticError, AttributeError, zlib.error)
_MOST_BYTES = 2**32
"""Of all tensors together, as they are in memory."""
_MOST = 1e30
"""Of a number, so that no mean of them overflows."""

Object = dict[str, Any]


def to_json(report: ModelRedundancy) -> str:
    """Write a report: ``{"schema": 1, "convsim": version, "model", "images", "layers": […]}``."""
    content = {
        "schema": SCHEMA,
        "convsim": __version__,
        "model": report.model,
        "images": report.images,
        "data": report.data,
        "weights": report.weights,
        "place": report.place,
        "when": report.when,
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


def from_json(text: str | bytes) -> ModelRedundancy:
    """Read a report, refusing what is none with an error that says why."""
    try:
        content = strict_json.loads(text)
        schema = content["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConvsimError(
            f"Not a convsim report ({type(error).__name__}: {error}). Give a file that "
            "convsim measure --json wrote."
        ) from error
    if schema != SCHEMA:
        raise ConvsimError(
            f"The report has schema {schema!r}; convsim {__version__} reads {SCHEMA}. "
            "Measure again, or read it with the version that wrote it."
        )
    try:
        return _Reader().report(content)
    except _DAMAGE as error:
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
        "pooled": None if layer.pooled is None else _triangle_to_json(layer.pooled),
        "rms": None if layer.rms is None else _tensor_to_json(layer.rms),
        "spare": layer.spare,
        "kernels": None if kernels is None else {
            "groups": kernels.groups,
            "directions": kernels.directions,
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
_LATER_PAIR_NUMBERS = ("cosine",)  # which reports of convsim 0.1 lack
_KERNEL_NUMBERS = (
    "mean_cosine", "mean_similarity", "cosine_rank_correlation", "similarity_rank_correlation",
    "bound", "bounded",
)  # fmt: skip


def _number(value: float) -> float | None:
    """JSON has no NaN: an undefined value is null."""
    return None if math.isnan(value) else value


def _tensor_to_json(tensor: Tensor) -> Object:
    return {
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "zlib": base64.b64encode(zlib.compress(tensor_bytes(tensor), 6)).decode(),
    }


def _triangle_to_json(matrix: Tensor) -> Object:
    """Keep the upper triangle of a symmetric matrix, row by row with its diagonal."""
    upper = torch.triu_indices(*matrix.shape)
    values = matrix[upper[0], upper[1]].half()
    return _tensor_to_json(values.masked_fill(values.isnan(), math.nan))  # one NaN of the many


class _Reader:
    """Read a report of which nothing is taken for granted: kinds, ranges, shapes, total size."""

    def __init__(self) -> None:
        self.bytes_left = _MOST_BYTES

    def report(self, content: Object) -> ModelRedundancy:
        layers = tuple(map(self.layer, content["layers"]))
        if not layers or len({layer.name for layer in layers}) < len(layers):
            raise ValueError("no layers, or two of one name")
        return ModelRedundancy(
            model=_text(content["model"]),
            images=_count(content["images"]),
            layers=layers,
            examples=self.tensor(content["examples"], torch.uint8, (None,) * 4),
            # Reports of convsim 0.1 do not say.
            data=_text(content.get("data", "")),
            weights=_text(content.get("weights", "")),
            place=_text(content.get("place", "convolution")),
            when=_text(content.get("when", "")),
        )

    def layer(self, content: Object) -> LayerRedundancy:
        filters = _count(content["filters"])
        worst = tuple(_pair(pair, filters) for pair in content["worst"])
        histogram = tuple(map(_count, content["histogram"]))
        if len(histogram) != HISTOGRAM_BINS:
            raise ValueError(f"a histogram of {len(histogram)} counts")
        kernels, pictures = content["kernels"], content["pictures"]
        return LayerRedundancy(
            name=_text(content["name"]),
            kind=_text(content["kind"]),
            filters=filters,
            pixels=_count(content["pixels"]),
            similarity=_float(content["similarity"]),
            correlation=_float(content["correlation"]),
            effective_rank=_float(content["effective_rank"]),
            dead=_count(content["dead"]),
            histogram=histogram,
            worst=worst,
            matrix=self.triangle(content["matrix"], filters),
            pooled=self._if_any(content, "pooled", lambda x: self.triangle(x, filters)),
            rms=self._if_any(content, "rms", lambda x: self.tensor(x, torch.float32, (filters,))),
            spare=None if content.get("spare") is None else _count(content["spare"]),
            kernels=None if kernels is None else self.kernels(kernels, filters),
            pictures=None if pictures is None else Pictures(
                self.tensor(pictures["maps"], torch.uint8, (None, len(worst), 2, None, None)),
                self.tensor(pictures["kernels"], torch.int8, (None, 2, None, None, None)),
            ),
        )  # fmt: skip

    def kernels(self, content: Object, filters: int) -> KernelRedundancy:
        energy = content["energy"]
        numbers: Object = {name: _float(content[name]) for name in _KERNEL_NUMBERS}
        return KernelRedundancy(
            groups=_count(content["groups"]),
            directions=None if content.get("directions") is None else _count(content["directions"]),
            norms=self.tensor(content["norms"], torch.float32, (filters,)),
            cosine=self.triangle(content["cosine"], filters),
            similarity=self.triangle(content["similarity"], filters),
            **numbers,
            energy=None
            if energy is None
            else {name: _float(energy[name]) for name in INPUT_CLASSES},
        )

    @staticmethod
    def _if_any(content: Object, name: str, read: Callable[[Object], Tensor]) -> Tensor | None:
        return None if content.get(name) is None else read(content[name])

    def triangle(self, content: Object, size: int) -> Tensor:
        self.take(4 * size**2)
        values = self.tensor(content, torch.float16, (size * (size + 1) // 2,)).float()
        if values.isinf().any():
            raise ValueError("an infinite number")
        matrix = torch.zeros(size, size)
        upper = torch.triu_indices(size, size)
        matrix[upper[0], upper[1]] = values
        matrix[upper[1], upper[0]] = values
        return matrix

    def tensor(self, content: Object, dtype: torch.dtype, wanted: tuple[int | None, ...]) -> Tensor:
        """Read a tensor of a certain type and shape, None standing for any size."""
        shape = tuple(map(_count, content["shape"]))
        fits = len(shape) == len(wanted) and all(
            want in (None, size) for size, want in zip(shape, wanted, strict=True)
        )
        if content["dtype"] != str(dtype).removeprefix("torch.") or not fits:
            raise ValueError(f"a tensor of shape {shape} and {content['dtype']!r:.80}")
        size = math.prod(shape) * dtype.itemsize
        self.take(max(size, *shape))
        packed = base64.b64decode(content["zlib"], validate=True)
        stream = zlib.decompressobj()
        data = stream.decompress(packed, size + 1)
        if len(data) != size or not stream.eof or stream.unused_data:
            raise ValueError(f"a tensor of shape {shape} that holds other than {size} bytes")
        if not size:
            return torch.empty(shape, dtype=dtype)
        values = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, dtype.itemsize)
        if sys.byteorder == "big":
            values = values.flip(1)
        return values.contiguous().view(dtype).reshape(shape)

    def take(self, size: int) -> None:
        self.bytes_left -= size
        if self.bytes_left < 0:
            raise ValueError(f"tensors of more than {_MOST_BYTES} bytes")


def _pair(content: Object, filters: int) -> MapPair:
    first, second = _count(content["first"]), _count(content["second"])
    if not first < second < filters:
        raise ValueError(f"a pair {first}, {second} of {filters} filters")
    numbers = [_float(content[name]) for name in _PAIR_NUMBERS]
    numbers += [_float(content.get(name)) for name in _LATER_PAIR_NUMBERS]
    return MapPair(first, second, *numbers)


def _float(value: Any) -> float:
    number = math.nan if value is None else float(_is(value, int | float))
    if abs(number) > _MOST:
        raise ValueError(f"{number:g}, beyond {_MOST:g}")
    return number


def _count(value: Any) -> int:
    if _is(value, int) < 0:
        raise ValueError(f"{value:.20} where a count belongs")
    return int(value)


def _text(value: Any) -> str:
    _is(value, str).encode()  # a lone surrogate fits in no file
    return str(value)


def _is(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{value!r:.80} where a {kind} belongs")
    return value
