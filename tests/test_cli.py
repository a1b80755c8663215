"""The command line as a user meets it."""

import json
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

import convsim
from convsim.cli import options
from convsim.lab import files
from convsim.lab.models import build_model
from convsim.lab.records import read_records

CONVSIM = [sys.executable, "-c", "from convsim.cli import main; main()"]
TINY = ["--train-images", "150", "--width", "2", "--epochs", "2", "--batch-size", "64"]


def plain(text):
    """Drop colours and line wraps."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╰─╮╯]", "", text).split())


def test_help_and_version(run):
    assert run("--version").out.strip() == convsim.__version__
    text = plain(run("compare", "--help").out)
    for option in ("--method", "--seeds", "--jobs", "--train-images", "--schedule", "--out"):
        assert option in text
    assert "train" in run("-h").out


def test_train_writes_weights_and_record(run, tmp_path):
    answer = run("train", "digits", "--out", tmp_path, "--method", "recommended@0.5", *TINY)
    result = json.loads(answer.out)
    assert 0 <= result["test_accuracy"] <= 1
    assert "epochs" in answer.err or "accuracy" in answer.err
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["result"] == result
    assert record["configuration"]["method"]["coefficients"] == [0.5]
    from safetensors.torch import load_file

    from convsim.lab.models import build_model

    model = build_model("cnn", classes=10, channels=1, width=2)
    model.load_state_dict(load_file(tmp_path / "model.safetensors"))
    again = run("train", "digits", "--out", tmp_path, "--method", "recommended@0.5", *TINY)
    assert json.loads(again.out)["test_accuracy"] == result["test_accuracy"]
    other = run("train", "digits", "--out", tmp_path, "--method", "none", *TINY, code=2)
    assert "method.name recommended, not none; method.regularizer recommended, not None" in plain(
        other.err
    )
    assert other.out == ""


def test_compare_is_stopped_by_ctrl_c_and_goes_on(run, tmp_path):
    command = ["compare", "digits", "--out", tmp_path, "--seeds", "2", "--epochs", "20", *TINY[:4]]
    command += ["--method", "none", "--method", "recommended@0.1,1", "--tuning-seeds", "1"]
    process = subprocess.Popen(
        [*CONVSIM, *map(str, command)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # A shell starts its background jobs, and so what they start, with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    records = tmp_path / "records.jsonl"
    deadline = time.monotonic() + 120
    while not records.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert f"to go on from the last epoch, run convsim compare digits --out {tmp_path}" in plain(
        errors
    )
    before = read_records(records)
    assert 1 <= len(before) < 6
    answer = run(*command)
    after = read_records(records)
    assert after[: len(before)] == before
    assert len(after) == 2 + 4
    assert "recommended" in answer.out
    assert "similarity" in answer.out
    for name in ("comparison.png", "comparison.md", "comparison.html"):
        assert (tmp_path / name).stat().st_size > 500


def test_compare_against_one_method(run, tmp_path):
    command = ["compare", "digits", "--out", tmp_path, "--seeds", "2", *TINY]
    command += ["--method", "none", "--method", "authors", "--no-page"]
    answer = run(*command, "--against", "author", code=2)
    assert "got 'author'. Did you mean 'authors'?" in plain(answer.err)
    answer = run(*command, "--against", "authors")
    assert (tmp_path / "paired.md").read_text().startswith("| authors less | accuracy, points |")
    assert not (tmp_path / "comparison.html").exists()
    assert not (tmp_path / "checkpoints").exists()
    assert "Method 'none' is at chance" in plain(answer.err)
    assert "Method 'none' is at chance" in (tmp_path / "comparison.md").read_text()


def test_precision_chosen_for_the_processor_is_said(run, tmp_path, monkeypatch):
    monkeypatch.setattr(options, "choose_precision", lambda: ("bf16", "this processor has AMX"))
    command = ["train", "digits", "--out", tmp_path, "--method", "none", *TINY]
    answer = run(*command, "--precision", "auto")
    assert "precision bf16: this processor has AMX" in plain(answer.err)
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["configuration"]["recipe"]["precision"] == "bf16"
    assert record["effective"]["computed_in"] == "bfloat16"
    other = run(*command, code=2)
    assert "recipe.precision bf16, not None" in plain(other.err)


@pytest.mark.usefixtures("vision")
def test_the_size_that_a_network_wants_is_named(run):
    options = ["--data", "digits", "--size", "64", "--images", "10"]
    answer = run("measure", "timm:vit_tiny_patch16_224", *options, "--modules", "patch_embed.proj",
                 code=2)  # fmt: skip
    assert "It wants 224×224: give --size 224." in plain(answer.err)


def test_a_run_that_diverges_ends_with_its_own_status(run, tmp_path):
    options = [*TINY, "--width", "4", "--lr", "100"]
    answer = run("train", "digits", "--out", tmp_path, "--method", "none", *options, code=3)
    assert "diverged: the training loss ended at" in plain(answer.err)
    assert json.loads(answer.out)["train_loss"][-1] > 4
    assert (tmp_path / "model.safetensors").exists()


def start(arguments):
    return subprocess.Popen([*CONVSIM, *map(str, arguments)], stderr=subprocess.PIPE, text=True)


def wait_for(condition):
    deadline = time.monotonic() + 240
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def test_sigterm_leaves_a_checkpoint_and_prints_the_command_that_goes_on(
    run, tmp_path, monkeypatch
):
    folder = tmp_path / "it's a folder"  # quoted in the command
    arguments = ["train", "digits", "--out", str(folder), *TINY[:4], "--epochs", "1000000"]
    process = start(arguments)
    wait_for((folder / "last.ckpt").exists)
    monkeypatch.setattr(files, "PATIENCE", 0.1)
    second = run(*arguments, code=2)
    assert f"is in use by process {process.pid} on" in plain(second.err)
    process.terminate()
    errors = process.communicate(timeout=240)[1]
    assert process.returncode == 143, errors
    assert "Traceback" not in errors
    assert shlex.split(errors.splitlines()[-1]) == ["convsim", *arguments]
    assert torch.load(folder / "last.ckpt", weights_only=True)["callbacks"]
    assert {path.name for path in folder.iterdir()} == {"last.ckpt", ".lock", ".owner"}


def test_processes_of_a_grid_end_with_it(tmp_path):
    process = start(["compare", "digits", "--out", tmp_path, "--jobs", 2, "--epochs", 1000000])
    wait_for(lambda: len(list(tmp_path.glob("checkpoints/*/last.ckpt"))) == 2)
    process.kill()
    process.communicate()
    for folder in (tmp_path, *tmp_path.glob("checkpoints/*")):
        with files.locked(folder):  # nobody is left who trains there
            pass


def test_measure_prints_a_table(run):
    answer = run("measure", "cnn", "--width", "4", "--data", "digits", "--images", "40")
    assert "cnn, 40 images: similarity" in plain(answer.out)
    assert "images" in answer.err
    again = run(
        "measure", "cnn", "--width", "4", "--data", "digits", "--images", "40", "--batch-size", "7"
    )
    assert again.out == answer.out


def test_train_starts_from_weights_logs_and_says_what_it_wrote(run, tmp_path):
    file = tmp_path / "options.toml"
    file.write_text('method = "none"\nepochs = 1\nwidth = 2\ntrain-images = 150\n')
    first = run("train", "digits", "--out", tmp_path / "a", "--config", file)
    assert "wrote" in plain(first.err)
    assert "model.safetensors" in plain(first.err)
    more = ["--weights", tmp_path / "a" / "model.safetensors", "--lr", "0", "--logger", "csv"]
    run("train", "digits", "--out", tmp_path / "b", "--config", file, "--device", "cpu", *more)
    record, before = (
        json.loads((tmp_path / name / "record.json").read_text()) for name in ("b", "a")
    )
    assert record["configuration"]["recipe"]["epochs"] == 1
    assert len(record["configuration"]["start"]["weights"]) == 64
    assert "start" not in before["configuration"]
    for name in ("0.weight", "3.weight"):  # lr 0: where it started, it stays
        one, two = (load_file(tmp_path / n / "model.safetensors")[name] for n in "ab")
        assert torch.equal(one, two)
    (metrics,) = (tmp_path / "b").rglob("metrics.csv")
    lines = metrics.read_text().splitlines()
    assert {"accuracy", "train_loss", "test_accuracy", "convsim/similarity/0"} <= {
        *lines[0].split(",")
    }
    file.write_text("epoch = 1\n")
    answer = run("train", "digits", "--out", tmp_path / "c", "--config", file, code=2)
    assert "'epoch', which is not an option of train. Did you mean 'epochs'?" in plain(answer.err)


def test_measure_trained_weights_before_and_after(run, tmp_path):
    run("train", "digits", "--out", tmp_path, *TINY)
    measure = ["measure", "cnn", "--width", "2", "--data", "digits", "--images", "30"]
    run(*measure, "--json", tmp_path / "before.json")
    answer = run(
        *measure, "--weights", tmp_path / "model.safetensors", "--json", "-",
        "--before", tmp_path / "before.json", "--html", tmp_path / "page.html",
    )  # fmt: skip
    before = convsim.RedundancyReport.from_json((tmp_path / "before.json").read_text())
    after = convsim.RedundancyReport.from_json(answer.out)
    assert before.images == after.images == 30
    assert before.similarity != after.similarity
    assert "wrote" in answer.err
    assert f'"similarity": {round(before.similarity, 5)}' in (tmp_path / "page.html").read_text()
    checkpoint = run(*measure, "--weights", tmp_path / "last.ckpt", "--json", "-")
    assert json.loads(checkpoint.out)["similarity"] == after.similarity
    compared = run(*measure, "--before", tmp_path / "before.json")
    assert "(+0.000)" in compared.out


def test_measure_finds_too_much_similarity(run):
    measure = ["measure", "cnn", "--width", "4", "--data", "digits", "--images", "20"]
    run(*measure, "--max-similarity", "0.9")
    answer = run(*measure, "--max-similarity", "0.1", code=1)
    assert "is above 0.1. The layers most alike: " in plain(answer.err)
    assert "similarity" in answer.out


def test_measure_finds_a_dead_layer(run, tmp_path):
    network = build_model("cnn", classes=10, channels=1, width=4)
    torch.nn.init.zeros_(network[0].weight)
    torch.save(network.state_dict(), tmp_path / "dead.pt")
    measure = ["measure", "cnn", "--width", "4", "--data", "digits", "--images", "20"]
    page = tmp_path / "new" / "page.html"
    weights = ["--weights", tmp_path / "dead.pt", "--html", page]
    answer = run(*measure, *weights, "--max-similarity", "0.9", code=1)
    assert "All maps are zero in 0, " in plain(answer.err)
    assert page.exists()


def test_measure_without_any_pair_has_no_verdict(run):
    small = ["--size", "4", "--layers", "14"]  # maps of one pixel
    answer = run("measure", "cnn", "--data", "digits", *small, "--max-similarity", "0.5", code=2)
    assert "no similarity to compare with --max-similarity" in plain(answer.err)


@pytest.mark.usefixtures("vision")
def test_measure_models_of_libraries(run, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("import torch\nnet = lambda: torch.nn.Conv2d(1, 4, 3)\n")
    monkeypatch.chdir(tmp_path)
    options = ["--data", "digits", "--images", "10", "--json", "-"]
    narrow = {  # the cost of a layer grows with the square of its maps
        "timm:mobilenetv3_small_050": ("--layers", "blocks.0.*"),
        "transformers:resnet": ("--layers", "*embedder*"),
        "mine:net": (),
    }
    for name, layers in narrow.items():
        answer = run("measure", name, *options, "--size", "64", *layers)
        assert json.loads(answer.out)["model"] == name
        assert json.loads(answer.out)["layers"]
    answer = run(
        "measure", "timm:resnet18", *options, "--size", "64", "--modules", "layer[12]*.bn1"
    )
    names = [layer["name"] for layer in json.loads(answer.out)["layers"]]
    assert names == [f"layer{n}.{block}.bn1" for n in (1, 2) for block in (0, 1)]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["measure", "cnn"], 2, "Missing option '--data'"),
        (["measure", "cnn", "--data", "nowhere"], 2, "there is no 'nowhere'"),
        (["measure", "cnnn", "--data", "digits"], 2, "Unknown model 'cnnn'. Did you mean 'cnn'"),
        (["measure", "no.where:f", "--data", "digits"], 2, "'no.where' cannot be imported"),
        (["measure", "cnn", "--data", "digits", "--weights", "no.pt"], 2, "no weights file"),
        (["measure", "cnn", "--data", "digits", "--before", "no.json"], 2, "No such file"),
        (["measure", "cnn", "--data", "digits", "--before", __file__], 2, "Not a convsim report"),
        (["measure", "cnn", "--data", "digits", "--layers", "x"], 2, "No convolution is selected"),
        (["measure", "cnn", "--data", "digits", "--modules", "x"], 2, "No module is selected"),
        (["measure", "cnn", "--data", "digits", "--max-similarity", "2"], 2, "or equal to 1"),
        (["measure", "transformers:swin", "--data", "digits", "--size", "1"], 2, "give --size 224"),
        (["compare", "nowhere", "--out", "x"], 2, "nowhere"),
        (["compare", "digits", "--out", "x", "--method", "best"], 2, "Unknown method 'best'"),
        (["compare", "digits"], 2, "Missing option '--out'"),
        (["train", "digits", "--out", "x", "--epochs", "0"], 2, "greater than or equal to 1"),
        (["train", "digits", "--out", "x", "--model", "resnet81"], 2, "Unknown model 'resnet81'"),
        (["train", "digits", "--out", "x", "--method", "authors@1,2"], 2, "takes one coefficient"),
        (["train", "digits", "--out", "x", "--train-images", "5000"], 2, "5000"),
        (["train", "digit", "--out", "x"], 2, "Did you mean 'digits'?"),
        (["train", "digits", "--out", "x", "--width", "0"], 2, "value for '--width'"),
        (["train", "digits", "--out", "x", "--optimizer", "adam", "--momentum", "0.1"], 2,
         "momentum is SGD's: adam has none"),
        (["train", "digits", "--out", "x", "--model", "wrn28-K"], 2, "is a number of 1 or more"),
        (["train", "digits", "--out", "x", "--train-images", "10"], 2,
         "share must hold an image of each class: 10% of the 10 training images"),
        (["train", "digits", "--out", "x", "--norm", "layer"], 2, "'layer' is not one of"),
        (["train", "digits", "--out", "x", "--lr", "1e30", *TINY], 3, "became"),
        (["compare", "digits", "--out", "x", "--method", "authors-"], 2, "Did you mean 'auth"),
        (["fly"], 2, "No such command 'fly'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)  # fmt: skip
def test_bad_input(run, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    answer = run(*arguments, code=code)
    assert message in plain(answer.err)
    assert answer.out == ""
    assert "Traceback" not in answer.err


def test_without_the_extra_the_install_command_is_named():
    hide = "import sys; sys.modules['typer'] = None\n" + CONVSIM[2]
    answer = subprocess.run(
        [sys.executable, "-c", hide], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 1
    assert "Install it from a clone of convsim: pip install '.[lab]'" in answer.stderr


def test_help_does_not_wait_for_lightning():
    look = CONVSIM[2].replace("main()", "sys.argv[1:] = ['train', '--help']; main()")
    code = f"import atexit, sys; atexit.register(lambda: print('lightning' in sys.modules)); {look}"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.rstrip().endswith("False")
    assert "--epochs" in plain(answer.stdout)
