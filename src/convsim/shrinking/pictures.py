"""Maps as small pictures: what is gone, what it is told to be, and what it is told by.

Shape suffixes: M maps, h and w a picture's size.
"""

from __future__ import annotations

import base64
import struct
import zlib

import torch
from torch import Tensor, nn

_SIZE = 24
"""Most pixels on a side; larger maps are averaged down."""


def small_maps(maps_Mx: Tensor) -> Tensor | None:
    """Make maps small enough to look at: (M, h, w) float32; None if they have one pixel.

    A 1-d map is one row; of a 3-d map the middle slice is taken.
    """
    maps_Mx = maps_Mx.detach().float().cpu()
    if maps_Mx.dim() == 2:
        maps_Mx = maps_Mx[:, None]
    while maps_Mx.dim() > 3:
        maps_Mx = maps_Mx[:, maps_Mx.shape[1] // 2]
    if maps_Mx.dim() < 3 or maps_Mx[0].numel() < 2:
        return None
    height, width = (min(_SIZE, length) for length in maps_Mx.shape[1:])
    return nn.functional.adaptive_avg_pool2d(maps_Mx[None], (height, width))[0]


def drawn(map_hw: Tensor, like_hw: Tensor | None = None) -> str:
    """Draw a map as the data URI of a PNG, from black, its least value, to white, its greatest.

    Args:
        map_hw: The map.
        like_hw: A map whose least and greatest value are taken instead.
    """
    low, high = (map_hw if like_hw is None else like_hw).aminmax()
    span = high - low if high > low else torch.ones(())
    grey_hw = ((map_hw - low) / span).clamp(0, 1).mul(255).round().to(torch.uint8)
    return f"data:image/png;base64,{base64.b64encode(_png(grey_hw)).decode()}"


def _png(grey_hw: Tensor) -> bytes:
    """Write 8-bit grey values as a PNG file."""
    height, width = grey_hw.shape
    rows = b"".join(b"\0" + bytes(row) for row in grey_hw.tolist())  # 0: no filter
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts
    )
