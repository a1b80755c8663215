"""The HTML page, opened in a real browser."""

import dataclasses
import json
import re
from itertools import pairwise

import pytest
import torch

import convsim
from closeness import assert_close
from convsim.report.heat_map import binned, similarity_order


@pytest.fixture
def open_page(browser, tmp_path):
    """Open a page offline; at the end, fail on anything the console said or anyone was asked."""
    said, asked = [], []
    context = browser.new_context(viewport={"width": 1200, "height": 900}, offline=True)

    def open_page(html):
        (tmp_path / "page.html").write_text(html, encoding="utf-8")
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto((tmp_path / "page.html").as_uri())
        return page

    yield open_page
    context.close()
    assert said == []
    assert [url for url in asked if not url.endswith("/page.html")] == []


def hover(page, row, column, size):
    """Hover the cell of a heat map and return what the tip says."""
    heat = page.locator("canvas.heat").first
    heat.scroll_into_view_if_needed()
    box = heat.bounding_box()
    page.mouse.move(
        box["x"] + (column + 0.5) / size * box["width"],
        box["y"] + (row + 0.5) / size * box["height"],
    )
    assert page.locator("#tip").is_visible()
    return page.locator("#tip").inner_text()


def assert_tip(page, row, column, i, j, matrix):
    tip, value = hover(page, row, column, len(matrix)).split(": ")
    assert tip == f"{i} × {j}"
    assert float(value) == pytest.approx(matrix[i, j].item(), abs=0.008)  # of 8 bits and 2 digits


def picture(page):
    return page.locator("canvas.heat").first.evaluate("canvas => canvas.toDataURL()")


def test_hovering_tells_the_value_in_either_order(open_page, report):
    page = open_page(report.to_html())
    page.select_option("#layer", "0")
    matrix = report["0"].matrix
    assert_tip(page, 2, 5, 2, 5, matrix)
    before = picture(page)
    page.select_option("#order", "similarity")
    assert picture(page) != before
    order = similarity_order(matrix)
    assert sorted(order) == list(range(8))
    i, j = order[0], order[1]
    assert_tip(page, 0, 1, i, j, matrix)
    page.select_option("#quantity", "cosine")
    assert_tip(page, 0, 1, i, j, report["0"].kernels.cosine)
    page.mouse.move(0, 0)
    assert not page.locator("#tip").is_visible()


def test_the_summary_says_what_the_report_says(open_page, report):
    page = open_page(report.to_html())
    assert f"{report.similarity:.3f}" in page.inner_text("#lead")
    rows = page.locator("#layers tbody tr")
    assert rows.count() == page.locator("#bars button").count() == len(report.layers)
    for row, layer in zip(rows.all(), report.layers, strict=True):
        cells = row.locator("td").all_inner_texts()
        assert (cells[0], cells[2]) == (layer.name, str(layer.filters))
        assert cells[1] == (
            "–" if layer.filters == 1 or layer.pixels == 1 else f"{layer.similarity:.3f}"
        )
        row.click()
        assert page.inner_text("#layer-title").startswith(f"{layer.name}: {layer.filters} maps")
        assert page.locator(".card").count() == len(layer.worst)
    assert "one pixel" in page.inner_text("#pairs")
    assert "one pixel" in page.inner_text("#heat")


