"""Random crops and mirroring, on the device that trains, another for every image."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def crop_and_flip(images: Tensor, margin: int = 4) -> Tensor:
    """Shift each image by up to `margin` pixels, what is outside being 0, and mirror every second.

    The common augmentation of CIFAR (He et al. 2016, section 4.2). Draws from torch's generator of
    the images' device.

    Args:
        images: (N, C, H, W), any dtype and device.
        margin: The farthest shift, in pixels.

    Returns:
        As many images, of the same shape, dtype and device.
    """
    n, _, height, width = images.shape
    device = images.device
    top, left = torch.randint(2 * margin + 1, (2, n, 1), device=device)
    columns = torch.arange(width, device=device)
    mirrored = torch.rand(n, 1, device=device) < 0.5
    columns = torch.where(mirrored, columns.flip(0), columns) + left
    rows = torch.arange(height, device=device) + top
    padded = nn.functional.pad(images, [margin] * 4)
    image = torch.arange(n, device=device)[:, None, None]
    cropped: Tensor = padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2).contiguous()
