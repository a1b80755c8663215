"""Run the notebooks in this process, and keep what came out in their files.

python docs/site/notebooks.py     (renews the outputs of all in examples/notebooks)

A kernel for each, as Jupyter's own tools start one, imports torch five times: longer than the rest.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))

Cell = dict[str, Any]


def run(path: Path) -> list[Cell]:
    """Run a notebook's code in an empty folder; return its cells with their outputs."""
    cells: list[Cell] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {"__name__": "__main__"}
    count = 0
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for number, cell in enumerate(cells, 1):
            if cell["cell_type"] == "code":
                count += 1
                outputs = _run("".join(cell["source"]), names, f"{path.name}, cell {number}", count)
                cell |= {"outputs": outputs, "execution_count": count}
    return cells


def _run(source: str, names: dict[str, Any], where: str, count: int) -> list[Cell]:
    """Run a cell; its last expression is what it shows."""
    tree = ast.parse(source, where)
    shown = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    value = None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(tree, where, "exec"), names)
        if shown is not None:
            value = eval(compile(ast.Expression(shown.value), where, "eval"), names)
    outputs: list[Cell] = []
    if text := printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": _lines(text)})
    if value is not None:
        data = {"text/plain": _lines(_plain(value)), **_rich(value)}
        outputs.append(
            {
                "output_type": "execute_result",
                "execution_count": count,
                "metadata": {},
                "data": data,
            }
        )
    return outputs


def _plain(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 2000 else f"{text[:2000]}…"


def _rich(value: Any) -> dict[str, Any]:
    """Return what a notebook shows of a value beside its text."""
    data: dict[str, Any] = {}
    if hasattr(value, "_repr_html_") and (html := value._repr_html_()):
        data["text/html"] = _lines(html)
    if hasattr(value, "savefig"):
        image = io.BytesIO()
        value.savefig(image, format="png", dpi=72)
        data["image/png"] = base64.b64encode(image.getvalue()).decode()
    return data


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def main() -> None:
    """Run all, and write what came out."""
    sys.path.insert(0, str(ROOT / "tests"))
    from conftest import use_vision  # noqa: PLC0415 - timm, where torchvision does not load

    use_vision()
    for path in NOTEBOOKS:
        whole = json.loads(path.read_text(encoding="utf-8"))
        whole["cells"] = run(path)
        path.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
