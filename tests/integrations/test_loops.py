"""Every framework's loop takes the same ten steps as the plain one."""

import inspect
from itertools import product

import loops
import pytest
import torch
from loops import Network, Setting, distance, trained

from convsim import ConvsimError, Regularizer
from convsim.integrations.lightning import RegularizerCallback
from convsim.penalties import CosineOrthogonality
from convsim.regularizer.optimizer_hooks import grad_scale
from needs import need_module

LOOPS = [
    loops.attached, loops.attached_to_the_model, loops.attached_fused,
    loops.attached_with_closure, loops.in_the_loss, loops.fabric, loops.accelerate,
    loops.lightning, loops.hugging_face,
]  # fmt: skip


@pytest.mark.parametrize(
    ("loop", "penalty"),
    [*product(LOOPS, ["recommended", "crossed"])],
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_same_ten_steps(tmp_path, monkeypatch, capsys, loop, accumulate, penalty):
    monkeypatch.chdir(tmp_path)
    setting = Setting(penalty, accumulate)
    expected = trained(loops.plain, setting)
    assert distance(trained(loop, setting), expected) <= 1e-6
    without = [parameter.detach().double() for parameter in Network().parameters()]
    assert distance(without, expected) > 0.1
    assert loop is not loops.hugging_face or f"'convsim/{penalty}': " in capsys.readouterr().out


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_plain_loop_is_what_autograd_makes_of_the_formula(accumulate):
    setting = Setting(accumulate=accumulate)
    actual = trained(loops.plain, setting, loops.DoubleNetwork)
    assert distance(actual, trained(loops.written_out, setting, loops.DoubleNetwork)) <= 1e-12


@pytest.mark.parametrize("loop", [loops.attached, loops.attached_fused])
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_scaled_and_clipped(loop, clip):
    setting = Setting(accumulate=2, precision="fp16", clip=clip)
    expected = trained(loops.plain, setting)
    assert distance(trained(loop, setting), expected) <= 1e-5
    unclipped = trained(loops.plain, Setting(accumulate=2, precision="fp16"))
    assert (distance(unclipped, expected) > 1e-3) == (clip > 0)


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("penalty", ["crossed", "decov"])
def test_the_mixin_adds_the_mean_over_an_accumulation(tmp_path, monkeypatch, penalty, counted):
    need_module("transformers")
    from convsim.integrations.transformers import RegularizerTrainerMixin

    class Counting(Network):  # divides by the accumulation itself, as Trainer then asks
        def forward(self, images, labels, num_items_in_batch=None):
            loss = super().forward(images, labels)["loss"]
            count = num_items_in_batch or len(labels)
            return {"loss": loss * len(labels) / count}

    def mixed_in(model, setting):
        trainer = loops.hugging_face_trainer(
            model, setting, [RegularizerTrainerMixin], regularizer=Regularizer(model, penalty)
        )
        trainer.model_accepts_loss_kwargs = counted
        trainer.train()

    def by_hand(model, setting):
        regularizer, optimizer = Regularizer(model, penalty), loops.optimizer_of(model)
        for i, (images, labels) in enumerate(loops.loader(setting), 1):
            loss = model(images, labels)["loss"] + regularizer()
            (loss / setting.accumulate).backward()
            if i % setting.accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()

    monkeypatch.chdir(tmp_path)
    setting = Setting(penalty, 2)
    assert distance(trained(mixed_in, setting, Counting), trained(by_hand, setting)) <= 1e-6


def test_hugging_face_says_what_it_cannot_do():
    need_module("transformers")
    from convsim.integrations import transformers

    trainer = loops.hugging_face_trainer(
        Network(), Setting(), callbacks=[transformers.RegularizerTrainerCallback()]
    )
    trainer.compute_loss_func = lambda outputs, labels, **_: outputs.mean()  # no labels: no loss
    with pytest.raises(ConvsimError, match="in Hugging Face's Trainer by RegularizerTrainerMixin"):
        trainer.train()
    with pytest.raises(ConvsimError, match="looks at another model than the Trainer trains"):
        loops.hugging_face_trainer(
            Network(), Setting(), [transformers.RegularizerTrainerMixin],
            regularizer=Regularizer(Network()),
        )  # fmt: skip


def callback_kinds():
    need_module("transformers")
    from convsim.integrations.transformers import RegularizerTrainerCallback

    return RegularizerCallback, RegularizerTrainerCallback


@pytest.mark.parametrize("penalty", ["recommended", "crossed"])
@pytest.mark.parametrize("loop", [loops.in_the_loss, loops.lightning, loops.hugging_face])
def test_a_layer_that_is_unfrozen_later_is_taken_in(tmp_path, monkeypatch, loop, penalty):
    monkeypatch.chdir(tmp_path)
    setting = Setting(penalty)
    reference = loops.written_out if setting.on_maps else loops.plain
    expected = trained(reference, setting, loops.UnfreezingNetwork)
    assert distance(trained(loop, setting, loops.UnfreezingNetwork), expected) <= 1e-5
    assert distance(trained(loop, setting), expected) > 1e-3


@pytest.mark.filterwarnings("ignore:.*`training_step` returned `None`")
@pytest.mark.parametrize("penalty", ["recommended", "crossed"])
def test_lightning_forgets_a_batch_that_was_skipped(tmp_path, monkeypatch, penalty):
    monkeypatch.chdir(tmp_path)

    class Skipping(Network):
        def forward(self, images, labels=None):
            self.seen = getattr(self, "seen", 0) + 1
            if self.seen == 3:  # a bad batch, whose loss is not used
                super().forward(images * torch.nan, labels)
                return {"loss": None}
            return super().forward(images, labels)

    weights = trained(loops.lightning, Setting(penalty), Skipping)
    assert all(weight.isfinite().all() for weight in weights)


def test_callbacks_of_one_trainer_log_under_their_own_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loops, "optimizer_of", lambda m: torch.optim.SGD(m.parameters(), lr=0.0))
    options = [
        {"penalty": "recommended"},
        {"penalty": "crossed", "layers": "*layers.0"},
        {"penalty": "soft", "coefficient": 5.0, "layers": ["*.0", "*.2"]},
    ]
    names = [
        "convsim/recommended", "convsim/crossed[*layers.0]", "convsim/soft[*.0,*.2]",
    ]  # fmt: skip
    in_lightning, in_trainer = callback_kinds()
    logged = loops.lightning(Network(), Setting(), [in_lightning(**own) for own in options])
    trainer = loops.hugging_face_trainer(
        Network(), Setting(), callbacks=[in_trainer(**own) for own in options]
    )
    trainer.train()
    last = [entry for entry in trainer.state.log_history if "loss" in entry][-1]
    for found in (logged, last):
        assert sorted(name for name in found if name.startswith("convsim")) == sorted(names)
        for name, own in list(zip(names, options, strict=True))[1:]:
            assert found[name] == pytest.approx(Regularizer(Network(), **own)().item(), rel=1e-5)
    of_batches, network = [], Network()
    regularizer = Regularizer(network)
    for images, labels in loops.loader(Setting()):
        network(images, labels)
        of_batches.append(regularizer().item())
    assert logged[names[0]] == pytest.approx(sum(of_batches) / loops.STEPS, rel=1e-5)
    assert last[names[0]] == pytest.approx(of_batches[-1], rel=1e-5)


