from __future__ import annotations

import contextlib
import dataclasses
import functools
import gzip
import hashlib
import http.server
import io
import os
import pickle
import struct
import tarfile
import threading
import zlib
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from rich.progress import Progress

from convsim.errors import ConvsimWarning, DataError
from convsim.home import home
from convsim.lab import datasets
from convsim.lab.datasets import DATASETS, ImageData, archive, cache, download, load, load_dataset
from convsim.lab.datasets.cifar import CIFAR10, CIFAR100, decode_cifar
from convsim.lab.datasets.download import RemoteFile, fetch
from convsim.lab.datasets.mnist import decode_mnist, read_idx

REAL_ARCHIVE = Path(__file__).parents[3] / "shared/data/cifar10-jpeg.tar.xz"
FORMS = ("folder", ".tar", ".tar.gz", ".tar.xz", ".tar.bz2")
CLASSES = ("cat", "dog")


def test_public_names():
    assert datasets.__all__ == ["DATASETS", "ImageData", "load_dataset"]
    assert list(DATASETS) == [
        "digits", "photographs", "cifar10", "cifar100", "mnist", "fashion-mnist",
    ]  # fmt: skip


# ---------------------------------------------------------------- ImageData


def numbered(sizes: list[int], test_sizes: list[int] | None = None) -> ImageData:
    """A data set in which every image has a number of its own in its two pixels."""
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(7))]
    test = torch.repeat_interleave(
        torch.arange(len(sizes)), torch.tensor(test_sizes or [1] * len(sizes))
    )

    def images(n: int) -> torch.Tensor:
        return torch.tensor([[i // 256, i % 256] for i in range(n)], dtype=torch.uint8).reshape(
            n, 1, 1, 2
        )

    classes = tuple(f"c{i}" for i in range(len(sizes)))
    return ImageData("n", images(len(labels)), labels, images(len(test)), test, classes)


def numbers(images: torch.Tensor) -> list[int]:
    return [int(a) * 256 + int(b) for a, b in images.flatten(1)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train_images": torch.zeros(4, 1, 1, 2)},
            r"uint8 .* train part of 'n' has torch.float32",
        ),
        ({"test_images": torch.zeros(2, 2, dtype=torch.uint8)}, r"test part of 'n' .* \(2, 2\)"),
        ({"test_images": torch.zeros(0, 1, 1, 2, dtype=torch.uint8)}, r"\(0, 1, 1, 2\)"),
        ({"train_labels": torch.zeros(3, dtype=torch.int64)}, r"one per image.*\(3,\) for 4"),
        ({"train_labels": torch.zeros(4)}, "Labels must be int64"),
        ({"train_labels": torch.tensor([0, 1, 2, 0])}, "2 classes.*labels from 0 to 2"),
        ({"train_labels": torch.tensor([0, 1, -1, 0])}, "from -1 to 1"),
        (
            {"test_images": torch.zeros(2, 3, 1, 2, dtype=torch.uint8)},
            r"\(1, 1, 2\) and \(3, 1, 2\)",
        ),
    ],
)
def test_image_data_rejects(changes, message):
    with pytest.raises(DataError, match=message):
        dataclasses.replace(numbered([2, 2]), fingerprint="", **changes)


def test_fingerprint_covers_all_but_the_name():
    data = numbered([3, 3], [2, 2])
    assert len(data.fingerprint) == 64
    remake = functools.partial(dataclasses.replace, data, fingerprint="")
    assert remake(name="other").fingerprint == data.fingerprint
    changed = [
        remake(classes=("c0", "x")),
        remake(train_images=data.train_images ^ 1),
        remake(test_images=data.test_images ^ 1),
        remake(train_labels=1 - data.train_labels),
        remake(test_labels=1 - data.test_labels),
        remake(train_images=data.train_images.mT, test_images=data.test_images.mT),
    ]
    assert len({data.fingerprint, *(d.fingerprint for d in changed)}) == 7


def test_fingerprint_does_not_depend_on_memory_layout():
    data = numbered([3, 3])
    strided = data.train_images.repeat_interleave(2, dim=0)[::2]
    assert not strided.is_contiguous()
    again = dataclasses.replace(data, train_images=strided, fingerprint="")
    assert again.fingerprint == data.fingerprint


def test_subset_is_balanced_ordered_and_consistent():
    data = numbered([40] * 5, [10] * 5)
    small = data.subset(train=20, test=10, seed=3)
    assert small.train_labels.bincount().tolist() == [4] * 5
    assert small.test_labels.bincount().tolist() == [2] * 5
    kept = numbers(small.train_images)
    assert kept == sorted(kept)
    assert torch.equal(data.train_labels[kept], small.train_labels)
    assert small.name == "n-train20-test10-seed3"
    assert small.fingerprint != data.fingerprint


def test_subset_seeds_and_nesting():
    data = numbered([40] * 5)
    small, same, other = (data.subset(train=50, seed=s) for s in (1, 1, 2))
    assert small.fingerprint == same.fingerprint != other.fingerprint
    larger = data.subset(train=100, seed=1)
    assert set(numbers(small.train_images)) < set(numbers(larger.train_images))
    assert torch.equal(small.test_images, data.test_images)


