"""What a report says of a model: its layers, and the numbers that follow from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from convsim.errors import ConvsimError
from convsim.rank_correlation import rank_correlation
from convsim.report.layer_redundancy import LayerRedundancy


@dataclass(frozen=True)
class RankCorrelation:
    """How well a quantity of the kernels ranks feature-map similarity: Spearman's, in [−1, 1].

    Attributes:
        layers: Across layers, between its mean and the layer's similarity.
        pairs: Across the pairs of a layer, mean over layers.
    """

    layers: float
    pairs: float


@dataclass(frozen=True)
class ModelRedundancy:
    """Feature-map redundancy of a model on some images: a sequence of layers, found by name.

    Attributes:
        model: The model's name.
        images: How many images were measured.
        layers: By layer, in the order of the model's modules.
        examples: (images, 1 or 3, height, width) uint8, the images of `LayerRedundancy.pictures`.
        data: What the images are, for people, such as "digits, test images"; "" if nobody said.
        weights: Which weights the model had, likewise.
        place: Where maps were compared: "convolution" or "reading", as in `convsim.measure`.
        when: When it was measured, in ISO 8601; "" if that is not known.
    """

    model: str
    images: int
    layers: tuple[LayerRedundancy, ...]
    examples: Tensor = field(repr=False, compare=False)
    data: str = ""
    weights: str = ""
    place: str = "convolution"
    when: str = field(default="", compare=False)

    @property
    def origin(self) -> str:
        """What was measured, on what, where and when, in sentences."""
        places = {"reading": "where the next layer reads them"}
        said = (
            ("Weights", self.weights),
            ("Images", self.data),
            ("Maps", places.get(self.place, "as they leave their convolution")),
            ("Measured", self.when[:10]),
        )
        return " ".join(f"{name}: {text}." for name, text in said if text)

    @property
    def similarity(self) -> float:
        """Mean of the layers' similarity, over the layers where it is defined."""
        return _mean(layer.similarity for layer in self.layers)

    @property
    def correlation(self) -> float:
        """Mean of the layers' correlation, over the layers where it is defined."""
        return _mean(layer.correlation for layer in self.layers)

    @property
    def dead(self) -> int:
        """Number of maps that are zero on every image."""
        return sum(layer.dead for layer in self.layers)

    @property
    def silent(self) -> tuple[str, ...]:
        """Names of the layers all of whose maps are zero on every image: without similarity."""
        return tuple(layer.name for layer in self.layers if layer.dead == layer.filters)

    @property
    def rank_correlations(self) -> dict[str, RankCorrelation]:
        """How well "kernel cosine" and "Convolutional Similarity" rank feature-map similarity.

        NaN where fewer than five layers, or five pairs of each, can be ranked.
        """
        convolutions = [(x, x.kernels) for x in self.layers if x.kernels is not None]
        measured = torch.tensor([layer.similarity for layer, _ in convolutions])

        def correlate(means: list[float], pairs: Iterable[float]) -> RankCorrelation:
            return RankCorrelation(rank_correlation(torch.tensor(means), measured), _mean(pairs))

        return {
            "kernel cosine": correlate(
                [kernels.mean_cosine for _, kernels in convolutions],
                [kernels.cosine_rank_correlation for _, kernels in convolutions],
            ),
            "Convolutional Similarity": correlate(
                [kernels.mean_similarity for _, kernels in convolutions],
                [kernels.similarity_rank_correlation for _, kernels in convolutions],
            ),
        }

    def __iter__(self) -> Iterator[LayerRedundancy]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __contains__(self, name: object) -> bool:
        return any(layer.name == name for layer in self.layers)

    def __getitem__(self, name: str) -> LayerRedundancy:
        """Return the layer of that name.

        Raises:
            ConvsimError: If there is none.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        known = ", ".join(repr(layer.name) for layer in self.layers)
        raise ConvsimError(f"The report has no layer {name!r}; it has {known}.")

    def scalars(self, prefix: str = "convsim/") -> dict[str, float]:
        """Flatten to numbers that a logger takes: TensorBoard, W&B, Lightning's ``log_dict``.

        Returns:
            "similarity", "correlation", "dead" of the model, and "similarity/NAME",
            "effective_rank/NAME" of each layer, after the prefix. Undefined values are left out.
        """
        values = {
            "similarity": self.similarity,
            "correlation": self.correlation,
            "dead": float(self.dead),
        }
        for layer in self.layers:
            values[f"similarity/{layer.name}"] = layer.similarity
            values[f"effective_rank/{layer.name}"] = layer.effective_rank
        return {prefix + key: value for key, value in values.items() if not math.isnan(value)}


def common_layers(
    reports: Sequence[ModelRedundancy],
) -> tuple[tuple[LayerRedundancy, ...], ...]:
    """Match the layers that all reports have, by name, in the order of the last."""
    return tuple(
        tuple(report[layer.name] for report in reports)
        for layer in reports[-1]
        if all(layer.name in report for report in reports)
    )


def _mean(values: Iterable[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan
