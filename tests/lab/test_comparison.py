"""The grid: resumable, tuned apart from the test data, and statistics that hold."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from convsim.errors import ConvsimError, NonFiniteError
from convsim.lab.comparison import compare
from convsim.lab.datasets import load_dataset
from convsim.lab.doubts import doubts
from convsim.lab.methods import parse_method
from convsim.lab.paired import paired_tables
from convsim.lab.presentation import comparison_table, html_page, rows, write_comparison
from convsim.lab.records import append_record, read_records
from convsim.lab.runs import Recipe
from convsim.lab.summary import Estimate, summarize

TINY = Recipe(width=2, epochs=2, batch_size=64, measured_images=20)
METHODS = [parse_method(name) for name in ("none", "recommended@0.1,1")]


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits").subset(train=150, test=50)


@pytest.fixture(scope="module")
def grid(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid")
    return folder, compare(digits, TINY, METHODS, [0, 1], folder, tuning_seeds=2)


def results(records):
    timeless = {"seconds", "initialization_seconds"}
    return [{k: v for k, v in r["result"].items() if k not in timeless} for r in records]


def test_every_run_is_on_record_once(grid):
    folder, records = grid
    on_disk = read_records(folder / "records.jsonl")
    assert len(on_disk) == 4 + 4
    assert len({r["key"] for r in on_disk}) == 8
    tuning = [r for r in on_disk if not r["configuration"]["looks_at_test"]]
    assert {r["configuration"]["seed"] for r in tuning} == {1000, 1001}
    assert not any("test_accuracy" in r["result"] for r in tuning)
    assert [r["configuration"]["seed"] for r in records] == [0, 1, 0, 1]
    assert not (folder / "checkpoints").exists()


def test_the_best_held_out_coefficient_is_used(grid):
    folder, records = grid
    scores = {}
    for r in read_records(folder / "records.jsonl"):
        configuration = r["configuration"]
        if not configuration["looks_at_test"]:
            (c,) = configuration["method"]["coefficients"]
            scores.setdefault(c, []).append(r["result"]["validation_accuracy"][-1])
    best = max(scores, key=lambda c: np.mean(scores[c]))
    assert {tuple(r["configuration"]["method"]["coefficients"]) for r in records[2:]} == {(best,)}


def test_each_methods_learning_rate_is_tuned_at_its_best_coefficient(digits, tmp_path):
    seen = []
    records = compare(
        digits, TINY, METHODS, [0], tmp_path, tuning_seeds=1, learning_rates=[TINY.lr, 1e-6],
        report=lambda run, done, total: seen.append((done, total)),
    )  # fmt: skip
    tried = {}
    for r in read_records(tmp_path / "records.jsonl"):
        c = r["configuration"]
        if not c["looks_at_test"]:
            key = (*c["method"]["coefficients"], c["recipe"]["lr"])
            tried.setdefault(c["method"]["name"], {})[key] = r["result"]["validation_accuracy"][-1]
    none, method = tried["none"], tried["recommended"]
    best = max((key for key in method if key[1] == TINY.lr), key=method.get)
    assert set(none) == {(TINY.lr,), (1e-6,)}
    assert set(method) == {(c, TINY.lr) for c in METHODS[1].coefficients} | {(best[0], 1e-6)}
    at_best = {key: score for key, score in method.items() if key[0] == best[0]}
    for record, scores in zip(records, (none, at_best), strict=True):
        assert record["configuration"]["recipe"]["lr"] == max(scores, key=scores.get)[-1]
    assert seen[-1][0] == seen[-1][1] == len(seen)


def test_a_learning_rate_that_diverges_is_not_chosen(digits, tmp_path):
    options = {"tuning_seeds": 1, "learning_rates": [1e30]}
    (record,) = compare(digits, TINY, METHODS[:1], [0], tmp_path, **options)
    assert record["configuration"]["recipe"]["lr"] == TINY.lr
    (diverged,) = (r for r in read_records(tmp_path / "records.jsonl") if "diverged" in r["result"])
    assert "loss became" in diverged["result"]["diverged"]
    with pytest.raises(NonFiniteError):
        compare(digits, replace(TINY, lr=1e30), METHODS[:1], [0], tmp_path / "reported")


def test_nothing_is_run_twice(grid, digits):
    folder, records = grid
    before = (folder / "records.jsonl").read_bytes()
    seen = []
    again = compare(
        digits, TINY, METHODS, [0, 1], folder,
        report=lambda run, done, total: seen.append((done, total)),
    )  # fmt: skip
    assert again == records
    assert (folder / "records.jsonl").read_bytes() == before
    assert seen == [(i, 8) for i in range(1, 9)]


def test_a_killed_grid_goes_on_and_gives_the_same_results(grid, digits, tmp_path):
    class Killed(BaseException):
        pass

    def kill(run, done, total):
        if done == 5:
            raise Killed

    with pytest.raises(Killed):
        compare(digits, TINY, METHODS, [0, 1], tmp_path, report=kill)
    path = tmp_path / "records.jsonl"
    whole = path.read_text().splitlines(keepends=True)
    assert len(whole) == 5
    path.write_text("".join(whole) + whole[0][:100])  # a line cut off by the kill
    records = compare(digits, TINY, METHODS, [0, 1], tmp_path)
    assert results(records) == results(grid[1])
    assert len(read_records(path)) == 8


def test_two_processes_give_the_same_grid(grid, digits, tmp_path):
    records = compare(digits, TINY, METHODS[:1], [0, 1], tmp_path, jobs=2)
    assert [r["key"] for r in records] == [r["key"] for r in grid[1][:2]]
    for one, other in zip(results(records), results(grid[1][:2]), strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-3)


def fake_record(method, seed, curve, test, similarity):
    return {
        "schema": 2,
        "configuration": {
            "method": {"name": method, "coefficients": []}, "seed": seed, "recipe": {"lr": 0.1},
            "data": {"name": "photographs-train100-seed0"}, "looks_at_test": True,
        },
        "result": {
            "validation_accuracy": curve, "test_accuracy": test, "similarity": {"0": similarity},
            "seconds": 1.0 + seed, "initialization_seconds": 0.5,
        },
    }  # fmt: skip


def test_statistics_by_hand_and_by_scipy():
    records = [
        fake_record("none", 0, [0.2, 0.5], 0.50, 0.4),
        fake_record("none", 1, [0.3, 0.7], 0.60, 0.5),
        fake_record("none", 2, [0.3, 0.6], 0.55, 0.6),
        fake_record("new", 0, [0.6, 0.7], 0.58, 0.3),
        fake_record("new", 1, [0.5, 0.5], 0.64, 0.3),
        fake_record("new", 2, [0.3, 0.8], 0.61, 0.3),
    ]
    control, new = summarize(records)
    assert control.accuracy.mean == pytest.approx(0.55)
    paired = stats.ttest_rel([0.58, 0.64, 0.61], [0.50, 0.60, 0.55]).confidence_interval(0.95)
    assert new.accuracy_gain.mean == pytest.approx(0.06)
    assert new.accuracy_gain.mean - new.accuracy_gain.half_width == pytest.approx(paired.low)
    assert new.accuracy_gain.mean + new.accuracy_gain.half_width == pytest.approx(paired.high)
    assert new.epochs_to_target == 2  # the target is 0.6; seeds reach it after 1, never, 2
    assert new.reached == 2
    assert new.similarity_gain.mean == pytest.approx(-0.2)
    assert new.seconds == 2.5
    assert new.curve == pytest.approx((1.4 / 3, 2.0 / 3))
    assert rows([control, new])[1][5] == "2 (2 of 3)"


def test_an_epoch_that_few_seeds_reach_is_censored():
    records = [fake_record("none", s, [0.2, 0.6], 0.5, 0.4) for s in range(3)]
    records += [fake_record("new", s, [0.1, 0.6 * (s == 0)], 0.5, 0.4) for s in range(3)]
    control, new = summarize(records)
    assert control.epochs_to_target == 2
    assert new.epochs_to_target == np.inf
    assert [row[5] for row in rows([control, new])] == ["2", "> 2 (1 of 3)"]


@pytest.mark.parametrize(
    ("schema", "data", "one_class"),
    [
        (1, "cifar10-jpeg-train10000-seed0", True),
        (1, "holidays", True),
        (1, "digits-train400-seed0", False),
        (1, "cifar10-train10000-seed0", False),
        (2, "cifar10-jpeg-train10000-seed0", False),
    ],
)
def test_tables_say_where_similarity_is_that_of_one_class(schema, data, one_class, tmp_path):
    records = [fake_record(m, s, [0.5], 0.5, 0.4) for m in ("none", "new") for s in (0, 1)]
    for record in records:
        record["schema"] = schema
        record["configuration"]["data"]["name"] = data
    summaries = summarize(records)
    assert [row[6] for row in rows(summaries)] == ["0.400" + " †" * one_class] * 2
    paths = write_comparison(summaries, "title", "details", tmp_path)
    for text in (*(path.read_text() for path in paths[1:]), paired_tables(records, "new")):
        assert ("one class" in text) == one_class


def test_similarity_on_other_images_is_not_compared():
    records = [fake_record(m, s, [0.5], 0.5, 0.4) for m in ("none", "new") for s in (0, 1)]
    records[3]["schema"] = 1
    control, new = summarize(records)
    assert new.similarity_gain is None
    assert rows([control, new])[1][7] == "other images"
    assert "| other images |" in paired_tables(records, "new")


def test_paired_tables_by_hand():
    records = [
        fake_record(name, seed, [0.5], accuracy, similarity)
        for name, results in {
            "none": [(0.5, 0.4), (0.6, 0.5), (0.7, 0.6)],
            "own": [(0.52, 0.3), (0.61, 0.4), (0.69, 0.2)],
            "rival": [(0.5, 0.2), (0.61, 0.2)],
        }.items()
        for seed, (accuracy, similarity) in enumerate(results)
    ]
    tuning = fake_record("own", 1000, [0.9], 0.9, 0.9)
    tuning["configuration"]["looks_at_test"] = False
    first, second = paired_tables([tuning, *records], "own").split("\n\n")
    half = stats.sem([2, 1, -1]) * stats.t.ppf(0.975, 2)
    assert f"| none | +0.7 ± {half:.1f} | 2 of 3 | -0.200 ± " in first
    assert "| rival | +1.0 ± 12.7 | 1 of 2 | +0.150 ± " in first
    assert second.splitlines()[2:] == ["| control | 0.500 |", "| own | 0.300 |"]
    with pytest.raises(ConvsimError, match=r"no method 'owl'.* Did you mean 'own'"):
        paired_tables(records, "owl")


def test_what_makes_results_worth_nothing_is_said(digits):
    records = [
        fake_record(m, s, [0.5], a, 0.1) for m, a in (("none", 0.1), ("new", 0.9)) for s in (0, 1)
    ]
    for record in records:
        record["result"]["train_loss"] = [2.3, 1.0]
    (said,) = doubts(records, digits)
    assert said.startswith("Method 'none' is at chance: 10.0% of the test images")
    assert "Differences to this control say nothing." in said
    records[3]["result"]["train_loss"] = [2.3, 1e7]
    assert doubts(records[2:], digits) == [
        "Method 'new' diverged: the training loss ended at 1e+07 on 1 of 2 seeds, where guessing "
        "has 2.3. Lower the learning rate or the coefficient."
    ]


def test_a_single_seed_has_no_interval():
    summaries = summarize([fake_record("none", 0, [0.5], 0.5, 0.1)])
    assert summaries[0].accuracy == Estimate(0.5, np.inf, (0.5,))
    assert "±" not in comparison_table(summaries)


def test_unpaired_records_are_refused():
    records = [fake_record("none", 0, [0.5], 0.5, 0.1), fake_record("new", 1, [0.5], 0.5, 0.1)]
    with pytest.raises(ConvsimError, match="only be paired over the same seeds"):
        summarize(records)


def test_written_pages_escape_names(tmp_path):
    name = "<script>alert(1)</script>"
    summaries = summarize([fake_record(name, s, [0.5], 0.5, 0.1) for s in (0, 1)])
    page = html_page(summaries, name, name)
    assert "<script>" not in page
    assert "default-src 'none'" in page
    picture, table, written = write_comparison(summaries, "title", "details", tmp_path)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "| method |" in table.read_text()
    assert "data:image/png;base64," in written.read_text()


@pytest.mark.parametrize(
    ("methods", "seeds", "options", "message"),
    [
        ([], [0], {}, "needs methods"),
        (METHODS[:1] * 2, [0], {}, "each named once"),
        (METHODS, [], {}, "needs seeds"),
        (METHODS, [0, 0], {}, "needs seeds, each once"),
        (METHODS, [0], {"jobs": 0}, "at least 1; got 2 and 0"),
        (METHODS, [0], {"tuning_seeds": 0}, "at least 1; got 0 and 1"),
    ],
)
def test_bad_grids_are_refused(digits, tmp_path, methods, seeds, options, message):
    with pytest.raises(ConvsimError, match=message):
        compare(digits, TINY, methods, seeds, tmp_path, **options)


def test_records_survive_a_cut_off_line_and_refuse_a_broken_one(tmp_path):
    path = tmp_path / "deep" / "records.jsonl"
    append_record(path, {"a": 1})
    path.write_text(path.read_text() + '{"b":')
    assert read_records(path) == [{"a": 1}]
    append_record(path, {"c": 3})
    assert read_records(path) == [{"a": 1}, {"c": 3}]
    path.write_text('{"a": 1}\nnonsense\n' + json.dumps({"c": 3}) + "\n")
    with pytest.raises(ConvsimError, match="line 2: not a record"):
        read_records(path)
    with pytest.raises(ConvsimError, match="cannot be written"):
        append_record(path, {"a": float("nan")})
