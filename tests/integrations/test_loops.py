"""Every framework's loop takes the same ten steps as the plain one."""

import pytest
import torch
from lightning.fabric import Fabric
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from convsim import ConvsimError, Regularizer
from convsim.integrations.lightning import RegularizerCallback

STEPS, BATCH = 10, 8


class Network(nn.Module):
    """Takes what Hugging Face's Trainer gives, and what the others give."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=2), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
        )  # fmt: skip

    def forward(self, images, labels=None):
        logits = self.layers(images)
        if labels is None:
            return logits
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(1)
    count = 2 * STEPS * BATCH
    images = torch.randn(count, 3, 8, 8, generator=generator)
    return TensorDataset(images, torch.randint(4, (count,), generator=generator))


def loader(data):
    return DataLoader(data, batch_size=BATCH)


def optimizer_of(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def losses(model, data):
    for images, labels in loader(data):
        yield model(images, labels)["loss"]


def plain(model, data, accumulate, penalty):
    regularizer, optimizer = Regularizer(model, penalty), optimizer_of(model)
    for i, loss in enumerate(losses(model, data), 1):
        if i > STEPS * accumulate:
            break
        (loss / accumulate).backward()
        if i % accumulate == 0:
            regularizer.backward_()
            optimizer.step()
            optimizer.zero_grad()


def in_the_loss(model, data, accumulate, penalty):
    regularizer, optimizer = Regularizer(model, penalty), optimizer_of(model)
    for i, loss in enumerate(losses(model, data), 1):
        if i > STEPS * accumulate:
            break
        total = loss / accumulate
        if i % accumulate == 0:
            total = total + regularizer()
        total.backward()
        if i % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()


def fabric(model, data, accumulate, penalty):
    launcher = Fabric(accelerator="cpu")
    regularizer = Regularizer(model, penalty)
    wrapped, optimizer = launcher.setup(model, optimizer_of(model))
    for i, loss in enumerate(losses(wrapped, data), 1):
        if i > STEPS * accumulate:
            break
        launcher.backward(loss / accumulate)
        if i % accumulate == 0:
            regularizer.backward_()
            optimizer.step()
            optimizer.zero_grad()


def accelerate(model, data, accumulate, penalty):
    accelerator = pytest.importorskip("accelerate").Accelerator(
        cpu=True, gradient_accumulation_steps=accumulate
    )
    regularizer = Regularizer(model, penalty)
    wrapped, optimizer = accelerator.prepare(model, optimizer_of(model))
    for i, (images, labels) in enumerate(loader(data), 1):
        if i > STEPS * accumulate:
            break
        with accelerator.accumulate(wrapped):
            accelerator.backward(wrapped(images, labels)["loss"])
            if accelerator.sync_gradients:
                regularizer.backward_()
            optimizer.step()
            optimizer.zero_grad()


def lightning(model, data, accumulate, penalty):
    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.model = model

        def training_step(self, batch):
            return self.model(*batch)["loss"]

        def configure_optimizers(self):
            return optimizer_of(self)

    trainer = Trainer(
        max_steps=STEPS, accumulate_grad_batches=accumulate, accelerator="cpu", logger=False,
        callbacks=[RegularizerCallback(penalty)], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Module(), loader(data))


def hugging_face(model, data, accumulate, penalty):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from convsim.integrations.transformers import RegularizerTrainerCallback

    class InOrder(transformers.Trainer):
        def get_train_dataloader(self):
            return DataLoader(
                data, batch_size=BATCH,
                collate_fn=lambda rows: {
                    "images": torch.stack([image for image, _ in rows]),
                    "labels": torch.stack([label for _, label in rows]),
                },
            )  # fmt: skip

    optimizer = optimizer_of(model)
    arguments = transformers.TrainingArguments(
        output_dir="unused", max_steps=STEPS, gradient_accumulation_steps=accumulate,
        per_device_train_batch_size=BATCH, max_grad_norm=0, use_cpu=True, report_to=[],
        save_strategy="no", logging_steps=5, disable_tqdm=True,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    trainer = InOrder(
        model, arguments, train_dataset=data, optimizers=(optimizer, schedule),
        callbacks=[RegularizerTrainerCallback(penalty)],
    )  # fmt: skip
    trainer.model_accepts_loss_kwargs = False  # divide by the accumulation, as the others do
    trainer.train()
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("penalty", ["recommended", "crossed"])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("loop", [in_the_loss, fabric, accelerate, lightning, hugging_face])
def test_the_same_ten_steps(data, tmp_path, monkeypatch, capsys, loop, accumulate, penalty):
    monkeypatch.chdir(tmp_path)
    expected, actual, untouched = Network(), Network(), Network()
    plain(expected, data, accumulate, penalty)
    loop(actual, data, accumulate, penalty)
    moved = 0.0
    for one, other, start in zip(
        expected.parameters(), actual.parameters(), untouched.parameters(), strict=True
    ):
        assert (one - other).norm() <= 1e-6 * one.norm()
        moved += (one - start).norm().item()
    assert moved > 0.1
    assert loop is not hugging_face or "'convsim_penalty': " in capsys.readouterr().out


def test_hugging_face_refuses_a_penalty_on_feature_maps():
    pytest.importorskip("transformers")
    from convsim.integrations.transformers import RegularizerTrainerCallback

    with pytest.raises(ConvsimError, match="'decov' acts on feature maps"):
        RegularizerTrainerCallback("decov")
