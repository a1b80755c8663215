"""A shrunk network in a folder, and back."""

import json

import pytest
import torch
from networks import network
from safetensors.torch import load_file, save_file

import convsim
from needs import need_module

pytestmark = pytest.mark.numeric


@pytest.fixture
def saved(tmp_path):
    model, images = network("residual")
    shrunk = convsim.shrink(model, [images], parameters=0.5)
    shrunk.save(tmp_path / "smaller")
    return model, images, shrunk, tmp_path / "smaller"


def test_what_was_saved_is_rebuilt_from_a_fresh_model(saved):
    _, images, shrunk, folder = saved
    fresh, _ = network("residual")
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    rebuilt = convsim.load_shrunk(fresh, folder)
    assert type(rebuilt) is type(fresh)
    torch.testing.assert_close(rebuilt(images), shrunk.model(images), rtol=0, atol=0)
    assert all(torch.equal(before[name], value) for name, value in fresh.state_dict().items())
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors", "plan.json", "report.json",
    }  # fmt: skip


def test_a_rebuilt_network_can_be_shrunk_again(saved):
    model, images, _, folder = saved
    again = convsim.shrink(convsim.load_shrunk(model, folder), [images], parameters=0.5)
    assert again.report.parameters.share <= 0.5


def damaged_plan(folder, edit):
    content = json.loads((folder / "plan.json").read_text())
    edit(content)
    (folder / "plan.json").write_text(json.dumps(content))


DAMAGE = {
    "cut off": (lambda f: (f / "plan.json").write_text("{"), "damaged"),
    "of another kind": (lambda f: (f / "plan.json").write_text("[]"), "not a plan"),
    "missing": (lambda f: (f / "plan.json").unlink(), "no plan"),
    "an index too large": (
        lambda f: damaged_plan(f, lambda c: c["axes"][0].__setitem__(3, [0, 99])), "damaged",
    ),
    "an index twice": (
        lambda f: damaged_plan(f, lambda c: c["axes"][0].__setitem__(3, [0, 0])), "do not rise",
    ),
    "no index": (lambda f: damaged_plan(f, lambda c: c["axes"][0].__setitem__(3, [])), "damaged"),
    "an index that is text": (
        lambda f: damaged_plan(f, lambda c: c["axes"][0].__setitem__(3, ["0"])), "count belongs",
    ),
    "an unknown role": (
        lambda f: damaged_plan(f, lambda c: c["axes"][0].__setitem__(1, "x")), "a role 'x'",
    ),
    "an unknown module": (
        lambda f: damaged_plan(f, lambda c: c["axes"][0].__setitem__(0, "x")), "no axis",
    ),
    "a later format": (
        lambda f: damaged_plan(f, lambda c: c.__setitem__("format", "9")), "format '9'",
    ),
    "weights missing": (lambda f: (f / "model.safetensors").unlink(), "no weights file"),
    "weights cut off": (
        lambda f: (f / "model.safetensors").write_bytes(b"1234"), "no safetensors file",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_folder_is_refused(saved, case):
    model, _, _, folder = saved
    spoil, message = DAMAGE[case]
    spoil(folder)
    with pytest.raises(convsim.DataError, match=message):
        convsim.load_shrunk(model, folder)


def test_a_plan_of_another_network_is_refused(saved):
    other, _ = network("plain")
    with pytest.raises(convsim.ConvsimError, match=r"made for another network.*has shape"):
        convsim.load_shrunk(other, saved[3])


def test_weights_of_another_network_are_refused(saved):
    model, _, _, folder = saved
    state = load_file(folder / "model.safetensors")
    state["0.weight"] = torch.zeros(1, 3, 3, 3)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(convsim.DataError, match=r"another network than its plan.*'0.weight'"):
        convsim.load_shrunk(model, folder)


def test_the_smaller_network_is_exported(saved):
    _, images, shrunk, _ = saved
    program = torch.export.export(shrunk.model, (images[:4],)).module()
    torch.testing.assert_close(program(images[:4]), shrunk.model(images[:4]))


def test_the_smaller_network_runs_in_onnxruntime(saved, tmp_path):
    onnxruntime = need_module("onnxruntime")
    need_module("onnxscript")
    _, images, shrunk, _ = saved
    path = tmp_path / "smaller.onnx"
    torch.onnx.export(shrunk.model, (images[:4],), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: images[:4].numpy()})
    want = shrunk.model(images[:4]).detach()
    torch.testing.assert_close(torch.from_numpy(got), want, rtol=1e-4, atol=1e-4)