@pytest.mark.parametrize("count", [3, 4, 10, 37, 110, 111])
def test_subset_of_unequal_classes_keeps_shares_and_every_class(count):
    sizes = [100, 10, 1]
    drawn = numbered(sizes).subset(train=count).train_labels.bincount(minlength=3)
    assert drawn.sum() == count
    assert drawn.min() >= 1
    for size, n in zip(sizes, drawn.tolist(), strict=True):
        assert n <= size
        assert abs(n - count * size / 111) < 3


def test_subset_of_everything_or_nothing_changes_no_image():
    data = numbered([5, 5])
    assert data.subset() is data
    assert data.subset(train=10).fingerprint == data.fingerprint


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"train": 11}, "got 11 for the train part of 'n', which has 10 images.*Ask for 2 to 10"),
        ({"test": 1}, "at least one image per class.*got 1 for the test part"),
        ({"train": -1}, "got -1"),
    ],
)
def test_subset_rejects(request_, message):
    with pytest.raises(DataError, match=message):
        numbered([5, 5], [2, 2]).subset(**request_)


@pytest.mark.parametrize("count", [1, 3, 5, 10, 25, 49, 50, 99])
def test_what_is_measured_is_of_all_classes_in_turn(count):
    data = numbered([3] * 5, [10] * 5)  # sorted by class, as a folder of images is
    drawn = data.to_measure(count)
    assert len(drawn.test_labels) == min(count, 50)
    assert torch.equal(data.test_labels[numbers(drawn.test_images)], drawn.test_labels)
    for rounds in drawn.test_labels.split(5):  # each round has every class once
        assert len(rounds.unique()) == len(rounds)
    assert drawn.fingerprint == data.to_measure(count).fingerprint
    if count >= 5:
        same = data.subset(test=min(count, 50))
        assert sorted(numbers(drawn.test_images)) == numbers(same.test_images)


def test_hold_out_splits_the_training_part_and_drops_the_test_part():
    data = numbered([40] * 5, [3] * 5)
    split = data.hold_out(0.25, seed=1)
    train, validation = numbers(split.train_images), numbers(split.test_images)
    assert sorted(train + validation) == list(range(200))
    assert train == sorted(train)
    assert validation == sorted(validation)
    assert torch.equal(split.test_labels, data.train_labels[validation])
    assert split.test_labels.bincount().tolist() == [10] * 5
    assert split.name == "n-validation0.25-seed1"
    assert split.test_images.data_ptr() != data.test_images.data_ptr()
    assert split.fingerprint != data.hold_out(0.25, seed=2).fingerprint


@pytest.mark.parametrize(
    ("sizes", "fraction", "message"),
    [
        ([5, 5], 0.0, "between 0 and 1: got 0.0"),
        ([5, 5], 1.0, "between 0 and 1"),
        ([5, 5], float("nan"), "got nan"),
        (
            [5, 5],
            0.1,
            r"share must hold an image of each class: 10% of the 10 training images of 'n' are 1, "
            r"for 2 classes\. Take 20 training images or more",
        ),
        ([5, 1], 0.5, "leaves none of class 'c1'"),
    ],
)
def test_hold_out_rejects(sizes, fraction, message):
    with pytest.raises(DataError, match=message):
        numbered(sizes).hold_out(fraction)


# ------------------------------------------------------------- image folders


