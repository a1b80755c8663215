"""Shrink networks trained in the lab, beside what else makes them smaller.

    python benchmarks/shrink.py DATA --model cnn --width 32 --epochs 6 --runs FOLDER

DATA is a data set of the lab, such as the folder of CIFAR-10's images; the network is trained once
for each seed, into FOLDER, or taken from there. All methods cut the same groups to the same number
of channels; BatchNorm is re-estimated for every one (`shrinking_rivals.py`); calibration images are
training images, labels are those of Taylor and Hessian alone. Accuracy is that on the test images.

`--then finetune:1 distill:3` trains the networks of a quarter of the parameters further, with
labels or on the original's outputs without, so many epochs, at the learning rate of `--lr` that
serves a method best: one epoch of a third of the training images tells, on others held out.

One record a network, share, method and seed goes to results/shrink.jsonl, one more for what was
trained then to results/shrink_trained.jsonl; a second call goes on where the first one stopped.
`shrinking_tables.py` makes results/shrink.md and results/shrink.png of them.
"""

import argparse
import copy
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import shrinking_rivals as rivals
import shrinking_tables
import torch
from shrinking_tables import BUDGET
from torch import Tensor, nn

import convsim
from convsim.lab.datasets import ImageData, load_dataset
from convsim.lab.methods import parse_method
from convsim.lab.preprocessing import Standardised
from convsim.lab.records import append_record, environment, read_records
from convsim.lab.runs import Recipe, Run
from convsim.lab.shrinking import accuracy_on, train_on_
from convsim.lab.training import train
from convsim.shrinking.budget import parameter_cost, uniform, uniform_share
from convsim.shrinking.survey import Survey, survey

CHANNELS, PARAMETERS, TRAINED = (0.5,), (0.5, 0.25, 0.125), 0.25
POSITIONS, RESCORED = 32, 200
"""Positions an image, and images whose gradients the Hessian takes one by one."""
Made = Iterator[tuple[str, Callable[[], nn.Module]]]


class Case:
    """A trained network, its calibration images, and what is found in it."""

    def __init__(self, options: argparse.Namespace, data: ImageData, seed: int) -> None:
        self.options, self.data, self.seed = options, data, seed
        self.name = "-".join(filter(None, (options.model.rpartition(":")[2], options.width)))

    @cached_property
    def model(self) -> nn.Module:
        """Train the network in the lab, or take it from its folder."""
        options = self.options
        recipe = Recipe(
            model=options.model, width=int(options.width) if options.width else None,
            epochs=options.epochs, lr=0.1, weight_decay=5e-4, augment=True,
            precision=options.precision,
        )  # fmt: skip
        folder = options.runs / f"{self.name}-{options.epochs}-{self.seed}"
        model, _ = train(Run(parse_method("none"), self.seed, recipe, self.data), folder)
        model = model.cpu().to(memory_format=torch.channels_last).eval()
        labels = self._sample.train_labels[self._order]
        rivals.score_gradients_(model, self._inputs, labels, RESCORED)
        return model

    @cached_property
    def _sample(self) -> ImageData:
        return self.data.subset(train=self.options.images, seed=self.seed)

    @cached_property
    def _inputs(self) -> Tensor:
        images = Standardised.of(self.data.train_images).batch(self._sample.train_images)
        return images[self._order]

    @cached_property
    def _order(self) -> Tensor:
        """Images come sorted by class, which would spoil BatchNorm re-estimated by batches."""
        draw = torch.Generator().manual_seed(self.seed)
        return torch.randperm(len(self._sample.train_labels), generator=draw)

    @property
    def batches(self) -> list[Tensor]:
        """The calibration images."""
        images = self._inputs.contiguous(memory_format=torch.channels_last)
        return list(images.split(100))

    @cached_property
    def found(self) -> Survey:
        """The network's groups and what is redundant in them."""
        frozen = copy.deepcopy(self.model).requires_grad_(False)
        layers = self.options.layers or None
        return survey(frozen, self.batches, layers=layers, positions=POSITIONS)

    def counts(self, kind: str, share: float) -> list[int]:
        """Return how many units of each group a uniform share keeps."""
        ones = [1] * len(self.found.groups)
        if kind == "channels":
            return uniform_share(self.found.groups, share, ones)
        cost = parameter_cost(self.model, self.found.groups)
        whole = cost.at([len(group.units) for group in self.found.groups])
        return uniform(self.found.groups, cost, share * whole, ones)

    def base(self) -> dict[str, Any]:
        """Return what all records of the case say."""
        options = self.options
        return {"model": self.name, "epochs": options.epochs, "seed": self.seed,
                "images": options.images, "layers": options.layers}  # fmt: skip


def methods(case: Case, kind: str, share: float) -> Made:
    """Name every method, with what makes its network."""
    model, found, counts = case.model, case.found, case.counts(kind, share)
    by_norm = rivals.chosen("L2", model, found, counts)
    greedy = [found.channels(number, count) for number, count in enumerate(counts)]
    if kind == "parameters":
        yield BUDGET, lambda: convsim.shrink(
            model, case.batches, parameters=share, layers=case.options.layers or None,
            positions=POSITIONS,
        ).model  # fmt: skip
    yield "convsim, uniform", lambda: compensated(case, greedy, in_sequence=True)
    yield "GRAIL (one map for all taps)", lambda: compensated(case, by_norm, in_sequence=False)
    yield "folding", lambda: rivals.folding(model, found, counts)
    yield "Neuron Merging", lambda: rivals.neuron_merging(model, found, by_norm)
    for name in (*rivals.CRITERIA, "BN scale"):
        yield (
            name,
            lambda name=name: rivals.cut(model, found, rivals.chosen(name, model, found, counts)),
        )
    if kind == "channels":
        yield "greedy + one map", lambda: compensated(case, greedy, in_sequence=False)
        yield "L2 + in sequence", lambda: compensated(case, by_norm, in_sequence=True)


