"""Make trained networks smaller by what is linearly redundant in them."""

from convsim.shrinking.shrink import Shrunk, shrink

__all__ = ["Shrunk", "shrink"]