def picture(value: object = 0, *, size=(4, 3), mode="RGB", suffix="png") -> bytes:
    if isinstance(value, int):
        value = (
            value
            if mode in ("L", "P", "I;16", "1")
            else (value,) * len(Image.new(mode, (1, 1)).getbands())
        )
    out = io.BytesIO()
    Image.new(mode, size, value).save(out, {"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix))
    return out.getvalue()


def layout(train="train", test="test", top="") -> dict[str, bytes | None]:
    """File → content; folder → None."""
    return {
        f"{top}{part}/{label}/{i}.png": picture(40 * p + 10 * i + c)
        for p, part in enumerate((train, test))
        for c, label in enumerate(CLASSES)
        for i in range(2)
    }


def pack(path: Path, files: dict[str, bytes | None], form: str) -> Path:
    if form == "folder":
        for name, content in files.items():
            file = path / name
            (file if content is None else file.parent).mkdir(parents=True, exist_ok=True)
            if content is not None:
                file.write_bytes(content)
        return path
    target = path.with_name(path.name + form)
    with tarfile.open(target, "w:" + form.removeprefix(".tar").removeprefix(".")) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content or b"")
            info.type = tarfile.REGTYPE if content is not None else tarfile.DIRTYPE
            tar.addfile(info, io.BytesIO(content or b""))
    return target


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def open_(root):
    return functools.partial(load_dataset, root=root, progress=False)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("top", ["", "top/", "./top/"])
@pytest.mark.parametrize("test", ["test", "val", "validation"])
def test_layouts_and_forms_agree(tmp_path, open_, form, top, test):
    data = open_(pack(tmp_path / "pets.v2", layout(test=test, top=top), form))
    assert data.name == "pets.v2"
    assert data.classes == CLASSES
    assert data.train_labels.tolist() == data.test_labels.tolist() == [0, 0, 1, 1]
    assert data.train_images.shape == data.test_images.shape == (4, 3, 3, 4)
    assert data.train_images[:, 0, 0, 0].tolist() == [0, 10, 1, 11]
    assert data.test_images[:, 0, 0, 0].tolist() == [40, 50, 41, 51]


def test_order_in_the_archive_does_not_matter(tmp_path, open_):
    files = layout()
    backwards = dict(reversed(files.items()))
    one, two = (
        open_(pack(tmp_path / n, f, ".tar")) for n, f in (("one", files), ("two", backwards))
    )
    assert one.fingerprint == two.fingerprint


@pytest.mark.parametrize(
    "suffix", ["png", "bmp", "webp", "jpg", "jpeg", "PNG", "gif", "tif", "tiff"]
)
def test_image_formats(tmp_path, open_, suffix):
    files = {
        f"{part}/{label}/0.{suffix}": picture(100, suffix=suffix.lower())
        for part in ("train", "test")
        for label in CLASSES
    }
    images = open_(pack(tmp_path / "data", files, "folder")).train_images
    assert (images.int() - 100).abs().max() <= 2


@pytest.mark.parametrize(
    ("mode", "alone", "among_colours"),
    [
        ("L", 1, (9, 9, 9)),
        ("LA", 1, (9, 9, 9)),
        ("1", 1, (255, 255, 255)),
        ("RGB", 3, (9, 9, 9)),
        ("RGBA", 3, (9, 9, 9)),
        ("P", 3, None),
    ],
)
def test_modes(tmp_path, open_, mode, alone, among_colours):
    files = {name: picture(9, mode=mode) for name in layout()}
    assert open_(pack(tmp_path / "alone", files, "folder")).train_images.shape[1] == alone
    files["test/dog/1.png"] = picture((1, 2, 3))
    mixed = open_(pack(tmp_path / "mixed", files, "folder"))
    assert mixed.test_images[-1, :, 0, 0].tolist() == [1, 2, 3]
    if among_colours:
        assert tuple(mixed.train_images[0, :, 0, 0].tolist()) == among_colours


def test_rows_and_columns_are_kept(tmp_path, open_):
    pixels = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "png")
    files = dict.fromkeys(layout(), out.getvalue())
    image = open_(pack(tmp_path / "data", files, "folder")).train_images[0]
    assert torch.equal(image, torch.from_numpy(pixels).permute(2, 0, 1))


@pytest.mark.parametrize("form", ["folder", ".tar"])
def test_other_files_play_no_part(tmp_path, open_, form):
    extra = dict.fromkeys(
        (
            "README.md",
            "other/cat/0.png",
            "train/labels.txt",
            "train/cat/notes.txt",
            "train/cat/._0.png",
            "train/.cache/0.png",
            ".git/train/cat/0.png",
        ),
        b"x",
    )
    plain = open_(pack(tmp_path / "plain", layout(), form))
    assert open_(pack(tmp_path / "extra", layout() | extra, form)).fingerprint == plain.fingerprint


def bomb() -> bytes:
    """A PNG whose header claims 60,000×60,000 pixels."""
    content = picture()
    header = b"IHDR" + struct.pack(">II", 60000, 60000) + content[24:29]
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


BAD_LAYOUTS = {
    "no train": (
        lambda f: {n: c for n, c in f.items() if "test" in n},
        "one train folder.*has test",
    ),
    "no test": (lambda f: {n: c for n, c in f.items() if "train" in n}, "validation: .* has train"),
    "nothing": (lambda f: {"a/b/c.png": picture()}, "has neither"),
    "test and val": (lambda f: f | {"val/cat/0.png": picture()}, "has test, train, val"),
    "two tops": (lambda f: f | {"x/train/cat/0.png": picture()}, "has test, train, x/train"),
    "empty class": (lambda f: f | {"train/emu": None}, "class folder train/emu of .* has none"),
    "empty train": (
        lambda f: {n: c for n, c in f.items() if "test" in n} | {"train": None},
        "the train folder of .* has none",
    ),
    "class only in test": (
        lambda f: f | {"test/emu/0.png": picture()},
        r"only train has \[\], only test has \['emu'\]",
    ),
    "class only in train": (lambda f: f | {"train/emu/0.png": picture()}, r"train has \['emu'\]"),
    "no class folder": (lambda f: f | {"train/0.png": picture()}, "'train/0.png' in .* elsewhere"),
    "too deep": (lambda f: f | {"train/cat/x/0.png": picture()}, "'train/cat/x/0.png' in"),
    "sizes": (
        lambda f: f | {"train/cat/9.png": picture(size=(5, 3))},
        "'train/cat/9.png' in .* has 5×3, '.*' has 4×3 .*with --size",
    ),
    "format": (
        lambda f: f | {"train/cat/0.pcx": picture(suffix="pcx")},
        "'train/cat/0.pcx' .*is not",
    ),
    "other format inside": (
        lambda f: f | {"test/dog/0.png": picture(suffix="pcx")},
        "'test/dog/0.png'",
    ),
    "no image": (lambda f: f | {"train/cat/0.png": b"hello"}, "readable .*'train/cat/0.png'"),
    "empty image": (lambda f: f | {"train/cat/0.png": b""}, "'train/cat/0.png'"),
    "cut image": (lambda f: f | {"train/cat/0.png": picture()[:-30]}, "'train/cat/0.png'"),
    "cut jpeg": (lambda f: f | {"test/cat/0.jpg": picture(suffix="jpg")[:-40]}, "'test/cat/0.jpg'"),
    "bomb": (lambda f: f | {"train/cat/0.png": bomb()}, "'train/cat/0.png' .*pixels"),
    "large": (
        lambda f: f | {"train/cat/0.png": picture(size=(4100, 4100), mode="1")},
        "4100×4100 pixels, 16777216 allowed",
    ),
    "floats": (
        lambda f: f | {"train/cat/0.tif": picture(0.5, mode="F", suffix="tif")},
        "'train/cat/0.tif' .*mode 'F', neither 8 nor 16 bits",
    ),
}


