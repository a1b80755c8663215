"""Equal input gives equal numbers: for every number of threads, and every split into batches."""

from itertools import pairwise

import pytest
import torch
from torch import nn

import convsim
from closeness import assert_close
from convsim import PRESETS, Regularizer
from convsim.backends.library import library
from needs import need_compiler
from seeds import new_generator, reseed

pytestmark = pytest.mark.core

THREADS = (1, 2, 4, 1)


@pytest.fixture(autouse=True)
def _threads_back():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


SUMS = 27 + 196 + 144 + 196
"""Of the network below: a pixel and a map, one layer after the other."""


def network():
    reseed()
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3, stride=2)
    )


def with_each_number_of_threads(compute):
    results = []
    for threads in THREADS:
        torch.set_num_threads(threads)
        results.append(compute())
    return results


@pytest.mark.parametrize("penalty", PRESETS)
def test_penalties_and_gradients_for_every_number_of_threads(penalty):
    images = torch.randn(8, 3, 16, 16, generator=new_generator())

    def compute():
        model = network()
        regularizer = Regularizer(model, penalty)
        model(images)
        value = regularizer()
        value.backward()
        return [value.detach(), model[0].weight.grad, model[3].weight.grad]

    first, *others = with_each_number_of_threads(compute)
    assert all(torch.equal(one, other) for one, other in zip(first, others[-1], strict=True))
    closed_form = penalty in ("crossed", "matched", "adjacent", "authors")
    exact = closed_form and library() is not None  # no input, and convsim's own sums
    for result in others:
        if exact:
            assert all(torch.equal(one, other) for one, other in zip(result, first, strict=True))
        assert_close(result, first, terms=2 * SUMS)


def test_initialization_is_the_same_to_the_bit_for_every_number_of_threads():
    need_compiler()

    def compute():
        model = network()
        convsim.initialize_(model, steps=5)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert all(torch.equal(a, b) for a, b in pairwise(with_each_number_of_threads(compute)))


def numbers(report):
    return [
        [
            layer.similarity,
            layer.correlation,
            layer.effective_rank / layer.filters,
            *layer.matrix.flatten().tolist(),
        ]
        for layer in report.layers
    ]


def test_measuring_in_batches_of_any_size_gives_the_same_numbers():
    images = torch.randn(48, 3, 14, 14, generator=new_generator())
    model = network()
    whole = convsim.measure(model, [images])
    for size in (1, 5, 16, 47):
        split = convsim.measure(model, images.split(size))
        assert split.images == whole.images
        assert_close(numbers(split), numbers(whole), terms=SUMS, size=1)
    shuffled = convsim.measure(model, images[torch.randperm(48)].split(16))
    assert_close(numbers(shuffled), numbers(whole), terms=SUMS, size=1)


def test_measuring_for_every_number_of_threads():
    images = torch.randn(16, 3, 14, 14, generator=new_generator())
    model = network()
    reports = with_each_number_of_threads(lambda: convsim.measure(model, images.split(8)))
    for report in reports[1:]:
        assert_close(numbers(report), numbers(reports[0]), terms=SUMS, size=1)
    assert numbers(reports[0]) == numbers(reports[-1])
