"""timm's ResNet on handwritten digits, with the penalty and without: one line more."""

import timm
import torch
from sklearn.datasets import load_digits
from torch import nn

import convsim

EPOCHS, BATCH = 3, 64

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
images = nn.functional.interpolate(images, size=16, mode="bilinear")
labels = torch.tensor(digits.target)
train, test = slice(0, 1000), slice(1000, None)


def accuracy_and_similarity(penalise: bool) -> tuple[float, float]:
    """Train one network; measure it on images it has not seen."""
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=10, in_chans=1)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    if penalise:
        convsim.Regularizer(model).attach(criterion)  # the one line
    for _ in range(EPOCHS):
        for batch in torch.randperm(1000).split(BATCH):
            optimizer.zero_grad()
            criterion(model(images[train][batch]), labels[train][batch]).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        right = model(images[test]).argmax(1) == labels[test]
    return right.float().mean().item(), convsim.measure(model, [images[test][:100]]).similarity


for penalise in (False, True):
    accuracy, similarity = accuracy_and_similarity(penalise)
    print(
        f"{'with' if penalise else 'without'} the penalty: accuracy {100 * accuracy:.1f} %, "
        f"feature-map similarity {similarity:.3f}"
    )
