"""Python in docs/integrations.md runs as written."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "integrations.md"


def test_the_code_runs():
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    assert all(p.grad is not None for p in names["model"].parameters())
