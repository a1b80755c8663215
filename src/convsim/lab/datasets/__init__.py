"""Image data sets as tensors in memory, by name or from a folder or archive of images."""

from convsim.lab.datasets.image_data import ImageData
from convsim.lab.datasets.load import DATASETS, load_dataset

__all__ = ["DATASETS", "ImageData", "load_dataset"]
