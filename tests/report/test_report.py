"""Tables, figures, comparison, and logging of a report."""

import dataclasses
import math
import sys

import pytest
from rich.console import Console

import convsim
from closeness import assert_close

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
        assert cells[2] == ("–" if math.isnan(layer.similarity) else f"{layer.similarity:.3f}")
    assert "kernel cosine" in text


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
    with pytest.raises(convsim.ConvsimError, match=r"no layer in common: before has 0, 2.*other"):
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
