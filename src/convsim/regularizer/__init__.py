"""The model-level penalty that a training loop adds to its loss."""

from convsim.regularizer.regularizer import Regularizer

__all__ = ["Regularizer"]
