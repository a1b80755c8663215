"""What `mkdocs build` does beyond its configuration: generated pages, formulas, links.

A page outside docs/ stands in the site under its path in the repository, one in docs/ without
that prefix. So the links that work in the repository are turned into those of the site.
"""

from __future__ import annotations

import posixpath
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from architecture import diagram
from blocks import run, with_outputs
from results import results_page

ROOT = Path(__file__).parents[2]
OUTSIDE = (
    "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "examples/README.md", "soak/README.md",
    "experiments/README.md", "experiments/*/README.md",
    "experiments/*/run", "experiments/*/results/**/*.*",
    "benchmarks/README.md", "benchmarks/results/*.*",
)  # fmt: skip
"""What the site takes from outside docs/, beside files that a page links to."""


def command_line() -> str:
    """Write out what every command's --help says."""
    command = [sys.executable, "-m", "typer", "convsim.cli.app", "utils", "docs"]
    return subprocess.run(
        [*command, "--name", "convsim"], check=True, capture_output=True, text=True
    ).stdout


GENERATED = {
    "results.md": results_page, "architecture.svg": diagram,
    "reference/command_line.md": command_line,
}  # fmt: skip


def on_config(config: MkDocsConfig) -> None:
    """Write ```math fences as MathML; leave pages that do not exist out of the navigation."""
    fence = {"name": "math", "class": "math", "format": formula}
    config.mdx_configs["pymdownx.superfences"] = {"custom_fences": [fence]}
    config.nav = [entry for entry in map(existing, config.nav or []) if entry]


def formula(source: str, *_: Any, **__: Any) -> str:
    """Turn LaTeX into MathML, which browsers draw without a script."""
    return f'<div class="math">{convert(source, display="block")}</div>'


def existing(entry: Any) -> Any:
    """Return a navigation entry without the pages that there are not, None if none is left."""
    if isinstance(entry, str):
        found = any((ROOT / folder / entry).exists() for folder in (".", "docs"))
        return entry if found or entry in GENERATED else None
    ((title, inner),) = entry.items()
    left = [kept for kept in map(existing, inner) if kept] if isinstance(inner, list) else (
        existing(inner)
    )  # fmt: skip
    return {title: left} if left else None


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add what is taken from elsewhere or generated."""
    for pattern in OUTSIDE:
        for path in filter(Path.is_file, sorted(ROOT.glob(pattern))):
            uri = path.relative_to(ROOT).as_posix()
            files.append(File(uri, str(ROOT), config.site_dir, config.use_directory_urls))
    made: dict[str, str | bytes] = {uri: make() for uri, make in GENERATED.items()}
    for page in sorted((ROOT / "docs" / "gallery").glob("*.md")):
        made |= {f"gallery/{name}": content for name, content in run(page).files.items()}
    for uri, content in made.items():
        files.append(File.generated(config, uri, content=content))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Show what a tutorial printed, and point links into the site."""
    uri = page.file.src_uri
    path = ROOT / "docs" / uri
    if uri.startswith("gallery/"):
        markdown = with_outputs(path)
    here = posixpath.dirname(path.relative_to(ROOT).as_posix() if path.exists() else uri)

    def into_site(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(here, link[1]))
        if (ROOT / target).is_dir():
            target += "/README.md"
        there = target.removeprefix("docs/")
        if files.get_file_from_path(there) is None:
            if not (ROOT / target).is_file():
                return link[0]
            there = target  # such as a record: it comes along
            files.append(File(there, str(ROOT), config.site_dir, config.use_directory_urls))
        return f"]({posixpath.relpath(there, posixpath.dirname(uri) or '.')}"

    return re.sub(r"\]\(([^)#:]+)", into_site, markdown)
