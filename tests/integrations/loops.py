"""The same few training steps in every framework's loop, for any precision, compiled or not."""

from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from lightning.fabric import Fabric
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from convsim import PRESETS, ActivationPenalty, Regularizer
from convsim.integrations.lightning import RegularizerCallback
from convsim.kernels.windows import spread
from correlations import mean_square
from needs import need_module

STEPS, BATCH = 10, 8
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Setting:
    penalty: str = "recommended"
    accumulate: int = 1
    precision: str = "float32"  # or "bf16", autocast, or "fp16", autocast with a scaler
    compiled: bool = False
    clip: float = 0.0

    @property
    def on_maps(self):
        return isinstance(PRESETS[self.penalty].penalty, ActivationPenalty)

    def attach(self, model, optimizer):
        """One line for a loop: to the criterion, or for a penalty on kernels to the optimizer."""
        return Regularizer(model, self.penalty).attach(
            model.criterion if self.on_maps else optimizer
        )

    def compile(self, model):
        # aot_eager: all of torch.compile but the C++ compiler at its end.
        return torch.compile(model, backend="aot_eager") if self.compiled else model

    def autocast(self):
        half = HALF.get(self.precision)
        return torch.autocast("cpu", dtype=half) if half else nullcontext()

    def scaler(self):
        return torch.amp.GradScaler("cpu", enabled=self.precision == "fp16")

    def clip_(self, model):
        if self.clip:
            nn.utils.clip_grad_norm_(model.parameters(), self.clip)


