"""Training: exact resume, the split, non-finite losses, settings that are really in effect."""

import json
import math
from dataclasses import replace
from functools import cache

import pytest
import torch

from convsim.errors import ConvsimError, ConvsimWarning, NonFiniteError
from convsim.lab import training
from convsim.lab.arithmetic import choose_precision
from convsim.lab.classifier import Classifier, accuracy
from convsim.lab.datasets import load_dataset
from convsim.lab.doubts import _say_once
from convsim.lab.measuring import measure_on
from convsim.lab.methods import METHODS, Method, parse_method
from convsim.lab.models import build_model
from convsim.lab.runs import Recipe, Run
from convsim.lab.training import train

TINY = Recipe(width=4, epochs=3, batch_size=32, measured_images=20)


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits").subset(train=200, test=50)


def equal_models(one, other):
    return all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


class Killed(BaseException):
    pass


def kill_after(epochs):
    def progress(epoch, total, scores):
        if epoch == epochs:
            raise Killed

    return progress


@cache
def uninterrupted(method, recipe=TINY):
    """A run that nothing stops, and what came of it."""
    run = Run(parse_method(method), 5, recipe, load_dataset("digits").subset(train=200, test=50))
    return run, *train(run)


@pytest.mark.parametrize("epochs", [1, 2, 3])
@pytest.mark.parametrize(
    "method", ["none", "recommended-both", "recommended", "recommended@auto", "recommended:0.5"]
)
def test_resume_is_exact(tmp_path, method, epochs):
    run, whole, record = uninterrupted(method)
    with pytest.raises(Killed):
        train(run, tmp_path, kill_after(epochs))
    resumed, resumed_record = train(run, tmp_path)
    assert equal_models(whole, resumed)
    for entry in ("validation_accuracy", "train_loss", "penalty", "test_accuracy", "similarity"):
        assert resumed_record["result"][entry] == record["result"][entry]


@pytest.mark.parametrize("step", [1, 4])
@pytest.mark.parametrize("method", ["none", "recommended-both", "recommended@auto"])
def test_resume_from_within_the_first_epoch_is_exact(tmp_path, monkeypatch, method, step):
    run, whole, record = uninterrupted(method)
    training_step, steps = Classifier.training_step, iter(range(1, 100))

    def killed(*arguments):
        if next(steps) == step:
            raise Killed
        return training_step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "training_step", killed)
        with pytest.raises(Killed):
            train(run, tmp_path)
    monkeypatch.setattr(training, "initialize_", None)  # its result is in the checkpoint
    resumed, resumed_record = train(run, tmp_path)
    assert equal_models(whole, resumed)
    assert resumed_record["result"]["train_loss"] == record["result"]["train_loss"]
    took = resumed_record["result"]["initialization_seconds"]
    assert (took > 0) == (method == "recommended-both")


def test_resume_is_exact_under_augmentation(tmp_path):
    run, whole, record = uninterrupted("none", replace(TINY, augment=True))
    with pytest.raises(Killed):
        train(run, tmp_path, kill_after(1))
    assert equal_models(whole, train(run, tmp_path)[0])
    plain = uninterrupted("none")[2]
    assert plain["result"]["train_loss"] != record["result"]["train_loss"]
    assert record["configuration"]["recipe"]["augment"] is True


@pytest.mark.parametrize("precision", ["bf16", "float32-channels-last"])
@pytest.mark.parametrize("method", ["none", "recommended", "recommended-both", "decov"])
def test_resume_is_exact_in_every_precision(tmp_path, method, precision):
    run, whole, record = uninterrupted(method, replace(TINY, precision=precision))
    with pytest.raises(Killed):
        train(run, tmp_path, kill_after(1))
    resumed, resumed_record = train(run, tmp_path)
    assert equal_models(whole, resumed)
    for entry in ("validation_accuracy", "train_loss", "penalty", "test_accuracy", "similarity"):
        assert resumed_record["result"][entry] == record["result"][entry]
    assert resumed_record["effective"] == record["effective"]


