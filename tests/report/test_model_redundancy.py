"""The numbers that follow from a report's layers, and the report as a sequence of them."""

import pytest

import convsim


def test_a_report_is_its_layers(report):
    assert list(report) == list(report.layers)
    assert len(report) == 5
    assert "2" in report
    assert "x" not in report
    assert report["2"] is report.layers[1]
    with pytest.raises(convsim.ConvsimError, match=r"no layer 'x'; it has '0', '2'"):
        report["x"]
