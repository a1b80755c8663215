"""Files from elsewhere, damaged by chance and on purpose: a named error, or what the bytes say.

While a file is read, nothing may run, be written outside the test's folder, or take much memory.
"""

# ruff: noqa: E501 - tables
import base64
import bz2
import contextlib
import functools
import gzip
import io
import json
import lzma
import os
import pickle
import random
import re
import socket
import struct
import sys
import tarfile
import time
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save as save_safetensors
from torch import nn

import convsim
from convsim.cli.measure import _read as read_report
from convsim.errors import ConvsimError
from convsim.lab import checkpoints, training
from convsim.lab.comparison import run_all
from convsim.lab.datasets import ImageData, image_folder, listing, load_dataset
from convsim.lab.datasets.cifar import CIFAR10, decode_cifar
from convsim.lab.datasets.image_files import ImageFiles
from convsim.lab.datasets.mnist import MAX_IDX_BYTES, decode_mnist
from convsim.lab.methods import parse_method
from convsim.lab.models import build_model
from convsim.lab.records import read_records, record_key
from convsim.lab.runs import Recipe, Run
from convsim.lab.studies import STUDIES, run_study
from convsim.lab.summary import summarize
from convsim.lab.weights import load_weights
from convsim.report import json_format

MOST_BYTES, MOST_SECONDS = 600e6, 30

# ------------------------------------------------------------------ watching

_RUNS = re.compile(r"subprocess\.Popen|os\.(system|exec|posix_spawn|fork)|socket\.connect")
_CHANGES = re.compile(r"os\.(remove|rename|mkdir|rmdir|symlink|link|chmod|truncate)|shutil\.")
_seen: list[str] | None = None
_inside = ""


def _watch(event: str, args: tuple[Any, ...]) -> None:
    if _seen is None:
        return
    writes = _CHANGES.match(event)
    if event == "open":
        flags = args[2] or 0
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and isinstance(args[0], str | bytes)
    paths = [os.fsdecode(a) for a in args if isinstance(a, str | bytes | Path)] if writes else []
    outside = [p for p in paths[:2] if os.sep in p and not p.startswith(_inside)]
    if _RUNS.match(event) or [p for p in outside if "__pycache__" not in p]:
        _seen.append(f"{event} {args!r:.200}")


sys.addaudithook(_watch)


def _peak() -> float:
    """Return the most memory that was resident since it was last asked, where Linux tells."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        return 0.0
    high = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
    with contextlib.suppress(OSError):
        reset.write_text("5")
    return 1024.0 * int(high[1]) if high else 0.0


@contextlib.contextmanager
def nothing_happens(folder: Path):
    """Fail if what is done runs anything, writes outside the folder, or takes too much."""
    global _seen, _inside  # noqa: PLW0603 - a hook cannot be taken back
    _peak()
    before, started = _peak(), time.process_time()
    _seen, _inside = seen, _ = [], str(folder)
    try:
        yield
    finally:
        _seen = None
    assert seen == []
    assert _peak() - before < MOST_BYTES
    assert time.process_time() - started < MOST_SECONDS
    assert not list(folder.rglob("*hacked*"))


def refused(read, path: Path, name: str = ""):
    """Check that reading a file gives a named error, and return it."""
    with nothing_happens(path.parent), pytest.raises(ConvsimError) as caught:
        read(path)
    check_told(caught.value, path, name)
    return str(caught.value)


def check_told(error: ConvsimError, path: Path, name: str = "") -> None:
    text = str(error)
    assert path.name in text or (name and name in text), text
    remedies = (
        "again|anew|Delete|Resume|Restore|Pack|Convert|Replace|Resize|Save|Give|Check|Leave|Make|Rename|"
        "Fill|Complete|Name|Unpack|Move|Correct|save"
    )
    assert re.search(rf"\b({remedies})\b", text), text


# ----------------------------------------------------------- what is damaged

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
NAMES = ("train/cat/0", "train/dog/0", "test/cat/0", "test/dog/0")


def picture(pixels: np.ndarray, suffix: str = "png") -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, {"jpg": "jpeg"}.get(suffix, suffix))
    return out.getvalue()


def images(suffix: str = "png") -> dict[str, bytes]:
    return {f"{n}.{suffix}": picture(p, suffix) for n, p in zip(NAMES, PIXELS, strict=True)}


def tar(files: dict[str, bytes], *members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def member(name: str, content: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def raw_member(content: bytes, body: bytes = b"", **fields: Any) -> bytes:
    """Put a header with any fields before an archive."""
    info, _ = member("x", **fields)
    return info.tobuf(tarfile.GNU_FORMAT) + body + bytes(-len(body) % 512) + content


@functools.cache
def network() -> nn.Module:
    torch.manual_seed(7)
    return build_model("cnn", classes=10, channels=1, width=2)


def saved(content: object, *, legacy: bool = False) -> bytes:
    out = io.BytesIO()
    torch.save(content, out, _use_new_zipfile_serialization=not legacy)
    return out.getvalue()


@functools.cache
def report_json() -> str:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1))
    return convsim.measure(model, [torch.randn(2, 3, 8, 8)], autocorrelation=True).to_json()


def record(seed: int, **result: Any) -> dict[str, Any]:
    configuration = {"seed": seed, "method": {"name": "none"}}
    return {
        "schema": 1, "key": record_key(configuration), "configuration": configuration,
        "result": {"test_accuracy": 0.5, "curve": [0.25, 0.5]} | result, "environment": {},
    }  # fmt: skip


def records_jsonl() -> bytes:
    return "".join(json.dumps(record(seed)) + "\n" for seed in range(3)).encode()


@functools.cache
def a_run() -> Run:
    images = load_dataset("digits", progress=False).subset(train=100, test=10)
    recipe = Recipe(width=2, epochs=2, batch_size=32, measured_images=4)
    return Run(parse_method("none"), 0, recipe, images, test=False)


@functools.cache
def checkpoint() -> bytes:
    """A checkpoint after the first of two epochs."""
    import tempfile

    def stop(epoch: int, *_: object) -> None:
        if epoch == 1:
            raise InterruptedError

    with tempfile.TemporaryDirectory() as folder:
        with pytest.raises(InterruptedError):
            training.train(a_run(), Path(folder), stop)
        return (Path(folder) / "last.ckpt").read_bytes()


def batch(**changes: Any) -> dict[bytes, Any]:
    data = np.arange(2 * 3072, dtype=np.int64).astype(np.uint8).reshape(2, 3072)
    content = {b"data": data, b"labels": [0, 1]} | {k.encode(): v for k, v in changes.items()}
    return {key: value for key, value in content.items() if value is not None}


META = pickle.dumps({b"label_names": [b"airplane", b"automobile"]}, protocol=2)


def cifar(test: bytes | None = None, meta: bytes = META) -> bytes:
    good = pickle.dumps(batch(), protocol=2)
    files = dict.fromkeys((*CIFAR10.train, *CIFAR10.test), good)
    if test is not None:
        files[CIFAR10.test[0]] = test
    return gzip.compress(tar(files | {CIFAR10.meta: meta}), mtime=0)


def idx(shape: tuple[int, ...], content: bytes | None = None) -> bytes:
    head = bytes((0, 0, 8, len(shape))) + struct.pack(f">{len(shape)}I", *shape)
    return head + (bytes(int(np.prod(shape))) if content is None else content)


# ------------------------------------------------------------- how it is read


def load(path: Path) -> ImageData:
    return load_dataset(path, root=path.parent / "root", progress=False)


def pixels_of(data: ImageData) -> list[bytes]:
    parts = (data.train_images, data.test_images)
    return [image.permute(1, 2, 0).numpy().tobytes() for part in parts for image in part]


def load_into_network(path: Path) -> dict[str, bytes]:
    model = build_model("cnn", classes=10, channels=1, width=2)
    before = bytes_of(model.state_dict())
    try:
        load_weights(model, path)
    except ConvsimError:
        assert bytes_of(model.state_dict()) == before
        raise
    return bytes_of(model.state_dict())


def bytes_of(state: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in state.items()}


def load_mnist(path: Path) -> list[bytes]:
    good = path.with_name("labels.gz")
    good.write_bytes(gzip.compress(idx((2,), b"\0\1")))
    classes = tuple("0123456789")
    files = [path, good, path, good]
    return pixels_of(decode_mnist(files, name="mnist", classes=classes, progress=False))


def load_cifar(path: Path) -> list[bytes]:
    return pixels_of(decode_cifar([path], name="cifar10", layout=CIFAR10, progress=False))


def resume(path: Path) -> int:
    """What resuming looks at first."""
    return checkpoints.finished_epochs(path, a_run())


def told(report: Any) -> Any:
    """Take from a report's JSON what is read, with tensors unpacked."""
    if isinstance(report, list):
        return [told(item) for item in report]
    if not isinstance(report, dict):
        return report
    if "zlib" in report:
        return report | {"zlib": zlib.decompress(base64.b64decode(report["zlib"]))}
    derived = {"schema", "convsim", "rank_correlations"}
    if "layers" in report and "images" in report:
        derived |= {"similarity", "correlation"}
    return {key: told(value) for key, value in report.items() if key not in derived}


