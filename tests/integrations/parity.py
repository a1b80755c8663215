"""Build docs/parity.md: every loop × precision, accumulation and compilation, each cell trained.

`python tests/integrations/parity.py` writes it; test_parity.py says when it is out of date.
"""

import os
import tempfile
from functools import cache
from pathlib import Path

import loops
import torch
from loops import DoubleNetwork, Setting, distance, trained

PAGE = Path(__file__).parents[2] / "docs" / "parity.md"
LOOPS = {
    "plain": loops.plain,
    "plain, attached": loops.attached,
    "Lightning": loops.lightning,
    "Trainer": loops.hugging_face,
    "Accelerate": loops.accelerate,
}
PRECISIONS = ("float32", "bf16", "fp16")
ROWS = ((1, False), (4, False), (4, True))  # accumulation, compiled
# Largest ‖w − v‖ / ‖v‖ over the parameters: against float64, and against the plain loop.
BOUNDS = {"float32": (1e-5, 1e-6), "bf16": (5e-2, 1e-6), "fp16": (5e-3, 1e-6)}

HEAD = f"""# Parity of training loops

Each cell trains a small network for {loops.STEPS} steps with the recommended penalty, on a CPU, and
compares the weights with those of a loop written by hand, `loss + regularizer()`. **equal**: in
float32 within 10⁻⁵ of the formula written out in float64 and left to autograd, in bf16 autocast
within 5·10⁻² and in fp16 autocast with a GradScaler within 5·10⁻³ (what half precision does to the
network itself). In each it is also within 10⁻⁶ of the loop by hand in that precision, compiled too
if that is half, except where the penalty is compiled as well and attached in half precision: its
sums then round in another order. **GPU**: fp16 was not checked, because on a CPU this framework
trains in the precision named after it instead, where it equals the loop by hand. Compiled is
`torch.compile` with `aot_eager`; `inductor` is tested with the plain loop.
"Attached" is `Regularizer(model).attach(criterion)`,
which the Accelerate rows use too; Lightning and Trainer take their callbacks, and Trainer's
attaches to the model.

Written by `python tests/integrations/parity.py`; the tests fail when it is out of date.

| loop | accumulation | compiled | {" | ".join(PRECISIONS)} |
|---|---:|---|{"---|" * len(PRECISIONS)}
"""


@cache
def by_hand(accumulate, precision, compiled):
    """Train by the plain loop, compiled only in half precision.

    Compiled, the samples' gradient is rounded to it before it is added.
    """
    compiled = compiled and precision != "float32"
    return trained(loops.plain, Setting("recommended", accumulate, precision, compiled))


@cache
def in_double(accumulate):
    """Train by the formula, in float64."""
    return trained(loops.written_out, Setting(accumulate=accumulate), DoubleNetwork)


def cell(loop, setting):
    """Train; say "equal", in what else it was trained on a CPU, or how far off it is."""
    actual = trained(loop, setting)
    double = in_double(setting.accumulate)
    own = by_hand(setting.accumulate, setting.precision, setting.compiled)
    off = distance(actual, double), distance(actual, own)
    near, same = BOUNDS[setting.precision]
    halves = {loops.attached: ("bf16", "fp16"), loops.accelerate: ("bf16",),
              loops.hugging_face: ("bf16",)}  # fmt: skip
    if setting.compiled and setting.precision in halves.get(loop, ()):
        same = near  # the penalty is in the graph too, whose order of sums rounds otherwise
    if off[0] <= near and off[1] <= same:
        return "equal"
    if setting.precision == "fp16":
        for other in ("float32", "bf16"):
            if (
                distance(actual, by_hand(setting.accumulate, other, setting.compiled))
                <= BOUNDS[other][1]
            ):
                return f"GPU; {other} here"
    return f"off by {off[0]:.0e}, {off[1]:.0e}"


def rows(name):
    """Lay out one loop's rows."""
    lines = []
    for accumulate, compiled in ROWS:
        cells = [
            cell(LOOPS[name], Setting("recommended", accumulate, precision, compiled))
            for precision in PRECISIONS
        ]
        lines.append(
            f"| {name} | {accumulate} | {'yes' if compiled else 'no'} | {' | '.join(cells)} |\n"
        )
    return "".join(lines)


def main():
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        page = HEAD + "".join(map(rows, LOOPS))
    PAGE.write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
