"""How a photograph becomes what a network reads: in the network's own way, or standardised."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from convsim.errors import ConvsimError, require
from convsim.lab.datasets.image_data import Images, centre_squares, pixel_statistics
from convsim.lab.datasets.image_files import fitted, to_tensor
from convsim.lab.libraries import downloaded, imported


class Preprocessing(Protocol):
    """How images reach a network.

    Attributes:
        description: What it does, for reports.
        channels: Of what it gives, 1 or 3.
    """

    @property
    def description(self) -> str: ...  # noqa: D102
    @property
    def channels(self) -> int: ...  # noqa: D102

    def __call__(self, image: Image.Image) -> Tensor:
        """Make (channels, H, W), floating point, of an image of mode "L" or "RGB"."""
        ...


@dataclass(frozen=True)
class Standardised:
    """Pixels from 0 to 255 less a mean, divided by a standard deviation, channel by channel.

    Attributes:
        mean: One number a channel.
        std: Likewise.
        size: Height and width to scale the largest square at an image's centre to, bilinear and
            antialiased; None leaves images as they are.
        origin: Whose mean and standard deviation they are, for reports.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int | None = None
    origin: str = "the training images"

    @classmethod
    def of(cls, images: Images, size: int | None = None) -> Standardised:
        """Take the mean and standard deviation of images, at most 1,000 that lie in files."""
        mean, std = (tuple(part.flatten().tolist()) for part in pixel_statistics(images))
        return cls(mean, std, size)

    @property
    def channels(self) -> int:
        """How many numbers mean and standard deviation have."""
        return len(self.mean)

    @property
    def description(self) -> str:
        """Name the size, and whose statistics they are."""
        scaled = "" if self.size is None else f"centre squares scaled to {self.size}×{self.size}, "
        return f"{scaled}standardised by mean and standard deviation of {self.origin}"

    def __call__(self, image: Image.Image) -> Tensor:
        """Prepare one image."""
        if self.size is not None:
            image = fitted(image, (self.size, self.size))
        return self.batch(to_tensor(image, self.channels).unsqueeze(0)).squeeze(0)

    def batch(self, images: Tensor) -> Tensor:
        """Prepare uint8 images (N, C, H, W) at once."""
        if images.shape[1] != self.channels:
            images = _recoloured(images, self.channels)
        shape = (1, -1, 1, 1)
        mean, std = (torch.tensor(part).view(shape) for part in (self.mean, self.std))
        prepared = (images.float() - mean) / std
        return prepared if self.size is None else centre_squares(prepared, self.size)

    def to_json(self) -> dict[str, Any]:
        """Return what a run's record keeps."""
        return {"mean": list(self.mean), "std": list(self.std), "size": self.size}


def _recoloured(images: Tensor, channels: int) -> Tensor:
    """Spread grey over channels, or make colour grey as Pillow does (ITU-R 601-2 luma)."""
    if images.shape[1] == 1:
        return images.expand(-1, channels, -1, -1)
    weight = torch.tensor([299.0, 587.0, 114.0]).view(1, 3, 1, 1) / 1000
    return (images.float() * weight).sum(1, keepdim=True)


@dataclass(frozen=True)
class ImageFunction:
    """What a library, or a function of the user's, makes of an RGB image.

    Attributes:
        description: What it does, for reports.
        function: Makes (C, H, W) of an image.
        channels: Of the images it is given.
    """

    description: str
    function: Callable[[Image.Image], Any]
    channels: int = 3

    def __call__(self, image: Image.Image) -> Tensor:
        """Prepare one image.

        Raises:
            ConvsimError: If the result is not a floating-point tensor (C, H, W).
        """
        result = self.function(image.convert("RGB"))
        fits = isinstance(result, Tensor) and result.dim() == 3 and result.is_floating_point()
        if not fits:
            told = f"a {type(result).__name__}"
            if isinstance(result, Tensor):
                told = f"{result.dtype} {tuple(result.shape)}"
            raise ConvsimError(
                "A preprocessing takes a PIL image and returns a tensor (C, H, W) of floating "
                f"point; this one returned {told}. End it with ToTensor() or the like."
            )
        tensor: Tensor = result
        return tensor


def own_preprocessing(
    name: str, model: nn.Module, size: int | None, *, pretrained: bool = False
) -> ImageFunction | None:
    """Return the preprocessing that a network of timm, torchvision or transformers comes with.

    Args:
        name: The network's name, as in `convsim.lab.libraries.library_model`.
        model: The network.
        size: Height and width instead of its own; what is scaled before a crop keeps its
            proportion.
        pretrained: Whether the network was downloaded, and its preprocessing should be too.

    Returns:
        timm's evaluation transform for the model's configuration; torchvision's transforms of the
        default weights; transformers' image processor, for an architecture without weights the one
        of its kind. None for other networks.

    Raises:
        ConvsimError: If the library has none for the network.
    """
    library, _, their_name = name.partition(":")
    if library not in _OWN:
        return None
    return _OWN[library](their_name, model, size, pretrained)


