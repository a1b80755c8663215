"""A short share of the kills, and the record of the last full run."""

import subprocess
import sys

import kills

from convsim.lab.records import read_records


def test_what_is_killed_and_resumed_ends_like_what_was_not(tmp_path):
    command = [sys.executable, kills.__file__, "--kills", "4", "--out", tmp_path / "kills.jsonl"]
    done = subprocess.run(
        [*map(str, command), "--victims", "train auto", "compare"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all identical to uninterrupted runs" in done.stdout


def test_the_last_full_run_found_no_difference():
    records = read_records(kills.RECORDS)
    assert not any(record["result"]["differs"] for record in records)
    assert {record["configuration"]["victim"] for record in records} == set(kills.VICTIMS)
    assert len({record["configuration"]["commit"] for record in records}) == 1
    hit = kills.places(records)
    assert hit.total() >= 50
    assert hit.keys() >= kills.PLACES.keys()
