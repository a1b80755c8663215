"""What the callbacks log of a Lightning training."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import convsim
from convsim.integrations.lightning import RedundancyCallback, RegularizerCallback


class Small(LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3)
        )

    def forward(self, images):
        return self.layers(images)

    def training_step(self, batch, _):
        return self(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trained(folder, *callbacks):
    torch.manual_seed(0)
    module = Small()
    data = DataLoader(TensorDataset(torch.randn(16, 1, 8, 8)), batch_size=8)
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", logger=CSVLogger(folder), callbacks=list(callbacks),
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, data)
    return module, trainer


@pytest.mark.filterwarnings("ignore:The '?train_dataloader'? does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_what_is_logged_is_what_measure_says_and_training_is_the_same(tmp_path):
    images = [torch.randn(8, 1, 8, 8)]
    callback = RedundancyCallback(images, every=2)
    module, trainer = trained(tmp_path / "with", callback, RegularizerCallback())
    report = convsim.measure(module, images)
    assert trainer.logged_metrics["convsim/similarity"].item() == pytest.approx(report.similarity)
    for layer in report.layers:
        rank = trainer.logged_metrics[f"convsim/rank/{layer.name}"].item()
        assert rank == pytest.approx(layer.effective_rank)
        assert f"convsim/similarity/{layer.name}" in trainer.logged_metrics
    lines = (tmp_path / "with/lightning_logs/version_0/metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("convsim/similarity")
    assert sum(bool(line.split(",")[column]) for line in lines[1:]) == 1  # of two epochs
    plain, _ = trained(tmp_path / "without", RegularizerCallback())
    for own, other in zip(module.parameters(), plain.parameters(), strict=True):
        assert torch.equal(own, other)


def test_epochs_are_counted_from_one():
    with pytest.raises(convsim.ConvsimError, match="got 0"):
        RedundancyCallback([], every=0)
