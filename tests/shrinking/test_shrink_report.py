"""What is said of a shrinking."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from networks import network
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

import convsim

pytestmark = pytest.mark.numeric


@pytest.fixture
def shrunk():
    model, images = network("residual")
    return convsim.shrink(model, [images], parameters=0.5, layers=["0", "*.body.*", "6"])


def test_counts_are_those_of_the_networks(shrunk):
    model, images = network("residual")
    for which, net in (("before", model), ("after", shrunk.model)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(images[:1])
        assert getattr(shrunk.report.macs, which) * 2 == counter.get_total_flops()
        count = sum(p.numel() for p in net.parameters())
        assert getattr(shrunk.report.parameters, which) == count
    for layer in shrunk.report.layers:
        assert layer.channels.before == len(model.get_submodule(layer.name).weight)
        assert layer.channels.after == len(shrunk.model.get_submodule(layer.name).weight)


def test_the_output_error_is_the_networks_difference():
    model, images = network("plain")
    shrunk = convsim.shrink(model, images.split(100), channels=0.5)
    with torch.no_grad():
        want, got = model(images).double(), shrunk.model(images).double()
    error = (want - got).square().mean() / (want - want.mean(0)).square().mean()
    assert shrunk.report.output_error == pytest.approx(float(error), rel=1e-3)


def test_maps_that_are_gone_are_named_with_those_that_tell_them():
    model, images = network("plain")
    with torch.no_grad():
        for tensor in (*model[0].parameters(), *model[1].state_dict().values()):
            if tensor.dim():
                tensor[5] = tensor[2]
        model[1].weight[5] *= 0.5
        model[1].bias[5] *= 0.5
    shrunk = convsim.shrink(model, [images], channels=0.875, layers="0", positions=10**9)
    (fold,) = shrunk.report["0"].folded
    assert (fold.map, fold.into[0][0]) in {(5, 2), (2, 5)}
    assert fold.into[0][1] == pytest.approx(0.5 if fold.map == 5 else 2, rel=1e-4)


def test_json_holds_every_layer_and_no_nan(shrunk):
    content = json.loads(shrunk.report.to_json())
    assert [one["name"] for one in content["layers"]] == [x.name for x in shrunk.report.layers]
    assert content["parameters"]["after"] == shrunk.report.parameters.after


def test_the_table_names_every_layer_and_reason(shrunk):
    console = Console(file=io.StringIO(), width=200)
    console.print(shrunk.report)
    text = console.file.getvalue()
    assert all(layer.name in text for layer in shrunk.report.layers)
    assert "no layer reads them" in text


def test_the_page_is_self_contained_and_shows_names_as_text():
    model, images = network("plain")
    model.add_module("<script>alert(1)</script>", torch.nn.Linear(5, 5))
    page = convsim.shrink(model.eval(), [images], channels=0.5).report.to_html()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "http" not in page.replace("http-equiv", "")
    assert "default-src 'none'" in page


def test_pictures_show_the_maps_that_are_gone_and_what_is_told_of_them(tmp_path):
    from PIL import Image

    model, images = network("plain")
    with torch.no_grad():
        for tensor in (*model[0].parameters(), *model[1].state_dict().values()):
            if tensor.dim():
                tensor[5] = tensor[2]
        maps = model[2](model[1](model[0](images[:1])))[0]
    shrunk = convsim.shrink(model, [images], channels=0.5, uniformly=True, positions=10**9)
    layer = shrunk.report["0"]
    assert {picture.map for picture in layer.pictures} == {fold.map for fold in layer.folded}
    for picture, fold in zip(
        sorted(layer.pictures, key=lambda one: one.map), layer.folded, strict=True
    ):
        torch.testing.assert_close(picture.lost, maps[picture.map], rtol=1e-5, atol=1e-6)
        for kept, (number, _) in zip(picture.into, fold.into, strict=True):
            torch.testing.assert_close(kept, maps[number], rtol=1e-5, atol=1e-6)
    twin = next(one for one in layer.pictures if one.map in (2, 5))
    torch.testing.assert_close(twin.told, twin.lost, rtol=1e-4, atol=1e-4)
    page = shrunk.report.to_html()
    assert "img-src data:" in page
    source = page.partition("src='data:image/png;base64,")[2].partition("'")[0]
    (tmp_path / "map.png").write_bytes(base64.b64decode(source))
    with Image.open(tmp_path / "map.png") as picture:
        grey = torch.from_numpy(np.array(picture)).float()
    lost = layer.pictures[0].lost
    want = (lost - lost.min()) / (lost.max() - lost.min()) * 255
    assert float((grey - want).abs().max()) <= 0.5 + 1e-3
    assert "pictures" not in shrunk.report.to_json()


def test_a_notebook_shows_the_table_with_names_as_text():
    model, images = network("plain")
    model.add_module("<b>", torch.nn.Linear(5, 5))
    shrunk = convsim.shrink(model.eval(), [images], channels=0.5)
    page = shrunk._repr_html_()
    assert page == shrunk.report._repr_html_()
    assert "The channels of &lt;b&gt; stay: no layer reads them" in page
    assert '<td style="text-align:left">&lt;b&gt;</td>' in page
    after = shrunk.report["0"].channels.after
    assert f'<td style="text-align:right">8 → {after}</td>' in page


def test_a_shrunk_network_says_in_a_sentence_what_it_cost_and_writes_its_page(tmp_path):
    model, images = network("plain")
    shrunk = convsim.shrink(model, [images], parameters=0.5)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, shrunk.model))
    assert str(shrunk).startswith(f"Sequential: {before:,} → {after:,} parameters; ")
    shrunk.report.save_html(tmp_path / "new" / "page.html")
    assert (tmp_path / "new" / "page.html").read_text(encoding="utf-8") == shrunk.report.to_html()


def test_swapped_arguments_and_a_file_in_the_folders_place_are_told(tmp_path):
    model, images = network("plain")
    with pytest.raises(convsim.ConvsimError, match=r"load_shrunk\(model, folder\)"):
        convsim.load_shrunk("folder", model)
    shrunk = convsim.shrink(model, [images], parameters=0.5)
    (tmp_path / "file").write_text("")
    with pytest.raises(convsim.ConvsimError, match="is a file"):
        shrunk.save(tmp_path / "file")


def test_channels_that_go_together_are_shown_once():
    model, images = network("residual")
    report = convsim.shrink(model, [images], channels=0.5, uniformly=True).report
    tied = [layer.name for layer in report.layers if layer.folded == report.layers[0].folded]
    assert len(tied) > 1
    page = report.to_html()
    assert page.count("the same channels as") == len(
        [layer for layer in report.layers if layer.folded]
    ) - len({layer.folded for layer in report.layers if layer.folded})
    assert f"{tied[1]}: the same channels as {tied[0]}" in page
