"""What a test needs beyond torch: without it the test is skipped, and where CI runs it fails."""

import importlib
import os
import shutil
from types import ModuleType

import pytest


def need(found: object, remedy: str) -> None:
    """Go on where something was found; else say how to come by it."""
    if not found:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(remedy)


def need_module(name: str) -> ModuleType:
    """Import what `make test` installs."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        need(None, f"{error}: pip install --editable '.[dev]', as make test does")
        raise


def need_compiler() -> None:
    """Ask for the backend that is built at first use."""
    from convsim.backends.library import library

    need(library(), "no C++ compiler builds the backend: apt-get install g++, or set CXX")


def need_chromium() -> str:
    """Return where Chromium is."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    need(path, "no Chromium on the PATH: apt-get install chromium")
    return str(path)
