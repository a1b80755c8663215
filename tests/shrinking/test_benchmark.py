"""A share of benchmarks/shrink.py: every method cuts the same network to the same size."""

import argparse
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import shrink as benchmark

from convsim.lab.datasets import load_dataset


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    options = argparse.Namespace(
        model="cnn", width="4", epochs=1, precision="float32", runs=tmp_path_factory.mktemp("runs"),
        images=100, layers=[], lr=[0.1],
    )  # fmt: skip
    return benchmark.Case(options, load_dataset("digits"), seed=0)


@pytest.mark.parametrize(("kind", "share"), [("channels", 0.5), ("parameters", 0.25)])
def test_every_method_cuts_to_the_same_size_and_no_further(case, kind, share):
    sizes = {}
    for name, make in benchmark.methods(case, kind, share):
        small = make()
        with torch.no_grad():
            assert small(case.batches[0]).isfinite().all(), name
        sizes[name] = sum(p.numel() for p in small.parameters())
    whole = sum(p.numel() for p in case.model.parameters())
    budget = sizes.pop(benchmark.BUDGET, None)
    assert len(sizes) >= 10
    assert len(set(sizes.values())) == 1, sizes
    if budget is not None:
        assert max(budget, *sizes.values()) <= share * whole


def test_tones_have_the_pitch_they_are_labelled_with():
    """The strongest line of each spectrum is a whole multiple of the pitch."""
    from published_networks import RATE, SAMPLES, told_within, tones

    waves, cents = tones(64, 0)
    assert waves.mean(1).abs().max() < 1e-5
    assert (waves.std(1) - 1).abs().max() < 1e-5
    spectrum = torch.fft.rfft(waves.double() * torch.hann_window(SAMPLES), 16 * SAMPLES).abs()
    peak = spectrum.argmax(1) * RATE / (16 * SAMPLES)
    pitch = 10 * 2 ** (cents / 1200)
    off = (peak / pitch - (peak / pitch).round()).abs() * pitch
    assert (off < RATE / SAMPLES).all()
    told = ((cents - 1997.3794084376191) / 20).round().long()
    right = torch.nn.functional.one_hot(told, 360).double()
    assert told_within(right, cents).all()
    assert told_within(right.roll(3, 1), cents).double().mean() < 0.2


def test_lines_are_upright_or_turned_as_they_are_labelled(monkeypatch):
    """By where the ink is: what is true of the one kind is true of the other, turned."""
    import published_networks as published

    monkeypatch.setattr(published, "NOISE", 0.0)
    drawn, turned = published.lines(40, 0)
    assert drawn.shape == (40, 3, 48, 192)
    assert 8 < turned.sum() < 32
    widths = [int(one[0].abs().sum(0).nonzero().max()) + 1 for one in drawn]
    ink = [
        (one[0, :, :width] - one[0, 0, 0]).abs().sum(1)
        for one, width in zip(drawn, widths, strict=True)
    ]
    rows = torch.arange(48.0) - 23.5
    # Capitals, ascenders and digits rise above the middle; what hangs below the line is rarer.
    low = torch.tensor([float(profile @ rows / profile.sum()) for profile in ink])
    assert (low[turned == 0].mean() > 0) != (low[turned == 1].mean() > 0)
    assert published.chosen(torch.nn.functional.one_hot(turned, 2), turned).all()
