"""Every backend against autograd through convsim.similarity in float64, on every option."""

import importlib
import os
import shutil
from itertools import product

import pytest
import torch
from torch import nn

from cases import GEOMETRIES, OPTIONS
from closeness import assert_close, rounding
from convsim import ConvolutionalSimilarity, ConvsimError, Regularizer, backends
from convsim.backends import eager, fused
from convsim.backends.library import library
from convsim.backends.problem import Job, half_classes
from convsim.kernels import kernel_bank
from convsim.similarity import Options, bank_similarity
from needs import need_compiler, need_module
from seeds import new_generator

pytestmark = pytest.mark.core

LARGE = [  # as GEOMETRIES
    ((6, 70, 3, 3), 1, 1, 1),  # more than one run of channels
    ((5, 300, 5, 5), 2, 1, 1),
    ((4, 3, 7, 7), 2, 1, 1),
    ((2, 1, 13, 13), 1, 1, 1),  # more taps than the compiled backend takes
]


DTYPES = [torch.float32, torch.float64]
SLICED = ["eager, sliced", "eager, by Fourier"]
PLAIN = ["eager", *SLICED, "compiled"]
INTERPRETED = pytest.mark.interpreted


@pytest.fixture(params=[*PLAIN, pytest.param("fused", marks=INTERPRETED)])
def backend(request, monkeypatch):
    if request.param.startswith("eager"):
        monkeypatch.setenv("CONVSIM_BACKEND", "eager")
        if request.param in SLICED:
            monkeypatch.setitem(eager._ELEMENTS, "cpu", 100)
        if request.param == "eager, by Fourier":
            monkeypatch.setattr(eager, "_FOURIER_FROM", {"crossed": 0, "matched": 0})
        return request.param
    if request.param == "fused":
        need_module("triton")
    if request.param == "compiled":
        need_compiler()
    monkeypatch.setenv("CONVSIM_BACKEND", request.param)
    return request.param


def reference(bank, options):
    """Value and gradient by autograd."""
    filters = bank.filters.detach().requires_grad_()
    value = bank_similarity(bank.with_filters(filters), options)
    return value.detach(), torch.autograd.grad(value, filters)[0]


def limit(weight):
    """What the four sums over a filter may come to: norm, autocorrelation, value, gradient."""
    return rounding(4 * weight[0].numel(), weight.dtype)


def error_of(weight, options, **geometry):
    """Relative error of value and gradient, and the two, against float64."""
    bank = kernel_bank(weight, **geometry)
    expected, expected_gradient = reference(kernel_bank(weight.double(), **geometry), options)
    gradient = torch.zeros_like(weight)
    for factor in (3.0, -1.0):
        (value,) = backends.add_gradients_(
            [bank], [kernel_bank(gradient, **geometry).filters], factor, options
        )
    gradient = kernel_bank(gradient, **geometry).filters.double() / 2
    assert value.dtype == bank.filters.dtype
    # A unit filter's gradient is what is left of two terms of size value / norm.
    terms = expected.item() / (weight.norm() / len(weight) ** 0.5).item()
    scale = max(expected_gradient.norm().item(), terms)
    off = (gradient - expected_gradient).norm().item() / scale if scale else gradient.norm().item()
    return abs(value.item() / expected.item() - 1) if expected else value.item(), off


