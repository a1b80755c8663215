"""The report of a shrinking as one HTML page that needs nothing else."""

from __future__ import annotations

import math
from html import escape

from convsim.report.html import document
from convsim.shrinking.changes import Before, FoldedMap, FoldPicture, LayerChange, NetworkChange
from convsim.shrinking.pictures import drawn
from convsim.visible import visible

_STYLE = """
:root { color-scheme: light dark; --fill: #1b7f5c; --gone: #d8dee6; --text: #222; --paper: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --fill: #3fae86; --gone: #3a4048; --text: #e6e6e6; --paper: #181a1b; } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem;
  color: var(--text); background: var(--paper); }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.figures { display: flex; flex-wrap: wrap; gap: 2.5rem; margin: 1.5rem 0; }
.figures b { display: block; font-size: 1.6rem; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #8884; }
th:first-child, td:first-child, td.note, th.note { text-align: left; }
svg { vertical-align: middle; } .all { fill: var(--gone); } .kept { fill: var(--fill); }
.folds { display: flex; flex-wrap: wrap; gap: 1rem 2rem; margin: .6rem 0; }
figure { margin: 0; } figcaption { font-size: .8em; }
figure span { display: inline-block; text-align: center; margin-right: .35rem; font-size: .75em; }
figure img { display: block; width: 64px; image-rendering: pixelated; margin: auto; }
.scroll { overflow-x: auto; } td { white-space: nowrap; }
td.note { white-space: normal; min-width: 12rem; font-size: .85em; }
@media (max-width: 34rem) { th, td { padding: .2rem .35rem; font-size: .85rem; } }
details { margin: .4rem 0; } summary { cursor: pointer; }
"""


def shrink_page(report: NetworkChange) -> str:
    """Make the page: the whole network, a bar a layer, and what each lost map was folded into."""
    title = f"Shrinking {report.model}"
    rows = "\n".join(map(_row, report.layers))
    first: dict[tuple[FoldedMap, ...], str] = {}  # channels that are added go together
    for layer in report.layers:
        first.setdefault(layer.folded, layer.name)
    folds = "\n".join(_folds(layer, first[layer.folded]) for layer in report.layers if layer.folded)
    body = f"""<h1>{escape(visible(title))}</h1>
<div class="figures">
<div><b>{_share(report.parameters)}</b>of the parameters: {_counts(report.parameters)}</div>
<div><b>{_share(report.macs)}</b>of the multiplications: {_counts(report.macs)}</div>
<div><b>{_percent(report.output_error)}</b>of the outputs' variance is lost,<br>
on {report.images:,} calibration images, more on others</div>
</div>
<h2>Layers</h2>
<div class="scroll"><table>
<tr><th>Layer</th><th></th><th>Channels</th><th>Parameters</th><th>Multiplications</th>
<th>Error</th><th class="note"></th></tr>
{rows}
</table></div>
<p>Error: what the consumers of a layer's maps lose by those that are gone, relative to the variance
of what they put out, before later layers repair any of it.</p>
<h2>Which maps were folded into which</h2>
<p>A map that is gone is read as the sum of kept ones, each times a factor; the three that tell most
of it are named. Pictures show what the first layer that reads the maps sees of the first
calibration image: the map that is gone, what all kept ones tell of it on the same scale of grey,
and the three, each on its own scale.</p>
{folds or "<p>None: every map stays.</p>"}"""
    return document(title, _STYLE, body, "img-src data:")


def _row(layer: LayerChange) -> str:
    error = "" if math.isnan(layer.error) else _percent(layer.error)
    return (
        f"<tr><td>{escape(visible(layer.name))}</td><td>{_bar(layer.channels)}</td>"
        f"<td>{_counts(layer.channels)}</td><td>{_counts(layer.parameters)}</td>"
        f"<td>{_counts(layer.macs)}</td><td>{error}</td>"
        f'<td class="note">{escape(visible(layer.reason))}</td></tr>'
    )


def _bar(count: Before) -> str:
    width = round(120 * count.share, 1)
    return (
        '<svg width="120" height="10" role="img">'
        f"<title>{_share(count)} of the channels stay</title>"
        '<rect class="all" width="120" height="10" rx="2"/>'
        f'<rect class="kept" width="{width}" height="10" rx="2"/></svg>'
    )


def _folds(layer: LayerChange, first: str) -> str:
    if layer.name != first:
        return (
            f"<p>{escape(visible(layer.name))}: the same channels as {escape(visible(first))}, for "
            "they are added to each other or lie one behind the other.</p>"
        )
    items = "\n".join(
        f"<tr><td>{fold.map}</td><td class='note'>" + (_sum(fold) or "nothing") + "</td></tr>"
        for fold in layer.folded
    )
    pictures = "\n".join(_picture(fold, layer) for fold in layer.pictures)
    return (
        f"<details><summary>{escape(visible(layer.name))}: {_maps(layer)}</summary>"
        f"<div class='folds'>{pictures}</div>"
        f"<table><tr><th>Map</th><th class='note'>read as</th></tr>\n{items}</table></details>"
    )


def _maps(layer: LayerChange) -> str:
    return f"{len(layer.folded)} map{'s' * (len(layer.folded) > 1)}"


def _sum(fold: FoldedMap) -> str:
    """Write the sum of kept maps that stands for one that is gone."""
    terms = (f"{'−' if factor < 0 else '+'} {abs(factor):.3g} · map {m}" for m, factor in fold.into)
    return " ".join(terms).removeprefix("+ ")


def _picture(fold: FoldPicture, layer: LayerChange) -> str:
    into = next(one.into for one in layer.folded if one.map == fold.map)
    shown = [("gone", drawn(fold.lost)), ("as told", drawn(fold.told, fold.lost))]
    shown += [
        (f"{factor:.3g} · {kept}", drawn(map_hw))
        for (kept, factor), map_hw in zip(into, fold.into, strict=True)
    ]
    pictures = "".join(f"<span><img alt='' src='{source}'>{name}</span>" for name, source in shown)
    return f"<figure><figcaption>map {fold.map}</figcaption>{pictures}</figure>"


def _counts(count: Before) -> str:
    if count.before == count.after:
        return f"{count.before:,}"
    return f"{count.before:,} → {count.after:,}"


def _share(count: Before) -> str:
    return f"{100 * count.share:.3g} %"


def _percent(share: float) -> str:
    return "undefined" if math.isnan(share) else f"{100 * share:.2g} %"
