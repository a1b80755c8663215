"""One method against each of the others, paired by seed, and its similarity layer by layer.

python experiments/paired.py RESULTS_FOLDER METHOD      (prints Markdown)
"""

from __future__ import annotations

import sys
from pathlib import Path

from convsim.lab.records import read_records
from convsim.lab.summary import Estimate


def main() -> None:
    """Read the reported runs and print two tables."""
    folder, method = sys.argv[1:]
    found: dict[str, dict[int, dict]] = {}  # type: ignore[type-arg]
    for record in read_records(Path(folder) / "records.jsonl"):
        c = record["configuration"]
        if c["looks_at_test"]:
            found.setdefault(c["method"]["name"], {})[c["seed"]] = record["result"]
    own = found.pop(method)
    print(f"| {method} less | accuracy, points | seeds won | similarity |\n|---|---:|---:|---:|")
    for name, others in found.items():
        seeds = sorted(own.keys() & others.keys())
        gains = [100 * (own[s]["test_accuracy"] - others[s]["test_accuracy"]) for s in seeds]
        similarity = [
            sum(own[s]["similarity"].values()) / len(own[s]["similarity"])
            - sum(others[s]["similarity"].values()) / len(others[s]["similarity"])
            for s in seeds
        ]
        gain, change = Estimate.of(gains), Estimate.of(similarity)
        print(
            f"| {name} | {gain.mean:+.1f} ± {gain.half_width:.1f} | {sum(g > 0 for g in gains)} of "
            f"{len(seeds)} | {change.mean:+.3f} ± {change.half_width:.3f} |"
        )
    control = next(iter(found.values()))
    layers = list(own[0]["similarity"])
    print(f"\n| layer | {' | '.join(layers)} |\n|---|{'---:|' * len(layers)}")
    for name, results in (("control", control), (method, own)):
        means = [
            sum(r["similarity"][layer] for r in results.values()) / len(results) for layer in layers
        ]
        print(f"| {name} | {' | '.join(f'{mean:.3f}' for mean in means)} |")


if __name__ == "__main__":
    main()
