"""What every HTML page of convsim is held to, and how one is written."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from pathlib import Path

from convsim.visible import visible


def document(title: str, style: str, body: str, *sources: str) -> str:
    """Make a page that needs nothing else.

    Args:
        title: Its title, as text.
        style: Its style sheet.
        body: Its content, in HTML.
        sources: What else than the style the page may use, as a policy says it.
    """
    policy = content_policy(*sources, f"style-src '{source_hash(style)}'")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape(visible(title))}</title>
<style>{style}</style></head><body>
{body}
</body></html>
"""


def content_policy(*sources: str) -> str:
    """Allow a page these sources and nothing else."""
    return "; ".join(("default-src 'none'", "base-uri 'none'", "form-action 'none'", *sources))


def source_hash(text: str) -> str:
    """Name a script or a style by its content, as a policy does."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def save_page(page: str, path: str | Path) -> None:
    """Write a page, making the folders on the way that are missing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
