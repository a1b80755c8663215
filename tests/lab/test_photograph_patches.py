"""The photographs in pieces: whole, apart, and what they say they are."""

import torch
from skimage import data
from skimage.color import rgb2gray

from convsim.lab.datasets import load_dataset
from convsim.lab.datasets.photographs import TEST, TRAIN, _grey, _patches


def test_patches_are_of_their_photographs_and_apart():
    images = load_dataset("photographs")
    assert images.train_images.shape == (16 * TRAIN, 1, 16, 16)
    assert images.test_images.shape == (16 * TEST, 1, 16, 16)
    assert images.train_labels.bincount().tolist() == [TRAIN] * 16
    assert (images.classes[2], images.classes[-2:]) == ("camera", ("china", "flower"))
    camera = torch.tensor(data.camera())
    whole = {
        camera[y : y + 16, x : x + 16].numpy().tobytes()
        for y in range(0, 512, 16)
        for x in range(0, 512, 16)
    }
    train = [p.numpy().tobytes() for p in images.train_images[images.train_labels == 2]]
    test = [p.numpy().tobytes() for p in images.test_images[images.test_labels == 2]]
    assert whole.issuperset(train + test)
    assert not set(train) & set(test)
    again = load_dataset("photographs")
    assert again.fingerprint == images.fingerprint


def test_grey_is_luma():
    """scikit-image weighs by ITU-R BT.709, so near and not the same."""
    cat = torch.tensor(data.cat())
    ours, theirs = _grey(cat).double() / 255, torch.tensor(rgb2gray(cat.numpy()))
    assert (ours - theirs).abs().mean() < 0.03
    white = torch.full((4, 4, 3), 255, dtype=torch.uint8)
    assert _grey(white).tolist() == [[255] * 4] * 4


def test_patches_put_together_are_the_image():
    image = torch.arange(32 * 48).reshape(32, 48).to(torch.int64)
    patches = _patches(image)
    assert patches.shape == (6, 1, 16, 16)
    top = torch.cat([*patches[:3, 0]], dim=1)
    assert torch.equal(torch.cat([top, torch.cat([*patches[3:, 0]], dim=1)]), image)
