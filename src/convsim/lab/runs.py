"""What decides a run's result: method, seed, recipe and data. Its key is made of all of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from convsim.errors import ConvsimError
from convsim.lab.arithmetic import Precision
from convsim.lab.datasets import ImageData
from convsim.lab.datasets.archive import file_hash
from convsim.lab.methods import Method
from convsim.lab.models import Activation, Norm
from convsim.lab.records import Record, new_record, record_key

Schedule = Literal["cosine", "annealed", "constant", "steps"]
Optimizer = Literal["sgd", "adam", "adamw", "muon"]


@dataclass(frozen=True)
class Recipe:
    """How to train, whatever the method, on cross-entropy.

    Attributes:
        model: A name that `convsim.lab.models.build_model` knows.
        width: The model's width; the model's own default if None, as in the next two.
        norm: "batch" or "none".
        activation: "relu", "elu" or "leaky_relu".
        epochs: Passes over the training part.
        batch_size: Images per step.
        lr: The learning rate at the start.
        momentum: SGD's momentum, also beside Muon; Adam has none.
        weight_decay: The optimizer's weight decay.
        schedule: "cosine" (to zero over the epochs, one value an epoch), "annealed" (the same, but
            from step to step, as short schedules need), "constant", or "steps" (a tenth after half
            and after three quarters of the epochs).
        validation: The share of the training part that is held out and scored after every epoch.
        measured_images: How many test images feature-map similarity is measured on, drawn class by
            class.
        optimizer: "sgd"; "adam" or "adamw", with torch's own other settings; or "muon", for kernels
            of convolutions, with SGD for the rest (see `convsim.lab.muon`).
        augment: Whether training images are cropped and mirrored at random.
        precision: "float32", "float32-channels-last", or "bf16": float32 weights whose products are
            bfloat16, with channels last. Final scores and similarity are always computed in
            float32.

    Raises:
        ConvsimError: For a momentum with an optimizer that has none.
    """

    model: str = "cnn"
    width: int | None = None
    norm: Norm | None = None
    activation: Activation | None = None
    epochs: int = 10
    batch_size: int = 128
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Schedule = "cosine"
    validation: float = 0.1
    measured_images: int = 256
    optimizer: Optimizer = "sgd"
    augment: bool = False
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        """Refuse a choice that would have no effect."""
        if self.optimizer not in ("sgd", "muon") and self.momentum != type(self).momentum:
            raise ConvsimError(
                f"momentum is SGD's: {self.optimizer} has none, and was given {self.momentum:g}. "
                "Leave it out, or take sgd."
            )


@dataclass(frozen=True)
class Start:
    """The weights that a run starts from; drawn with its seed if none are named.

    Attributes:
        weights: A file that `convsim.lab.weights.load_weights` reads.
        pretrained: Whether to take those that the model's library publishes.
    """

    weights: Path | None = None
    pretrained: bool = False

    def configuration(self) -> Record:
        """Return what decides the result: the file by its content."""
        named: Record = {} if self.weights is None else {"weights": file_hash(self.weights)}
        return named | ({"pretrained": True} if self.pretrained else {})


@dataclass(frozen=True)
class Run:
    """Everything that decides a run's result.

    Attributes:
        method: The method, with one coefficient.
        seed: Seeds the weights and the order of the images.
        recipe: The recipe.
        data: The data; its `test_images` are looked at once, at the end.
        test: Whether to look at them at all; tuning does not.
        start: The weights that training starts from.
    """

    method: Method
    seed: int
    recipe: Recipe
    data: ImageData = field(repr=False)
    test: bool = True
    start: Start = Start()

    def configuration(self) -> Record:
        """Return what decides the result, as JSON."""
        data = {
            "name": self.data.name,
            "fingerprint": self.data.fingerprint,
            "train": len(self.data.train_labels),
            "test": len(self.data.test_labels),
        }
        recipe = asdict(self.recipe)
        # As before these options existed, so that old records keep their keys.
        for name in ("augment", "precision"):
            if recipe[name] == getattr(Recipe, name):
                del recipe[name]
        start = self.start.configuration()
        method = asdict(self.method) | {"coefficients": list(self.method.coefficients)}
        if method["falls"] is None:
            del method["falls"]
        return {
            "method": method,
            "seed": self.seed,
            "recipe": recipe,
            "data": data,
            "looks_at_test": self.test,
            **({"start": start} if start else {}),
        }

    @property
    def key(self) -> str:
        """A name for the configuration."""
        return record_key(self.configuration())

    def epoch_seed(self, epoch: int) -> int:
        """Return what seeds an epoch, counted from 0, so that a resume repeats it."""
        return self.seed * 1_000_003 + epoch

    def record(self, result: Record) -> Record:
        """Return the record of a result."""
        return new_record(self.configuration(), result)
