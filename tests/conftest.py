"""Fixtures for every test."""

import sys
from pathlib import Path

import pytest
import torch

_VISION = Path(sys.prefix) / "vision"  # where `make test` puts torchvision and timm
_MISSING_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")


@pytest.fixture
def vision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make torchvision and timm importable beside a CPU build of torch they were not built for."""
    monkeypatch.syspath_prepend(str(_VISION))
    for operator in _MISSING_OPERATORS:
        if not hasattr(torch.ops.torchvision, operator.partition("(")[0]):
            _LIBRARY.define(operator)
