"""A penalty on feature maps that is computed in one step of so many."""

import pytest
import torch
from torch import Tensor, nn

from convsim import ConvsimError, Regularizer
from convsim.penalties import MapSimilarity

IMAGES = torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(8) % 4


def network() -> nn.Module:
    torch.manual_seed(0)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), *head)


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [*model.parameters()]))


def task(model: nn.Module) -> Tensor:
    return nn.functional.cross_entropy(model(IMAGES), LABELS)


def test_one_step_of_four_has_four_times_the_gradient_and_the_others_that_of_the_loss_alone():
    model = network()
    plain = gradients(model, task(model))
    whole = Regularizer(model, coefficient=2.0)
    loss = task(model)
    fourfold = gradients(model, loss + 4 * whole())
    whole.remove()
    lazy = Regularizer(model, coefficient=2.0, every=4)
    for number in range(9):
        loss = task(model)
        value = lazy()
        expected = plain if number % 4 else fourfold
        assert (value == 0) == (number % 4 != 0)
        for own, other in zip(gradients(model, loss + value), expected, strict=True):
            torch.testing.assert_close(own, other)


def test_it_says_four_times_the_penalty_of_the_dense_maps():
    model = network().double()
    lazy = Regularizer(model, MapSimilarity(samples=10**6), coefficient=0.5, every=4)
    images = IMAGES.double()
    model(images)
    with torch.no_grad():
        both = [model[0](images), model[2](model[1](model[0](images)))]
    expected = 0.0
    for maps in both:
        rows = maps.transpose(0, 1).flatten(1)
        correlation = torch.corrcoef(rows)
        off = correlation - torch.eye(len(rows), dtype=correlation.dtype)
        expected += float(off.square().sum() / (len(rows) * (len(rows) - 1)))
    whole = Regularizer(model, MapSimilarity(samples=10**6), coefficient=0.5)
    model(images)
    assert lazy().item() == pytest.approx(4 * whole().item())
    assert whole().item() == pytest.approx(0.5 * expected / 2, rel=1e-3)


def test_asking_twice_or_looking_at_values_ends_a_step_once():
    model = network()
    lazy = Regularizer(model, every=2)
    seen = []
    for _ in range(4):
        model(IMAGES)
        first, again, looked = lazy().item(), lazy().item(), lazy.values()
        assert first == again
        seen.append((first > 0, looked))
    assert [on for on, _ in seen] == [True, False, True, False]
    assert all(
        value > 0 for _, looked in seen for value in looked.values()
    )  # of the last looked at


def test_an_evaluation_without_gradients_is_no_step():
    model = network()
    lazy = Regularizer(model, every=2)
    for on in (True, False, True):
        model(IMAGES)
        assert (lazy().item() > 0) == on
        with torch.no_grad():
            model(IMAGES)


def test_several_passes_of_one_step_are_averaged():
    model = network()
    lazy, whole = Regularizer(model, every=3), Regularizer(model)
    for number in range(4):
        model(IMAGES)
        model(IMAGES.flip(0).mul(2))
        assert lazy().item() == pytest.approx(3 * whole().item() if number % 3 == 0 else 0)


def test_an_attached_criterion_rests_alike():
    model = network()
    criterion = nn.CrossEntropyLoss()
    lazy = Regularizer(model, every=3).attach(criterion)
    plain = task(model).item()
    lazy.forget()
    above = [criterion(model(IMAGES), LABELS).item() > plain + 1e-6 for _ in range(7)]
    assert above == [True, False, False, True, False, False, True]


def test_a_resumed_training_goes_on_in_its_step():
    def train(model: nn.Module, regularizer: Regularizer, steps: int) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(steps):
            optimizer.zero_grad()
            (task(model) + regularizer()).backward()
            optimizer.step()

    whole, stopped, resumed = network(), network(), network()
    train(whole, Regularizer(whole, coefficient=3, every=4), 7)
    before = Regularizer(stopped, coefficient=3, every=4)
    train(stopped, before, 3)
    resumed.load_state_dict(stopped.state_dict())
    after = Regularizer(resumed, coefficient=3, every=4)
    after.load_state_dict(before.state_dict())
    train(resumed, after, 4)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_going_back_to_a_state_forgets_a_batch_that_was_not_finite():
    for every in (1, 2):
        model = network()
        regularizer = Regularizer(model, every=every)
        state = regularizer.state_dict()
        model(IMAGES * float("nan"))
        assert not regularizer().isfinite()
        regularizer.load_state_dict(state)
        model(IMAGES)
        assert regularizer().isfinite()


def test_a_resting_step_has_values_and_a_backward_pass_of_its_own():
    model = network()
    lazy = Regularizer(model, every=2)
    lazy.load_state_dict({"steps": 0, "coefficient": None, "passed": 1})
    model(IMAGES)
    assert lazy.rests
    assert set(lazy.values().values()) == {0.0}
    lazy().backward()
    assert all(p.grad is None for p in model.parameters())


def test_the_automatic_coefficient_is_that_of_every_step():
    found = []
    for every in (1, 4):
        model = network()
        regularizer = Regularizer(model, coefficient="auto", every=every)
        for _ in range(2):
            (task(model) + regularizer()).backward()
        found.append(regularizer.coefficient)
    assert found[0] > 0
    assert found[0] == pytest.approx(found[1])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_is_looked_at_in_the_same_steps():
    model = network()
    eager = Regularizer(model, every=3)
    expected = []
    for _ in range(7):
        model(IMAGES)
        expected.append(eager().item())
    eager.remove()
    lazy = Regularizer(model, every=3)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(recompile_limit=4, fail_on_recompile_limit_hit=True):
        for value in expected:
            compiled(IMAGES)
            assert lazy().item() == pytest.approx(value, rel=1e-5)


def test_a_step_compiled_whole_is_refused():
    model = network()
    lazy = Regularizer(model, every=3)

    @torch.compile(backend="eager", fullgraph=True)
    def step() -> Tensor:
        return task(model) + lazy()

    with pytest.raises(Exception, match=r"outside of what torch\.compile compiles"):
        step()


def test_a_step_in_a_cuda_graph_is_refused(monkeypatch: pytest.MonkeyPatch):
    model = network()
    lazy = Regularizer(model, every=3)
    model(IMAGES)
    for name in ("is_initialized", "is_current_stream_capturing"):
        monkeypatch.setattr(torch.cuda, name, lambda: True)
    with pytest.raises(ConvsimError, match="leave every at 1"):
        lazy()


@pytest.mark.parametrize("every", [0, -1, 1.5, "2"])
def test_a_bad_number_is_refused(every):
    with pytest.raises(ConvsimError, match="every must be an integer ≥ 1"):
        Regularizer(network(), every=every)


def test_a_penalty_on_kernels_is_refused():
    with pytest.raises(ConvsimError, match="every=4 is for penalties on feature maps"):
        Regularizer(network(), "crossed", every=4)


def test_a_damaged_state_is_refused():
    lazy = Regularizer(network(), every=4)
    with pytest.raises(ConvsimError, match="steps passed"):
        lazy.load_state_dict({"steps": 0, "coefficient": None, "passed": -1})


def test_it_says_so():
    assert "every=4" in repr(Regularizer(network(), every=4))
    assert "every" not in repr(Regularizer(network())).splitlines()[0]
