"""transformers' ConvNeXt V2 on handwritten digits by Hugging Face's Trainer, with a callback."""

import tempfile

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.utils.data import Dataset
from transformers import (
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    EvalPrediction,
    Trainer,
    TrainingArguments,
)

import convsim
from convsim.integrations.transformers import RegularizerTrainerCallback


class Digits(Dataset):
    """Images under the names that the model's forward takes."""

    def __init__(self, part: slice) -> None:
        digits = load_digits()
        self.images = torch.tensor(digits.images[part], dtype=torch.float32)[:, None] / 8 - 1
        self.labels = torch.tensor(digits.target[part])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.images[i], "labels": self.labels[i]}


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Count what is right."""
    return {"accuracy": float(np.mean(prediction.predictions.argmax(1) == prediction.label_ids))}


torch.manual_seed(0)
model = ConvNextV2ForImageClassification(
    ConvNextV2Config(
        num_channels=1,
        num_labels=10,
        patch_size=1,
        image_size=8,
        hidden_sizes=[16, 32],
        depths=[1, 1],
        num_stages=2,
    )
)
test = Digits(slice(1000, 1300))
with tempfile.TemporaryDirectory() as folder:
    trainer = Trainer(
        model,
        TrainingArguments(
            folder,
            num_train_epochs=4,
            per_device_train_batch_size=64,
            learning_rate=1e-2,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="epoch",
            disable_tqdm=True,
            seed=0,
        ),
        train_dataset=Digits(slice(0, 1000)),
        eval_dataset=test,
        compute_metrics=accuracy,
        callbacks=[RegularizerTrainerCallback()],
    )
    trainer.train()
    print(f"accuracy {100 * trainer.evaluate()['eval_accuracy']:.1f} %")

report = convsim.measure(model.convnextv2, [test.images[:100]])
print(f"feature-map similarity {report.similarity:.3f}")
