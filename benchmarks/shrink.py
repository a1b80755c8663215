"""Shrink networks trained in the lab, beside what else makes them smaller.

    python benchmarks/shrink.py DATA --model cnn --width 32 --epochs 6 --runs FOLDER

DATA is a data set of the lab, such as the folder of CIFAR-10's images; the network is trained once
for each seed, into FOLDER, or taken from there. All methods cut the same groups to the same number
of channels; BatchNorm is re-estimated for every one (`shrinking_rivals.py`); calibration images are
training images, labels are Taylor's alone. Accuracy on the test images: at once, and with
`--finetune` after so many epochs with labels, at the learning rate of `--lr` that serves each
method best on held-out training images.

One record a network, share, method and seed goes to results/shrink.jsonl; results/shrink.md and
results/shrink.png are made of them.
"""

import argparse
import copy
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import shrinking_rivals as rivals
from torch import Tensor, nn

import convsim
from convsim.lab.datasets import ImageData, load_dataset
from convsim.lab.methods import parse_method
from convsim.lab.records import append_record, environment, read_records
from convsim.lab.runs import Recipe, Run
from convsim.lab.shrinking import Preparation, accuracy_on, train_on_
from convsim.lab.training import train
from convsim.shrinking.budget import parameter_cost, uniform, uniform_share
from convsim.shrinking.survey import Survey, survey

RESULTS = Path(__file__).parent / "results"
RECORDS, PAGE, FIGURE = (RESULTS / f"shrink.{kind}" for kind in ("jsonl", "md", "png"))
CHANNELS, PARAMETERS = (0.75, 0.5, 0.35), (0.5, 0.25)
POSITIONS = 32
Made = Iterator[tuple[str, Callable[[], nn.Module]]]


def trained(options: argparse.Namespace, data: ImageData, seed: int) -> nn.Module:
    """Train a network in the lab, or take it from its folder."""
    recipe = Recipe(
        model=options.model, width=options.width, epochs=options.epochs, lr=0.1,
        weight_decay=5e-4, augment=True,
    )  # fmt: skip
    name = f"{options.model}-{options.width}-{options.epochs}-{seed}"
    model, _ = train(Run(parse_method("none"), seed, recipe, data), options.runs / name)
    return model.cpu().eval()


def gradients_(model: nn.Module, inputs: Tensor, labels: Tensor) -> None:
    """Leave the gradients of the task's loss in a network."""
    model.zero_grad()
    for x, y in zip(inputs.split(100), labels.split(100), strict=True):
        nn.functional.cross_entropy(model(x), y).backward()


def methods(
    model: nn.Module, found: Survey, counts: Sequence[int], batches: Sequence[Tensor]
) -> Made:
    """Name every method, with what makes its network of so many units in each group."""
    for name in (*rivals.CRITERIA, "BN scale"):
        kept = rivals.chosen(name, model, found, counts)
        yield name, lambda kept=kept: rivals.cut(model, found, kept)
    by_norm = rivals.chosen("L2", model, found, counts)
    yield "Neuron Merging", lambda: rivals.neuron_merging(model, found, by_norm)
    yield "folding", lambda: rivals.folding(model, found, counts)
    yield "GRAIL (one map for all taps)", lambda: ours(model, found, by_norm, batches, False)
    greedy = [
        sorted(c for unit in selection.order[:count] for c in group.units[unit])
        for group, selection, count in zip(found.groups, found.selections, counts, strict=True)
    ]
    yield "greedy + one map", lambda: ours(model, found, greedy, batches, False)
    yield "L2 + in sequence", lambda: ours(model, found, by_norm, batches, True)
    yield "convsim, uniform", lambda: ours(model, found, greedy, batches, True)


def ours(
    model: nn.Module,
    found: Survey,
    kept: Sequence[Sequence[int]],
    batches: Sequence[Tensor],
    in_sequence: bool,
) -> nn.Module:
    """Compensate for channels that were chosen."""
    keep = {group.name: channels for group, channels in zip(found.groups, kept, strict=True)}
    return convsim.shrink(
        model, batches, keep=keep, positions=POSITIONS, in_sequence=in_sequence
    ).model


def tuned(
    small: nn.Module, data: ImageData, epochs: int, rates: Sequence[float]
) -> tuple[float, float]:
    """Fine-tune at the learning rate that is best on held-out images; return accuracy and rate."""
    split = data.hold_out(0.1, seed=0)
    scores = {}
    for rate in rates if len(rates) > 1 else ():
        trial = copy.deepcopy(small)
        train_on_(trial, split, epochs=epochs, lr=rate, augment=True)
        scores[rate] = accuracy_on(trial, split)
    best = max(scores, key=scores.__getitem__) if scores else rates[0]
    train_on_(small, data, epochs=epochs, lr=best, augment=True)
    return accuracy_on(small, data), best


