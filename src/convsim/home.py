"""Where convsim keeps what it builds, downloads and decodes."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """Return ``$CONVSIM_HOME``, or ``convsim`` in ``$XDG_CACHE_HOME``, by default ``~/.cache``."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("CONVSIM_HOME") or f"{caches}/convsim").expanduser()
