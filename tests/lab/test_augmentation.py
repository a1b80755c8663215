from collections import Counter

import numpy as np
import torch

from convsim.lab.augmentation import crop_and_flip


def test_each_image_is_one_of_the_crops_and_all_are_drawn():
    images = torch.randint(1, 256, (4000, 3, 5, 7), dtype=torch.uint8)
    images[:] = images[0].clone()
    padded = np.pad(images[0].numpy(), [(0, 0), (2, 2), (2, 2)])
    corners = [(top, left) for top in range(5) for left in range(5)]
    crops = [padded[:, top : top + 5, left : left + 7] for top, left in corners]
    possible = [crop[:, :, ::step].tobytes() for crop in crops for step in (1, -1)]
    cropped = crop_and_flip(images, margin=2)
    assert cropped.shape == images.shape
    assert cropped.dtype == images.dtype
    drawn = Counter(image.numpy().tobytes() for image in cropped)
    assert drawn.keys() == set(possible)
    assert len(drawn) == 50
    counts = drawn.values()
    assert min(counts) > 40  # of 80; the standard deviation is 8.9
    assert max(counts) < 125


def test_images_are_not_mixed_up():
    images = torch.arange(1, 65, dtype=torch.uint8).view(64, 1, 1, 1).expand(64, 1, 9, 9)
    cropped = crop_and_flip(images)
    assert torch.equal(cropped.amax((1, 2, 3)), images[:, 0, 0, 0])
    assert ((cropped == 0) | (cropped == images)).all()
