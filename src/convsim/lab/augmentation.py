"""Random crops and mirroring, drawn anew for every image."""

from __future__ import annotations

import math

import torch
from PIL import Image
from torch import Tensor, nn


def crop_and_flip(images: Tensor, margin: int = 4) -> Tensor:
    """Shift each image by up to `margin` pixels, filling with 0, and mirror half of them.

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


def resized_crop(image: Image.Image, size: tuple[int, int], *, seed: int) -> Image.Image:
    """Crop a random part of a photograph, scale it to `size`, and mirror half of them.

    The augmentation of ImageNet (Szegedy et al. 2015; torchvision's RandomResizedCrop, whose draws
    these are): 8 to 100 % of the area, aspect ratios from 3/4 to 4/3, bilinear and antialiased.

    Args:
        image: The photograph.
        size: (rows, columns) of the result.
        seed: Decides the draws.
    """
    generator = torch.Generator().manual_seed(seed % 2**32)  # it heeds no higher bits
    left, top, width, height = crop_box(image.width, image.height, generator)
    box = (left, top, left + width, top + height)
    crop = image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box)
    mirrored = float(torch.rand(1, generator=generator)) < 0.5
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else crop


def crop_box(width: int, height: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Draw (left, top, width, height) of a part of an image, as torchvision's RandomResizedCrop."""
    for _ in range(10):
        area = height * width * float(torch.empty(1).uniform_(0.08, 1, generator=generator))
        low, high = math.log(3 / 4), math.log(4 / 3)
        ratio = math.exp(float(torch.empty(1).uniform_(low, high, generator=generator)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = int(torch.randint(height - h + 1, (1,), generator=generator))
            left = int(torch.randint(width - w + 1, (1,), generator=generator))
            return left, top, w, h
    # A long strip: the largest part about its centre of an allowed ratio.
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return (width - w) // 2, (height - h) // 2, w, h