def test_callbacks_take_the_same_arguments_and_refuse_bad_ones_at_once():
    for kind in callback_kinds():
        parameters = inspect.signature(kind).parameters
        assert [*parameters] == ["penalty", "coefficient", "decay_steps", "layers"]
        assert all(own.annotation is not own.empty for own in parameters.values())
        with pytest.raises(ConvsimError, match="Did you mean 'crossed'"):
            kind("crosed")
        with pytest.raises(TypeError, match="coeficient"):
            kind(coeficient=2.0)
        with pytest.raises(ConvsimError, match="coefficient must be a finite number"):
            kind(coefficient=-1.0)
        with pytest.raises(ConvsimError, match="decay_steps must be an integer"):
            kind(decay_steps=0)


def test_what_gradients_are_still_multiplied_by():
    model = Network()
    optimizer = loops.optimizer_of(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    assert grad_scale(None, optimizer) == 1
    assert grad_scale(torch.amp.GradScaler("cpu", enabled=False), optimizer) == 1
    scaler.scale(model(torch.randn(2, 3, 8, 8)).sum()).backward()
    assert grad_scale(scaler, optimizer) == 256  # as a fused optimizer's, until its step
    scaler.unscale_(optimizer)
    assert grad_scale(scaler, optimizer) == 1


def test_a_second_fit_keeps_what_auto_found():
    class Own(CosineOrthogonality):
        __repr__ = object.__repr__

    callback = RegularizerCallback(Own(), coefficient="auto")
    model, found = Network(), []
    for _ in range(2):
        loops.lightning(model, Setting(), callbacks=[callback])
        found.append(callback.regularizer.coefficient)
    assert found[0] == found[1] > 0
    checkpoint = {}
    callback.on_save_checkpoint(None, None, checkpoint)
    later = RegularizerCallback(Own(), coefficient="auto")
    later.on_load_checkpoint(None, None, checkpoint)
    later.on_fit_start(None, torch.nn.ModuleDict({"model": model}))
    assert later.regularizer.coefficient == found[0]


def test_what_auto_found_is_in_a_hugging_face_checkpoint(tmp_path, monkeypatch):
    transformers = need_module("transformers")
    from convsim.integrations.transformers import RegularizerTrainerCallback

    found = []

    def automatic(model, setting, resume=None):
        callback = RegularizerTrainerCallback(setting.penalty, coefficient="auto")
        trainer = loops.hugging_face_trainer(model, setting, callbacks=[callback])
        trainer.args.save_strategy = transformers.trainer_utils.SaveStrategy.STEPS
        trainer.args.save_steps = 4
        trainer.train(resume_from_checkpoint=resume)
        found.append(callback.regularizer.coefficient)

    def resumed(model, setting):
        automatic(model, setting, "unused/checkpoint-4")

    monkeypatch.chdir(tmp_path)
    whole = trained(automatic, Setting())
    assert distance(trained(resumed, Setting()), whole) <= 1e-6
    assert found[0] == found[1] > 0


def test_an_inductor_graph_keeps_what_layers_read():
    def compiled(model, setting):
        regularizer, optimizer = Regularizer(model), loops.optimizer_of(model)
        run = torch.compile(model, fullgraph=True)
        for images, labels in loops.loader(setting):
            (run(images, labels)["loss"] + regularizer()).backward()
            optimizer.step()
            optimizer.zero_grad()

    assert distance(trained(compiled, Setting()), trained(loops.plain, Setting())) <= 1e-5