@pytest.mark.parametrize("form", ["folder", ".tar.gz"])
@pytest.mark.parametrize("case", BAD_LAYOUTS)
def test_bad_layouts(tmp_path, open_, case, form):
    change, message = BAD_LAYOUTS[case]
    path = pack(tmp_path / "data", change(layout()), form)
    with pytest.raises(DataError, match=message) as caught:
        open_(path)
    assert str(path) in str(caught.value)


def test_links_in_a_folder(tmp_path, open_):
    path = pack(tmp_path / "data", layout(), "folder")
    (path / "train/cat").rename(tmp_path / "elsewhere")
    (path / "train/cat").symlink_to(tmp_path / "elsewhere")
    (path / "train/loop").symlink_to(path)
    with pytest.raises(DataError, match="class folder train/loop"):
        open_(path)
    (path / "train/loop").unlink()
    assert len(open_(path).train_images) == 4
    (path / "train/cat/2.png").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"must be readable: .*2.png is not"):
        open_(path)


def test_image_with_too_many_bytes(tmp_path, open_):
    path = pack(tmp_path / "data", layout(), "folder")
    with (path / "train/cat/0.png").open("ab") as file:
        file.truncate(archive.MAX_MEMBER_BYTES + 1)
    with pytest.raises(DataError, match=r"at most 67108864 bytes: .*0.png"):
        open_(path)


# ------------------------------------------------------------------ archives


def with_member(path: Path, name: str, **fields: object) -> Path:
    """An uncompressed archive whose last member is a bare header."""
    pack(path, layout(), ".tar")
    path = path.with_name(path.name + ".tar")
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    content = path.read_bytes().rstrip(b"\0")
    content += bytes(-len(content) % 512) + info.tobuf() + bytes(10240)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        (
            "train/cat/9.png",
            {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
            "link, a device or sparse",
        ),
        ("train/cat/9.png", {"type": tarfile.LNKTYPE, "linkname": "train/cat/0.png"}, "link"),
        ("train/cat/9.png", {"type": tarfile.CHRTYPE}, "'train/cat/9.png' in .* device"),
        ("train/cat/9.png", {"type": tarfile.FIFOTYPE}, "device"),
        ("/train/cat/9.png", {}, "without '..': .* has '/train/cat/9.png'"),
        ("train/../../9.png", {}, "has 'train/../../9.png'"),
        ("train/cat/9.png", {"size": 2**26 + 1}, "at most 67108864 bytes: 'train/cat/9.png'"),
        ("notes.txt", {"size": 2**40}, "'notes.txt' in .* has 1099511627776"),
        ("x", {"type": tarfile.XHDTYPE, "size": 2**32}, "may claim at most .* claims 4294967296"),
        ("x", {"type": tarfile.GNUTYPE_LONGNAME, "size": 2**32}, "may claim at most"),
        ("train/cat/0.png", {}, "'train/cat/0.png' twice"),
    ],
)
def test_hostile_members(tmp_path, open_, name, fields, message):
    before = sorted(tmp_path.parent.rglob("*"))
    path = with_member(tmp_path / "data", name, **fields)
    with pytest.raises(DataError, match=message):
        open_(path)
    assert sorted(tmp_path.parent.rglob("*")) == sorted([*before, path])


def test_a_member_that_comes_twice(tmp_path, open_):
    path = pack(tmp_path / "data", layout(), ".tar")
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo("train/cat/0.png")
        info.size = len(picture())
        tar.addfile(info, io.BytesIO(picture()))
    with pytest.raises(DataError, match=r"'train/cat/0.png' twice"):
        open_(path)


# Of a plain tar's end mark, one zero less loses nothing.
CUTS = [
    (form, share)
    for form in FORMS[1:]
    for share in (0.0, 0.3, 0.6, 0.95, "boundary", "last")
    if (form, share) != (".tar", "last")
]


@pytest.mark.parametrize(("form", "share"), CUTS)
def test_truncated_archives(tmp_path, open_, form, share):
    path = pack(tmp_path / "data", layout(), form)
    content = path.read_bytes()
    if form == ".tar":
        content = content[: len(content.rstrip(b"\0")) + 600]
    cut = {"boundary": 4 * 1024, "last": len(content) - 1}.get(share)
    cut = int(share * len(content)) if cut is None else cut
    path.write_bytes(content[: min(cut, len(content) - 1)])
    with pytest.raises(DataError, match="corrupt or truncated") as caught:
        open_(path)
    assert str(path) in str(caught.value)
    assert "again" in str(caught.value)


