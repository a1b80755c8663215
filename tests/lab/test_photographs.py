"""Photographs of any size, format and place: what each becomes, and which are left out."""

import io
import random
import re
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from sklearn.datasets import load_sample_images

from convsim.errors import DataError, MissingExtraError
from convsim.lab.datasets import image_folder, load_dataset
from convsim.lab.datasets.decoding import decode_image
from convsim.lab.datasets.image_files import ImageFiles
from convsim.lab.datasets.image_sources import Names
from convsim.lab.loading import Draw, LabelledBatches, prepared
from convsim.lab.preprocessing import Standardised
from convsim.lab.training_data import load_to_train, without_unreadable

PHOTOGRAPH = Image.fromarray(load_sample_images().images[1]).resize((40, 30))
AS_IT_IS = Standardised((0.0,) * 3, (1.0,) * 3, 16)


def encoded(image, kind="png", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def decoded(image, kind="png", **options):
    return decode_image(encoded(image, kind, **options))


def write(folder: Path, *names: str, content: bytes | None = None) -> Path:
    for n, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture = PHOTOGRAPH.resize((20 + n, 24)).rotate(n)
        (folder / name).write_bytes(encoded(picture) if content is None else content)
    return folder


@pytest.fixture
def load(tmp_path):
    return lambda path, **options: load_dataset(
        path, root=tmp_path / "root", progress=False, **options
    )


# -------------------------------------------------------- one defined result for each kind of image


def test_sixteen_bits_become_the_nearest_of_eight():
    values = np.arange(0, 65536, 13, dtype=np.uint16).reshape(1, -1)
    for kind in ("png", "tiff"):
        image = decoded(Image.fromarray(values), kind)
        assert image.mode == "L"
        assert np.array_equal(np.asarray(image), np.rint(values / 257))


def test_transparency_shows_the_colours_beneath():
    image = Image.merge("RGBA", (*PHOTOGRAPH.split(), Image.linear_gradient("L").resize((40, 30))))
    assert np.array_equal(np.asarray(decoded(image)), np.asarray(PHOTOGRAPH))
    grey = Image.merge("LA", (PHOTOGRAPH.convert("L"), Image.new("L", (40, 30), 7)))
    assert np.array_equal(np.asarray(decoded(grey)), np.asarray(PHOTOGRAPH.convert("L")))


def test_palettes_become_their_colours():
    image = PHOTOGRAPH.quantize(16)
    assert np.array_equal(np.asarray(decoded(image)), np.asarray(image.convert("RGB")))
    image.info["transparency"] = 3
    assert decoded(image).mode == "RGB"


@pytest.mark.parametrize("kind", ["jpeg", "tiff"])
def test_cmyk_becomes_rgb_as_torchvision_and_timm_read_it(kind):
    image = PHOTOGRAPH.convert("CMYK")
    expected = Image.open(io.BytesIO(encoded(image, kind))).convert("RGB")
    assert np.array_equal(np.asarray(decoded(image, kind)), np.asarray(expected))


def test_colour_profiles_change_nothing():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(np.asarray(decoded(PHOTOGRAPH, icc_profile=profile)), PHOTOGRAPH)


@pytest.mark.parametrize("mode", ["1", "L"])
def test_black_and_white_and_grey_stay_grey(mode):
    image = PHOTOGRAPH.convert(mode)
    assert decoded(image).mode == "L"
    assert np.array_equal(np.asarray(decoded(image)), np.asarray(image.convert("L")))


def test_floats_are_refused():
    with pytest.raises(OSError, match="mode 'F', neither 8 nor 16 bits"):
        decoded(Image.new("F", (4, 3)), "tiff")


def test_sixteen_bits_with_an_exif_tag_stand_upright():
    tag = Image.Exif()
    tag[0x0112] = 6
    values = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
    turned = decoded(Image.fromarray(values), exif=tag)
    assert np.array_equal(np.asarray(turned), np.rot90(np.rint(values / 257), -1))


# ------------------------------------------------------------------------------- sizes and layouts


def test_many_sizes_are_scaled_and_cropped_about_the_centre(tmp_path, load):
    path = write(tmp_path / "p", *(f"{part}/{c}/{i}.png" for part in ("train", "val")
                                   for c in "ab" for i in range(3)))  # fmt: skip
    with pytest.raises(DataError, match=r"must have one size: .*21×24.* --size"):
        load(path)
    data = load(path, size=16)
    assert data.name == "p-16px"
    assert data.train_images.shape == (6, 3, 16, 16)
    for stored, name in zip(data.train_images, ("a/0", "a/1", "a/2", "b/0"), strict=False):
        image = Image.open(path / f"train/{name}.png")
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
        expected = image.resize((16, 16), Image.Resampling.BILINEAR, box)
        assert torch.equal(stored.permute(1, 2, 0), torch.from_numpy(np.array(expected)))
    again = load(path, size=16)
    assert again.fingerprint == data.fingerprint
    streamed = load(path, size=16, stream=True)
    assert isinstance(streamed.train_images, ImageFiles)
    pixels = torch.stack([streamed.train_images.pixels(n) for n in range(6)])
    assert torch.equal(pixels, data.train_images)


def test_what_does_not_fit_in_memory_stays_in_its_files(tmp_path, load, monkeypatch):
    path = write(tmp_path / "p", *(f"{part}/{c}/0.png" for part in ("train", "test") for c in "ab"))
    monkeypatch.setattr(image_folder, "memory", lambda: 4 * 4 * 3 * 16 * 16 - 1)
    data = load(path, size=16)
    assert isinstance(data.train_images, ImageFiles)
    assert data.train_images.shape == (2, 3, 16, 16)
    assert data.subset(train=2, seed=3).fingerprint == data.fingerprint  # all of them
    assert data.to_measure(1).test_images.shape[0] == 1


def test_class_folders_without_parts_are_split_by_a_seed_which_is_said(tmp_path, load):
    path = write(tmp_path / "p", *(f"{c}/{i}.png" for c in ("cat", "dog") for i in range(10)))
    data = load(path, size=8)
    assert data.classes == ("cat", "dog")
    assert data.train_labels.bincount().tolist() == [8, 8]
    assert data.test_labels.bincount().tolist() == [2, 2]
    assert re.search(r"4 of its 20 images, drawn by class with seed 0, are the test", data.notes[0])
    assert load(path, size=8).notes == data.notes  # from the cache
    streamed = load(path, size=8, stream=True)
    assert torch.equal(
        torch.stack([streamed.test_images.pixels(n) for n in range(4)]), data.test_images
    )
    whole = load(path, size=8, whole=True)
    assert len(whole.test_labels) == 20
    assert whole.notes == ()
    write(path, "emu/0.png")
    with pytest.raises(DataError, match=r"needs two images .* 'emu' of .* has one"):
        load(path, size=8)


@pytest.mark.parametrize("names", [
    ["1.png", "2.png", "3.png"],
    ["2024/05/1.png", "2024/06/1.png", "new/2.png"],
    ["photos/1.png", "photos/2.png", "photos/3.png"],
    ["test/1.png", "test/2.png", "test/3.png"],
    ["train/1.png", "train/cats/2.png", "train/dogs/1.png"],
])  # fmt: skip
def test_any_folder_will_do_where_no_classes_are_needed(tmp_path, load, names):
    path = write(tmp_path / "p", *names)
    with pytest.raises(DataError, match=r"layout \{train,test\}/\{class\}/\{image\}|must lie at"):
        load(path, size=8)
    data = load(path, size=8, whole=True)
    assert not data.labelled
    assert data.test_images.shape == (3, 3, 8, 8)
    with pytest.raises(DataError, match=r"Training needs classes: 'p-8px' has none\. Sort"):
        data.require_classes()


def test_a_folder_that_links_to_itself_is_walked_once(tmp_path, load):
    path = write(tmp_path / "p", "a/1.png", "a/2.png", "b/1.png")
    (path / "a/loop").symlink_to(path)
    (path / "elsewhere").symlink_to(tmp_path)
    assert len(load(path, stream=True, whole=True).test_labels) == 3
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="There are no images in"):
        load(tmp_path / "empty", whole=True)