@pytest.mark.parametrize(
    ("precision", "seen"),
    [
        ("float32", ("32-true", "float32", "contiguous")),
        ("float32-channels-last", ("32-true", "float32", "channels_last")),
        ("bf16", ("bf16-mixed", "bfloat16", "channels_last")),
    ],
)
def test_the_record_says_in_what_numbers_it_was_computed(digits, precision, seen, tmp_path):
    run = Run(METHODS["none"], 0, replace(TINY, precision=precision), digits, test=False)
    model, record = train(run, tmp_path)
    names = ("precision", "computed_in", "memory_format")
    assert tuple(record["effective"][name] for name in names) == seen
    assert (
        train(run, tmp_path)[1]["effective"] == record["effective"]
    )  # where nothing is left to do
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    last = model[3].weight.is_contiguous(memory_format=torch.channels_last)
    assert last == (precision != "float32")
    assert ("precision" in record["configuration"]["recipe"]) == last


def test_bfloat16_learns_as_float32_does(digits):
    recipe = Recipe(width=8, epochs=15, batch_size=16, precision="bf16")
    assert train(Run(METHODS["none"], 0, recipe, digits))[1]["result"]["test_accuracy"] > 0.8


@pytest.mark.parametrize(
    ("cuda", "amx", "onednn", "choice", "reason"),
    [
        (None, True, True, "bf16", "this processor has AMX"),
        (None, False, True, "float32-channels-last", "no AMX, and oneDNN likes channels last"),
        (None, False, False, "float32", "no AMX, and torch no oneDNN"),
        (True, False, True, "bf16", "H multiplies bfloat16"),
        (False, True, True, "float32", "H does not multiply bfloat16"),
    ],
)
def test_auto_chooses_by_what_the_hardware_has(monkeypatch, cuda, amx, onednn, choice, reason):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda is not None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: cuda)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
    chosen, why = choose_precision()
    assert (chosen, reason in why) == (choice, True)


def test_a_network_that_the_penalty_made_worse_is_warned_of_once(digits):
    doubtful = Recipe(width=2, epochs=1, norm="none")
    _say_once.cache_clear()
    with pytest.warns(ConvsimWarning, match="ReLU and no normalization lost accuracy"):
        train(Run(METHODS["recommended"], 0, doubtful, digits, test=False))
    train(Run(METHODS["recommended"], 1, doubtful, digits, test=False))  # not again
    _say_once.cache_clear()
    for method, recipe in (
        ("none", doubtful),
        ("recommended", replace(doubtful, activation="elu")),
        ("recommended", replace(doubtful, norm="batch")),
    ):
        train(Run(METHODS[method], 0, recipe, digits, test=False))  # a warning would be an error


def test_runs_keep_their_names_so_that_old_records_serve(digits):
    assert Run(METHODS["none"], 0, Recipe(), digits).key == "f3e7680c2ff7802e"


def test_resume_is_exact_where_training_draws_random_numbers(digits, tmp_path, monkeypatch):
    def with_dropout(*arguments, **options):
        return torch.nn.Sequential(torch.nn.Dropout(0.3), build_model(*arguments, **options))

    monkeypatch.setattr("convsim.lab.training.build_model", with_dropout)
    run = Run(METHODS["none"], 5, TINY, digits)
    with pytest.raises(Killed):
        train(run, tmp_path, kill_after(1))
    torch.rand(7)
    assert equal_models(train(run, tmp_path)[0], train(run)[0])