@pytest.mark.parametrize("form", FORMS[2:])
def test_checksum_at_the_end_of_a_compressed_archive(tmp_path, open_, form):
    path = pack(tmp_path / "data", layout(), form)
    content = bytearray(path.read_bytes())
    content[-8 if form == ".tar.gz" else -6] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(DataError, match="corrupt or truncated"):
        open_(path)


def test_no_archive_at_all(tmp_path, open_):
    path = tmp_path / "data.tar"
    path.write_bytes(b"hello " * 200)
    with pytest.raises(DataError, match="no archive at all"):
        open_(path)


def test_archive_that_goes_on_after_its_end(tmp_path):
    path = pack(tmp_path / "data", layout(), ".tar")
    path.write_bytes(path.read_bytes() + bytes(20000))
    with Progress(disable=True) as bar, pytest.raises(DataError, match="end with its end mark"):
        list(archive.read_tar(path, bar, max_member_bytes=10000))


@pytest.mark.skipif(
    not REAL_ARCHIVE.is_file(), reason=f"needs CIFAR-10 as JPEG files: {REAL_ARCHIVE}"
)
def test_first_images_of_the_real_archive(tmp_path, open_):
    with Progress(disable=True) as bar:
        entries = archive.read_tar(REAL_ARCHIVE, bar)
        contents = {str(e.name): e.read() for e, _ in zip(entries, range(200), strict=False)}
    test = {name.replace("/train/", "/test/"): content for name, content in contents.items()}
    data = open_(pack(tmp_path / "part", contents | test, ".tar"))
    assert data.train_images.shape == (200, 3, 32, 32)
    assert data.classes == ("airplane",)
    assert 60 < data.train_images.float().mean() < 200
    assert data.train_images.float().std(dim=0).min() > 10


# --------------------------------------------------------------------- cache


def decoded(root):
    """List what the cache holds, but for its locks."""
    return [path for path in (root / "decoded").iterdir() if path.suffix != ".lock"]


@pytest.mark.parametrize("form", ["folder", ".tar"])
def test_second_load_decodes_nothing(tmp_path, root, open_, form, monkeypatch):
    path = pack(tmp_path / "data", layout(), form)
    first = open_(path)
    (file,) = decoded(root)
    assert file.suffix == ".safetensors"
    monkeypatch.setattr(load, "decode_all", None)
    again = open_(path)
    assert again.fingerprint == first.fingerprint
    assert (again.name, again.classes) == (first.name, first.classes)
    for key in ("train_images", "train_labels", "test_images", "test_labels"):
        assert torch.equal(getattr(again, key), getattr(first, key))


def test_a_renamed_archive_shares_the_cache(tmp_path, root, open_):
    path = pack(tmp_path / "data", layout(), ".tar")
    open_(path)
    assert open_(path.rename(tmp_path / "pets.tar")).name == "pets"
    assert len(decoded(root)) == 1


def test_a_changed_folder_is_decoded_again(tmp_path, open_):
    path = pack(tmp_path / "data", layout(), "folder")
    first = open_(path)
    file = path / "train/cat/0.png"
    file.write_bytes(picture(200))
    os.utime(file, ns=(1, 1))
    second = open_(path)
    assert second.fingerprint != first.fingerprint
    assert second.train_images[0].unique().tolist() == [200]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: b"",
        lambda content: content[:100],
        lambda content: content[:-1],
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        lambda content: bytes(1000),
        lambda content: content.replace(b"dog", b"dot"),
        lambda content: content.replace(b"fingerprint", b"fingerprinT"),
        lambda content: content.replace(b"train_labels", b"train_labelz"),
    ],
)
def test_corrupt_cache_is_rebuilt(tmp_path, root, open_, spoil):
    path = pack(tmp_path / "data", layout(), ".tar")
    first = open_(path)
    (file,) = decoded(root)
    good = file.read_bytes()
    spoiled = spoil(good)
    assert spoiled != good
    file.write_bytes(spoiled)
    assert open_(path).fingerprint == first.fingerprint
    assert decoded(root) == [file]
    assert cache._read(file, "data").fingerprint == first.fingerprint


def test_unwritable_cache_warns_once(tmp_path):
    path = pack(tmp_path / "data", layout(), ".tar")
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.warns(ConvsimWarning, match="must be writable: .* is not .*decodes anew. Set CONV"):
        first = load_dataset(path, root=blocked / "root", progress=False)
    again = load_dataset(path, root=blocked / "root", progress=False)
    assert again.fingerprint == first.fingerprint


def test_failed_write_leaves_nothing_behind(tmp_path, root, open_, monkeypatch):
    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.warns(ConvsimWarning, match="No space left"):
        open_(pack(tmp_path / "data", layout(), ".tar"))
    assert decoded(root) == []