# --------------------------------------------------------------------------- files that are damaged


@pytest.fixture
def damaged(tmp_path):
    path = write(tmp_path / "p", *(f"{c}/{i}.png" for c in "ab" for i in range(6)))
    for name in ("a/2.png", "b/4.png"):
        (path / name).write_bytes(b"no image")
    (path / "b/6.pcx").write_bytes(encoded(PHOTOGRAPH, "pcx"))
    return path


def test_without_leave_the_first_damaged_file_is_named(damaged, load):
    with pytest.raises(DataError, match=r"must be .*pcx' in .* is not"):
        load(damaged, whole=True, stream=True)
    (damaged / "b/6.pcx").unlink()
    for workers in (0, 2):
        data = load(damaged, whole=True, stream=True)
        with pytest.raises(DataError, match=r"readable.*'a/2.png' in .* --skip-bad\.$"):
            list(prepared(data.test_images, AS_IT_IS, 5, workers=workers))
    with pytest.raises(DataError, match=r"'a/2.png'"):
        load(damaged, size=8, whole=True)


def test_damaged_files_are_left_out_counted_and_named(damaged, load):
    for workers in (0, 2):
        data = load(damaged, whole=True, stream=True, skip_bad=True)
        batches = [*prepared(data.test_images, AS_IT_IS, 5, workers=workers)]
        assert [len(batch) for batch in batches] == [4, 5, 1]
        said = "3 files left out that cannot be read: b/6.pcx, a/2.png, b/4.png"
        assert str(data.test_images.skipped) == said
    for _ in range(2):  # from the cache, too
        kept = load(damaged, size=8, whole=True, skip_bad=True)
        assert len(kept.test_labels) == 10
        assert kept.notes == (f"{said}.",)
    streamed = without_unreadable(load(damaged, size=8, stream=True, skip_bad=True))
    assert len(streamed.train_labels) + len(streamed.test_labels) == 10
    assert "3 files left out" in streamed.notes[-1]


