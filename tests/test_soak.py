"""A short share of the soak: steps leave nothing behind, and mutants are what they should be."""

import ast
import gc
from itertools import combinations, islice, product
from pathlib import Path

import memory
import mutants
import processors
import pytest
import record
import torch

import convsim
from convsim.similarity import convolutional
from leaks import set_aside, tensors


def left():
    gc.collect()
    return tensors()


@pytest.mark.parametrize("penalty", ["crossed", "authors", "recommended", "decov"])
def test_steps_leave_no_tensor_behind(penalty):
    set_aside()
    counts = [left() for step in memory.steps(penalty, 61) if step % 30 == 0]
    assert 0 < counts[1] == counts[2]  # at the first some optimizer states are yet to come


def test_measuring_leaves_no_tensor_behind():
    counts = []

    def batches():
        for _ in range(6):
            counts.append(left())
            yield torch.randn(10, 3, 12, 12)

    set_aside()
    convsim.measure(memory.network(), batches())
    assert len({*counts[2:]}) == 1
    assert counts[2] > 0


def test_a_run_of_the_soak_sees_memory_grow(monkeypatch):
    held = []

    def leak(penalty, count):
        for step in range(count):
            held.append(torch.ones(1 << 24))  # too large for malloc to take from what is free
            yield step

    monkeypatch.setattr(memory, "steps", leak)
    assert memory.growth("crossed", 5) > memory.ALLOWED
    held.clear()


def test_mutants_change_the_source_and_can_be_run():
    source = Path(convolutional.__file__).read_text()
    plain = ast.unparse(ast.parse(source))
    made = list(islice(mutants.mutants(source), 60))
    assert len({changed for _, changed in made} - {plain}) == 60
    for _, changed in made:
        compile(changed, "mutant", "exec")


def test_the_places_and_tests_of_mutants_exist():
    for name, tests in mutants.TESTS.items():
        assert (mutants.SOURCE / "convsim" / name).is_dir(), name
        missing = [test for test in tests if not (mutants.ROOT / "tests" / test).is_file()]
        assert not missing


def test_every_pair_of_instruction_set_thread_count_and_seed_is_run():
    settings = processors.settings([*processors.LIMITS])
    choices = ([*processors.LIMITS], [1, 2], [*processors.SEEDS])
    for one, other in combinations(range(3), 2):
        pairs = {(setting[one], setting[other]) for setting in settings}
        assert pairs == {*product(choices[one], choices[other])}


def test_the_last_full_run_was_green_on_every_instruction_set():
    lines = record.Record("processors").lines
    status = {
        tuple(line[name] for name in processors.Setting._fields): line["status"]
        for line in lines
        if line["source"] == lines[-1]["source"]
    }
    assert status == dict.fromkeys(processors.settings([*processors.LIMITS]), 0)
