"""JSON and back, and what is refused."""

import json

import pytest
import torch

import convsim
from closeness import assert_close
from convsim.report import RedundancyReport

pytestmark = pytest.mark.core


def test_a_round_trip_keeps_everything(report):
    text = report.to_json()
    again = RedundancyReport.from_json(text)
    assert again.to_json() == text
    for mine, theirs in zip(report.layers, again.layers, strict=True):
        assert_close(theirs.matrix, mine.matrix, terms=1, dtype=torch.float16)
        assert torch.equal(theirs.kernels.norms, mine.kernels.norms)
        assert_close(theirs.kernels.cosine, mine.kernels.cosine, terms=1, dtype=torch.float16)
        assert repr((theirs, theirs.worst, theirs.histogram)) == repr(
            (mine, mine.worst, mine.histogram)
        )
    assert torch.equal(again.examples, report.examples)


def test_it_is_plain_json_with_a_version(report):
    content = json.loads(report.to_json())
    assert content["schema"] == 1
    assert content["convsim"] == convsim.__version__
    assert content["similarity"] == report.similarity
    assert content["layers"][0]["similarity"] == report.layers[0].similarity
    single = content["layers"][3]
    assert (single["filters"], single["similarity"]) == (1, None)


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", "[" * 100_000, '{"schema": NaN'])
def test_other_texts_are_refused(text):
    with pytest.raises(convsim.ConvsimError, match="Not a convsim report"):
        RedundancyReport.from_json(text)


def test_another_schema_is_refused(report):
    content = json.loads(report.to_json()) | {"schema": 2}
    with pytest.raises(convsim.ConvsimError, match=r"schema 2; convsim .* reads 1"):
        RedundancyReport.from_json(json.dumps(content))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["images"], "many"),
        (["images"], True),
        (["layers"], 3),
        (["layers", 0, "name"], 3),
        (["layers", 0, "filters"], 9),
        (["layers", 0, "filters"], 10**9),
        (["layers", 0, "similarity"], "high"),
        (["layers", 0, "matrix", "dtype"], "object"),
        (["layers", 0, "matrix", "shape"], [-1]),
        (["layers", 0, "matrix", "shape"], [35]),
        (["layers", 0, "matrix", "shape"], [10**12]),
        (["layers", 0, "matrix", "zlib"], "AAAA"),
        (["layers", 0, "matrix", "zlib"], "é"),
        (["layers", 0, "kernels", "groups"], None),
    ],
    ids=str,
)
def test_damage_is_told(report, path, value):
    content = json.loads(report.to_json())
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(convsim.ConvsimError, match="report is damaged"):
        RedundancyReport.from_json(json.dumps(content))


def test_undefined_values_come_back_undefined(silent):
    again = RedundancyReport.from_json(silent.to_json())
    assert again.silent == silent.silent
    assert torch.equal(again["2"].matrix.isnan(), silent["2"].matrix.isnan())
    assert again.similarity == silent.similarity
    assert type(again) is RedundancyReport


def test_float32_is_written_with_no_digits_that_it_does_not_have(report):
    pairs = [pair for layer in report for pair in layer.worst]
    values = [layer.kernels.bound for layer in report if layer.filters > 1]
    values += [pair.kernel_cosine for pair in pairs if pair.kernel_cosine == pair.kernel_cosine]
    assert max(len(repr(value).lstrip("0.").replace(".", "")) for value in values) <= 9
    content = json.loads(report.to_json())
    assert content["layers"][0]["worst"][0]["kernel_cosine"] == pairs[0].kernel_cosine