# ------------------------------------------------------------ damage by chance


class Kind(NamedTuple):
    """A kind of file: a good one, how it is read, and what its bytes say where no checksum tells."""

    make: Any
    read: Any
    says: Any = None
    place: str = "file"


def in_folder(suffix: str) -> Kind:
    def read(path: Path) -> list[bytes]:
        folder = path.parents[2]
        for name, content in images(suffix).items():
            if not (folder / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
        return pixels_of(load_dataset(folder, root=folder / ".root", progress=False))[:1]

    def says(content: bytes) -> list[bytes]:
        return [np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).tobytes()]

    first = f"{NAMES[0]}.{suffix}"
    original = None if suffix == "png" else says
    return Kind(lambda: images(suffix)[first], read, original, first)


def tensors_said(content: bytes) -> dict[str, bytes]:
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    wanted = network().state_dict()
    return {name: data[slice(*header[name]["data_offsets"])] for name in wanted}


KINDS = {
    "data.tar": Kind(lambda: tar(images()), lambda p: pixels_of(load(p))),
    "data.tar.gz": Kind(lambda: gzip.compress(tar(images()), mtime=0), lambda p: pixels_of(load(p))),
    "data.tar.xz": Kind(lambda: lzma.compress(tar(images())), lambda p: pixels_of(load(p))),
    "data.tar.bz2": Kind(lambda: bz2.compress(tar(images())), lambda p: pixels_of(load(p))),
    **{f"image.{suffix}": in_folder(suffix) for suffix in ("png", "jpg", "bmp", "webp", "gif", "tiff")},
    "images.gz": Kind(lambda: gzip.compress(idx((2, 3, 4), bytes(range(24))), mtime=0), load_mnist),
    "cifar.tar.gz": Kind(cifar, load_cifar),
    "weights.pt": Kind(lambda: saved(network().state_dict()), load_into_network),
    "weights.safetensors": Kind(
        lambda: save_safetensors(network().state_dict()), load_into_network, tensors_said
    ),
    "last.ckpt": Kind(checkpoint, resume),
    "report.json": Kind(
        lambda: report_json().encode(),
        lambda path: told(json.loads(read_report(path).to_json())),
        lambda content: told(json.loads(content)),
    ),
    "records.jsonl": Kind(
        records_jsonl,
        read_records,
        lambda content: [json.loads(line) for line in content.split(b"\n")[:-1]],
    ),
}  # fmt: skip
CUTS, FLIPS = 8, 16


