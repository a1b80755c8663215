"""The certificate on real inputs, against the oracle's loops and against itself."""

import numpy as np
import pytest
import torch

import oracles
from closeness import assert_close
from convsim.kernels import kernel_bank
from convsim.similarity.certificate import certified_cosines
from seeds import new_generator

pytestmark = pytest.mark.core

CASES = [
    # kernel, size, stride, dilation, groups, transposed
    ((3,), (7,), (1,), (1,), 1, False),
    ((3,), (7,), (2,), (1,), 1, False),
    ((4,), (9,), (2,), (3,), 1, False),
    ((3, 2), (5, 4), (1, 1), (1, 1), 1, False),
    ((3, 3), (6, 5), (2, 1), (1, 2), 1, False),
    ((2, 3), (5, 5), (3, 2), (1, 1), 2, False),
    ((3, 3), (1, 1), (2, 2), (1, 1), 1, False),
    ((3,), (6,), (2,), (1,), 1, True),
    ((3, 2), (4, 5), (2, 2), (2, 1), 2, True),
    ((2, 2, 2), (3, 3, 2), (1, 2, 1), (1, 1, 1), 1, False),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_equals_the_oracle(case):
    kernel, size, stride, dilation, groups, transposed = case
    generator = new_generator()
    filters, channels, images = 3 * groups, 2, 2
    shape = (channels * groups, 3, *kernel) if transposed else (filters, channels, *kernel)
    weight = torch.randn(shape, dtype=torch.float64, generator=generator)
    bank = kernel_bank(
        weight, stride=stride, dilation=dilation, groups=groups, transposed=transposed
    )
    inputs = torch.randn(images, channels * groups, *size, dtype=torch.float64, generator=generator)
    bound, measured = certified_cosines(bank, inputs)
    assert (bound >= measured - 1e-12).all()
    grouped = oracles.filters_by_group(weight.numpy(), groups=groups, transposed=transposed)
    feature_map = oracles.transposed_feature_map if transposed else oracles.feature_map
    options = {"stride": stride, "dilation": dilation}
    for n, image in enumerate(inputs.unflatten(1, (groups, channels)).numpy()):
        for g in range(groups):
            norm = oracles.input_correlation_norm(
                image[g], kernel, transposed=transposed, **options
            )
            maps = [feature_map(f, image[g], **options) for f in grouped[g]]
            maps = [np.array(list(m.values()) if isinstance(m, dict) else m) for m in maps]
            for i in range(3):
                for j in range(i):
                    norms = np.linalg.norm(maps[i]) * np.linalg.norm(maps[j])
                    similarity = oracles.filter_similarity(
                        grouped[g][i], grouped[g][j], channels="crossed", transposed=transposed,
                        **options,
                    )  # fmt: skip
                    assert measured[n, g, i, j].item() == pytest.approx(
                        abs((maps[i] * maps[j]).sum()) / norms
                    )
                    assert bound[n, g, i, j].item() == pytest.approx(
                        np.sqrt(similarity) * norm / norms
                    )


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_scale_changes_nothing(scale):
    generator = new_generator()
    weight, inputs = (torch.randn(s, generator=generator) for s in ((3, 2, 3, 3), (1, 2, 6, 6)))
    expected = certified_cosines(kernel_bank(weight), inputs)
    scaled = certified_cosines(kernel_bank(scale * weight), scale * inputs)
    assert_close(scaled, expected, terms=2 * 18 + 64 + 36)


def test_zero_maps_have_none():
    bank = kernel_bank(torch.zeros(2, 1, 3))
    bound, measured = certified_cosines(bank, torch.randn(1, 1, 5))
    assert bound.isnan().all()
    assert measured.isnan().all()
