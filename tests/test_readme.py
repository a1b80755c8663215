"""The README's Python runs as written."""

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_readme_code_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    assert "LayerRedundancy(name='0', kind='Conv2d', filters=32" in capsys.readouterr().out
    assert names["matrix"].shape == (64, 64)