def damaged(content: bytes, number: int, kind: str) -> bytes:
    chance = random.Random(f"{kind} {number}")
    if number < CUTS:
        return content[: chance.randrange(len(content.rstrip(b"\0\n")))]
    spoiled = bytearray(content)
    for _ in range(1 + number % 2):
        spoiled[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return bytes(spoiled)


@pytest.mark.parametrize("number", range(CUTS + FLIPS))
@pytest.mark.parametrize("name", KINDS)
def test_cut_and_flipped(tmp_path, name, number):
    kind = KINDS[name]
    good = kind.make()
    content = damaged(good, number, name)
    path = tmp_path / (name if kind.place == "file" else kind.place)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    with nothing_happens(tmp_path):
        try:
            got = kind.read(path)
        except ConvsimError as error:
            return check_told(error, path)
    if kind.says is not None:
        assert got == kind.says(content)
    else:
        path.write_bytes(good)
        assert got == kind.read(path)


@pytest.mark.parametrize("name", KINDS)
def test_undamaged_it_is_read(tmp_path, name):
    kind = KINDS[name]
    path = tmp_path / (name if kind.place == "file" else kind.place)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(kind.make())
    with nothing_happens(tmp_path):
        got = kind.read(path)
    assert got
    if kind.says is not None:
        assert got == kind.says(kind.make())


# --------------------------------------------------------- damage on purpose


class Calls:
    """Pickles to a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> Any:
        return self.reduced


CODE = {
    "system": (os.system, "touch hacked"),
    "eval": (eval, "open('hacked', 'w')"),
    "exec": (exec, "open('hacked', 'w')"),
    "open": (open, "hacked", "w"),
    "mkdir": (os.mkdir, "hacked"),
    "torch": (torch.save, 1, "hacked"),
    "numpy": (np.save, "hacked", [1]),
    "getattr": (getattr, nn.Module, "cuda"),
    "import": (__import__, "antigravity"),
    "hub": (torch.hub.download_url_to_file, "http://127.0.0.1:9/", "hacked"),
}


def zip_of(*records: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, content in records:
            archive.writestr(name, content)
    return out.getvalue()


def with_records(content: bytes, *, compression: int = 0, **changes: bytes | None) -> bytes:
    """Write a checkpoint's zip again, some of its records changed."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        records = [(n, changes.get(n.rsplit("/")[-1], archive.read(n))) for n in archive.namelist()]
    return zip_of(*(r for r in records if r[1] is not None), compression=compression)


def pickled(opcodes: bytes) -> bytes:
    """Make a checkpoint of a pickle given by its opcodes."""
    return zip_of(("archive/data.pkl", b"\x80\x02" + opcodes + b"."), ("archive/version", b"3\n"))


def hex_bomb() -> bytes:
    """A string doubled 32 times."""
    call = b"c_codecs\nencode\n"
    return call * 32 + b"U\x01x" + (b"X\x03\0\0\0hex\x86R" * 32)


def spoiled(content: bytes, where: bytes, by: bytes) -> bytes:
    assert where in content
    assert len(where) == len(by)
    return content.replace(where, by, 1)


FIRST = "0.weight"


def first(value: Any) -> bytes:
    return saved(dict(network().state_dict()) | {FIRST: value})


def torchscript() -> bytes:
    out = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.ReLU()), out)
    return out.getvalue()


def out_of_bounds() -> bytes:
    """A tensor that claims more of its storage than there is."""
    content = saved({FIRST: torch.zeros(18)})
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        data = archive.read("archive/data.pkl")
    return with_records(content, **{"data.pkl": data.replace(b"K\x12", b"K\xff")})


WEIGHTS: dict[str, Any] = {
    **{f"{name}, {form}": functools.partial(make, Calls(*call)) for name, call in CODE.items() for form, make in {
        "zip": lambda evil: saved({FIRST: evil}),
        "legacy": lambda evil: saved({FIRST: evil}, legacy=True),
        "bare pickle": lambda evil: pickle.dumps({FIRST: evil}, protocol=2),
        "protocol 4": lambda evil: pickle.dumps({FIRST: evil}, protocol=4),
    }.items() if not (name == "import" and form == "legacy")},
    "a bytearray of 64 GB": lambda: pickled(b"cbuiltins\nbytearray\n\x8a\x05\0\0\0\0\x10\x85R"),
    "a doubled string": lambda: pickled(hex_bomb()),
    "nested without end": lambda: pickled(b"]" * 100_000 + b"a" * 99_999),
    "a wrong checksum": lambda: spoiled(saved({"a": torch.arange(9)}), b"\x08" + bytes(7), b"\x09" + bytes(7)),
    "a zip bomb": lambda: with_records(saved({"a": torch.zeros(9)}), compression=8, **{"0": bytes(2**26)}),
    "records that come twice": lambda: zip_of(("a/data.pkl", b"N."), ("a/data.pkl", b"N.")),
    "records out of the folder": lambda: zip_of(("../hacked/data.pkl", b"\x80\x02N."), ("/hacked", b"")),
    "a zip of text": lambda: zip_of(("a.txt", b"hello")),
    "an empty zip": zip_of,
    "TorchScript": torchscript,
    "a legacy tar": lambda: tar({"pickle": b"N.", "storages": b"", "tensors": b"", "sys_info": b""}),
    "storage out of bounds": out_of_bounds,
    "storage of another size": lambda: with_records(first(torch.zeros(2, 1, 3, 3)), **{"0": b"1234"}),
    "no storage": lambda: with_records(first(torch.zeros(2, 1, 3, 3)), **{"0": None}),
    "sparse": lambda: first(torch.zeros(2, 1, 3, 3).to_sparse()),
    "meta": lambda: first(torch.zeros(2, 1, 3, 3, device="meta")),
    "quantized": lambda: first(torch.quantize_per_tensor(torch.zeros(2, 1, 3, 3), 1.0, 0, torch.qint8)),
    "nested": lambda: first(torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])),
    "complex": lambda: first(torch.zeros(2, 1, 3, 3, dtype=torch.complex64)),
    "whole numbers": lambda: first(torch.zeros(2, 1, 3, 3, dtype=torch.int32)),
    "another shape": lambda: first(torch.zeros(2, 1, 3, 1).expand(2, 1, 3, 2**40)),
    "names that are numbers": lambda: saved({3: torch.zeros(2)}),
    "a list": lambda: saved([torch.zeros(2)]),
    "a number": lambda: saved(3),
    "nothing": lambda: b"",
    "text": lambda: b"not weights at all\n",
    "zeros": lambda: bytes(10_000),
    "another model's": lambda: saved({"conv.weight": torch.zeros(2)}),
}  # fmt: skip


def header(content: bytes | dict[str, Any], data: bytes = b"", size: int | None = None) -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
SAFETENSORS: dict[str, bytes] = {
    "nothing": b"",
    "a header of 2^63 bytes": header(b"{}", size=2**63),
    "a header of 1 TB": header(b"{}", size=2**40),
    "a header longer than the file": header(b"{}", size=100),
    "no header": header(b""),
    "no JSON": header(b"{" * 8),
    "a list": header(b"[]"),
    "bad UTF-8": header(b'{"\xff\xfe": 1}'),
    "nested without end": header(b'{"a":' + b"[" * 100_000),
    "NaN": header(b'{"a": NaN}'),
    "a name twice": header(b'{"a": %s, "a": %s}' % ((json.dumps(ONE).encode(),) * 2), bytes(4)),
    "an unknown type": header({"a": ONE | {"dtype": "F4", "shape": [8]}}, bytes(4)),
    "no type": header({"a": ONE | {"dtype": "object"}}, bytes(4)),
    "2^64 numbers": header({"a": ONE | {"shape": [2**62, 4]}}, bytes(4)),
    "2^60 numbers": header({"a": ONE | {"shape": [2**60], "data_offsets": [0, 2**62]}}),
    "a negative shape": header({"a": ONE | {"shape": [-1]}}, bytes(4)),
    "offsets backwards": header({"a": ONE | {"data_offsets": [4, 0]}}, bytes(4)),
    "negative offsets": header({"a": ONE | {"data_offsets": [-4, 0]}}, bytes(4)),
    "offsets beyond": header({"a": ONE | {"data_offsets": [4, 8]}}, bytes(4)),
    "overlapping": header({"a": ONE, "b": ONE}, bytes(4)),
    "a hole": header({"a": ONE}, bytes(8)),
    "metadata of numbers": header({"__metadata__": {"a": 1}, "a": ONE}, bytes(4)),
    "a pickle": pickle.dumps({FIRST: Calls(os.system, "touch hacked")}),
    "another model's": save_safetensors({"a": torch.zeros(2)}),
}  # fmt: skip