def test_the_record_says_what_was_in_effect(digits):
    recipe = Recipe(width=4, epochs=2, lr=0.03, momentum=0.8, weight_decay=1e-4, schedule="cosine")
    run = Run(parse_method("recommended@0.7"), 1, recipe, digits)
    model, record = train(run)
    effective, result = record["effective"], record["result"]
    assert (effective["initial_lr"], effective["momentum"]) == (0.03, 0.8)
    assert effective["weight_decay"] == 1e-4
    assert effective["final_lr"] == pytest.approx(0, abs=1e-9)
    assert effective["steps"] == 2 * math.ceil(180 / 128)
    assert effective["parameters"] == sum(p.numel() for p in model.parameters())
    assert "coefficient=0.7" in effective["regularizer"][0][0]
    assert len(result["validation_accuracy"]) == len(result["penalty"]) == 2
    assert set(result["similarity"]) == {"0", "3", "7", "10", "14"}
    assert record["environment"]["torch"] == torch.__version__
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_it_learns_and_scores_in_eval_mode(digits):
    run = Run(METHODS["none"], 0, Recipe(width=8, epochs=15, batch_size=16), digits)
    model, record = train(run)
    assert record["result"]["test_accuracy"] > 0.8
    assert not any(module.training for module in model.modules())
    classifier = Classifier(model, run.recipe, digits.hold_out(0.1).train_images).train()
    again = accuracy(classifier, digits.test_images, digits.test_labels)
    assert again == record["result"]["test_accuracy"]


def test_tuning_does_not_look_at_test_data(digits):
    _, record = train(Run(METHODS["none"], 0, TINY, digits, test=False))
    assert "test_accuracy" not in record["result"]
    assert "similarity" not in record["result"]


def test_similarity_is_measured_on_all_classes_of_a_set_sorted_by_class(digits):
    by_class = digits.test_labels.argsort(stable=True)
    test = {
        "test_images": digits.test_images[by_class],
        "test_labels": digits.test_labels[by_class],
    }
    data = replace(digits, fingerprint="", **test)
    model, record = train(Run(METHODS["none"], 0, replace(TINY, epochs=1), data))
    assert record["schema"] == 2
    assert record["result"]["measured"] == {"images": 20, "classes": 10}
    kept = data.hold_out(TINY.validation)  # whose mean and standard deviation training takes
    part = {"train_images": kept.train_images, "train_labels": kept.train_labels}
    again = measure_on(model, replace(data.to_measure(20), fingerprint="", **part))
    assert {layer.name: layer.similarity for layer in again.layers} == pytest.approx(
        record["result"]["similarity"], rel=1e-5
    )


def test_a_coefficient_falls_to_zero_over_its_share_of_the_steps(digits):
    recipe = replace(TINY, epochs=4)
    for name in ("recommended", "crossed"):
        _, record = train(Run(parse_method(f"{name}@2:0.5"), 0, recipe, digits, test=False))
        first, second, *rest = record["result"]["penalty"]
        _, kept = train(Run(parse_method(f"{name}@2"), 0, recipe, digits, test=False))
        assert 0 < second < first < kept["result"]["penalty"][0]
        assert rest == [0, 0]
        assert record["configuration"]["method"]["falls"] == 0.5
        assert "falls" not in kept["configuration"]["method"]  # records from before keep their keys


def test_the_penalty_is_lowered_and_methods_differ(digits):
    none, _ = train(Run(METHODS["none"], 0, TINY, digits))
    strong, record = train(Run(parse_method("recommended@30"), 0, TINY, digits))
    assert record["result"]["penalty"][-1] < record["result"]["penalty"][0]
    assert not equal_models(none, strong)


def test_a_non_finite_loss_stops_and_keeps_the_last_good_checkpoint(digits, tmp_path):
    good = Recipe(width=4, epochs=3, batch_size=32)
    with pytest.raises(Killed):
        train(Run(METHODS["none"], 0, good, digits), tmp_path, kill_after(1))
    before = (tmp_path / "last.ckpt").read_bytes()
    poisoned = digits.train_images.clone()

    class Exploding(Killed):
        pass

    run = Run(Method("none"), 0, good, digits)
    original = Classifier.forward
    try:
        Classifier.forward = lambda self, images: original(self, images) * math.nan
        with pytest.raises(NonFiniteError, match=r"training loss became nan in epoch 2, step 6.*"):
            train(run, tmp_path)
    finally:
        Classifier.forward = original
    assert (tmp_path / "last.ckpt").read_bytes() == before
    assert torch.equal(poisoned, digits.train_images)
    resumed, _ = train(run, tmp_path)
    assert equal_models(resumed, train(run)[0])


