"""Shrink networks of timm and torchvision with random weights to half of their parameters.

Handwritten digits at 64×64, or the size that a network asks for; every BatchNorm first sees them.
Checks that the smaller network runs, keeps its budget, that its BatchNorms have as many channels as
they read and finite statistics, by how much its outputs differ from the original's on the images it
was fitted to and on as many others, that a fresh model of the class takes its plan, and that it
puts out the same in onnxruntime, exported to ONNX through torch.export.

A record for each network goes to results/shrink_architectures.jsonl; a second call goes on where
the first one stopped. results/shrink_architectures.md is written from them. `--only NAME …` prints
alone.
"""

import argparse
import copy
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn

import convsim
from convsim.lab.libraries import library_model
from convsim.lab.records import append_record, environment, read_records
from convsim.shrinking.summary import output_error
from convsim.shrinking.survey import as_rows
from convsim.shrinking.verification import outputs
from convsim.shrinking.weights import reads_maps

sys.path.append(str(Path(__file__).parents[1] / "tests"))
RESULTS = Path(__file__).parent / "results"
RECORDS, PAGE = RESULTS / "shrink_architectures.jsonl", RESULTS / "shrink_architectures.md"
IMAGES, SHARE, SECONDS = 256, 0.5, 600
# Name → family and image size; the quick ones first.
NETWORKS = {
    "timm:lcnet_050": ("LCNet", 64),
    "timm:resnet18": ("ResNet", 64),
    "timm:mobilenetv3_small_100": ("MobileNet v3", 64),
    "timm:regnety_002": ("RegNet", 64),
    "timm:starnet_s1": ("StarNet", 64),
    "torchvision:squeezenet1_1": ("SqueezeNet", 64),
    "timm:ese_vovnet19b_slim_dw": ("VoVNet", 64),
    "timm:repvgg_a0": ("RepVGG", 64),
    "timm:ghostnet_100": ("GhostNet", 64),
    "timm:convnext_atto": ("ConvNeXt", 64),
    "timm:mnasnet_100": ("MnasNet", 64),
    "timm:edgenext_xx_small": ("EdgeNeXt", 64),
    "timm:mobilevit_xxs": ("MobileViT", 64),
    "timm:nf_resnet26": ("NF-ResNet", 64),
    "timm:poolformer_s12": ("PoolFormer", 64),
    "torchvision:shufflenet_v2_x0_5": ("ShuffleNet", 64),
    "timm:dla34": ("DLA", 64),
    "timm:mobilenetv4_conv_small": ("MobileNet v4", 64),
    "timm:mobilenetv2_100": ("MobileNet v2", 64),
    "torchvision:mobilenet_v2": ("MobileNet v2", 64),
    "timm:efficientnet_b0": ("EfficientNet", 64),
    "timm:rexnet_100": ("ReXNet", 64),
    "timm:mobileone_s0": ("MobileOne", 64),
    "torchvision:googlenet": ("Inception", 64),
    "torchvision:alexnet": ("AlexNet", 64),
    "timm:vgg11_bn": ("VGG", 64),
    "timm:resnet50": ("ResNet", 64),
    "timm:resnetv2_50": ("ResNet v2", 64),
    "timm:resnext50_32x4d": ("ResNeXt", 64),
    "timm:seresnet50": ("SE-ResNet", 64),
    "timm:res2net50_26w_4s": ("Res2Net", 64),
    "torchvision:vgg11": ("VGG", 64),
    "timm:inception_v3": ("Inception", 96),
    "timm:densenet121": ("DenseNet", 64),
    "timm:hrnet_w18_small": ("HRNet", 64),
    "timm:dpn48b": ("DPN", 64),
    "timm:darknet53": ("DarkNet", 64),
    "timm:cspresnet50": ("CSPNet", 64),
    "timm:xception41": ("Xception", 64),
    "timm:vit_tiny_patch16_224": ("ViT", 224),
    "timm:mixer_s32_224": ("MLP-Mixer", 224),
}


def digits(size: int) -> torch.Tensor:
    """Load digits in a seeded order, with three channels: to fit to, and as many others."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(data.images, dtype=torch.float32)[order[: 2 * IMAGES], None] / 8 - 1
    return nn.functional.interpolate(images, size=size, mode="bilinear").expand(-1, 3, -1, -1)


def settle_norms_(model: nn.Module, images: torch.Tensor) -> None:
    """Let every BatchNorm take the statistics of images, and no branch start at zero."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        if norm.weight is not None and not norm.weight.any():
            nn.init.ones_(norm.weight)
    model.eval()
    for norm in norms:
        norm.train()
    with torch.no_grad():
        model(images)
    model.eval()


