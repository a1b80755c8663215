"""The public names, pinned."""

import subprocess
import sys

import convsim


def test_public_names():
    assert sorted(convsim.__all__) == [
        "ConvolutionalSimilarity", "ConvsimError", "ConvsimWarning", "DataError",
        "ExpectedSimilarity", "InitializationHistory", "KernelRedundancy", "LayerRedundancy",
        "MapPair", "MissingExtraError", "NonFiniteError", "PRESETS", "RedundancyComparison",
        "RedundancyReport", "Regularizer", "conv_layers", "convolutional_similarity",
        "expected_similarity", "initialize_", "measure", "similarity_matrix",
    ]  # fmt: skip
    assert all(hasattr(convsim, name) for name in convsim.__all__)


def test_the_core_imports_torch_alone():
    extras = {"lightning", "rich", "typer", "matplotlib", "PIL", "sklearn", "torchmetrics"}
    code = f"import sys, convsim; print(sorted({extras} & set(sys.modules)))"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"