@pytest.mark.parametrize(
    ("file", "make"),
    [
        *(pytest.param("weights.pt", make, id=name) for name, make in WEIGHTS.items()),
        *(pytest.param("w.safetensors", lambda c=c: c, id=n) for n, c in SAFETENSORS.items()),
    ],
)
def test_hostile_weights(tmp_path, monkeypatch, file, make):
    monkeypatch.chdir(tmp_path)
    (tmp_path / file).write_bytes(make())
    refused(load_into_network, tmp_path / file)


def test_what_could_fill_memory_is_not_called(tmp_path):
    path = tmp_path / "weights.pt"
    for content in (pickled(b"cbuiltins\nbytearray\nK\x10\x85R"), pickled(hex_bomb())):
        path.write_bytes(content)
        assert "neither tensors nor plain values" in refused(load_into_network, path)


def sparse_header() -> bytes:
    """The pax header of a sparse file whose map claims 10^12 holes."""
    fields = (
        ("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"),
        ("GNU.sparse.name", "train/cat/9.png"), ("GNU.sparse.realsize", "9"),
    )  # fmt: skip
    lines = b"".join(pax_record(*field) for field in fields)
    holes = b"1000000000000\n" + b"0\n" * (2**21)
    data, _ = member("train/cat/9.png", size=len(holes))
    body = data.tobuf(tarfile.PAX_FORMAT) + holes + bytes(-len(holes) % 512)
    return raw_member(body, lines, type=tarfile.XHDTYPE, size=len(lines)) + bytes(1024)


def pax_record(key: str, value: str) -> bytes:
    rest = f" {key}={value}\n".encode()
    length = next(n for n in range(len(rest), len(rest) + 9) if len(str(n)) + len(rest) == n)
    return str(length).encode() + rest


def pax(key: str, value: str) -> bytes:
    line = pax_record(key, value)
    return raw_member(tar(images()), line, type=tarfile.XHDTYPE, size=len(line))


def middle_header(change: Any) -> bytes:
    """Change the header of the third of four members."""
    content = bytearray(tar(images()))
    content[2048:2560] = change(content[2048:2560])
    return bytes(content)


def tar_bomb() -> bytes:
    """2 GB of zeros in members that play no part."""
    info, _ = member("notes.txt", size=2**25)
    out = io.BytesIO()
    once = zlib.compressobj(9, wbits=31)  # members of gzip may follow each other
    packed = once.compress(info.tobuf() + bytes(2**25)) + once.flush()
    out.write(packed * 64 + gzip.compress(tar(images())))
    return out.getvalue()


def huge_dictionary() -> bytes:
    """An xz file that asks for 4 GB of memory, with a right checksum over that."""
    content = bytearray(lzma.compress(b"x" * 1000))
    content[content.index(b"\x21\x01", 12) + 2] = 40
    end = 12 + (content[12] + 1) * 4
    content[end - 4 : end] = struct.pack("<I", zlib.crc32(content[12 : end - 4]))
    return bytes(content)


GOOD = images()
ARCHIVES: dict[str, Any] = {
    **{f"a {kind}, {name}": lambda kind=kind, name=name: tar(GOOD, member(
        "train/cat/9.png", type=getattr(tarfile, kind), linkname=name,
    )) for kind in ("SYMTYPE", "LNKTYPE") for name in ("/etc/passwd", "../../x", "0.png")},
    **{f"a {kind}": lambda kind=kind: tar(GOOD, member("train/cat/9.png", type=getattr(tarfile, kind)))
       for kind in ("CHRTYPE", "BLKTYPE", "FIFOTYPE", "GNUTYPE_SPARSE")},
    "an unknown type": lambda: tar(GOOD, member("train/cat/9.png", type=b"Z")),
    **{f"named {name}": lambda name=name: tar(GOOD, member(name, b"hacked")) for name in (
        "/train/cat/9.png", "/etc/hacked", "../hacked", "train/../../hacked", "train/cat/../../../x",
    )},
    "a link, then a file through it": lambda: tar(
        GOOD, member("train/x", type=tarfile.SYMTYPE, linkname="/tmp"), member("train/x/hacked", b"")
    ),
    "a path by pax": lambda: pax("path", "../../hacked"),
    "a link by pax": lambda: tar(GOOD, member("a" * 200, type=tarfile.SYMTYPE, linkname="b" * 200)),
    "a size by pax": lambda: pax("size", str(2**62)),
    "a negative size by pax": lambda: pax("size", "-512"),
    "no number as size by pax": lambda: pax("size", "much"),
    "a pax header of 4 GB": lambda: raw_member(b"", type=tarfile.XHDTYPE, size=2**32),
    "a pax header that never ends": lambda: raw_member(b"", b"9" * 512, type=tarfile.XHDTYPE, size=512),
    "a long name of 4 GB": lambda: raw_member(b"", type=tarfile.GNUTYPE_LONGNAME, size=2**32),
    "a negative size": lambda: raw_member(tar(GOOD), size=-512),
    "a size of 2^60": lambda: raw_member(tar(GOOD), size=2**60),
    "a sparse map without end": sparse_header,
    "a chain of headers": lambda: raw_member(b"", type=tarfile.XGLTYPE) * 5000 + tar(GOOD),
    "a wrong checksum in the middle": lambda: middle_header(lambda head: b"x" + head[1:]),
    "a header of zeros in the middle": lambda: middle_header(lambda head: bytes(512)),
    "a header of noise in the middle": lambda: middle_header(lambda head: b"\xa5" * 512),
    "no end mark": lambda: gzip.compress(tar(GOOD).rstrip(b"\0")),
    "no end mark, whole blocks": lambda: lzma.compress(tar(GOOD)[: 4 * 1024]),
    "two archives in a row": lambda: tar(GOOD) + tar(GOOD),
    "text behind the end": lambda: tar(GOOD) + b"hello" * 200,
    "a file twice": lambda: tar(GOOD, member("train/cat/0.png", GOOD["train/cat/0.png"])),
    "a bomb": tar_bomb,
    "a dictionary of 4 GB": huge_dictionary,
    "a zip": lambda: zip_of(*GOOD.items()),
    "a zip bomb": lambda: zip_of(("a", bytes(2**24)), compression=zipfile.ZIP_DEFLATED),
    "a zip out of the folder": lambda: zip_of(("../hacked", b"")),
    "a gzip of text": lambda: gzip.compress(b"hello" * 500),
    "a gzip of a gzip": lambda: gzip.compress(gzip.compress(tar(GOOD))),
    "a gzip with a wrong checksum": lambda: gzip.compress(tar(GOOD))[:-8] + b"12345678",
    "a gzip with text behind": lambda: gzip.compress(tar(GOOD)) + b"hello",
    "a pickle": lambda: pickle.dumps(Calls(os.system, "touch hacked")),
    "nothing": lambda: b"",
    "zeros": lambda: bytes(10240),
    "no images": lambda: tar({"notes.txt": b"hello"}),
}  # fmt: skip


