"""Fixtures for every test."""

import gc
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from leaks import set_aside
from needs import need_chromium, need_module
from seeds import SEED, reseed

settings.register_profile(
    "busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("busy machine")


if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is first imported

_VISION = Path(sys.prefix) / "vision"  # where `make test` puts torchvision and timm
_MISSING_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_PREPEND = partial(sys.path.insert, 0)
_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what takes torchvision or timm."""
    for item in items:
        if "vision" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.vision)


def pytest_collection_finish() -> None:
    """Spare later collections of garbage what has been imported, which is there to stay."""
    set_aside()


def pytest_unconfigure() -> None:
    """Let the interpreter take apart what was set aside."""
    gc.unfreeze()


def pytest_report_header() -> str:
    """Say what the tests' numbers hang on."""
    return (
        f"seed {SEED}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    )


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Draw the same numbers in a test whatever ran before it."""
    reseed()


@pytest.fixture
def vision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make torchvision and timm importable."""
    use_vision(monkeypatch.syspath_prepend)


def use_vision(prepend: Callable[[str], None] = _PREPEND) -> None:
    """Make them importable beside a CPU build of torch they were not built for."""
    prepend(str(_VISION))
    spec = find_spec("torchvision")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for operators in Path(folder).glob("_C.*"):
            # Where they do load, torchvision's own would clash with definitions made before them.
            with suppress(OSError):
                torch.ops.load_library(str(operators))
    for operator in _MISSING_OPERATORS:
        if not hasattr(torch.ops.torchvision, operator.partition("(")[0]):
            _LIBRARY.define(operator)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process: (stdout, stderr), after checking the exit code."""
    from convsim.cli import main

    def run(*arguments, code=0):
        monkeypatch.setattr(sys, "argv", ["convsim", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        assert (stop.value.code or 0) == code, captured.err
        return captured

    return run


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium."""
    path = need_chromium()
    with need_module("playwright.sync_api").sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
