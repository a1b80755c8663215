"""Every Python block of the documentation runs, and every command in it would be understood."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from blocks import BLOCK, run
from convsim.cli.app import app
from convsim.penalties import PRESETS

ROOT = Path(__file__).parents[2]
PAGES = [
    page
    for page in (ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
    if page.parent.name != "gallery"  # test_site.py runs those
]


def text(page):
    return page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "page", [page for page in PAGES if BLOCK.search(text(page))], ids=lambda page: page.stem
)
def test_the_code_of_a_page_runs(page):
    run(page)


def test_the_table_of_penalties_says_what_the_presets_are():
    page = text(ROOT / "docs" / "reference" / "penalties.md")
    rows = re.findall(r"^\| ([\w-]+) \| ([\d.]+) \|", page, re.MULTILINE)
    assert {name: float(coefficient) for name, coefficient in rows} == {
        name: preset.coefficient for name, preset in PRESETS.items()
    }


def test_no_text_installs_a_package_that_is_not_published():
    """`pip install convsim` would fetch whatever a stranger registers; a clone has '.[lab]'."""
    sources = (*(ROOT / "src").rglob("*.py"), *(ROOT / "examples").rglob("*.*"))
    for page in (*ROOT.glob("*.md"), *PAGES, *sources):
        assert not re.search(r"pip install [^\n`]*\bconvsim\b", text(page)), page


def commands():
    for page in (ROOT / "README.md", *PAGES):
        for block in re.findall(r"```sh\n(.*?)```", text(page), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip().startswith("convsim "):
                    yield line.strip()


@pytest.mark.parametrize("line", sorted(set(commands())))
def test_a_command_is_understood(line):
    """Parsed only: an unknown command, option or choice raises."""
    _, name, *arguments = shlex.split(line.replace("$width", "8"))
    command = typer.main.get_command(app).commands[name]
    command.make_context(name, arguments)


def test_a_failing_block_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A\n\n```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n")
    with pytest.raises(AssertionError) as error:
        run(page)
    assert error.traceback[-1].path == page
    assert error.traceback[-1].lineno + 1 == 8
