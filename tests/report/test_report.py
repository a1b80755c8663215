"""Tables, figures, comparison, and logging of a report."""

import dataclasses
import math
import sys

import pytest
import torch
from rich.console import Console
from torch import nn

import convsim
from closeness import assert_close
from convsim.report import RedundancyComparison
from convsim.report.verdict import unrelated

pytestmark = pytest.mark.core


def printed(renderable):
    console = Console(width=200)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_the_table_shows_every_layer(report):
    text = printed(report)
    assert f"similarity {report.similarity:.3f}" in text
    for layer in report.layers:
        row = next(line for line in text.splitlines() if line.split()[:1] == [layer.name])
        cells = row.split()
        assert cells[1] == str(layer.filters)
        assert cells[2] == f"{layer.effective_rank:.1f}"
        assert cells[3] == ("–" if math.isnan(layer.similarity) else f"{layer.similarity:.3f}")
    assert report.verdict in " ".join(text.split())
    assert "kernel cosine" not in text
    assert "kernel cosine" in printed(report.table(verbose=True))


def test_the_tables_fit_eighty_columns(report, later):
    name = "features.denseblock4.denselayer16.conv2.parametrizations.weight.original0"
    report, later = (
        dataclasses.replace(one, layers=(dataclasses.replace(one["2"], name=name, filters=2048),))
        for one in (report, later)
    )
    for shown in (report, report.compare(later)):
        console = Console(width=80)
        with console.capture() as capture:
            console.print(shown)
        assert "2048" in capture.get()
        assert all(len(line) <= 80 for line in capture.get().splitlines())
        assert "…" not in capture.get()


def test_several_reports_under_names_of_their_own(report, later):
    several = RedundancyComparison({"plain": report, "penalty": later, "again": report})
    assert several.before is several.after is report
    assert [len(layers) for layers in several.layers] == [3, 3]
    text = printed(several)
    assert "similarity" in text
    assert "penalty" in text
    assert "8" in text
    drawn = several.figure().axes[0]
    named = [text.get_text() for text in drawn.get_legend().get_texts()]
    assert named == ["plain", "penalty", "again", "unrelated maps"]
    with pytest.raises(convsim.ConvsimError, match="needs two reports or more; got 1"):
        RedundancyComparison({"plain": report})


def test_a_notebook_shows_tables_and_figures(report, later):
    for shown in (report, report.compare(later)):
        assert f'<td style="text-align:right">{report["0"].similarity:.3f}</td>' in (
            shown._repr_html_()
        )
    assert report.figure()._repr_png_().startswith(b"\x89PNG")
    layer = dataclasses.replace(report.layers[0], name="<script>")
    evil = dataclasses.replace(report, model="<b>", layers=(layer,))
    assert "<script>" not in evil._repr_html_()
    assert "<b>&lt;b&gt;" in evil._repr_html_()


def test_data_frames_hold_the_numbers(report, later):
    frame = report.to_pandas()
    assert [*frame.index] == [layer.name for layer in report]
    assert [*frame.similarity[:3]] == [layer.similarity for layer in report.layers[:3]]
    assert frame.loc["0", "kernels_mean_cosine"] == report["0"].kernels.mean_cosine
    both = report.compare(later).to_pandas()
    assert both.loc[("after", "2"), "filters"] == 10


def test_the_verdict_names_the_layer_and_what_to_do(report):
    narrow = dataclasses.replace(
        report.layers[0], name="14", filters=64, effective_rank=16.2, kernels=None
    )
    wide = dataclasses.replace(report.layers[1], effective_rank=11.9)
    verdict = dataclasses.replace(report, layers=(wide, narrow)).verdict
    assert verdict.startswith(
        "Look first at layer 14: 64 maps, rank 16 (if all were different: 64)"
    )
    assert "convsim.shrink(" in verdict
    assert "All 2 layers together: 76 maps, effective rank 28." in verdict
    assert dataclasses.replace(report, layers=(wide,)).verdict.startswith("Little to gain")
    single = dataclasses.replace(report, layers=(report["5"],))
    assert single.verdict.startswith("No layer has two maps to compare")


