"""Make torchvision importable beside a CPU build of torch that it was not compiled for."""

import sys
from pathlib import Path

import torch

_VISION = Path(sys.prefix) / "vision"  # where `make test` puts torchvision and timm
_MISSING_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

if _VISION.is_dir():
    sys.path.append(str(_VISION))
    _library = torch.library.Library("torchvision", "DEF")
    for _operator in _MISSING_OPERATORS:
        _library.define(_operator)
