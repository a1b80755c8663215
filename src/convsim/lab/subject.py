"""What a command looks at: a network, its weights, and how images reach it."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convsim import strict_json
from convsim.errors import ConvsimError, DataError
from convsim.lab.datasets import DATASETS, ImageData, load_dataset
from convsim.lab.libraries import LIBRARIES
from convsim.lab.models import Activation, Norm, build_model
from convsim.lab.preprocessing import (
    Preprocessing,
    Standardised,
    own_preprocessing,
    users_preprocessing,
)
from convsim.lab.weights import load_weights

MOST_CLASSES = 1000
"""Of a network for images without classes, as ImageNet has."""
_MOST_BYTES = 2**26


@dataclass(frozen=True)
class Subject:
    """A network by name, or the folder of a run of `convsim train`.

    Attributes:
        model: A name that `build_model` knows, or a folder with model.safetensors and record.json.
        weights: A file of weights; if None, the folder's own. A file beside the record of a run of
            this model counts as that run's.
        entry: As in `convsim.lab.weights.load_weights`.
        pretrained: Whether to download the library's weights.
        classes: Classes of the network's head; as the data's, or the record's, if None.
        width: As in `build_model`, and so the next two.
        norm: As in `build_model`.
        activation: As in `build_model`.
        size: Height and width of images, instead of the network's own.
        preprocess: A preprocessing of the user's, "package.module:function".

    Raises:
        DataError: If a run's record or weights are missing or damaged.
        ConvsimError: If options are given that the record decides.
    """

    model: str
    weights: Path | None = None
    entry: str | None = None
    pretrained: bool = False
    classes: int | None = None
    width: int | None = None
    norm: Norm | None = None
    activation: Activation | None = None
    size: int | None = None
    preprocess: str | None = None
    _record: dict[str, Any] | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        folder = Path(self.model)
        record = None
        if folder.is_file() and folder.suffix:
            raise ConvsimError(
                f"{self.model} is a file of weights, which does not say what network they are of: "
                f"name it, and give --weights {self.model}."
            )
        if ":" not in self.model and folder.is_dir():
            record = _read_record(folder)
            given = [n for n in ("width", "norm", "activation") if getattr(self, n) is not None]
            if given or self.pretrained:
                raise ConvsimError(
                    f"The record of {self.model} says what its model is: leave out "
                    f"{', '.join(f'--{name}' for name in given) or '--pretrained'}."
                )
            if self.weights is None:
                object.__setattr__(self, "weights", folder / "model.safetensors")
        elif self.weights is not None and (self.weights.parent / "record.json").is_file():
            found = _read_record(self.weights.parent)
            if found["configuration"]["recipe"]["model"] == self.model:
                record = found
        object.__setattr__(self, "_record", record)

    @property
    def name(self) -> str:
        """The network's name."""
        recipe = self._recipe
        return str(recipe["model"]) if recipe and Path(self.model).is_dir() else self.model

    @property
    def source(self) -> str | None:
        """The data set that a run was trained on, if its record says where that is."""
        source = (self._record or {}).get("source")
        return source if isinstance(source, str) else None

    @property
    def described(self) -> str:
        """Which weights they are."""
        if self.weights is not None:
            return str(self.weights)
        return "published by the library" if self.pretrained else "untrained, seed 0"

    @property
    def _recipe(self) -> dict[str, Any]:
        recipe: dict[str, Any] = (self._record or {}).get("configuration", {}).get("recipe", {})
        return recipe

    @property
    def _recorded(self) -> Standardised | None:
        said = (self._record or {}).get("preprocessing")
        if self.preprocess is not None or not isinstance(said, dict):
            return None
        try:
            mean, std = (tuple(map(float, said[key])) for key in ("mean", "std"))
            size = self.size or (None if said["size"] is None else int(said["size"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"The record of {self.model} is damaged: its preprocessing is {said!r:.80}. Train "
                "again, or give --preprocess."
            ) from error
        return Standardised(mean, std, size, origin="the run's training images")

    @property
    def _from_library(self) -> bool:
        return self.name.partition(":")[0] in LIBRARIES and not self._recipe

    @property
    def guessed(self) -> bool:
        """Whether it is a network of the user's, and nobody said how images reach it."""
        return not (self._recorded or self._from_library or self.preprocess) and ":" in self.name

    def load_data(self, source: str, *, skip_bad: bool, split: bool = False) -> ImageData:
        """Load images for the network: any, with or without classes and parts.

        If the network has its own preprocessing, they stay in their files and are read one by one;
        otherwise photographs of many sizes are scaled to `size`.

        Args:
            source: As in `convsim.lab.datasets.load_dataset`, and so the next.
            skip_bad: Whether to leave out files that cannot be read.
            split: Whether images in class folders without parts are split as `convsim train` does,
                where they can be; otherwise both parts are all of them.

        Raises:
            DataError: As `convsim.lab.datasets.load_dataset`.
        """
        own = self.preprocess is not None or self._recorded is not None or self._from_library
        # Named data sets are scaled later, when they are standardised.
        size = None if own or source in DATASETS else self.size
        load = partial(load_dataset, source, size=size, stream=own, skip_bad=skip_bad)
        data = load(whole=True)
        if split and data.labelled and data.one_part:
            with suppress(DataError):  # a class of one image
                return load()
        return data

    def build(self, data: ImageData) -> tuple[nn.Module, Preprocessing]:
        """Build the network with its weights, drawn with seed 0 where there are none.

        Raises:
            ConvsimError: As `build_model`, and if the library has no preprocessing for it.
            DataError: If weights do not fit.
        """
        recorded = self._recorded
        channels = data.test_images.shape[1]
        if recorded is not None:
            channels = recorded.channels
        elif self._from_library or self.preprocess is not None:
            channels = 3
        network = self.network(channels, len(data.classes) if data.labelled else MOST_CLASSES)
        return network, self._preprocessing(network, data, recorded)

    def network(self, channels: int, classes: int = MOST_CLASSES) -> nn.Module:
        """Build the network alone, for images of so many channels; raises as `build`.

        Args:
            channels: Channels of the images.
            classes: Classes of the head where neither `classes` nor a record says how many.
        """
        recorded = self._recorded
        if recorded is not None and recorded.channels != channels:
            raise ConvsimError(
                f"{self.model} was trained on images of {recorded.channels} channels; got "
                f"{channels}."
            )
        classes = self.classes or (self._record or {}).get("classes") or classes
        torch.manual_seed(0)
        network = build_model(
            self.name, classes=classes, channels=channels, pretrained=self.pretrained,
            **{n: getattr(self, n) or self._recipe.get(n) for n in ("width", "norm", "activation")},
        )  # fmt: skip
        if self.weights is not None:
            load_weights(network, self.weights, self.entry)
        return network

    def _preprocessing(
        self, network: nn.Module, data: ImageData, recorded: Standardised | None
    ) -> Preprocessing:
        if self.preprocess is not None:
            return users_preprocessing(self.preprocess)
        if recorded is not None:
            return recorded
        own = None
        if self._from_library:
            own = own_preprocessing(self.name, network, self.size, pretrained=self.pretrained)
        return own or Standardised.of(data.train_images, self.size)


def _read_record(folder: Path) -> dict[str, Any]:
    """Read the record of a run, refusing anything else.

    Raises:
        DataError: If there is none, or it is damaged.
    """
    path = folder / "record.json"
    try:
        with path.open("rb") as file:
            record = strict_json.loads(file.read(_MOST_BYTES))
        if not isinstance(record["configuration"]["recipe"]["model"], str):
            raise TypeError("no model")  # noqa: TRY301
    except FileNotFoundError as error:
        if (folder / "plan.json").is_file():
            raise DataError(
                f"{folder} holds a network that convsim shrink made smaller: "
                "convsim.load_shrunk(model, folder) rebuilds it in Python, to be measured there."
            ) from error
        raise DataError(
            f"A folder is taken for a run of convsim train: {folder} has no record.json. "
            "Train to the end, or name a model and give --weights."
        ) from error
    except (OSError, ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise DataError(
            f"{path} is not a record of convsim train ({type(error).__name__}: {error}). Train "
            "again, or name the model and give --weights."
        ) from error
    result: dict[str, Any] = record
    return result
