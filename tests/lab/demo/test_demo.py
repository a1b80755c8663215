"""The demo on two tiny trainings: what it says is what its parts hold."""

import json
import math

import pytest
import torch
from torch import nn

from convsim.lab import demo as demo_package
from convsim.lab.demo import presentation, run_demo, write_demo
from convsim.lab.demo.smallest_filters import without_smallest_filters
from convsim.lab.runs import Recipe


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A demo of few steps, and its folder; run twice, it trains once."""
    folder = tmp_path_factory.mktemp("demo")
    tiny = Recipe(epochs=1, batch_size=320, lr=0.1, width=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_package.run, "LONG", tiny)
        patch.setattr(demo_package.run, "SHORT", tiny)
        patch.setattr("os.cpu_count", lambda: 1)
        said = []
        run_demo(folder, lambda *what: said.append(what), seeds=1)
        demo = run_demo(folder, lambda *_: None, seeds=1)
    assert {what for what, _, _ in said} >= {"train a network", "look at it", "shrink it"}
    return demo, folder


def test_what_it_says_is_what_its_parts_hold(shown):
    demo, folder = shown
    paths = write_demo(demo, folder)
    lines = (folder / "training" / "records.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [r["configuration"]["method"]["name"] for r in records] == ["none", "recommended"]
    table = paths["table"].read_text()
    for record in records:
        assert f"{100 * record['result']['test_accuracy']:.1f}" in table
    half, quarter = demo.smaller
    assert quarter.parameters <= 0.25 < half.parameters <= 0.5
    assert f"{100 * half.accuracy:.1f} % | {100 * half.smallest:.1f} %" in table
    rank = sum(layer.effective_rank for layer in demo.report)
    assert f"| {rank:.0f} |" in table
    assert demo.report.data.startswith("photographs")
    assert not math.isnan(demo.report.similarity)
    page = paths["page"].read_text()
    assert "data:image/png;base64," in page
    assert 'href="redundancy.html"' in page
    assert "Redundancy of" in paths["network"].read_text()
    assert paths["figure"].read_bytes().startswith(b"\x89PNG")


def test_the_figure_draws_the_numbers(shown):
    demo, _ = shown
    see, shrink, train = presentation.figure(demo).axes
    heights = [bar.get_height() for bar in see.patches]
    assert heights[: len(demo.report)] == [layer.filters for layer in demo.report]
    ours = shrink.lines[1].get_ydata()
    assert [*ours] == [100 * x for x in (demo.accuracy, *(one.accuracy for one in demo.smaller))]
    assert len(train.lines) == 1 + 2 * 2


def test_the_largest_filters_stay_and_batchnorm_is_estimated_anew():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2),
    ).eval()  # fmt: skip
    images = torch.randn(201, 1, 8, 8)
    small = without_smallest_filters(model, {"0": 4}, images)
    norms = model[0].weight.flatten(1).norm(dim=1)
    stay = norms.argsort()[2:].sort().values
    torch.testing.assert_close(small[0].weight, model[0].weight[stay])
    torch.testing.assert_close(small[3].weight, model[3].weight[:, stay])
    maps = small[0](images).detach()
    drawn = torch.randperm(201, generator=torch.Generator().manual_seed(0))
    parts = [maps[some] for some in drawn.split(100)]
    means = torch.stack([part.mean((0, 2, 3)) for part in parts]).mean(0)
    torch.testing.assert_close(small[1].running_mean, means)
    assert len(model[0].weight) == 6
