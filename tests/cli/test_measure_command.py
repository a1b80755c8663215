"""``convsim measure`` on photographs as people have them, and on runs of ``convsim train``."""

import json
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

PHOTOGRAPH = Image.fromarray(load_sample_images().images[0])


@pytest.fixture
def run(run, monkeypatch, tmp_path):
    """Run the command line with a cache of its own."""
    monkeypatch.setenv("CONVSIM_HOME", str(tmp_path / "home"))
    return run


@pytest.fixture
def photographs(tmp_path) -> Path:
    """A folder as a camera leaves it: many sizes and formats, no classes, one file damaged."""
    folder = tmp_path / "photographs"
    (folder / "2024").mkdir(parents=True)
    for n, name in enumerate(("a.jpg", "b.png", "2024/c.webp", "2024/d.tiff", "e.gif", "f.bmp")):
        PHOTOGRAPH.resize((100 + 20 * n, 90 - n)).save(folder / name)
    PHOTOGRAPH.convert("L").resize((80, 80)).save(folder / "g.png")
    (folder / "2024/z.jpg").write_bytes(b"\xff\xd8 no more")
    return folder


@pytest.mark.usefixtures("vision")
def test_a_folder_of_photographs(run, photographs):
    measure = ("measure", "timm:mobilenetv3_small_050", "--data", photographs, "--size", "64")
    answer = run(*measure, code=2)
    assert "'2024/z.jpg' in" in answer.err
    assert "leave such files out with --skip-bad" in answer.err
    answer = run(*measure, "--skip-bad", "--json", "-")
    assert "1 file left out that cannot be read: 2024/z.jpg." in answer.err
    report = json.loads(answer.out)
    assert report["images"] == 7
    assert report["weights"] == "untrained, seed 0"
    assert report["data"] == (
        "photographs-test8-seed0, all images, timm's preprocessing: crop of 64×64, 87.5 % of the "
        "scaled image, bicubic"
    )


def test_photographs_for_a_network_without_a_size_of_its_own(run, photographs, tmp_path):
    (photographs / "2024/z.jpg").unlink()
    measure = ("measure", "cnn", "--width", "2", "--data", photographs)
    answer = run(*measure, code=2)
    assert "All images must have one size" in answer.err
    answer = run(*measure, "--size", "24", "--html", tmp_path / "page.html")
    assert "cnn, 7 images: similarity" in answer.out


def test_a_run_is_measured_by_its_folder(run, photographs, tmp_path, monkeypatch):
    folder = tmp_path / "one"
    run("train", "digits", "--out", folder, "--train-images", "150", "--width", "2",
        "--epochs", "1", "--method", "none")  # fmt: skip
    record = json.loads((folder / "record.json").read_text())
    assert record["source"] == "digits"
    assert record["preprocessing"]["size"] == 8
    by_folder = json.loads(run("measure", folder, "--images", "30", "--json", "-").out)
    by_name = run(
        "measure", "cnn", "--weights", folder / "model.safetensors", "--data", "digits",
        "--images", "30", "--json", "-",
    )  # fmt: skip
    assert by_folder["layers"] == json.loads(by_name.out)["layers"]
    assert by_folder["weights"] == str(folder / "model.safetensors")
    assert "mean and standard deviation of the run's training images" in by_folder["data"]
    other = json.loads(
        run("measure", folder, "--data", photographs, "--skip-bad", "--json", "-").out
    )
    assert other["images"] == 7  # made grey, and of the size that it was trained with
    assert "leave out --width" in run("measure", folder, "--width", "3", code=2).err
    (folder / "record.json").write_text("{}")
    assert "is not a record of convsim train" in run("measure", folder, code=2).err
    (folder / "record.json").unlink()
    assert "has no record.json" in run("measure", folder, code=2).err


def test_photographs_are_trained_on(run, tmp_path):
    folder = tmp_path / "pets"
    for n in range(20):
        path = folder / ("cat", "dog")[n % 2] / f"{n}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        PHOTOGRAPH.resize((50 + n, 40)).rotate(n).save(path)
    (folder / "cat/bad.jpg").write_bytes(b"x")
    train = ("train", folder, "--size", "12", "--width", "2", "--epochs", "1", "--batch-size", "8")
    for extra in ((), ("--augment",)):
        out = tmp_path / f"run{len(extra)}"
        answer = run(*train, *extra, "--out", out, "--skip-bad", "--method", "none")
        assert "are the test part" in answer.err
        assert "1 file left out that cannot be read: cat/bad.jpg" in answer.err
        assert json.loads((out / "record.json").read_text())["preprocessing"]["size"] == 12
    assert "cat/bad.jpg" in run(*train, "--out", tmp_path / "x", code=2).err
    report = json.loads(run("measure", out, "--skip-bad", "--json", "-").out)
    assert report["images"] == 20


def test_a_preprocessing_of_ones_own(run, photographs, tmp_path, monkeypatch):
    (tmp_path / "mine_to_prepare.py").write_text(
        "import numpy, torch\n"
        "def small(image):\n"
        "    return torch.tensor(numpy.array(image.resize((20, 20)))).permute(2, 0, 1) / 255\n"
    )
    monkeypatch.chdir(tmp_path)
    answer = run("measure", "cnn", "--data", photographs, "--skip-bad", "--width", "2",
                 "--preprocess", "mine_to_prepare:small", "--json", "-")  # fmt: skip
    assert "prepared by mine_to_prepare:small" in json.loads(answer.out)["data"]


def test_a_first_look_needs_no_data(run):
    look = ("measure", "cnn", "--width", "2", "--input-size", "3", "16", "16")
    answer = run(*look, "--json", "-")
    report = json.loads(answer.out)
    assert report["data"] == "noise of shape (3, 16, 16)"
    assert report["layers"][0]["filters"] == 2
    assert "--input-size for noise, not both" in run(*look, "--data", "digits", code=2).err
    assert "leave out --input-size" in run(*look, "--size", "8", code=2).err
    wrong = run("measure", "resnet20", "--input-size", "3", "0", "16", code=2)
    assert "(3, 0, 16)" in wrong.err


def test_a_file_or_a_name_that_is_no_network_is_told(run, tmp_path):
    (tmp_path / "own.pt").touch()
    answer = run("measure", tmp_path / "own.pt", "--data", "digits", code=2)
    assert "own.pt is a file of weights" in answer.err
    assert "give --weights" in answer.err
    answer = run("measure", "nosuchrun", "--data", "digits", code=2)
    assert "package.module:factory, or to look at one that was trained here, the fol" in answer.err