@pytest.mark.parametrize("name", ARCHIVES)
def test_hostile_archives(tmp_path, name):
    path = tmp_path / "data.tar"
    path.write_bytes(ARCHIVES[name]())
    refused(load, path)
    assert [p.name for p in tmp_path.iterdir()] == ["data.tar"]


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(
        ">I", zlib.crc32(kind + content)
    )  # fmt: skip


def floats() -> bytes:
    out = io.BytesIO()
    Image.new("F", (5, 6)).save(out, "tiff")
    return out.getvalue()


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 2) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(chunks) + chunk(b"IEND", b"")


def bmp(width: int, height: int, data: bytes, *, compression: int = 0, bits: int = 8) -> bytes:
    start = 54 + 1024
    return struct.pack(
        "<2sIHHIIiiHHIIiiII", b"BM", start + len(data), 0, 0, start, 40, width, height, 1, bits,
        compression, len(data), 0, 0, 256, 0,
    ) + bytes(1024) + data  # fmt: skip


def many_scans() -> bytes:
    """A JPEG that asks for 2,000 passes over 16 million pixels."""
    out = io.BytesIO()
    Image.new("L", (4096, 4096), 7).save(out, "jpeg", progressive=True)
    content = out.getvalue()
    return content[:-2] + content[content.rindex(b"\xff\xda") : -2] * 2000 + content[-2:]


def jpeg_of(width: int, height: int) -> bytes:
    content = GOOD_JPEG
    place = content.index(b"\xff\xc0") + 5
    return content[:place] + struct.pack(">HH", height, width) + content[place + 4 :]


