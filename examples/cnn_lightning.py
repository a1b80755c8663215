"""A Lightning module of yours, with the penalty as a callback: one line in the Trainer."""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from convsim.integrations.lightning import RegularizerCallback


class Digits(LightningModule):
    """A small CNN on handwritten digits of 8×8."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10),
        )  # fmt: skip

    def training_step(self, batch, index):
        """Return the loss; the callback adds the penalty to its gradient."""
        images, labels = batch
        return nn.functional.cross_entropy(self.net(images), labels)

    def validation_step(self, batch, index):
        """Log the accuracy."""
        images, labels = batch
        self.log("accuracy", (self.net(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        """Use Adam."""
        return torch.optim.Adam(self.parameters(), lr=3e-3)


seed_everything(0, verbose=False)
images, labels = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
data = TensorDataset(images.float().reshape(-1, 1, 8, 8) / 16, labels)
train, test = torch.utils.data.random_split(data, [1297, 500])

trainer = Trainer(
    max_epochs=2,
    accelerator="cpu",
    callbacks=[RegularizerCallback()],
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(Digits(), DataLoader(train, 64, shuffle=True), DataLoader(test, 500))
metrics = {name: f"{value:.3f}" for name, value in trainer.callback_metrics.items()}
print(f"accuracy {metrics.pop('accuracy')}", metrics)