def run(options: argparse.Namespace, data: ImageData, seed: int) -> None:
    """Shrink one network by every method."""
    model = trained(options, data, seed)
    sample = data.subset(train=options.images, seed=seed)
    inputs = Preparation(data)(sample.train_images)
    batches = list(inputs.split(100))
    gradients_(model, inputs, sample.train_labels)
    frozen = copy.deepcopy(model).requires_grad_(False)
    found = survey(frozen, batches, layers=options.layers or None, positions=POSITIONS)
    cost = parameter_cost(model, found.groups)
    ones, whole = [1] * len(found.groups), [len(group.units) for group in found.groups]
    base = {"model": f"{options.model}-{options.width}", "seed": seed, "images": options.images,
            "layers": options.layers, "original": accuracy_on(model, data)}  # fmt: skip

    def note(kind: str, share: float, name: str, make: Callable[[], nn.Module]) -> None:
        started = time.perf_counter()
        small = make()
        seconds = time.perf_counter() - started
        best = rivals.reestimated(small, batches)
        count = sum(p.numel() for p in small.parameters()) / cost.at(whole)
        record = {**base, "kind": kind, "share": share, "method": name, "parameters": count,
                  "bare": accuracy_on(small, data), "reestimated": accuracy_on(best, data),
                  "seconds": seconds}  # fmt: skip
        for epochs in options.finetune:
            start = copy.deepcopy(small if "convsim" in name else best).requires_grad_(True)
            score, rate = tuned(start, data, epochs, options.lr)
            record |= {f"finetuned {epochs}": score, f"lr {epochs}": rate}
        append_record(RECORDS, record | {"environment": environment()})
        print({k: v for k, v in record.items() if k not in base}, flush=True)

    for share in CHANNELS:
        counts = uniform_share(found.groups, share, ones)
        for name, make in methods(model, found, counts, batches):
            note("channels", share, name, make)
    for share in PARAMETERS:
        counts = uniform(found.groups, cost, share * cost.at(whole), ones)
        for name, make in methods(model, found, counts, batches):
            note("parameters", share, name, make)
        note("parameters", share, "convsim, one budget", lambda share=share: convsim.shrink(
            model, batches, parameters=share, layers=options.layers or None, positions=POSITIONS
        ).model)  # fmt: skip


def table(records: list[dict[str, Any]]) -> str:
    """Write a table for each network and target: one line a method, the mean over seeds."""
    lines = ["# Shrinking without training", "", "Test accuracy in %; BatchNorm re-estimated "
             "(without it in brackets). See `shrink.py`.", ""]  # fmt: skip
    grouped: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for one in records:
        grouped[one["model"] + (" " + " ".join(one["layers"]) if one["layers"] else ""),
                one["kind"]].append(one)  # fmt: skip
    for (model, kind), own in grouped.items():
        shares = sorted({one["share"] for one in own}, reverse=True)
        seeds = len({one["seed"] for one in own})
        original = 100 * mean(one["original"] for one in own)
        images = own[0]["images"]
        lines += [f"## {model}: share of the {kind}", "",
                  f"Before: {original:.1f}. {seeds} seed(s), {images} images.", "",
                  "| method | " + " | ".join(f"{share:.0%}" for share in shares) + " |",
                  "|---|" + "---:|" * len(shares)]  # fmt: skip
        for name in dict.fromkeys(one["method"] for one in own):
            cells = []
            for share in shares:
                these = [o for o in own if (o["method"], o["share"]) == (name, share)]
                if not these:
                    cells.append("")
                    continue
                best = mean(o["bare" if "convsim" in name else "reestimated"] for o in these)
                other = mean(o["reestimated" if "convsim" in name else "bare"] for o in these)
                cells.append(f"{100 * best:.1f} ({100 * other:.1f})")
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    lines.append("convsim's rows show it without re-estimation, and with it in brackets.")
    return "\n".join(lines) + "\n"


def figure(records: list[dict[str, Any]]) -> None:
    """Draw accuracy over parameters, one line a method."""
    import matplotlib.pyplot as plt  # noqa: PLC0415

    models = list(dict.fromkeys(one["model"] for one in records))
    chart, axes = plt.subplots(1, len(models), figsize=(6 * len(models), 4.5), squeeze=False)
    for axis, model in zip(axes[0], models, strict=True):
        own = [one for one in records if one["model"] == model]
        for name in dict.fromkeys(one["method"] for one in own):
            points: dict[float, list[float]] = defaultdict(list)
            for one in own:
                if one["method"] == name:
                    key = "bare" if "convsim" in name else "reestimated"
                    points[round(one["parameters"], 3)].append(100 * one[key])
            line = sorted((share, mean(values)) for share, values in points.items())
            style = {"linewidth": 2.5} if "convsim" in name else {"linewidth": 1, "alpha": 0.7}
            axis.plot(*zip(*line, strict=True), marker="o", markersize=3, label=name, **style)
        axis.axhline(100 * mean(one["original"] for one in own), color="grey", linestyle=":")
        axis.set(title=model, xlabel="share of the parameters", ylabel="test accuracy, %")
    axes[0][0].legend(fontsize=7)
    chart.tight_layout()
    chart.savefig(FIGURE, dpi=150)


def main() -> None:
    """Run, and write table and figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--model", default="cnn")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--runs", type=Path, default=Path("runs/shrink"))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--layers", nargs="*", default=[], help="as layers= of convsim.shrink")
    parser.add_argument("--finetune", type=int, nargs="*", default=[])
    parser.add_argument("--lr", type=float, nargs="*", default=[0.01])
    parser.add_argument("--table", action="store_true", help="only write table and figure")
    options = parser.parse_args()
    if not options.table:
        data = load_dataset(options.data)
        for seed in options.seeds:
            run(options, data, seed)
    records = read_records(RECORDS)
    PAGE.write_text(table(records), encoding="utf-8")
    figure(records)


if __name__ == "__main__":
    main()