def test_a_layer_is_held_to_the_directions_that_it_can_have(report):
    """Nine weights a filter leave 64 maps nine directions, as in a first layer on grey."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 64, 3))
    model[0].bias.data.zero_()
    measured = convsim.measure(model, [torch.randn(64, 1, 20, 20)])
    layer = measured.layers[0]
    windows = nn.functional.unfold(torch.randn(1, 1, 20, 20), 3)[0]
    assert layer.kernels.directions == torch.linalg.matrix_rank(windows) + 1 == 10
    assert "(if all were different: 10)" in measured.verdict
    assert measured.verdict.startswith("Little to gain")
    assert convsim.RedundancyReport.from_json(measured.to_json()).verdict == measured.verdict
    biased = convsim.measure(nn.Sequential(nn.Conv2d(1, 64, 1)), [torch.randn(9, 1, 20, 20)])
    assert biased.layers[0].kernels.directions == 2
    with torch.no_grad():
        model[0].weight[9:] = model[0].weight[:9].repeat(7, 1, 1, 1)[:55]
        model[0].bias[9:] = model[0].bias[:9].repeat(7)[:55]
    twice = convsim.measure(model, [torch.randn(64, 1, 20, 20)])
    assert twice.verdict.startswith("Look first at layer 0")
    old = dataclasses.replace(layer, kernels=dataclasses.replace(layer.kernels, directions=None))
    assert dataclasses.replace(measured, layers=(old,)).verdict.startswith("Look first at layer 0")
    assert str(measured) == f"Sequential, 64 images, similarity {layer.similarity:.3f}. " + (
        measured.verdict
    )


def test_unrelated_maps_are_as_alike_as_said():
    maps = torch.randn(400, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cosines = torch.corrcoef(maps).abs().fill_diagonal_(0)
    assert cosines.sum() / (400 * 399) == pytest.approx(unrelated(64), rel=0.02)


def test_names_with_brackets_are_shown_as_they_are(report):
    layer = dataclasses.replace(report.layers[0], name="[red]x[/red]")
    assert "[red]x[/red]" in printed(dataclasses.replace(report, layers=(layer,)))


def test_a_comparison(report, later):
    comparison = report.compare(later)
    assert comparison.similarity == later.similarity - report.similarity
    assert [(b.name, a.name) for b, a in comparison.layers] == [("0", "0"), ("2", "2")]
    text = printed(comparison)
    assert f"({comparison.similarity:+.3f})" in text
    assert "12 → 10" in text
    assert comparison.figure().axes[0].get_legend() is not None


def test_reports_without_a_common_layer_are_refused(report):
    other = dataclasses.replace(
        report, layers=(dataclasses.replace(report.layers[0], name="other"),)
    )
    with pytest.raises(
        convsim.ConvsimError, match=r"no layer in common: before has 0, 2.*after has other"
    ):
        report.compare(other)


def test_pages_are_saved_into_folders_that_are_made(report, later, tmp_path):
    for number, shown in enumerate((report, report.compare(later))):
        path = tmp_path / f"{number}/of/it/page.html"
        shown.save_html(path)
        assert path.read_text("utf-8") == shown.to_html()


def test_figures_draw_the_report(report):
    similarity, correlation = report.figure().axes
    drawn = similarity.lines[0].get_ydata()
    assert list(drawn[:3]) == [layer.similarity for layer in report.layers[:3]]
    heat, bars, _ = report.layer_figure("0").axes
    assert heat.images[0].get_array().shape == (8, 8)
    assert [bar.get_height() for bar in bars.patches] == list(report["0"].histogram)
    assert correlation.get_ylim()[0] == 0


def test_scalars_are_what_loggers_take(report, tmp_path):
    scalars = report.scalars()
    assert scalars["convsim/similarity"] == report.similarity
    assert scalars["convsim/similarity/0"] == report["0"].similarity
    assert "convsim/similarity/5" not in scalars  # one filter: undefined
    assert all(type(value) is float and math.isfinite(value) for value in scalars.values())

    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        for name, value in scalars.items():
            writer.add_scalar(name, value, 3)
        writer.add_figure("convsim/report", report.figure(), 3)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path)).Reload()
    (event,) = events.Scalars("convsim/similarity")
    assert_close(event.value, report.similarity, terms=1)
    assert events.Images("convsim/report")[0].width > 500


@pytest.mark.parametrize(
    ("missing", "call"), [("rich.table", "table"), ("matplotlib.figure", "figure")]
)
def test_a_missing_extra_is_named(report, monkeypatch, missing, call):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(convsim.MissingExtraError, match=r"pip install '\.\[report\]'"):
        getattr(report, call)()


def test_silent_layers_are_named(silent, report):
    assert "All maps are zero in 1.0: no similarity" in printed(silent)
    assert "All maps are zero" not in printed(report)
    for name in ("1.0", "2"):
        heat, *_ = silent.layer_figure(name).axes
        assert len(heat.images) == 1
