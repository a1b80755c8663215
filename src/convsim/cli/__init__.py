"""The command line: parse, call one function, format. Needs ``convsim[lab]``."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from convsim.errors import MissingExtraError, require
from convsim.version import __version__


def main() -> None:
    """Run ``convsim``."""
    if sys.argv[1:] == ["--version"]:  # the one answer that needs no extra
        print(__version__)
        sys.exit(0)
    try:
        for module in ("typer", "lightning"):
            if find_spec(module) is None:  # not imported to know: Lightning takes seconds
                require(module, "lab")
    except MissingExtraError as error:
        sys.exit(f"Error: {error}")
    from convsim.cli.app import run  # noqa: PLC0415 - needs the extra

    run()