GOOD_JPEG = picture(PIXELS[0], "jpg")
ROWS = chunk(b"IDAT", zlib.compress(bytes(6 * 16)))
IMAGES: dict[str, tuple[str, Any]] = {
    "60,000²": ("png", lambda: png(60000, 60000, ROWS)),
    "2^31 wide": ("png", lambda: png(2**31 - 1, 2**31 - 1, ROWS)),
    "no pixels": ("png", lambda: png(0, 0, ROWS)),
    "floats": ("tif", floats),
    "a wrong checksum": ("png", lambda: GOOD["train/cat/0.png"][:29] + b"1234" + GOOD["train/cat/0.png"][33:]),
    "a wrong checksum of the pixels": ("png", lambda: png(5, 6, ROWS[:-4] + b"1234")),
    "text that unpacks to 1 GB": ("png", lambda: png(5, 6, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**26))), ROWS)),
    "a profile that unpacks to 1 GB": ("png", lambda: png(5, 6, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**27))), chunk(b"IDAT", b"x"))),
    "a chunk of 2 GB": ("png", lambda: png(5, 6, struct.pack(">I", 2**31 - 1) + b"IDAT")),
    "pixels that stop": ("png", lambda: png(5, 6, chunk(b"IDAT", zlib.compress(random.Random(0).randbytes(6 * 16))[:40]))),
    "pixels that are none": ("png", lambda: png(5, 6, chunk(b"IDAT", b"hello"))),
    "65,535²": ("jpg", lambda: jpeg_of(65535, 65535)),
    "larger than its data": ("jpg", lambda: jpeg_of(50, 60)),
    "2,000 scans": ("jpg", many_scans),
    "cut": ("jpg", lambda: GOOD_JPEG[:-20]),
    "a head alone": ("jpg", lambda: b"\xff\xd8\xff\xe0"),
    "40,000²": ("bmp", lambda: bmp(40000, 40000, b"")),
    "2^31 wide, BMP": ("bmp", lambda: bmp(2**31 - 1, 1, b"")),
    "upside down, -2^31": ("bmp", lambda: bmp(5, -(2**31), b"")),
    "a run that leaves the row": ("bmp", lambda: bmp(2**24, 1, b"\0\2\xff\xff" * 4, compression=1)),
    "no data": ("bmp", lambda: bmp(5, 6, b"")),
    "33 bits": ("bmp", lambda: bmp(5, 6, bytes(99), bits=33)),
    "cut, WebP": ("webp", lambda: picture(PIXELS[0], "webp")[:-30]),
    "16,383²": ("webp", lambda: b"RIFF\x1e\0\0\0WEBPVP8L\x11\0\0\0\x2f\xff\xff\xff\x0f" + bytes(12)),
    "cut, GIF": ("gif", lambda: picture(PIXELS[0], "gif")[:-30]),
    "65,535², GIF": ("gif", lambda: b"GIF89a\xff\xff\xff\xff\0\0\0" + bytes(20)),
    "cut, TIFF": ("tiff", lambda: picture(PIXELS[0], "tiff")[:100]),
    "a TIFF that points at itself": ("tiff", lambda: b"II*\0\x08\0\0\0\0\0\x08\0\0\0"),
    "a PCX": ("png", lambda: picture(PIXELS[0], "pcx")),
    "PostScript": ("png", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 6\n(hacked) (w) file\n"),
    "SVG": ("png", lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>"),
    "a pickle": ("png", lambda: pickle.dumps(Calls(os.system, "touch hacked"))),
    "nothing": ("png", lambda: b""),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", IMAGES)
def test_hostile_images(tmp_path, name):
    suffix, make = IMAGES[name]
    path = tmp_path / "data.tar"
    path.write_bytes(tar({f"train/cat/0.{suffix}": make()} | dict(list(GOOD.items())[1:])))
    assert f"'train/cat/0.{suffix}'" in refused(load, path)


def test_more_images_than_memory_holds(tmp_path, monkeypatch):
    path = tmp_path / "data.tar"
    path.write_bytes(tar(GOOD))
    monkeypatch.setattr(image_folder, "memory", lambda: 4 * 3 * 90)
    assert isinstance(load(path).train_images, ImageFiles)  # nothing is decoded
    monkeypatch.setattr(image_folder, "memory", lambda: 4 * 4 * 90)
    assert len(load(path).train_images) == 2
    assert isinstance(load(path).train_images, torch.Tensor)
    packed = tmp_path / "data.tar.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    monkeypatch.setattr(listing, "memory", lambda: 4)
    assert "memory" in refused(load, packed)


def socket_at(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = os.getcwd()
        os.chdir(path.parent)  # a socket's path is short
        made.bind(path.name)
        os.chdir(here)


ODD_FILES = {
    "pipe": os.mkfifo,
    "socket": socket_at,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "link to nowhere": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link out of the folder": lambda path: path.symlink_to("/etc/passwd"),
    "folder": Path.mkdir,
}


@pytest.mark.parametrize("name", ODD_FILES)
def test_odd_files_in_a_folder(tmp_path, name):
    folder = tmp_path / "data"
    for file, content in GOOD.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)
    ODD_FILES[name](folder / "train/cat/1.png")
    if name == "folder":
        assert len(load(folder).train_images) == 2
    else:
        assert "1.png" in refused(load, folder)


def edit(*path: Any, to: Any) -> Any:
    def change(content: Any) -> Any:
        place = content
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = to
        return content

    return lambda: json.dumps(change(json.loads(report_json()))).encode()


def without(*path: Any) -> Any:
    def change(content: Any) -> bytes:
        place = content
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]
        return json.dumps(content).encode()

    return lambda: change(json.loads(report_json()))


def bomb(size: int) -> str:
    return base64.b64encode(zlib.compress(bytes(size), 9)).decode()


def many_matrices() -> bytes:
    """A small report of many large matrices."""
    content = json.loads(report_json())
    pairs = 1024 * 1025 // 2
    matrix = {"dtype": "float16", "shape": [pairs], "zlib": bomb(2 * pairs)}
    layer = content["layers"][0] | {"filters": 1024, "matrix": matrix, "kernels": None}
    layer |= {"worst": [], "pictures": None}
    content["layers"] = [layer | {"name": str(n)} for n in range(20)]
    return json.dumps(content).encode()


FLOAT16 = {"dtype": "float16", "zlib": bomb(20)}
REPORTS: dict[str, Any] = {
    "nothing": lambda: b"",
    "a number": lambda: b"3",
    "a list": lambda: b"[]",
    "another object": lambda: b"{}",
    "bad UTF-8": lambda: report_json().encode().replace(b"Sequential", b"Sequ\xff\xfetial"),
    "UTF-16": lambda: report_json().encode("utf-16"),
    "nested without end": lambda: b"[" * 1_000_000,
    "objects nested without end": lambda: b'{"schema":' * 100_000,
    "a number of 5,000 digits": lambda: report_json().replace('"images": 2', f'"images": {"9" * 5000}').encode(),
    "a key twice": lambda: report_json().replace('"images"', '"schema": 1, "images"', 1).encode(),
    "another schema": edit("schema", to=2),
    "two reports": lambda: report_json().encode() * 2,
    "no layers": edit("layers", to=[]),
    "layers of one name": edit("layers", 1, "name", to="0"),
    "layers that are a number": edit("layers", to=3),
    "layers that are text": edit("layers", to="abc"),
    "a model that is a list": edit("model", to=[]),
    "half a character": edit("model", to="\ud800"),
    "half a character in a layer": edit("layers", 0, "name", to="\udfff"),
    "images that are true": edit("images", to=True),
    "fewer than no images": edit("images", to=-1),
    **{f"{name} {value}": edit("layers", 0, name, to=value)
       for name in ("similarity", "correlation", "effective_rank")
       for value in (math_value for math_value in (float("nan"), float("inf"), 1e31, 10**400, "1", [], {}))},
    "1e999": lambda: re.sub(r'"effective_rank": [\d.e-]+', '"effective_rank": 1e999', report_json()).encode(),
    "filters that are many": edit("layers", 0, "filters", to=10**9),
    "filters beyond all": edit("layers", 0, "filters", to=10**300),
    "filters that are fewer": edit("layers", 0, "filters", to=3),
    "fewer than no filters": edit("layers", 0, "filters", to=-4),
    "filters that are half": edit("layers", 0, "filters", to=4.5),
    "pixels below none": edit("layers", 0, "pixels", to=-1),
    "a short histogram": edit("layers", 0, "histogram", to=[1, 2]),
    "a long histogram": edit("layers", 0, "histogram", to=[1] * 10**6),
    "a histogram below none": edit("layers", 0, "histogram", to=[-1] * 20),
    "a pair beyond the filters": edit("layers", 0, "worst", 0, "second", to=4),
    "a pair of one filter": edit("layers", 0, "worst", 0, "second", to=0),
    "a pair below none": edit("layers", 0, "worst", 0, "first", to=-1),
    "pairs that are missing": edit("layers", 0, "worst", to=[]),
    **{f"a matrix of shape {shape}": edit("layers", 0, "matrix", "shape", to=shape) for shape in (
        [], [9], [-10], [5, 2], [10.0], ["10"], [0, 2**62], [2**62, 4], [10**30], 10, [1] * 1000,
    )},
    **{f"a matrix of {kind}": edit("layers", 0, "matrix", "dtype", to=kind)
       for kind in ("object", "float32", "float64", 3, None, [])},
    **{f"a matrix packed as {what}": edit("layers", 0, "matrix", "zlib", to=packed)
       for what, packed in {
           "text": "hello", "no base64": "é", "nothing": "", "a number": 3, "too little": bomb(19),
           "too much": bomb(21), "a bomb": bomb(2**27), "cut": bomb(20)[:-8],
           "more behind": base64.b64encode(zlib.compress(bytes(20)) + b"x").decode(),
           "a wrong checksum": base64.b64encode(zlib.compress(bytes(20))[:-4] + b"1234").decode(),
           "infinities": base64.b64encode(zlib.compress(b"\x00\x7c" * 10)).decode(),
       }.items()},
    "matrices beyond memory": many_matrices,
    "a matrix that is missing": without("layers", 0, "matrix"),
    "kernels that are missing": without("layers", 0, "kernels"),
    "kernels that are text": edit("layers", 0, "kernels", to="abc"),
    "groups that are missing": without("layers", 0, "kernels", "groups"),
    "energy of other classes": edit("layers", 0, "kernels", "energy", to={"black": 0.5}),
    "energy that is a list": edit("layers", 0, "kernels", "energy", to=[1]),
    "norms of another number": edit("layers", 0, "kernels", "norms", to={"dtype": "float32", "shape": [5], "zlib": bomb(20)}),
    "examples of three axes": edit("examples", "shape", to=[2, 3, 64]),
    "examples of another type": edit("examples", "dtype", to="int8"),
    "pictures of other axes": edit("layers", 0, "pictures", "maps", "shape", to=[2, 6, 2, 36]),
    "pictures that are text": edit("layers", 0, "pictures", to="abc"),
    "a pickle": lambda: pickle.dumps(Calls(os.system, "touch hacked")),
}  # fmt: skip


@pytest.mark.parametrize("name", REPORTS)
def test_hostile_reports(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(json_format, "_MOST_BYTES", 2**26)
    path = tmp_path / "report.json"
    path.write_bytes(REPORTS[name]())
    refused(read_report, path)


GOOD_LINE = json.dumps(record(0)).encode()
LINES = {
    "a number": b"3",
    "a list": b"[]",
    "text": b"hello",
    "an empty line": b"",
    "a line cut in two": GOOD_LINE[:40] + b"\n" + GOOD_LINE[40:],
    "zeros": bytes(512),
    "NaN": GOOD_LINE.replace(b"0.25", b"NaN"),
    "infinity": GOOD_LINE.replace(b"0.25", b"-Infinity"),
    "1e999": GOOD_LINE.replace(b"0.25", b"1e999"),
    "a number of 5,000 digits": GOOD_LINE.replace(b"0.25", b"9" * 5000),
    "a key twice": GOOD_LINE.replace(b'"curve"', b'"curve": [], "curve"'),
    "nested without end": b"[" * 1_000_000,
    "objects nested without end": b'{"a":' * 100_000,
    "bad UTF-8": GOOD_LINE.replace(b"none", b"n\xff\xfee"),
    "UTF-16": json.dumps(record(0)).encode("utf-16-le"),
    "another key": GOOD_LINE.replace(b'"key": "', b'"key": "0'),
    "a key that is a list": re.sub(rb'"key": "\w+"', b'"key": []', GOOD_LINE),
    "another configuration": GOOD_LINE.replace(b'"seed": 0', b'"seed": 1'),
    "no configuration": json.dumps({"key": record(0)["key"]}).encode(),
    "a pickle": pickle.dumps(Calls(os.system, "touch hacked"), protocol=0).replace(b"\n", b" "),
}


@pytest.mark.parametrize("name", LINES)
def test_hostile_records(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "records.jsonl"
    path.write_bytes(GOOD_LINE + b"\n" + LINES[name] + b"\n" + GOOD_LINE + b"\n")
    assert "line 2" in refused(read_records, path)


RESULTS = {
    "no result": None,
    "text": "hello",
    "another object": {},
    "accuracy in words": {"test_accuracy": "high"},
    "a curve that is a number": {"validation_accuracy": 3},
    "an empty curve": {"validation_accuracy": []},
    "similarity without layers": {"similarity": {}},
}


@pytest.mark.parametrize("name", RESULTS)
def test_hostile_results(tmp_path, name):
    run = replace(a_run(), test=True)
    good = {
        "validation_accuracy": [0.1, 0.2], "test_accuracy": 0.2, "similarity": {"0": 0.5},
        "seconds": 1.0, "initialization_seconds": 0.0,
    }  # fmt: skip
    configuration = run.configuration()

    def read(path: Path, result: Any) -> Any:
        line = {"schema": 2, "key": run.key, "configuration": configuration, "result": result}
        path.write_text(json.dumps(line) + "\n")
        return summarize(list(run_all([run], path.parent).values()))

    path = tmp_path / "records.jsonl"
    assert read(path, good)[0].accuracy.mean == 0.2
    result = RESULTS[name]
    spoilt = good | result if isinstance(result, dict) and result else result
    refused(functools.partial(read, result=spoilt), path, "the comparison")


@pytest.mark.parametrize("result", [None, "hello", {}, {"draws": "many"}], ids=str)
def test_hostile_answers(tmp_path, result):
    study = replace(
        STUDIES["pairs"], cases=STUDIES["pairs"].cases[:1], run=lambda case, draws: result
    )
    path = tmp_path / "records.jsonl"
    with pytest.raises(ConvsimError):
        run_study(study, 3, tmp_path)
    assert len(read_records(path)) == 1
    refused(lambda path: run_study(study, 3, path.parent), path)


IDX = {
    "nothing": b"",
    "no gzip": idx((2, 3, 3)),
    "an empty gzip": gzip.compress(b""),
    "two bytes of four": gzip.compress(b"\0\0"),
    "other magic": gzip.compress(b"\0\0\x0d\3" + idx((2, 3, 3))[4:]),
    "other axes": gzip.compress(idx((2, 3))),
    "255 axes": gzip.compress(b"\0\0\x08\xff" + bytes(2000)),
    "half a header": gzip.compress(idx((2, 3, 3))[:9]),
    "2^96 items": gzip.compress(idx((2**32 - 1,) * 3, b"")),
    "2^60 items": gzip.compress(idx((2**30, 2**15, 2**15), b"")),
    "2^60 items and none": gzip.compress(idx((2**30, 2**30, 0), b"")),
    "no items": gzip.compress(idx((0, 3, 3))),
    "no columns": gzip.compress(idx((2, 3, 0))),
    "fewer items": gzip.compress(idx((2, 3, 3))[:-1]),
    "more items": gzip.compress(idx((2, 3, 3)) + b"x"),
    "other items than labels": gzip.compress(idx((3, 3, 3))),
    "a bomb": gzip.compress(idx((1, 1, MAX_IDX_BYTES), b"") + bytes(MAX_IDX_BYTES + 1), 1),
    "a wrong checksum": gzip.compress(idx((2, 3, 3)))[:-8] + b"12345678",
    "text behind": gzip.compress(idx((2, 3, 3))) + b"hello",
    "a tar": gzip.compress(tar(GOOD)),
}


@pytest.mark.parametrize("name", IDX)
def test_hostile_idx(tmp_path, name):
    path = tmp_path / "images.gz"
    path.write_bytes(IDX[name])
    refused(load_mnist, path, "'mnist'")


def opcodes(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


def repeated_lists() -> bytes:
    """Labels of 10^12 numbers out of four lists of a thousand."""
    inner: Any = [0] * 1000
    for _ in range(3):
        inner = [inner] * 1000
    return pickle.dumps(batch(labels=inner), protocol=2)


def dumped(**changes: Any) -> bytes:
    return pickle.dumps(batch(**changes), protocol=2)


BATCHES: dict[str, Any] = {
    **{f"{name}, protocol {protocol}": lambda call=call, protocol=protocol: pickle.dumps(
        batch(data=Calls(*call)), protocol=protocol
    ) for name, call in CODE.items() for protocol in (0, 2, 4)},
    "a dotted name": lambda: b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
    "an attribute of a name": lambda: opcodes(b"c_codecs\nencode\n", b"}U\x0b__globals__K\x01sb"),
    "a doubled string": lambda: opcodes(hex_bomb()),
    "a memo of 1 GB": lambda: opcodes(b"Nr\0\0\0\x04"),
    "bytes of 8 EB": lambda: b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.",
    "a bytearray of 1 TB": lambda: b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",
    "a frame of 1 TB": lambda: b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"}.",
    "a number of 2 GB": lambda: b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b".",
    "a negative length": lambda: b"\x80\x02\x8b" + struct.pack("<i", -5) + b".",
    "nested without end": lambda: opcodes(b"(" * 100_000),
    "lists of lists of lists": repeated_lists,
    "an extension": lambda: opcodes(b"\x82\x01"),
    "a persistent name": lambda: opcodes(b"Phacked\n"),
    "a list that holds itself": lambda: opcodes(b"]q\0h\0a"),
    "protocol 200": lambda: b"\x80\xc8}.",
    "no end": lambda: dumped()[:-1],
    "nothing": lambda: b"",
    "text": lambda: b"hello",
    "a list": lambda: pickle.dumps([1]),
    "no data": lambda: dumped(data=None),
    "no labels": lambda: dumped(labels=None),
    "data that is text": lambda: dumped(data="hello"),
    "data of floats": lambda: dumped(data=np.zeros((2, 3072))),
    "data of objects": lambda: dumped(data=np.array([[None]], dtype=object)),
    "rows that are short": lambda: dumped(data=np.zeros((2, 99), np.uint8)),
    "labels that are text": lambda: dumped(labels="01"),
    "labels that are floats": lambda: dumped(labels=[0.5, 1.0]),
    "labels beyond 64 bits": lambda: dumped(labels=[0, 2**80]),
    "labels beyond the classes": lambda: dumped(labels=[0, 9]),
    "labels below none": lambda: dumped(labels=[0, -1]),
    "too few labels": lambda: dumped(labels=[0]),
    "no images": lambda: dumped(data=np.zeros((0, 3072), np.uint8), labels=[]),
    "class names of 30 GB": lambda: b"meta" + pickle.dumps({b"label_names": [b"x" * 10**6] * 30_000}, protocol=2),
    "class names that are numbers": lambda: b"meta" + pickle.dumps({b"label_names": [1, 2]}, protocol=2),
    "class names in bad UTF-8": lambda: b"meta" + pickle.dumps({b"label_names": [b"\xff", b"\xfe"]}, protocol=2),
}  # fmt: skip


@pytest.mark.parametrize("name", BATCHES)
def test_hostile_batches(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    content = BATCHES[name]()
    path = tmp_path / "cifar.tar.gz"
    is_meta = content.startswith(b"meta")
    path.write_bytes(cifar(meta=content[4:]) if is_meta else cifar(test=content))
    refused(load_cifar, path, "'cifar10'")


def state_of(content: bytes) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
    return state


def edited(change: Any) -> Any:
    def make() -> bytes:
        state = state_of(checkpoint())
        change(state)
        return saved(state)

    return make


def curve_of(state: dict[str, Any]) -> list[dict[str, Any]]:
    curve: list[dict[str, Any]] = state["callbacks"]["Bookkeeping"]["curve"]
    return curve


CHECKPOINTS: dict[str, Any] = {
    **{f"{name}": lambda call=call: saved(state_of(checkpoint()) | {"x": Calls(*call)})
       for name, call in CODE.items()},
    "code among the callbacks": edited(lambda s: s["callbacks"].update(x=Calls(os.system, "touch hacked"))),
    "code in a loop": edited(lambda s: s["loops"].update(x=Calls(os.system, "touch hacked"))),
    "code of a datamodule": edited(lambda s: s.update(datamodule_hyper_parameters=Calls(eval, "1"))),
    "a bytearray of 64 GB": lambda: pickled(b"cbuiltins\nbytearray\n\x8a\x05\0\0\0\0\x10\x85R"),
    "a list": lambda: saved([1]),
    "no callbacks": edited(lambda s: s.pop("callbacks")),
    "another run's": edited(lambda s: s["callbacks"]["Bookkeeping"]["configuration"].update(seed=9)),
    "no configuration": edited(lambda s: s["callbacks"]["Bookkeeping"].pop("configuration")),
    "a configuration that is text": edited(
        lambda s: s["callbacks"]["Bookkeeping"].update(configuration="abc")
    ),
    "a curve that is text": edited(lambda s: s["callbacks"]["Bookkeeping"].update(curve="abc")),
    "a curve of text": edited(lambda s: curve_of(s)[0].update(accuracy="high")),
    "a curve without accuracy": edited(lambda s: curve_of(s)[0].pop("accuracy")),
    "a longer curve": edited(lambda s: curve_of(s).append(curve_of(s)[0])),
    "no weights": edited(lambda s: s.pop("state_dict")),
    "weights that are text": edited(lambda s: s.update(state_dict="abc")),
    "weights of other names": edited(lambda s: s.update(state_dict={"x": torch.zeros(1)})),
    "weights of other shapes": edited(lambda s: s["state_dict"].update({"model.0.weight": torch.zeros(9)})),
    "no optimizer": edited(lambda s: s.update(optimizer_states=[])),
    "an optimizer of another shape": edited(lambda s: s["optimizer_states"][0]["state"][0].update(momentum_buffer=torch.zeros(7))),
    "an optimizer that is text": edited(lambda s: s.update(optimizer_states=["abc"])),
    "no loops": edited(lambda s: s.pop("loops")),
    "loops that are text": edited(lambda s: s.update(loops="abc")),
    "no version": edited(lambda s: s.pop("pytorch-lightning_version")),
    "no schedule": edited(lambda s: s.update(lr_schedulers=["abc"])),
    "nothing": lambda: b"",
    "text": lambda: b"hello",
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_hostile_checkpoints(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "last.ckpt"
    path.write_bytes(CHECKPOINTS[name]())
    refused(lambda path: training.train(a_run(), path.parent), path)
