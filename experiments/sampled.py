"""Compare the two forms of experiment 20, paired by seed: python experiments/sampled.py RESULTS."""

import sys
from pathlib import Path

from convsim.lab.records import Record, read_records
from convsim.lab.summary import Estimate
from convsim.lab.tables import markdown_table

HEAD = ("set-up", "windows", "sampled maps", "sampled − windows", "seeds won")
SET_UPS = {"relu": "10 (ReLU)", "elu": "17 (ELU)"}
ARMS = ("data-aware", "maps")


def scores(records: list[Record]) -> dict[int, float]:
    """Read the test accuracy of each seed, in %."""
    return {r["configuration"]["seed"]: 100 * r["result"]["test_accuracy"] for r in records}


def row(name: str, arms: list[dict[str, dict[int, float]]]) -> tuple[str, ...]:
    """Lay one set-up out, or several together."""
    cells = [
        Estimate.of([x for arm in arms for x in arm[method].values()]).text(2, sign="")
        if all(arm[method] for arm in arms) else ""
        for method in ARMS
    ]  # fmt: skip
    gains = [
        arm["maps"][seed] - arm["data-aware"][seed]
        for arm in arms for seed in sorted(arm["maps"].keys() & arm["data-aware"].keys())
    ]  # fmt: skip
    return (
        name,
        *cells,
        Estimate.of(gains).text(2),
        f"{sum(g > 0 for g in gains)} of {len(gains)}",
    )


def main() -> None:
    """Write table.md."""
    results = Path(sys.argv[1])
    arms = {
        activation: {
            method: scores(read_records(results / f"{activation}-{method}" / "records.jsonl"))
            for method in ARMS
        }
        for activation in SET_UPS
    }
    rows = [row(SET_UPS[name], [arm]) for name, arm in arms.items() if arm["maps"]]
    rows.append(row("both", [arm for arm in arms.values() if arm["maps"]]))
    text = markdown_table(HEAD, rows)
    (results / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
