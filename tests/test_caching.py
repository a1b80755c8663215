"""What is kept between calls serves every mode, stream and thread."""

import inspect

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import convsim
from closeness import assert_close
from convsim import Regularizer, caching
from convsim.backends import fused
from convsim.backends.problem import half_classes
from convsim.caching import kept
from convsim.kernels.windows import _places
from convsim.similarity.convolutional import _classes_on, tap_pair_classes
from seeds import new_generator, reseed

pytestmark = pytest.mark.core

FORMS = ("crossed", "matched", "cosine", "recommended")


class Everything(nn.Module):
    """All that reads a table, in one forward."""

    def __init__(self):
        super().__init__()
        reseed()
        self.body = nn.Sequential(nn.Conv2d(3, 4, (2, 3)), nn.Conv2d(4, 4, 3, stride=2))

    def forward(self, x):
        x = self.body(x)
        total = convsim.convolutional_similarity(self.body[0].weight)
        total = total + convsim.convolutional_similarity(self.body[1].weight, stride=2)
        return total + x.square().mean()


def penalties(model, x):
    values = []
    for form in FORMS:
        regularizer = Regularizer(model, form)
        model(x)
        value = regularizer()
        value.backward()
        values.append(value.detach())
        if form != "recommended":
            values.append(regularizer.backward_())
    return [*values, model(x)]


def under_fake_tensors():
    with FakeTensorMode():
        values = penalties(Everything(), torch.randn(2, 3, 9, 9))
    assert all(value.shape == () for value in values)


def under_export():
    torch.export.export(Everything(), (torch.randn(2, 3, 9, 9),), strict=False)


def under_function_transforms():
    model = Everything()

    def value(weight):
        return convsim.convolutional_similarity(weight)

    torch.func.grad(value)(model.body[0].weight.detach())
    torch.func.hessian(value)(model.body[0].weight.detach())


def under_inference_mode():
    with torch.inference_mode():
        model = Everything()
        model(torch.randn(2, 3, 9, 9))
        Regularizer(model, "crossed").values()


def under_another_device():
    with torch.device("meta"):
        Regularizer(Everything(), "crossed")


@pytest.mark.parametrize(
    "trace",
    [under_fake_tensors, under_export, under_function_transforms, under_inference_mode,
     under_another_device],
)  # fmt: skip
@pytest.mark.parametrize("backend", ["compiled", "eager"])
def test_no_mode_leaves_a_table_that_real_calls_cannot_use(trace, backend, monkeypatch):
    monkeypatch.setenv("CONVSIM_BACKEND", backend)
    x = torch.randn(2, 3, 9, 9, generator=new_generator())
    expected = penalties(Everything(), x)
    for table in (half_classes, _classes_on, tap_pair_classes, _places):
        inspect.getclosurevars(table).nonlocals["kept_make"].cache_clear()
    trace()
    assert_close(penalties(Everything(), x), expected, terms=18 + 112 + 36 + 36)
    trace()  # and what real calls have made is no hindrance to the mode


def test_a_table_is_made_once():
    made = []

    @kept(2)
    def table(size):
        made.append(size)
        return torch.arange(size)

    assert table(3) is table(3)
    assert made == [3]
    with FakeTensorMode():
        assert table(3) is not table(3)
    assert made == [3, 3, 3]


def test_each_stream_has_its_own_tables(monkeypatch):
    described = (((1, 4, 3), (108, 27, 9, 3, 1)),)
    device = torch.device("cpu")
    tables = {}
    for stream in (1, 2):
        monkeypatch.setattr(caching, "_stream", lambda device, stream=stream: stream)
        tables[stream] = caching.kept_on_stream(fused._table, described, device)
        assert caching.kept_on_stream(fused._table, described, device) is tables[stream]
    assert tables[1] is not tables[2]