@contextmanager
def limit(seconds: int) -> Iterator[None]:
    """Raise TimeoutError when a block takes more processor time."""

    def stop(number: int, frame: Any) -> None:
        raise TimeoutError(f"more than {seconds} seconds of one core")

    signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def try_network(name: str) -> dict[str, Any]:
    """Shrink one network and tell what came of it."""
    family, size = NETWORKS[name]
    torch.manual_seed(0)
    model = library_model(name, classes=10, channels=3, pretrained=False)
    images, others = digits(size).split(IMAGES)
    settle_norms_(model, images[:64])
    layers = sum(map(reads_maps, model.modules()))
    record: dict[str, Any] = {"name": name, "family": family, "layers": layers, "size": size}
    started = time.process_time()
    try:
        with limit(SECONDS):
            shrunk = convsim.shrink(model, images.split(64), parameters=SHARE)
    except (convsim.ConvsimError, TimeoutError) as error:
        return record | {"failed": str(error)[:400], "seconds": time.process_time() - started}
    record["seconds"] = time.process_time() - started
    return record | judge(model, shrunk, others)


def judge(model: nn.Module, shrunk: convsim.Shrunk, others: torch.Tensor) -> dict[str, Any]:
    """Check a smaller network, on images that it was not fitted to."""
    small, images = shrunk.model, others[:8]
    with torch.no_grad():
        rows = [[as_rows(outputs(one, x)) for x in others.split(64)] for one in (model, small)]
        got = outputs(small, images)
    fresh = copy.deepcopy(shrunk.plan.apply(model))
    fresh.load_state_dict(small.state_dict())
    with torch.no_grad():
        same = all(map(torch.equal, outputs(fresh, images), got))
    exported = exported_alike(small, images)
    norms = [m for m in small.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    right = all(
        len(n.running_mean) == n.num_features and n.running_var.isfinite().all() for n in norms
    )
    report = shrunk.report
    return {
        "parameters": report.parameters.share,
        "macs": report.macs.share,
        "error": report.output_error,
        "error_of_others": output_error(*rows),
        "rebuilt": same,
        "norms_right": bool(right),
        "export": exported,
        "left": [[one.layer, one.reason] for one in shrunk.left],
    }


def exported_alike(model: nn.Module, images: torch.Tensor) -> str:
    """Say how a network fails in onnxruntime, "" if it does not."""
    import onnxruntime  # noqa: PLC0415

    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level, quiet.intra_op_num_threads = 3, 1
    try:
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            path = Path(folder) / "smaller.onnx"
            torch.onnx.export(model, (images,), path, dynamo=True, verbose=False)
            session = onnxruntime.InferenceSession(path, quiet, providers=["CPUExecutionProvider"])
            got = session.run(None, {session.get_inputs()[0].name: images.numpy()})
            want = outputs(model, images)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]
    worst = max(
        float((torch.from_numpy(a) - b).abs().max() / b.abs().max().clamp_min(1e-30))
        for a, b in zip(got, want, strict=True)
    )
    return "" if worst < 1e-3 else f"differs by {worst:.2g} of the largest output"


def table(records: list[dict[str, Any]]) -> str:
    """Write the page."""
    lines = [
        "# Shrinking networks of timm and torchvision",
        "",
        f"{SHARE:.0%} of the parameters, random weights, {IMAGES} images of digits; see",
        "`shrink_architectures.py`. Error: of the outputs' variance, on those images and on as",
        "many others: with random weights and so few images it tests what runs, not what is kept.",
        "Whole: layers whose channels all stayed, the head left out.",
        "",
        "| network | family | parameters | multiplications | error | others | ONNX | whole | s |",
        "|---|---|---:|---:|---:|---:|---|---:|---:|",
    ]
    for one in records:
        if "failed" in one:
            reason = one["failed"].replace("|", "/")
            lines.append(f"| {one['name']} | {one['family']} | not shrunk: {reason} |||||||")
            continue
        lines.append(
            f"| {one['name']} | {one['family']} | {one['parameters']:.1%} | {one['macs']:.1%} | "
            f"{one['error']:.2g} | {one['error_of_others']:.2g} | "
            f"{one['export'] or 'yes'} | {max(0, len(one['left']) - 1)} | {one['seconds']:.0f} |"
        )
    reasons: dict[str, list[str]] = {}
    for one in records:
        for layer, reason in one.get("left", [])[:-1]:
            reasons.setdefault(reason.partition(" (")[0][:90], []).append(f"{one['name']}: {layer}")
    lines += ["", "Why layers stayed whole, with an example of each:", ""]
    lines += [f"- {reason} ({len(where)}): {where[0]}" for reason, where in reasons.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what has no record yet."""
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=None)
    options = parser.parse_args()
    from conftest import use_vision  # noqa: PLC0415

    use_vision()
    if options.only is not None:
        for name in options.only:
            print(try_network(name), flush=True)
        return
    done = {one["name"] for one in read_records(RECORDS)} if RECORDS.exists() else set()
    for name in NETWORKS:
        if name not in done:
            record = try_network(name)
            append_record(RECORDS, record | {"environment": environment()})
            print({k: v for k, v in record.items() if k != "left"}, flush=True)
    PAGE.write_text(table(read_records(RECORDS)), encoding="utf-8")


if __name__ == "__main__":
    main()
