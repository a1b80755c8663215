"""A 3-d U-Net that finds nodules in scans, trained by Lightning's Fabric in bf16.

The scans are synthesised: a bright body with darker lungs, noise, and bright ellipsoids to segment.
"""

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

import convsim

SIZE = 16


def scans(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw scans (N, 1, D, H, W) and masks of their nodules."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.linspace(-1, 1, SIZE)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    body = (y**2 + x**2 < 0.9).float()
    lungs = ((x.abs() - 0.45) ** 2 / 0.1 + y**2 / 0.3 + z**2 / 0.8 < 1).float()
    images, masks = [], []
    for _ in range(count):
        centre = 0.5 * (2 * torch.rand(3, generator=generator) - 1)
        radii = 0.2 + 0.2 * torch.rand(3, generator=generator)
        distance = sum(((a - c) / r) ** 2 for a, c, r in zip((z, y, x), centre, radii, strict=True))
        mask = (distance < 1).float()
        noise = 0.1 * torch.randn(z.shape, generator=generator)
        images.append(body - 0.6 * lungs + 0.8 * mask + noise)
        masks.append(mask)
    return torch.stack(images)[:, None], torch.stack(masks)[:, None]


class UNet(nn.Module):
    """Two levels: down by a strided convolution, up by a transposed one, and a shortcut."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.fine = self.block(1, width)
        self.down = nn.Conv3d(width, 2 * width, 2, stride=2)
        self.coarse = self.block(2 * width, 2 * width)
        self.up = nn.ConvTranspose3d(2 * width, width, 2, stride=2)
        self.head = nn.Sequential(self.block(2 * width, width), nn.Conv3d(width, 1, 1))

    @staticmethod
    def block(inputs: int, outputs: int) -> nn.Module:
        """Convolve, normalise, activate."""
        return nn.Sequential(
            nn.Conv3d(inputs, outputs, 3, padding=1), nn.GroupNorm(4, outputs), nn.ReLU()
        )

    def forward(self, scan: Tensor) -> Tensor:
        """Map scans to logits of the same size."""
        fine = self.fine(scan)
        logits: Tensor = self.head(torch.cat([fine, self.up(self.coarse(self.down(fine)))], 1))
        return logits


def dice(probability: Tensor, mask: Tensor) -> Tensor:
    """Measure the overlap, from 0 to 1."""
    return 2 * (probability * mask).sum() / (probability.sum() + mask.sum())


torch.manual_seed(0)
fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
model = UNet()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
regularizer = convsim.Regularizer(model)
print(regularizer)
wrapped, optimizer = fabric.setup(model, optimizer)
images, masks = scans(32, seed=1)
for epoch in range(6):
    for batch in torch.randperm(len(images)).split(4):
        optimizer.zero_grad()
        logits = wrapped(images[batch])
        loss = nn.functional.binary_cross_entropy_with_logits(logits, masks[batch])
        loss = loss + 1 - dice(logits.sigmoid(), masks[batch])
        penalty = regularizer()
        fabric.backward(loss + penalty)
        optimizer.step()
    print(f"epoch {epoch}: loss {loss.item():.3f}, penalty {penalty.item():.3f}")

images, masks = scans(12, seed=2)
with torch.no_grad():
    overlap = dice((model(images) > 0).float(), masks)
print(f"Dice on scans it has not seen: {overlap.item():.3f}")