def test_pairs_show_their_maps_on_the_chosen_image(open_page, report):
    page = open_page(report.to_html())
    page.select_option("#layer", "0")
    card = page.locator(".card").first
    worst = report["0"].worst[0]
    assert (
        f"{worst.first} and {worst.second}: similarity {worst.similarity:.3f}" in card.inner_text()
    )
    assert card.locator("canvas.kernel").count() == 2 * 3
    maps = "canvases => canvases.map(canvas => canvas.toDataURL())"
    first = page.locator(".card .map").evaluate_all(maps)
    assert len(set(first)) > 2
    page.select_option("#image", index=2)
    assert page.locator(".card .map").evaluate_all(maps) != first
    drawn = card.locator(".map").first.evaluate(
        "c => [c.width, c.height, ...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    )
    values = report["0"].pictures.maps[2, 0, 0]
    assert drawn[:2] == [values.shape[1], values.shape[0]]
    darkest = 2 + 4 * int(values.flatten().argmin())
    assert drawn[darkest : darkest + 3] == [68, 1, 84]


def test_before_and_after_side_by_side(open_page, report, later):
    page = open_page(report.compare(later).to_html())
    assert f"{report.similarity:.3f} → {later.similarity:.3f}" in page.inner_text("#lead")
    assert page.locator("#layers tbody tr").nth(1).locator("td").nth(2).inner_text() == "12 → 10"
    for layer in ("0", "1"):
        page.select_option("#layer", layer)
        assert page.locator("canvas.heat").count() == 2
        assert page.locator("#heat figcaption").all_inner_texts()[0].startswith("before")


def test_what_a_dead_map_leaves_undefined(open_page, silent):
    page = open_page(silent.to_html())
    assert "All maps are zero in 1.0: no similarity" in page.inner_text("#ranks")
    page.select_option("#layer", "1")
    assert "all its maps are zero on every image" in page.inner_text("#heat")
    assert "all its maps are zero on every image" in page.inner_text("#pairs")
    page.select_option("#layer", "2")
    assert hover(page, 3, 1, 6) == "3 × 1: undefined, for a map is zero"
    assert_tip(page, 2, 5, 2, 5, silent["2"].matrix)


def test_names_are_text(open_page, report):
    evil = "</script><img src=x onerror=alert(1)><b>&amp;"
    layer = dataclasses.replace(report.layers[0], name=evil, kind="<i>Conv</i>")
    page = open_page(dataclasses.replace(report, model=evil, layers=(layer,)).to_html())
    assert page.inner_text("#title") == f"Redundancy of {evil}"
    assert page.locator("#layers tbody td").first.inner_text() == evil
    assert page.locator("img, #layers i, #layers b").count() == 0


def test_a_hundred_layers_and_2048_filters_stay_responsive(open_page):
    values = torch.rand(2048, 2048, generator=torch.manual_seed(0))
    wide = (values + values.T) / 2
    kernels = convsim.KernelRedundancy(
        1, 0.5, 0.5, torch.ones(2048), wide, wide, 0.1, 0.2, 1.0, 0.5
    )
    layer = convsim.LayerRedundancy(
        "wide", "Conv2d", 2048, 49, 0.5, 0.5, 100.0, 0, (1,) * 20, (), wide, kernels, None
    )
    few = torch.rand(256, 256, generator=torch.manual_seed(1))
    few = (few + few.T) / 2
    small = dataclasses.replace(layer, filters=256, matrix=few, kernels=None)
    layers = [dataclasses.replace(small, name=f"layer{n}") for n in range(96)]
    report = convsim.RedundancyReport(
        "Wide", 1, (*layers, *[dataclasses.replace(layer, name=f"wide{n}") for n in range(4)]),
        torch.zeros(0, 1, 1, 1, dtype=torch.uint8),
    )  # fmt: skip
    html = report.to_html()
    assert len(html) < 10e6
    page = open_page(html)
    assert page.locator("#bars button").count() == 100
    spent = "n => { const start = performance.now(); choose(n); return performance.now() - start; }"
    slowest = max(page.evaluate(spent, n) for n in (0, 50, 96, 99))
    assert slowest < 1000, f"{slowest:.0f} ms to show a layer"
    assert (
        "2048 filters are binned: each cell is the mean over pairs of 16 × 16"
        in page.inner_text("#binned")
    )
    tip, value = hover(page, 1, 3, 128).split(" mean ")
    assert tip == "16–31 × 48–63:"
    assert float(value) == pytest.approx(wide[16:32, 48:64].mean().item(), abs=0.01)
    page.select_option("#order", "similarity")
    assert re.match(
        r"16 filters with \d+ × 16 filters with \d+: mean 0\.\d\d", hover(page, 1, 3, 128)
    )


def test_the_page_allows_no_source_but_itself(report):
    html = report.to_html()
    assert "default-src 'none'" in html
    assert "unsafe" not in html
    assert not re.search(r"https?://", html)
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', html)[1]
    assert json.loads(data)["reports"][0]["images"] == 6


def test_binning_averages_pairs_without_the_diagonal():
    matrix = torch.rand(10, 10)
    matrix = matrix + matrix.T
    bins = binned(matrix, 4)  # of 3, 3, 3 and 1 filters
    assert bins.shape == (4, 4)
    assert_close(bins[0, 1], matrix[:3, 3:6].mean(), terms=9)
    within = matrix[:3, :3].fill_diagonal_(0).sum() / 6
    assert_close(bins[0, 0], within, terms=9)
    assert bins[3, 3] == 0
    assert binned(matrix, 10) is matrix


def test_order_puts_like_filters_side_by_side():
    group = torch.tensor([0, 1, 0, 2, 1, 2, 0, 1])
    matrix = (group[:, None] == group).double() + 0.01
    order = similarity_order(matrix)
    assert sorted(order) == list(range(8))
    ordered = group[order].tolist()
    assert sum(a != b for a, b in pairwise(ordered)) == 2


def test_what_is_undefined_is_left_out_of_bins_and_comes_last_in_the_order():
    matrix = torch.rand(10, 10)
    matrix = matrix + matrix.T
    matrix[1] = matrix[:, 1] = torch.nan
    bins = binned(matrix, 4)
    assert_close(bins[0, 1], matrix[[0, 2], 3:6].mean(), terms=9)
    assert bins.isfinite().all()
    assert similarity_order(matrix)[-1] == 1


def test_what_is_spare_has_a_column_where_maps_were_read(open_page, report, model, images):
    read = convsim.measure(model, [images], place="reading")
    for shown, there in ((report, False), (read, True)):
        page = open_page(shown.to_html())
        head = page.locator("#layers thead th").all_inner_texts()
        assert ("spare" in head) is there
    cells = page.locator("#layers tbody tr").first.locator("td").all_inner_texts()
    assert cells[head.index("spare")] == str(read.layers[0].spare)