def test_a_learning_rate_that_explodes_is_caught(digits, tmp_path):
    recipe = Recipe(width=4, norm="none", epochs=3, lr=1e6, schedule="constant")
    with pytest.raises(NonFiniteError, match=r"Lower the learning rate .now 1000000.0."):
        train(Run(METHODS["none"], 0, recipe, digits), tmp_path)


def test_foreign_and_corrupt_checkpoints_are_refused(digits, tmp_path):
    run = Run(METHODS["none"], 0, TINY, digits)
    with pytest.raises(Killed):
        train(run, tmp_path, kill_after(1))
    with pytest.raises(ConvsimError, match=r"another configuration: seed 0, not 1\. Resume"):
        train(Run(METHODS["none"], 1, TINY, digits), tmp_path)
    checkpoint = tmp_path / "last.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(ConvsimError, match="not a readable checkpoint of convsim"):
        train(run, tmp_path)


def test_a_pickle_that_runs_code_is_refused(digits, tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("code ran",))

    torch.save({"callbacks": Evil()}, tmp_path / "last.ckpt")
    with pytest.raises(ConvsimError, match=r"Unsupported global|weights_only|UnpicklingError"):
        train(Run(METHODS["none"], 0, TINY, digits), tmp_path)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "annealed", "steps"])
def test_schedules(digits, schedule):
    recipe = Recipe(width=2, epochs=4, schedule=schedule, lr=0.1)
    _, record = train(Run(METHODS["none"], 0, recipe, digits, test=False))
    expected = {"constant": 0.1, "cosine": 0.0, "annealed": 0.0, "steps": 0.001}[schedule]
    assert record["effective"]["final_lr"] == pytest.approx(expected, abs=1e-9)


def test_an_annealed_rate_falls_within_an_epoch_and_resumes_there(digits, tmp_path, monkeypatch):
    recipe = replace(TINY, schedule="annealed", lr=0.1, epochs=2)
    run = Run(METHODS["none"], 0, recipe, digits, test=False)
    training_step, rates = Classifier.training_step, []

    def noting(self, batch, batch_index):
        rates.append(self.optimizers().param_groups[0]["lr"])
        return training_step(self, batch, batch_index)

    monkeypatch.setattr(Classifier, "training_step", noting)
    whole, _ = train(run)
    n = 2 * math.ceil(180 / 32)
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * i / n)) for i in range(n)])
    with pytest.raises(Killed):
        train(run, tmp_path, kill_after(1))
    resumed, _ = train(run, tmp_path)
    assert equal_models(whole, resumed)


@pytest.mark.parametrize(
    ("optimizer", "name"),
    [("sgd", "SGD"), ("adam", "Adam"), ("adamw", "AdamW"), ("muon", "KernelMuon")],
)
def test_the_optimizer_is_the_one_asked_for(digits, optimizer, name):
    recipe = Recipe(width=2, epochs=1, optimizer=optimizer, lr=0.01, weight_decay=0.1)
    effective = train(Run(METHODS["none"], 0, recipe, digits, test=False))[1]["effective"]
    assert effective["optimizer"] == name
    assert effective["weight_decay"] == 0.1


def test_an_option_without_effect_is_refused():
    with pytest.raises(ConvsimError, match=r"momentum is SGD's: adam has none, and was given 0\.1"):
        Recipe(optimizer="adam", momentum=0.1)
    assert Recipe(optimizer="adam").optimizer == "adam"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("best", "Unknown method 'best'. A method is none, a preset"),
        ("none@1", "'none' takes no coefficient"),
        ("authors-init@1", "'authors-init' takes no coefficient"),
        ("recommended@x", "must be finite numbers"),
        ("none:0.5", "'none' takes no coefficient"),
        ("recommended@1:0", "must be above 0 and at most 1"),
        ("recommended:half", "must be above 0 and at most 1"),
        ("recommended@-1", "must be finite numbers"),
        ("recommended@1,nan", "must be finite numbers"),
    ],
)
def test_bad_methods_are_refused(text, message):
    with pytest.raises(ConvsimError, match=message):
        parse_method(text)