def test_a_set_of_nothing_but_damaged_files_is_an_error(tmp_path, load):
    path = write(tmp_path / "p", "1.png", "2.png", content=b"x")
    data = load(path, whole=True, stream=True, skip_bad=True)
    with pytest.raises(DataError, match=r"No image of .* can be read"):
        list(prepared(data.test_images, AS_IT_IS, 2))


# ----------------------------------------------------------------------------- where images may lie


def pixels(data) -> dict[str, bytes]:
    files = data.test_images
    return {files.name(n): files.image(n).tobytes() for n in range(len(files))}


@pytest.mark.parametrize("form", ["tar", "tar.gz", "tar.xz"])
def test_archives_are_read_where_they_lie(tmp_path, load, form):
    path = write(tmp_path / "p", *(f"{c}/{i}.png" for c in "ab" for i in range(3)))
    archive = tmp_path / f"p.{form}"
    with tarfile.open(archive, f"w:{form[4:]}") as tar:
        tar.add(path, "p")
    inside = {f"p/{name}": content for name, content in pixels(
        load(path, stream=True, whole=True)).items()}  # fmt: skip
    data = load(archive, stream=True, whole=True)
    assert data.classes == ("a", "b")
    assert pixels(data) == inside


def shards(tmp_path: Path, labels=True) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(3):
        with tarfile.open(folder / f"set-{shard:03}.tar", "w") as tar:
            for n in range(4):
                content = {"jpg": encoded(PHOTOGRAPH.resize((20 + n, 30 - shard)), "jpeg")}
                if labels:
                    content["cls"] = str((10, 9)[n % 2]).encode()
                content["json"] = b"{}"
                for suffix, data in content.items():
                    info = tarfile.TarInfo(f"{shard}{n:05}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return folder


def test_webdataset_shards(tmp_path, load):
    folder = shards(tmp_path)
    data = load(folder, size=8, whole=True, stream=True)
    assert data.classes == ("9", "10")
    assert len(data.test_labels) == 12
    names = [data.test_images.name(n) for n in range(12)]
    assert names[0] == "set-000.tar/000001.jpg"
    labels = [0 if int(name[-5]) % 2 else 1 for name in names]
    assert data.test_labels.tolist() == labels
    few = load(f"{folder}/set-{{000..001}}.tar", size=8)
    assert len(few.train_labels) + len(few.test_labels) == 8
    for place in range(12):
        shard, member = names[place].split("/")
        with tarfile.open(folder / shard) as tar:
            image = Image.open(tar.extractfile(member))
            assert data.test_images.image(place).tobytes() == image.convert("RGB").tobytes()


# webdataset leaves its files to be closed by the collector.
@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_shards_are_what_webdataset_reads(tmp_path, load):
    webdataset = pytest.importorskip("webdataset")
    folder = shards(tmp_path)
    data = load(folder, whole=True, stream=True)
    ours = {Path(data.test_images.name(n)).stem: int(data.classes[data.test_labels[n]])
            for n in range(12)}  # fmt: skip
    urls = [str(path) for path in sorted(folder.iterdir())]
    samples = webdataset.WebDataset(urls, shardshuffle=False)
    assert ours == {sample["__key__"]: int(sample["cls"]) for sample in samples}


# webdataset leaves its files to be closed by the collector.
@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_shards_without_classes(tmp_path, load):
    folder = shards(tmp_path, labels=False)
    data = load(folder, whole=True, stream=True)
    assert not data.labelled
    assert len(data.test_labels) == 12


@pytest.fixture
def arrow(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"photo": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog"])}
    )
    rows = {"photo": [PHOTOGRAPH.resize((20 + n, 24)) for n in range(10)], "kind": [0, 1] * 5}
    whole = datasets.Dataset.from_dict(rows, features=features)
    whole.save_to_disk(tmp_path / "one")
    whole.train_test_split(0.4, seed=0).save_to_disk(tmp_path / "two")
    whole.remove_columns("kind").save_to_disk(tmp_path / "plain")
    return tmp_path


def test_hugging_face_data_sets_on_disk(arrow, load):
    data = load(arrow / "one", size=8)
    assert data.classes == ("cat", "dog")
    assert (len(data.train_labels), len(data.test_labels)) == (8, 2)
    two = load(arrow / "two", size=8, stream=True)
    assert (len(two.train_labels), len(two.test_labels)) == (6, 4)
    plain = load(arrow / "plain", stream=True, whole=True)
    assert not plain.labelled
    expected = [PHOTOGRAPH.resize((20 + n, 24)).tobytes() for n in range(10)]
    assert [plain.test_images.image(n).tobytes() for n in range(10)] == expected
    with pytest.raises(DataError, match=r"columns of .* are photo, and none is a ClassLabel"):
        load(arrow / "plain", size=8)


def test_hugging_face_data_sets_need_their_library(tmp_path, load, monkeypatch):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/state.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install '\.\[datasets\]'"):
        load(tmp_path / "d")


def test_names_are_kept_whole():
    chance = random.Random(0)
    names = ["".join(chance.choices("aé/\udcff \U0001f600", k=n)) for n in range(30)]
    assert [*Names(names)] == names
    assert Names(names)[-1] == names[-1]
    assert Names(names)[2:5] == names[2:5]
    with pytest.raises(IndexError):
        Names(names)[30]


# ---------------------------------------------------------------------------------------- training


def test_random_crops_are_of_the_whole_photograph(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVSIM_HOME", str(tmp_path / "root"))
    path = str(write(tmp_path / "p", *(f"{c}/{i}.png" for c in "ab" for i in range(5))))
    plain = load_to_train(path, "cnn", size=12, augment=False)
    assert isinstance(plain.train_images, torch.Tensor)
    cropped = load_to_train(path, "cnn", size=12, augment=True)
    assert isinstance(cropped.train_images, ImageFiles)
    batches = LabelledBatches(cropped.train_images, cropped.train_labels)
    images, labels = batches[Draw([0, 4])]
    assert torch.equal(images, plain.train_images[[0, 4]])
    assert labels.tolist() == [0, 1]
    first, again, later = (batches[Draw([0, 4], seed)][0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert first.shape == (2, 3, 12, 12)


@pytest.mark.usefixtures("vision")
def test_photographs_are_trained_on_in_the_size_that_the_library_says(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVSIM_HOME", str(tmp_path / "root"))
    path = str(write(tmp_path / "p", *(f"{c}/{i}.png" for c in "ab" for i in range(5))))
    sized = load_to_train(path, "timm:inception_v3", size=None, augment=False)
    assert sized.train_images.shape == (8, 3, 299, 299)
    with pytest.raises(DataError, match="--size"):
        load_to_train(path, "cnn", size=None, augment=False)
