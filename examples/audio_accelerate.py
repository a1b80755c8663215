"""A 1-d network that tells instruments by their waveforms, trained by Accelerate.

The notes are synthesised: six timbres (the strength of each harmonic, an attack and a decay), any
pitch, and noise. Two batches are accumulated for a step and gradients are clipped: the penalty is
part of the loss, so both are done to it too.
"""

import math

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import convsim

RATE, SAMPLES, INSTRUMENTS, HARMONICS = 8000, 1024, 6, 8


def notes(count: int, seed: int) -> TensorDataset:
    """Draw notes of instruments that are the same for every seed."""
    timbres = torch.rand(INSTRUMENTS, HARMONICS, generator=torch.Generator().manual_seed(0)) ** 3
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(INSTRUMENTS, (count,), generator=generator)
    time = torch.arange(SAMPLES) / RATE
    pitch = 110 * 2 ** (2 * torch.rand(count, generator=generator))
    phase = 2 * math.pi * torch.rand(count, HARMONICS, 1, generator=generator)
    number = torch.arange(1, HARMONICS + 1)
    angle = 2 * math.pi * pitch[:, None, None] * number[:, None] * time + phase
    envelope = (1 - torch.exp(-time * 200)) * torch.exp(-time * (5 + 5 * labels[:, None]))
    sound = (timbres[labels, :, None] * torch.sin(angle)).sum(1) * envelope
    noise = 0.1 * torch.randn(count, SAMPLES, generator=generator)
    return TensorDataset((sound + noise)[:, None], labels)


torch.manual_seed(0)
layers: list[nn.Module] = []
for inputs, outputs, kernel in ((1, 16, 33), (16, 32, 9), (32, 32, 9)):
    layers += [
        nn.Conv1d(inputs, outputs, kernel, stride=4, padding=kernel // 2, bias=False),
        nn.BatchNorm1d(outputs),
        nn.ReLU(),
    ]
model = nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, INSTRUMENTS))

accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
loader = DataLoader(notes(1200, seed=1), batch_size=32, shuffle=True)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
criterion = nn.CrossEntropyLoss()
convsim.Regularizer(accelerator.unwrap_model(model)).attach(criterion)

for epoch in range(5):
    for sounds, labels in loader:
        with accelerator.accumulate(model):
            loss = criterion(model(sounds), labels)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    print(f"epoch {epoch}: loss {loss.item():.3f}")

sounds, labels = notes(500, seed=2).tensors
model.eval()
with torch.no_grad():
    right = model(sounds).argmax(1) == labels
report = convsim.measure(accelerator.unwrap_model(model), [sounds[:100]])
print(f"accuracy {100 * right.float().mean():.1f} %, similarity {report.similarity:.3f}")
