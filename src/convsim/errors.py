"""What convsim raises: every message names the rule, the value, the place and the remedy."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class ConvsimError(ValueError):
    """Base of every error that convsim raises on purpose."""


class NonFiniteError(ConvsimError):
    """A value that must be finite became NaN or infinite."""


class DataError(ConvsimError):
    """A data set that is missing, corrupt, or not in the expected layout."""


class WriteError(ConvsimError, OSError):
    """A file cannot be written: the disk is full, or the folder is read-only."""


class MissingExtraError(ConvsimError, ImportError):
    """An optional dependency is not installed."""


class ConvsimWarning(UserWarning):
    """Base of every warning that convsim gives."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a sentence, with a space before it, on the known names close to one that is not.

    Example:
        >>> did_you_mean("recomended", ["none", "recommended"])
        " Did you mean 'recommended'?"
    """
    close = difflib.get_close_matches(name, [*known])
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency, or raise an error that names the install command.

    Args:
        module: Dotted name of the module to import.
        extra: The extra of convsim that installs it.

    Raises:
        MissingExtraError: If the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        raise MissingExtraError(
            f"This part of convsim needs {module!r}, which is not installed. Install it from a "
            f"clone of convsim: pip install '.[{extra}]'"
        ) from error
