"""The studies: draws, minimisation and measurement against plain loops; resuming; the command."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch

from closeness import assert_close
from convsim.cli import main
from convsim.errors import ConvsimError
from convsim.lab.records import read_records
from convsim.lab.studies import STUDIES, run_study
from convsim.lab.studies.draws import INPUTS, Setting, bank_of, draw, feature_maps, mean_cosine
from convsim.lab.studies.minimization import PENALTIES, change, minimize
from convsim.lab.studies.orthogonality import _lag_0_share
from convsim.lab.studies.pairs import _mean_similarity
from convsim.lab.studies.similarity import _certificate_violations, _worst_inputs


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize(("axes", "channels"), [(1, 1), (2, 3), (2, 4)])
def test_draws_are_seeded_and_vary(inputs, axes, channels):
    setting = Setting(inputs=inputs, size=3, axes=axes, channels=channels)
    filters, x = draw(setting, 4)
    assert filters.shape == (4, 2, channels, *(3,) * axes)
    assert x.shape == (4, channels, *setting.extent)
    assert x.isfinite().all()
    assert x.flatten(1).std(1).min() > 1e-3
    again = draw(setting, 4)
    assert torch.equal(again[1], x)
    assert torch.equal(again[0], filters)
    assert not torch.equal(draw(setting, 4, seed=1)[1], x)


def test_pink_noise_falls_as_1_over_f():
    x = draw(Setting(inputs="1/f noise"), 500)[1][:, 0]
    power = torch.fft.rfft(x).abs().square().mean(0)[1:32]
    frequency = torch.arange(1, 32).double()
    slope = np.polyfit(frequency.log(), power.log(), 1)[0]
    assert slope == pytest.approx(-2, abs=0.1)


@pytest.mark.parametrize("padding", ["valid", "full", "same", "circular"])
def test_feature_maps_equal_numpys_correlation(padding):
    filters, x = draw(Setting(kernels="normal", size=5, channels=2), 3)
    maps = feature_maps(filters, x, padding)
    for g, i in ((0, 1), (2, 0)):
        wide = x[g].numpy()
        mode = padding
        if padding == "circular":
            wide, mode = np.concatenate([wide, wide[:, :4]], 1), "valid"
        expected = sum(np.correlate(wide[c], filters[g, i, c].numpy(), mode) for c in range(2))
        np.testing.assert_allclose(maps[g, i], expected, atol=1e-12)


def test_mean_cosine_averages_pairs():
    vectors = torch.tensor([[[1.0, 0], [1, 1], [0, -2]]])
    assert_close(mean_cosine(vectors)[0], (0.5**0.5 * 2 + 0) / 3, terms=6)


@pytest.mark.parametrize("name", PENALTIES)
def test_every_draw_is_minimised_for_itself(name):
    filters, _ = draw(Setting(kernels="normal"), 5)
    together = minimize(filters, name, steps=5)
    bank = bank_of(filters)
    values = [PENALTIES[name].value(bank_of(w)) for w in (filters, together)]
    assert values[1] < values[0]
    moved = minimize(torch.cat([filters[:2], filters[:2]]), name, steps=5)
    torch.testing.assert_close(moved[:2], moved[2:])
    assert bank.filters is filters


def test_the_authors_toy_setting_is_theirs():
    """300 SGD steps of the scripts' rates on U(0, 1), in plain loops, on one pair."""
    filters = torch.rand(400, 2, 1, 9, dtype=torch.float64)
    ours = minimize(filters, "cosine")
    pair = filters[0, :, 0].clone().requires_grad_()
    optimizer = torch.optim.SGD([pair], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        (pair[0] @ pair[1] / pair[0].norm() / pair[1].norm()).square().backward()
        optimizer.step()
    torch.testing.assert_close(ours[0, :, 0], pair.detach(), rtol=0.03, atol=0.03)


def test_change_counts_rises():
    row = change(torch.tensor([1.0, 2, 3, 4]).double(), torch.tensor([0.0, 3, 3, 2]).double())
    assert (row["before"], row["after"], row["relative"], row["rises"]) == pytest.approx(
        (2.5, 2.0, -0.2, 0.25)
    )
    assert (row["median"], row["low"] < -1, row["high"] > 0.5) == (-0.5, True, True)


def test_the_share_of_lag_0_by_hand():
    filters = torch.tensor([[[[1.0, 2.0]], [[3.0, -1.0]]]], dtype=torch.float64)
    inputs = torch.tensor([[[1.0, 0.0, 2.0, 1.0]]], dtype=torch.float64)
    k = np.correlate([3.0, -1.0], [1.0, 2.0], "full")
    r = np.correlate([1.0, 0, 2, 1], [1.0, 0, 2, 1], "full")[2:5]
    terms = np.abs(k * r)
    assert _lag_0_share(filters, inputs) == pytest.approx(terms[1] / terms.sum())


def test_adversarial_inputs_make_maps_more_alike_and_stay_below_the_certificate():
    filters, x = draw(Setting(inputs="normal", kernels="normal"), 20)
    worst = _worst_inputs(filters, x, steps=30)
    before, after = (mean_cosine(feature_maps(filters, i, "full")) for i in (x, worst))
    assert after.mean() > before.mean() + 0.1
    assert _certificate_violations(filters, worst) == 0


def test_the_lower_bound_holds_and_is_reached_by_a_flat_spectrum():
    filters, _ = draw(Setting(kernels="normal", size=3, axes=2, filters=6), 10)
    mean, bound = _mean_similarity(filters)
    assert (mean >= bound - 1e-12).all()
    flat = torch.tensor([[[[1.0, 1.0]], [[1.0, -1.0]]]], dtype=torch.float64)
    mean, bound = _mean_similarity(flat)
    assert mean.item() == pytest.approx(bound.item())


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_resumes_and_fills_its_table(tmp_path, name):
    study = dataclasses.replace(STUDIES[name], cases=STUDIES[name].cases[::7])
    done = []
    rows = run_study(study, 3, tmp_path, done.append)
    assert done == list(range(1, len(study.cases) + 1))
    before = read_records(tmp_path / "records.jsonl")
    assert run_study(study, 3, tmp_path) == rows
    assert read_records(tmp_path / "records.jsonl") == before
    table = (tmp_path / "table.md").read_text().splitlines()
    assert len(table) == 4 + len(rows) + 2
    for heading, *_ in study.columns:  # the legend explains what does not explain itself
        assert heading in ("inputs", "axes", "channels", "padding", "filters", "after", "±") or (
            heading.lower() in table[-1].lower()
        )
    assert (tmp_path / "figure.png").stat().st_size > 5000
    for row in rows:
        assert 0 <= row["rises"] <= 1


def test_the_claims_in_small():
    """Kernel cosine vanishes yet maps stay alike; similarity makes them less alike."""
    case = next(c for c in STUDIES["orthogonality"].cases if c.inputs == "photographs")
    row = STUDIES["orthogonality"].run(dataclasses.replace(case, kernels="normal"), 100)
    assert row["kernels_after"] < 0.01
    assert row["after"] > 0.7
    assert row["rises"] > 0.15
    unit = [c for c in STUDIES["similarity"].cases if c.scale == "unit"]
    row = STUDIES["similarity"].run(unit[0], 100)
    assert row["relative"] < -0.3
    assert row["violations"] == 0


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["convsim", "study", "pairs", "--draws", "2", "--out", str(tmp_path / "x")]
    )
    small = dataclasses.replace(STUDIES["pairs"], cases=STUDIES["pairs"].cases[:3])
    monkeypatch.setitem(STUDIES, "pairs", small)
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    captured = capsys.readouterr()
    assert "Are adjacent pairs enough" in captured.out
    assert "records.jsonl" in captured.err
    lines = (tmp_path / "x" / "records.jsonl").read_text().splitlines()
    assert [json.loads(line)["configuration"]["draws"] for line in lines] == [2] * 3


def test_a_damaged_record_is_told(tmp_path):
    (tmp_path / "records.jsonl").write_text("nonsense\n")
    with pytest.raises(ConvsimError, match="line 1: not a record"):
        run_study(STUDIES["pairs"], 2, tmp_path)
