"""The site builds without a warning, shows what ran, needs no network and fits a narrow screen.

One test, so that the site is built once, whatever the number of processes.
"""

import re
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

from results import ROOT, accuracy_table

TUTORIALS = ("digits", "twins", "orthogonal", "initialization", "coefficient", "inputs")
LOOKED_AT = ("index", "results", "mathematics", "architecture", "gallery/digits", "reference/model")


def html(site: Path, page: str) -> str:
    return (site / f"{page}.html").read_text(encoding="utf-8")


@pytest.mark.timeout(900)  # a busy machine
def test_the_site(tmp_path, browser):
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True))

    for name in TUTORIALS:
        assert (tmp_path / "gallery" / f"{name}.png").stat().st_size > 5000
    assert "12 of 16 maps kept" in html(tmp_path, "gallery/twins")
    for cell in re.findall(r"\d\d\.\d ± \d\.\d", accuracy_table()):
        assert cell in html(tmp_path, "results")
    assert html(tmp_path, "mathematics").count("<math") > 5
    assert 'class="highlight"' in html(tmp_path, "reference/weight")  # the source
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|img|link)[^>]*?(?:src|href)="?(https?:[^" >]+)', page.read_text()
        )
        assert not loaded, page

    context = browser.new_context(offline=True)
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    for width in (1280, 400):
        page.set_viewport_size({"width": width, "height": 900})
        for name in LOOKED_AT:
            page.goto((tmp_path / f"{name}.html").as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (name, width)
            broken = "[...document.images].filter(i => i.complete && !i.naturalWidth).length"
            assert page.evaluate(broken) == 0, name
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto((tmp_path / "index.html").as_uri())
    page.fill("input[name=query]", "effective rank")
    page.wait_for_selector(".md-search-result__item", timeout=60_000)  # the search works offline
    context.close()
    assert said == []