class Network(nn.Module):
    """Takes what Hugging Face's Trainer gives, and what the others give."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=2), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
        )  # fmt: skip
        self.criterion = nn.CrossEntropyLoss()

    def forward(self, images, labels=None):
        logits = self.layers(images)
        if labels is None:
            return logits
        return {"loss": self.criterion(logits.float(), labels), "logits": logits}


class DoubleNetwork(Network):
    def forward(self, images, labels):
        return {"loss": self.criterion(self.layers(images.double()), labels)}


class UnfreezingNetwork(Network):
    """Its first layer is frozen until the fifth batch, as fine-tuning schedules do."""

    def __init__(self):
        super().__init__()
        self.layers[0].requires_grad_(False)
        self.batches = 0

    def forward(self, images, labels):
        self.batches += 1
        self.layers[0].requires_grad_(self.batches >= 5)
        return super().forward(images, labels)


def examples(accumulate):
    generator = torch.Generator().manual_seed(1)
    count = accumulate * STEPS * BATCH
    images = torch.randn(count, 3, 8, 8, generator=generator)
    return TensorDataset(images, torch.randint(4, (count,), generator=generator))


def loader(setting):
    return DataLoader(examples(setting.accumulate), batch_size=BATCH)


def optimizer_of(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def plain(model, setting):
    """Scaler, accumulation, unscaling, penalty, clipping, step: all by hand."""
    regularizer, optimizer = Regularizer(model, setting.penalty), optimizer_of(model)
    compiled, scaler = setting.compile(model), setting.scaler()
    for i, (images, labels) in enumerate(loader(setting), 1):
        with setting.autocast():
            loss = compiled(images, labels)["loss"]
        if setting.on_maps:
            loss = loss + regularizer()
        scaler.scale(loss / setting.accumulate).backward()
        if i % setting.accumulate == 0:
            scaler.unscale_(optimizer)
            setting.clip_(model)
            if not setting.on_maps:
                regularizer.backward_()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()


def written_out(model, setting):
    """The recommended penalty by autograd alone: torch.cov of indexed feature maps."""
    optimizer, maps = optimizer_of(model), []
    convolutions = [layer for layer in model.layers if isinstance(layer, nn.Conv2d)]
    for layer in convolutions:
        layer.register_forward_hook(
            lambda layer, inputs, output: (
                maps.append(output) if layer.weight.requires_grad else None
            )
        )
    for i, (images, labels) in enumerate(loader(setting), 1):
        loss = model(images, labels)["loss"]
        for of_layer in maps:
            pixels = of_layer.movedim(1, -1).flatten(0, -2)
            preset = PRESETS[setting.penalty]
            pixels = pixels[spread(preset.penalty.samples, len(pixels))]
            loss = loss + preset.coefficient * mean_square(pixels) / len(maps)
        maps.clear()
        (loss / setting.accumulate).backward()
        if i % setting.accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()


def attached(model, setting, optimizer_of=optimizer_of, attach=Setting.attach):
    optimizer = optimizer_of(model)
    attach(setting, model, optimizer)
    compiled, scaler = setting.compile(model), setting.scaler()
    for i, (images, labels) in enumerate(loader(setting), 1):
        with setting.autocast():
            loss = compiled(images, labels)["loss"] / setting.accumulate
        scaler.scale(loss).backward()
        if i % setting.accumulate == 0:
            if setting.clip:
                scaler.unscale_(optimizer)
                setting.clip_(model)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()


def attached_to_the_model(model, setting):
    """To one that returns its loss; a penalty on kernels needs no optimizer there either."""

    def attach(setting, model, optimizer):
        Regularizer(model, setting.penalty).attach(model)

    attached(model, setting, attach=attach)


def attached_fused(model, setting):
    """One whose scaler leaves the unscaling to the step."""
    attached(model, setting, lambda m: torch.optim.SGD(m.parameters(), 0.1, 0.9, fused=True))


def attached_with_closure(model, setting):
    optimizer = optimizer_of(model)
    setting.attach(model, optimizer)
    batches = iter(loader(setting))

    def closure():
        optimizer.zero_grad()
        for _ in range(setting.accumulate):
            images, labels = next(batches)
            loss = model(images, labels)["loss"] / setting.accumulate
            loss.backward()
        return loss

    for _ in range(STEPS):
        assert optimizer.step(closure) > 0


def in_the_loss(model, setting):
    regularizer, optimizer = Regularizer(model, setting.penalty), optimizer_of(model)
    for i, (images, labels) in enumerate(loader(setting), 1):
        loss = model(images, labels)["loss"] + regularizer()
        (loss / setting.accumulate).backward()
        if i % setting.accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()


def fabric(model, setting):
    launcher = Fabric(accelerator="cpu")
    wrapped, optimizer = launcher.setup(model, optimizer_of(model))
    setting.attach(model, optimizer)
    for i, (images, labels) in enumerate(loader(setting), 1):
        launcher.backward(wrapped(images, labels)["loss"] / setting.accumulate)
        if i % setting.accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()


def accelerate(model, setting):
    accelerator = need_module("accelerate").Accelerator(
        cpu=True, gradient_accumulation_steps=setting.accumulate,
        mixed_precision="no" if setting.precision == "float32" else setting.precision,
        dynamo_backend="aot_eager" if setting.compiled else "no",
    )  # fmt: skip
    wrapped, optimizer = accelerator.prepare(model, optimizer_of(model))
    setting.attach(model, optimizer)
    for images, labels in loader(setting):
        with accelerator.accumulate(wrapped):
            accelerator.backward(wrapped(images, labels)["loss"])
            optimizer.step()
            optimizer.zero_grad()


def lightning(model, setting, callbacks=None):
    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.model = setting.compile(model)

        def training_step(self, batch):
            return self.model(*batch)["loss"]

        def configure_optimizers(self):
            return optimizer_of(self)

    precision = {"float32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
    trainer = Trainer(
        max_steps=STEPS, accumulate_grad_batches=setting.accumulate, accelerator="cpu",
        callbacks=callbacks or [RegularizerCallback(setting.penalty)],
        precision=precision[setting.precision],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        logger=False,
    )  # fmt: skip
    trainer.fit(Module(), loader(setting))
    return {name: value.item() for name, value in trainer.callback_metrics.items()}


def hugging_face_trainer(model, setting, base=(), callbacks=(), **options):
    """Build a Trainer that takes the examples in their order."""
    transformers = need_module("transformers")
    need_module("accelerate")
    data = examples(setting.accumulate)

    class InOrder(*base, transformers.Trainer):
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
        output_dir="unused", max_steps=STEPS, gradient_accumulation_steps=setting.accumulate,
        per_device_train_batch_size=BATCH, max_grad_norm=0, use_cpu=True, report_to=[],
        save_strategy="no", logging_steps=5, disable_tqdm=True, torch_compile=setting.compiled,
        bf16=setting.precision == "bf16", fp16=setting.precision == "fp16",
        torch_compile_backend="aot_eager" if setting.compiled else None,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    trainer = InOrder(
        model, arguments, train_dataset=data, optimizers=(optimizer, schedule),
        callbacks=list(callbacks), **options,
    )  # fmt: skip
    trainer.model_accepts_loss_kwargs = False  # divide by the accumulation, as the others do
    return trainer


def hugging_face(model, setting):
    need_module("transformers")
    from convsim.integrations.transformers import RegularizerTrainerCallback

    callback = RegularizerTrainerCallback(setting.penalty)
    hugging_face_trainer(model, setting, callbacks=[callback]).train()
    assert not any(module._forward_hooks for module in model.modules())


def forget_settings():
    """Let Accelerate, which keeps its first settings for the whole process, take new ones."""
    if find_spec("accelerate"):
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


def trained(loop, setting, network=Network):
    """Train a new network; return its parameters."""
    torch._dynamo.reset()
    forget_settings()
    model = network()
    if network is DoubleNetwork:
        model.double()
    loop(model, setting)
    return [parameter.detach().double() for parameter in model.parameters()]


def distance(parameters, others):
    """Tell the largest ‖w − v‖ / ‖v‖."""
    pairs = zip(parameters, others, strict=True)
    return max(((one - other).norm() / other.norm()).item() for one, other in pairs)