# The fused kernels take float32, and in Triton's interpreter their time.
CASES = [
    *((name, case, dtype) for name in PLAIN for case in [*GEOMETRIES, *LARGE] for dtype in DTYPES),
    *(
        pytest.param("fused", case, torch.float32, marks=INTERPRETED)
        for case in GEOMETRIES
        if max(case[0]) <= 20
    ),
]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("backend", "case", "dtype"), CASES, indirect=["backend"])
def test_equals_the_reference(monkeypatch, backend, case, transposed, dtype):
    shape, stride, dilation, groups = case
    weight = torch.randn(shape, generator=new_generator(), dtype=dtype)
    if backend in SLICED:  # some slices of a large kernel, not thousands
        monkeypatch.setitem(eager._ELEMENTS, "cpu", max(100, weight.numel() // 8))
    geometry = {
        "stride": stride, "dilation": dilation, "groups": groups, "transposed": transposed,
    }  # fmt: skip
    for options in OPTIONS[::5] if backend == "fused" else OPTIONS:
        assert max(error_of(weight, options, **geometry)) < limit(weight), options


@pytest.fixture(scope="module")
def trained():
    from convsim.lab.datasets import load_dataset
    from convsim.lab.methods import METHODS
    from convsim.lab.runs import Recipe, Run
    from convsim.lab.training import train

    digits = load_dataset("digits").subset(train=400, test=50)
    recipe = Recipe(width=6, epochs=4, lr=0.2, measured_images=10)
    return train(Run(METHODS["none"], 0, recipe, digits, test=False))[0]


@pytest.mark.training
def test_equals_the_reference_on_trained_weights(backend, trained):
    weights = [layer.weight.detach() for layer in trained if isinstance(layer, nn.Conv2d)]
    # The cost of the fused kernels grows with the square of the filters in Triton's interpreter.
    small = [weight for weight in weights if len(weight) <= 12]
    assert small
    for weight in small if backend == "fused" else weights:
        for options in OPTIONS[::5]:
            assert max(error_of(weight, options)) < limit(weight), options


@pytest.mark.parametrize(
    ("backend", "options"),
    [
        *product(PLAIN, OPTIONS),
        *(pytest.param("fused", options, marks=INTERPRETED) for options in OPTIONS[::5]),
    ],
    ids=str,
    indirect=["backend"],
)
@pytest.mark.parametrize("ratio", [1e-2, 1e-4, 1e-8])
def test_keeps_its_digits_for_norms_far_apart(backend, options, ratio):
    weight = torch.randn(6, 20, 3, 3, generator=new_generator())
    weight[1::2] *= ratio
    value, _ = error_of(weight, options)
    assert value < limit(weight)
    gradient = torch.zeros_like(weight)
    backends.add_gradients_([kernel_bank(weight)], [kernel_bank(gradient).filters], 1.0, options)
    precise = kernel_bank(weight.double())
    expected = reference(precise, options)[1][0]
    off = (gradient - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    assert off.max() < limit(weight)


@pytest.mark.parametrize("factor", [1e-30, 1e-15, 1e15, 1e30])
def test_unit_filters_of_any_norm(backend, factor):
    weight = torch.randn(4, 5, 3, 3, generator=new_generator())
    for channels in ("crossed", "matched"):
        options = Options("all", channels, "unit", "mean")
        results = []
        for by in (1.0, factor):
            gradient = torch.zeros_like(weight)
            (value,) = backends.add_gradients_(
                [kernel_bank(weight * by)], [kernel_bank(gradient).filters], by, options
            )
            results.append((value, gradient))
        assert_close(results[0], results[1], terms=4 * weight[0].numel())


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_zero_filter_gets_no_gradient(backend, options):
    weight = torch.randn(4, 5, 3, 3, generator=new_generator())
    weight[1] = 0
    assert max(error_of(weight, options)) < limit(weight)
    gradient = torch.zeros_like(weight)
    backends.add_gradients_([kernel_bank(weight)], [kernel_bank(gradient).filters], 1.0, options)
    assert not gradient[1].any()


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # interpreted
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_bad_weights_give_no_number(backend, options, bad):
    weight = torch.randn(4, 5, 3, 3)
    weight[2, 3, 1, 1] = bad
    (value,) = backends.add_gradients_([kernel_bank(weight)], [None], 1.0, options)
    assert not value.isfinite()


def test_any_memory_layout(backend):
    plain = torch.randn(6, 20, 3, 3, generator=new_generator())
    layouts = {
        "channels last": lambda w: w.to(memory_format=torch.channels_last),
        "every other element": lambda w: w.repeat_interleave(2, dim=3)[..., ::2],
        "taps transposed": lambda w: w.mT.contiguous().mT,
    }
    for options in OPTIONS[:: 5 if backend == "fused" else 2]:
        expected = torch.zeros_like(plain)
        backends.add_gradients_([kernel_bank(plain)], [kernel_bank(expected).filters], 1.0, options)
        for lay_out in layouts.values():
            weight, gradient = lay_out(plain), lay_out(torch.zeros_like(plain))
            backends.add_gradients_(
                [kernel_bank(weight)], [kernel_bank(gradient).filters], 1.0, options
            )
            assert_close(gradient, expected, terms=4 * plain[0].numel())


@pytest.mark.parametrize("channels", ["crossed", "matched"])
def test_threads_do_not_change_a_bit_of_the_compiled_backend(channels):
    need_compiler()
    weight = torch.randn(300, 40, 3, 3, generator=new_generator())
    options = Options("all", channels, "unit", "mean")
    results = []
    threads = torch.get_num_threads()
    for count in (1, 2, 2):
        torch.set_num_threads(count)
        gradient = torch.zeros_like(weight)
        values = backends.add_gradients_(
            [kernel_bank(weight)], [kernel_bank(gradient).filters], 1.0, options
        )
        results.append((values[0], gradient))
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for r in results[1:] for a, b in zip(r, results[0], strict=True))


@INTERPRETED
def test_blocks_of_filters_add_up_in_the_fused_kernels(monkeypatch):
    need_module("triton")
    monkeypatch.setenv("CONVSIM_BACKEND", "fused")
    monkeypatch.setattr(fused, "_BLOCK", 4)
    weight = torch.randn(12, 2, 3, 3, generator=new_generator())
    for pairs, scale in (("all", "unit"), ("adjacent", "raw")):
        options = Options(pairs, "crossed", scale, "mean")
        assert max(error_of(weight, options, groups=2)) < limit(weight)


def test_mirrored_classes_are_one():
    classes = half_classes(kernel_bank(torch.zeros(1, 1, 3, 3)).geometry)
    assert classes.count == 13
    assert classes.multiplicity.tolist() == [1.0] + [2.0] * 12
    strided = half_classes(kernel_bank(torch.zeros(1, 1, 3, 3), stride=2).geometry)
    assert strided.count == 5  # lags 0, (0, 2), (2, 0), (2, 2), (2, −2)
    assert strided.pair_class.max() == 5  # left out


def test_layers_of_all_kinds_go_together(backend):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 7, stride=2), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 3, 17),
        nn.ConvTranspose2d(3, 6, 4, stride=2), nn.Conv2d(6, 6, 3).double(),
        nn.Conv2d(6, 6, 3, groups=2), nn.Conv2d(6, 4, 3).bfloat16(),
    )  # fmt: skip
    for penalty in (ConvolutionalSimilarity(), ConvolutionalSimilarity(channels="matched")):
        regularizer = Regularizer(model, penalty)
        model.zero_grad()
        regularizer().backward()
        expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        value = regularizer.backward_()
        actual = [p.grad for p in model.parameters() if p.grad is not None]
        assert_close(value, regularizer(), terms=4 * 8 * 17**2, dtype=torch.float32)
        for one, other in zip(actual, expected, strict=True):
            terms = 2 if one.dtype == torch.bfloat16 else 4 * one[0].numel()
            assert_close(one, other, terms=terms)