def compensated(case: Case, kept: Sequence[Sequence[int]], *, in_sequence: bool) -> nn.Module:
    """Compensate for channels that were chosen."""
    groups = case.found.groups
    keep = {group.name: channels for group, channels in zip(groups, kept, strict=True)}
    return convsim.shrink(
        case.model, case.batches, keep=keep, positions=POSITIONS, in_sequence=in_sequence
    ).model


def shrink_all(case: Case) -> None:
    """Shrink one network by every method to every share."""
    done = _done(shrinking_tables.RECORDS)
    shares = [("parameters", share) for share in PARAMETERS]
    for kind, share in (*(("channels", share) for share in CHANNELS), *shares):
        for name, make in methods(case, kind, share):
            key = case.base() | {"kind": kind, "share": share, "method": name}
            if _key(key) in done:
                continue
            started = time.process_time()
            small = make().to(memory_format=torch.channels_last)
            seconds = time.process_time() - started
            best = rivals.reestimated(small, case.batches)
            total = sum(p.numel() for p in case.model.parameters())
            result = {
                "original": _original(case),
                "parameters": sum(p.numel() for p in small.parameters()) / total,
                "reestimated": accuracy_on(best, case.data),
                "seconds": seconds,
            }
            if "convsim" in name:
                result["bare"] = accuracy_on(small, case.data)
            append_record(shrinking_tables.RECORDS, key | result | {"environment": environment()})
            print(case.name, case.seed, kind, share, name, result, flush=True)


_ORIGINALS: dict[tuple[str, int], float] = {}


def _original(case: Case) -> float:
    key = (case.name, case.seed)
    if key not in _ORIGINALS:
        _ORIGINALS[key] = accuracy_on(case.model, case.data)
    return _ORIGINALS[key]


def train_all(case: Case, how: str) -> None:
    """Train one network further, as every method leaves it."""
    path = shrinking_tables.TRAINED
    kind, _, epochs = how.partition(":")
    for name, make in methods(case, "parameters", TRAINED):
        if case.options.methods and name not in case.options.methods:
            continue
        key = case.base() | {"kind": kind, "trained": int(epochs), "share": TRAINED, "method": name}
        if _key(key) in _done(path):
            continue
        small = make()
        if name not in (BUDGET, "convsim, uniform"):
            small = rivals.reestimated(small, case.batches)
        small = small.requires_grad_(True)
        teacher = case.model if kind == "distill" else None
        before = accuracy_on(small, case.data)
        rate = tuned_rate(case, name, kind, small, teacher)
        started = time.process_time()
        train_on_(
            small, case.data, epochs=int(epochs), lr=rate, augment=True, teacher=teacher,
            precision=case.options.precision,
        )  # fmt: skip
        result = {"original": _original(case), "before": before, "lr": rate,
                  "after": accuracy_on(small, case.data),
                  "seconds": time.process_time() - started}  # fmt: skip
        append_record(path, key | result | {"environment": environment()})
        print(case.name, case.seed, how, name, result, flush=True)


def tuned_rate(
    case: Case, name: str, kind: str, small: nn.Module, teacher: nn.Module | None
) -> float:
    """Choose the learning rate, once for all seeds, on training images held out."""
    rates = case.options.lr
    if len(rates) == 1:
        return float(rates[0])
    path = shrinking_tables.TUNED
    key = {"model": case.name, "epochs": case.options.epochs, "kind": kind, "method": name}
    scores = {}
    split = case.data.hold_out(0.1, seed=0)
    third = split.subset(train=len(split.train_labels) // 30 * 10, seed=0)
    for rate in rates:
        own = key | {"lr": rate}
        known = [one for one in read_records(path) if own.items() <= one.items()]
        if not known:
            trial = copy.deepcopy(small)
            try:
                train_on_(trial, third, epochs=1, lr=rate, augment=True, teacher=teacher,
                          precision=case.options.precision)  # fmt: skip
                score = accuracy_on(trial, third)
            except convsim.NonFiniteError:
                score = 0.0
            known = [own | {"seed": case.seed, "score": score}]
            append_record(path, known[0] | {"environment": environment()})
        scores[rate] = known[0]["score"]
    return max(scores, key=scores.__getitem__)


_KEYS = ("model", "epochs", "seed", "images", "layers", "kind", "share", "trained", "method")


def _key(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(str(record.get(name)) for name in _KEYS)


def _done(path: Path) -> set[tuple[Any, ...]]:
    return {_key(record) for record in read_records(path)}


def main() -> None:
    """Run what has no record yet, and write table and figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--model", default="cnn")
    parser.add_argument("--width", default="", help="as of convsim compare; the model's own if ''")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--runs", type=Path, default=Path("runs/shrink"))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--layers", nargs="*", default=[], help="as layers= of convsim.shrink")
    parser.add_argument("--then", nargs="*", default=[], help="finetune:EPOCHS or distill:EPOCHS")
    parser.add_argument("--methods", nargs="*", default=[], help="of --then, by name; all if none")
    parser.add_argument("--lr", type=float, nargs="*", default=[0.01, 0.03, 0.1])
    options = parser.parse_args()
    data = load_dataset(options.data)
    for seed in options.seeds:
        case = Case(options, data, seed)
        if not options.then:
            shrink_all(case)
        for how in options.then:
            train_all(case, how)
    shrinking_tables.write()


if __name__ == "__main__":
    main()
