"""Build convsim's C++ with the machine's own compiler at first use, and load it.

Built once per source, compiler and instruction set, into ``$CONVSIM_HOME`` (by default
``~/.cache/convsim``), in a few seconds.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock

from convsim.errors import ConvsimError
from convsim.home import home

_FOLDER = Path(__file__).parent
_SOURCES = [_FOLDER / name for name in ("lanes.h", "similarity.cpp", "maps.cpp")]
_INSTRUCTIONS = {"AVX512": ["-march=x86-64-v4"], "AVX2": ["-march=x86-64-v3"]}

_THREADS = (("-fopenmp",), ())
"""By OpenMP, or one alone where the compiler has none, as macOS' own."""
_BACKENDS = ("compiled", "fused", "eager")
_SECONDS = 120
"""That a build may take."""

logger = logging.getLogger(__name__)


def chosen_backend() -> str | None:
    """Read ``$CONVSIM_BACKEND``, which forces one.

    Raises:
        ConvsimError: If there is none of that name.
    """
    name = os.environ.get("CONVSIM_BACKEND")
    if name is not None and name not in _BACKENDS:
        raise ConvsimError(
            f"CONVSIM_BACKEND must be one of {', '.join(map(repr, _BACKENDS))}; got {name!r}."
        )
    return name


@cache
def library() -> ctypes.CDLL | None:
    """Build and load the C++ once; return None if there is no compiler or it fails."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        logger.info("no C++ compiler was found (set CXX): penalties use the eager backend")
        return None
    output: object = None
    for threads in _THREADS:
        try:
            return ctypes.CDLL(str(_build(compiler, threads)))
        except (TimeoutError, subprocess.TimeoutExpired) as error:
            output = error
            break
        except (OSError, subprocess.CalledProcessError) as error:
            output = getattr(error, "stderr", None) or error
    logger.warning("penalties use the eager backend, because %s failed: %s", compiler, output)
    return None


def _build(compiler: str, threads: Sequence[str]) -> Path:
    flags = [
        *("-O3", "-std=c++17", "-fPIC", "-shared", *threads),
        *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
        *_INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability(), []),
    ]
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    texts = [source.read_text() for source in _SOURCES]
    described = "\n".join([*texts, *flags, version.stdout, platform.machine()])
    folder = home()
    built = folder / f"compiled-{hashlib.sha256(described.encode()).hexdigest()[:16]}.so"
    if not built.exists():
        folder.mkdir(parents=True, exist_ok=True)
        units = [str(source) for source in _SOURCES if source.suffix == ".cpp"]
        lock = FileLock(folder / "compiled.lock", timeout=2 * _SECONDS)
        Path(lock.lock_file).touch()  # fails at once where nothing can be written
        with lock, tempfile.TemporaryDirectory() as scratch:
            if not built.exists():
                target, copy = Path(scratch) / "compiled.so", folder / "compiled.tmp"
                subprocess.run(
                    [compiler, *flags, *units, "-o", str(target)],
                    capture_output=True, text=True, check=True, timeout=_SECONDS,
                )  # fmt: skip
                shutil.copyfile(target, copy)  # of one name: what a kill leaves is written over
                copy.replace(built)
    return built