def test_an_unknown_backend_is_refused(monkeypatch):
    monkeypatch.setenv("CONVSIM_BACKEND", "cuda")
    with pytest.raises(ConvsimError, match="'compiled', 'fused', 'eager'"):
        backends.add_gradients_([kernel_bank(torch.ones(1, 1, 3, 3))], [None], 1.0, OPTIONS[0])


@pytest.mark.parametrize("compiler", ["/nowhere/c++", "false"])
def test_eager_serves_where_nothing_compiles(monkeypatch, tmp_path, compiler):
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("CONVSIM_HOME", str(tmp_path))
    library.cache_clear()
    try:
        assert library() is None
        weight = torch.randn(4, 5, 3, 3)
        assert max(error_of(weight, OPTIONS[0])) < limit(weight)
    finally:
        monkeypatch.undo()
        library.cache_clear()


def test_a_compiler_without_openmp_builds_it_too_and_once(monkeypatch, tmp_path):
    need_compiler()
    compiler = tmp_path / "c++"
    own = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    compiler.write_text(f'#!/bin/sh\ncase "$*" in *-fopenmp*) exit 1; esac\nexec {own} "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("CONVSIM_HOME", str(tmp_path))
    monkeypatch.setenv("CONVSIM_BACKEND", "compiled")
    library.cache_clear()
    try:
        assert library() is not None
        (built,) = tmp_path.glob("*.so")
        written = built.stat().st_mtime_ns
        library.cache_clear()
        assert library() is not None
        assert built.stat().st_mtime_ns == written
        weight = torch.randn(40, 50, 3, 3, generator=new_generator())
        for options in OPTIONS[::5]:
            assert max(error_of(weight, options)) < limit(weight)
    finally:
        monkeypatch.undo()
        library.cache_clear()


def test_eager_serves_where_triton_cannot_compile(monkeypatch):
    need_module("triton")
    kernels = importlib.import_module("convsim.backends.fused_kernels")
    monkeypatch.setenv("CONVSIM_BACKEND", "fused")
    monkeypatch.setattr(kernels, "sum_blocks", None)
    fused._triton_works.cache_clear()
    try:
        weight = torch.randn(4, 5, 3, 3)
        assert not fused.serves(Job(kernel_bank(weight), None), OPTIONS[0])
        assert max(error_of(weight, OPTIONS[0])) < limit(weight)
    finally:
        fused._triton_works.cache_clear()


def test_eager_serves_where_nothing_can_be_written(monkeypatch):
    monkeypatch.setenv("CONVSIM_HOME", "/proc")
    library.cache_clear()
    try:
        assert library() is None
    finally:
        monkeypatch.undo()
        library.cache_clear()
