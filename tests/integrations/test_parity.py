"""docs/parity.md says what the loops do today."""

import parity
import pytest

from needs import need_module


@pytest.mark.filterwarnings("ignore:You passed `Trainer.* AMP with fp16 is not supported on CPU")
@pytest.mark.parametrize("name", parity.LOOPS)
def test_the_page_is_up_to_date(tmp_path, monkeypatch, name):
    need_module("transformers")
    monkeypatch.chdir(tmp_path)
    page = parity.PAGE.read_text(encoding="utf-8")
    assert page.startswith(parity.HEAD), "Run: python tests/integrations/parity.py"
    rows = parity.rows(name)
    assert "off by" not in rows
    assert rows in page, "Run: python tests/integrations/parity.py"
