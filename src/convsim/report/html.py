"""What every HTML page of convsim is held to, and how one is written."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path


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