def test_root_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVSIM_HOME", str(tmp_path / "home"))
    load_dataset(str(pack(tmp_path / "data", layout(), ".tar")), progress=False)
    assert len(decoded(tmp_path / "home")) == 1
    monkeypatch.delenv("CONVSIM_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert home() == tmp_path / "caches" / "convsim"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert home() == Path.home() / ".cache/convsim"


@pytest.mark.parametrize("form", ["folder", ".tar"])
@pytest.mark.parametrize("progress", [False, True])
def test_progress_goes_to_stderr(tmp_path, root, capsys, form, progress, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes rich draw although nobody watches
    monkeypatch.setenv("TERM", "xterm")
    load_dataset(pack(tmp_path / "data", layout(), form), root=root, progress=progress)
    out, err = capsys.readouterr()
    assert out == ""
    assert ("data" in err) == progress


# -------------------------------------------------------------- named sources


def test_digits(open_):
    data = open_("digits")
    assert data.train_images.shape == (1297, 1, 8, 8)
    assert data.test_images.shape == (500, 1, 8, 8)
    assert data.classes == tuple("0123456789")
    assert data.train_images.max() == 255
    share = data.test_labels.bincount() / (
        data.test_labels.bincount() + data.train_labels.bincount()
    )
    assert (share - 500 / 1797).abs().max() < 0.01
    assert data.fingerprint == open_("digits").fingerprint
    assert not {i.numpy().tobytes() for i in data.train_images} & {
        i.numpy().tobytes() for i in data.test_images
    }


@pytest.mark.parametrize("source", ["cifar", "no/such/path", "missing.tar.gz"])
def test_unknown_source(source, open_):
    with pytest.raises(DataError, match=r"one of digits, photographs, cifar10, .*there is no"):
        open_(source)


def test_a_misspelt_name_is_suggested(open_):
    with pytest.raises(DataError, match=r"there is no 'digit'\. Did you mean 'digits'\?"):
        open_("digit")


class Python2Pickler(pickle._Pickler):
    """Writes byte strings as Python 2 did, and names of numpy 1: the official format."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_bytes(self, value):
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_bytes


def python2(value: object) -> bytes:
    out = io.BytesIO()
    Python2Pickler(out, protocol=2).dump(value)
    return out.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


PICKLERS = {
    "python 2": python2,
    **{f"protocol {p}": functools.partial(pickle.dumps, protocol=p) for p in (2, 4)},
}


def cifar_batches(spec, dump) -> dict[str, bytes]:
    generator = np.random.default_rng(0)
    files = {
        name: dump(
            {
                b"data": generator.integers(0, 256, (3, 3072), dtype=np.uint8),
                spec.labels: [0, 1, 1],
                b"filenames": [b"a.png"] * 3,
            }
        )
        for name in (*spec.train, *spec.test)
    }
    return files | {spec.meta: dump({spec.classes: [b"airplane", b"automobile"]})}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_stand_as_viewers_show_them(tmp_path, open_, suffix, orientation):
    stored = np.zeros((16, 24, 3), np.uint8)
    stored[:8, :8], stored[8:, :8], stored[:8, 16:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    tag = Image.Exif()
    tag[0x0112] = orientation
    image = Image.fromarray(stored)
    for part in ("train", "test"):
        folder = tmp_path / "data" / part / "a"
        folder.mkdir(parents=True)
        image.save(folder / f"1.{suffix}", exif=tag, **({"quality": 95} if suffix == "jpg" else {}))
    shown = ImageOps.exif_transpose(Image.open(folder / f"1.{suffix}")).convert("RGB")
    assert shown.size == ((24, 16) if orientation < 5 else (16, 24))
    pixels = open_(tmp_path / "data").train_images[0].permute(1, 2, 0).numpy()
    assert np.array_equal(pixels, np.asarray(shown))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning:PIL")
def test_a_broken_exif_tag_turns_nothing(tmp_path, open_):
    for part in ("train", "test"):
        folder = tmp_path / "data" / part / "a"
        folder.mkdir(parents=True)
        Image.new("RGB", (4, 3), 7).save(folder / "1.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert open_(tmp_path / "data").train_images.shape == (1, 3, 3, 4)


def test_of_an_animation_the_first_frame_is_taken(tmp_path, open_):
    first, second = (Image.new("L", (4, 3), value) for value in (10, 200))
    for part in ("train", "test"):
        folder = tmp_path / "data" / part / "a"
        folder.mkdir(parents=True)
        first.save(folder / "1.gif", save_all=True, append_images=[second])
    assert open_(tmp_path / "data").train_images.unique().tolist() == [10]


def test_a_download_is_bounded_in_size(tmp_path, monkeypatch):
    content = bytes(200_000)

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()  # without a length
            with contextlib.suppress(OSError):
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    monkeypatch.setattr(download, "MAX_BYTES", 100_000)
    with http.server.HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/set.gz"
        file = RemoteFile(url, hashlib.md5(content).hexdigest())
        with pytest.raises(DataError, match="it has more than 100000 bytes"):
            fetch(file, "set", tmp_path, progress=False)
        server.shutdown()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def offer(monkeypatch, name: str, *paths: Path, url: str = "http://127.0.0.1:9/") -> None:
    """Let a name stand for small files of our own."""
    files = tuple(RemoteFile(url + p.name, hashlib.md5(p.read_bytes()).hexdigest()) for p in paths)
    monkeypatch.setitem(DATASETS, name, dataclasses.replace(DATASETS[name], files=files))


@pytest.mark.parametrize("dump", PICKLERS.values(), ids=PICKLERS.keys())
@pytest.mark.parametrize(("name", "spec"), [("cifar10", CIFAR10), ("cifar100", CIFAR100)])
@pytest.mark.parametrize("folder", ["", "own"])
def test_cifar(root, open_, monkeypatch, name, spec, dump, folder):
    where = root / (name if folder else "")
    where.mkdir(parents=True)
    batches = cifar_batches(spec, dump)
    path = pack(where / f"{name}-python", batches, ".tar.gz")
    offer(monkeypatch, name, path)
    data = open_(name)
    assert data.name == name
    assert data.train_images.shape == (3 * len(spec.train), 3, 32, 32)
    assert data.test_images.shape == (3, 3, 32, 32)
    assert data.classes == ("airplane", "automobile")
    assert data.test_labels.tolist() == [0, 1, 1]
    first = pickle.loads(batches[spec.train[0]], encoding="bytes")[b"data"][0]
    assert data.train_images[0].flatten().tolist() == first.tolist()
    monkeypatch.setitem(
        DATASETS, name, dataclasses.replace(DATASETS[name], decode=lambda *a, **k: 1 / 0)
    )
    assert open_(name).fingerprint == data.fingerprint


class Malicious:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def bad_cifar(tmp_path: Path, name: str, content: bytes | None) -> Path:
    files = cifar_batches(CIFAR10, python2) | {name: content}
    return pack(tmp_path / "bad", {n: c for n, c in files.items() if c is not None}, ".tar.gz")


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch hacked",), rf"{os.name}\.system"),
        (eval, ("open('hacked', 'w')",), r"(builtins|__builtin__)\.eval"),
        (np.save, ("hacked", [1]), r"numpy\.save"),
        (np.ndarray.tofile, (np.zeros(1), "hacked"), r"(builtins|__builtin__)\.getattr"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_malicious_batches_do_not_run(tmp_path, monkeypatch, function, arguments, name, protocol):
    monkeypatch.chdir(tmp_path)
    content = pickle.dumps({b"data": Malicious(function, *arguments)}, protocol=protocol)
    path = bad_cifar(tmp_path, CIFAR10.train[2], content)
    message = (
        rf"arrays of numpy only.*'{name}', which was not run.*{CIFAR10.train[2]} in .*bad.tar.gz"
    )
    with pytest.raises(DataError, match=message):
        decode_cifar([path], name="cifar10", layout=CIFAR10, progress=False)
    assert not list(tmp_path.glob("hacked*"))


def test_dotted_names_in_batches_do_not_run(tmp_path):
    content = b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93."
    path = bad_cifar(tmp_path, CIFAR10.meta, content)
    with pytest.raises(DataError, match=r"'numpy.ndarray.tofile', which was not run"):
        decode_cifar([path], name="cifar10", layout=CIFAR10, progress=False)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (CIFAR10.train[4], None, "must hold 7 batches: .* lacks cifar-10-batches-py/data_batch_5"),
        (CIFAR10.test[0], python2({b"data": 1})[:-2], "complete pickle: .*/test_batch in"),
        (CIFAR10.test[0], b"", "complete pickle"),
        (CIFAR10.test[0], b"hello", "complete pickle"),
        (CIFAR10.test[0], python2([1]), "pickled dictionary: .* is a list"),
        (CIFAR10.test[0], python2({b"data": 1}), "rows of 3072 bytes"),
        (CIFAR10.test[0], python2({b"labels": [1]}), "KeyError"),
        (CIFAR10.meta, python2({}), "b'label_names'"),
        (
            CIFAR10.test[0],
            python2({b"data": np.zeros((1, 99), np.uint8), b"labels": [0]}),
            "rows of 3072 bytes.*reshape",
        ),
        (
            CIFAR10.test[0],
            python2({b"data": np.zeros((1, 3072), np.uint8), b"labels": [0, 1]}),
            "one per image",
        ),
        (
            CIFAR10.test[0],
            python2({b"data": np.zeros((1, 3072), np.uint8), b"labels": [2]}),
            "labels from 2 to 2",
        ),
        (
            CIFAR10.test[0],
            python2({b"data": np.zeros((1, 3072)), b"labels": [0]}),
            "of type 'u1': this one is of b?'f8'. It is in .*test_batch",
        ),
        (
            CIFAR10.test[0],
            python2({b"data": np.array([[print]]), b"labels": [0]}),
            "must be of type|may refer to arrays",
        ),
    ],
)
def test_bad_cifar(tmp_path, name, content, message):
    path = bad_cifar(tmp_path, name, content)
    with pytest.raises(DataError, match=message):
        decode_cifar([path], name="cifar10", layout=CIFAR10, progress=False)


def idx(array: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


def idx_files(folder: Path) -> list[Path]:
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    paths = []
    for part, n in (("train", 6), ("t10k", 4)):
        images = generator.integers(0, 256, (n, 5, 7), dtype=np.uint8)
        labels = np.arange(n, dtype=np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            paths.append(folder / f"{part}-{kind}-ubyte.gz")
            paths[-1].write_bytes(gzip.compress(idx(array)))
    return paths


@pytest.mark.parametrize(("name", "last"), [("mnist", "9"), ("fashion-mnist", "Ankle boot")])
def test_mnist(root, open_, monkeypatch, name, last):
    offer(monkeypatch, name, *idx_files(root / name))
    data = open_(name)
    assert data.train_images.shape == (6, 1, 5, 7)
    assert data.test_images.shape == (4, 1, 5, 7)
    assert data.test_labels.tolist() == [0, 1, 2, 3]
    assert data.classes[9] == last
    assert len(data.classes) == 10
    expected = np.random.default_rng(0).integers(0, 256, (6, 5, 7), dtype=np.uint8)
    assert torch.equal(data.train_images[:, 0], torch.from_numpy(expected))


GOOD_IDX = idx(np.zeros((2, 3, 3), np.uint8))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(GOOD_IDX[:-1]), r"18 bytes its header claims: .* 17 bytes for \(2, 3, 3\)"),
        (gzip.compress(GOOD_IDX + b"x"), "has more for"),
        (gzip.compress(b"\0\0\x0d" + GOOD_IDX[3:]), r"magic bytes 0 0 8 3: .* \[0, 0, 13, 3\]"),
        (gzip.compress(idx(np.zeros(4, np.uint8))), r"has \[0, 0, 8, 1\]"),
        (gzip.compress(b""), r"has \[\]"),
        (gzip.compress(GOOD_IDX[:9]), "complete gzip"),
        (gzip.compress(bytes((0, 0, 8, 3)) + b"\xff" * 12), "at most 134217728 bytes"),
        (gzip.compress(GOOD_IDX)[:-9], "complete gzip: .*EOFError"),
        (gzip.compress(GOOD_IDX)[:-8] + b"01234567", "complete gzip: .*BadGzipFile"),
        (gzip.compress(GOOD_IDX)[:10] + b"\xff" * 20, "complete gzip: .*error"),
        (GOOD_IDX, "complete gzip: .*BadGzipFile"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # no bytes with a time in them
)
def test_bad_idx(tmp_path, content, message):
    path = tmp_path / "x.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_idx(path, ndim=3)


def test_idx_without_images(tmp_path):
    paths = idx_files(tmp_path / "mnist")
    paths[0].write_bytes(gzip.compress(idx(np.zeros((0, 5, 7), np.uint8))))
    with pytest.raises(DataError, match=r"train part of 'mnist' .* \(0, 1, 5, 7\)"):
        decode_mnist(paths, name="mnist", classes=tuple("0123456789"), progress=False)


# ----------------------------------------------------------------- downloads


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The address of a server of tmp_path/served, and the paths it was asked for."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path / "served"))

        def log_request(self, *args):
            asked.append(self.path)

        def log_error(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http_server:
        thread = threading.Thread(target=http_server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http_server.server_port}/", asked
        http_server.shutdown()
        thread.join()


@pytest.mark.parametrize("progress", [False, True])
def test_download_once(tmp_path, root, server, monkeypatch, capsys, progress):
    url, asked = server
    paths = idx_files(tmp_path / "served")
    offer(monkeypatch, "mnist", *paths, url=url)
    first = load_dataset("mnist", root=root, progress=progress)
    assert asked == ["/" + p.name for p in paths]
    assert sorted(p.name for p in (root / "mnist").iterdir()) == sorted(p.name for p in paths)
    assert load_dataset("mnist", root=root, progress=progress).fingerprint == first.fingerprint
    assert len(asked) == 4
    out, err = capsys.readouterr()
    assert out == ""
    assert progress or err == ""


def test_a_spoiled_download_is_replaced(tmp_path, root, server):
    url, asked = server
    (tmp_path / "served").mkdir()
    (tmp_path / "served/x.gz").write_bytes(b"good")
    file = RemoteFile(url + "x.gz", hashlib.md5(b"good").hexdigest())
    (root / "set").mkdir(parents=True)
    (root / "set/x.gz").write_bytes(b"spoiled")
    assert fetch(file, "set", root, progress=False).read_bytes() == b"good"
    assert asked == ["/x.gz"]


@pytest.mark.parametrize(
    ("name", "md5", "message"),
    [
        ("x.gz", "0" * 32, "MD5 checksum 0000.*could not be downloaded.*x.gz yourself"),
        ("absent.gz", "0" * 32, "404"),
    ],
)
def test_download_that_fails(tmp_path, root, server, name, md5, message):
    url, _ = server
    (tmp_path / "served").mkdir()
    (tmp_path / "served/x.gz").write_bytes(b"good")
    with pytest.raises(DataError, match=message):
        fetch(RemoteFile(url + name, md5), "set", root, progress=False)
    assert not list(root.rglob("*.gz"))


def test_download_into_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="CONVSIM_HOME or root= choose another folder"):
        fetch(RemoteFile("http://127.0.0.1:9/x", "0"), "set", tmp_path / "file", progress=False)
