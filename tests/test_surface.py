"""The public names, pinned."""

import subprocess
import sys

import pytest

import convsim

pytestmark = pytest.mark.core


def test_public_names():
    assert sorted(convsim.__all__) == [
        "ActivationPenalty", "ConvolutionalSimilarity", "ConvsimError", "ConvsimWarning",
        "DataError", "InitializationHistory", "KernelBank", "KernelRedundancy", "LayerChange",
        "LayerRedundancy", "MapPair", "MapSimilarity", "MissingExtraError", "NonFiniteError",
        "PRESETS", "Penalty", "RedundancyComparison", "RedundancyReport", "Regularizer",
        "ShrinkReport", "Shrunk", "conv_layers", "convolutional_similarity",
        "expected_similarity", "initialize_", "kernel_bank", "load_shrunk", "measure", "shrink",
        "similarity_matrix",
    ]  # fmt: skip
    assert all(hasattr(convsim, name) for name in convsim.__all__)


EXTRAS = (
    "lightning", "matplotlib", "numpy", "PIL", "pooch", "rich", "safetensors", "scipy", "sklearn",
    "torch_pruning", "torchmetrics", "typer",
)  # fmt: skip
CORE = f"""
import sys
sys.modules.update(dict.fromkeys({EXTRAS}))  # as if not installed
import torch, convsim
model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3))
images = torch.randn(4, 3, 9, 9)
convsim.initialize_(model, steps=2)
regularizer = convsim.Regularizer(model)
(model(images).square().mean() + regularizer()).backward()
report = convsim.measure(model, [images])
assert "<!doctype html>" in report.to_html().lower()
assert convsim.RedundancyReport.from_json(report.to_json()) == report
for needs in (report.table, report.figure):
    try:
        needs()
    except convsim.MissingExtraError as error:
        assert "pip install '.[report]'" in str(error), error
"""


def test_the_core_needs_torch_alone():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", CORE], check=False)
    assert done.returncode == 0


def test_the_version_needs_torch_alone():
    code = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS})); sys.argv[1:] = ['--version']"
    code += "; from convsim.cli import main; main()"
    printed = subprocess.check_output([sys.executable, "-W", "ignore", "-c", code], text=True)
    assert printed.strip() == convsim.__version__
