"""Make trained networks smaller by what is linearly redundant in them."""

from convsim.shrinking.archive import load_shrunk
from convsim.shrinking.changes import LayerChange
from convsim.shrinking.report import ShrinkReport
from convsim.shrinking.shrink import Shrunk, shrink

__all__ = ["LayerChange", "ShrinkReport", "Shrunk", "load_shrunk", "shrink"]