def own_size(name: str) -> int | None:
    """Return the height and width of images that a library's network is made for, by its name."""
    library, _, their_name = name.partition(":")
    if library == "timm":
        config = require("timm.models", "vision").get_pretrained_cfg(their_name)
        return None if config is None else int(config.input_size[-1])
    if library == "torchvision":
        models = require("torchvision.models", "vision")
        if their_name not in models.list_models(module=models):
            return None
        return int(models.get_model_weights(their_name).DEFAULT.transforms().crop_size[0])
    return None


def users_preprocessing(name: str) -> ImageFunction:
    """Import a preprocessing of the user's own, "package.module:function".

    Raises:
        ConvsimError: If there is no such function.
    """
    module_name, _, function_name = name.partition(":")
    rule = "A preprocessing is package.module:function, from a PIL image to a tensor (C, H, W)."
    function = getattr(imported(module_name, rule), function_name, None)
    if not callable(function):
        raise ConvsimError(f"Module {module_name!r} has no function {function_name!r}. {rule}")
    return ImageFunction(f"prepared by {name}", function)


def _timm(name: str, model: nn.Module, size: int | None, pretrained: bool) -> ImageFunction:
    data = require("timm.data", "vision")
    config = data.resolve_model_data_config(model)
    if size is not None:
        config["input_size"] = (config["input_size"][0], size, size)
    return ImageFunction(
        f"timm's preprocessing: crop of {_times(config['input_size'][1:])}, "
        f"{100 * config['crop_pct']:.4g} % of the scaled image, {config['interpolation']}",
        data.create_transform(**config),
    )


def _torchvision(name: str, model: nn.Module, size: int | None, pretrained: bool) -> ImageFunction:
    models = require("torchvision.models", "vision")
    transforms = models.get_model_weights(name).DEFAULT.transforms
    chosen = transforms()
    if size is not None:
        (crop,), (resize,) = chosen.crop_size, chosen.resize_size
        chosen = transforms(crop_size=size, resize_size=max(size, round(size * resize / crop)))
    return ImageFunction(
        f"torchvision's preprocessing: shorter side {chosen.resize_size[0]}, crop of "
        f"{_times((*chosen.crop_size, *chosen.crop_size)[:2])}, {chosen.interpolation.value}",
        chosen,
    )


def _transformers(name: str, model: nn.Module, size: int | None, pretrained: bool) -> ImageFunction:
    transformers = require("transformers", "transformers")
    folder = Path(name)
    if pretrained or (folder / "preprocessor_config.json").is_file():
        load = transformers.AutoImageProcessor.from_pretrained
        processor = downloaded(
            f"image processor of {name!r}", partial(load, name, trust_remote_code=False),
            "--preprocess",
        )  # fmt: skip
    else:
        processor = _processor_of_kind(model)
    options = {} if size is None else _resized(processor, size)
    return ImageFunction(
        f"transformers' {type(processor).__name__}" + (f" at {size}×{size}" if size else ""),
        _Processor(processor, options),
    )


def _processor_of_kind(model: nn.Module) -> Any:
    auto = require("transformers.models.auto.image_processing_auto", "transformers")
    config: Any = model.config
    try:
        kinds = auto.IMAGE_PROCESSOR_MAPPING[type(config)]
    except KeyError as error:
        raise ConvsimError(
            f"transformers has no image processor for {type(config).__name__}. Give "
            "--preprocess package.module:function."
        ) from error
    if isinstance(kinds, Mapping):  # since transformers 5, by what it computes with
        preferred = "torchvision" if find_spec("torchvision") else "pil"
        return (kinds.get(preferred) or next(iter(kinds.values())))()
    fast = [kind for kind in kinds if kind is not None and find_spec("torchvision")]
    return (fast[-1] if fast else kinds[0])()


def _resized(processor: Any, size: int) -> dict[str, Any]:
    """Return the options that change a processor's size, in its own terms."""
    square = {"height": size, "width": size}
    now = dict(processor.size)
    edge = now.get("shortest_edge")
    crop = getattr(processor, "crop_size", None)
    if getattr(processor, "do_center_crop", False) and crop is not None:
        ratio = (edge or now["height"]) / dict(crop)["height"]
        scaled = max(size, round(size * ratio))
        shape = {"shortest_edge": scaled} if edge else {"height": scaled, "width": scaled}
        return {"size": shape, "crop_size": square}
    return {"size": {"shortest_edge": size} if edge else square}


@dataclass(frozen=True)
class _Processor:
    """An image processor of transformers on one image."""

    processor: Any
    options: Mapping[str, Any]

    def __call__(self, image: Image.Image) -> Any:
        return self.processor(image, return_tensors="pt", **self.options)["pixel_values"][0]


def _times(sizes: Sequence[int]) -> str:
    return "×".join(map(str, sizes))


_OWN: dict[str, Callable[[str, nn.Module, int | None, bool], ImageFunction]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "transformers": _transformers,
}
