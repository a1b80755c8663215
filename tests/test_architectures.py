"""Unmodified networks of timm, transformers and 3-d video; one layer of each by torchmetrics."""

import math
import warnings

import pytest
import torch
from torch import nn
from torchmetrics.functional import pairwise_cosine_similarity

import convsim
from closeness import assert_close
from convsim.lab.models import build_model
from seeds import reseed

# Family → network and the size of its images, where it does not take any.
TIMM = {
    "ResNet": ("resnet18", 64),
    "ResNet-v2": ("resnetv2_50", 64),
    "ResNeXt": ("resnext26ts", 64),
    "Res2Net": ("res2net50_14w_8s", 64),
    "SKNet": ("skresnet18", 64),
    "ResNeSt": ("resnest14d", 64),
    "NF-ResNet": ("nf_resnet26", 64),
    "NFNet": ("eca_nfnet_l0", 64),
    "EfficientNet": ("tf_efficientnet_lite0", 64),
    "MobileNet-v2": ("mobilenetv2_050", 64),
    "MobileNet-v3": ("mobilenetv3_small_050", 64),
    "MobileNet-v4": ("mobilenetv4_conv_small_050", 64),
    "MobileOne": ("mobileone_s0", 64),
    "MobileViT": ("mobilevit_xxs", 64),
    "MnasNet": ("mnasnet_small", 64),
    "LCNet": ("lcnet_035", 64),
    "GhostNet": ("ghostnet_050", 64),
    "GhostNet-v2": ("ghostnetv2_100", 64),
    "RepVGG": ("repvgg_a0", 64),
    "RepViT": ("repvit_m0_9", 64),
    "RegNet": ("regnety_002", 64),
    "ConvNeXt": ("convnext_atto", 64),
    "InceptionNeXt": ("inception_next_atto", 64),
    "EdgeNeXt": ("edgenext_xx_small", 64),
    "DenseNet": ("densenet121", 64),
    "Xception": ("xception41", 64),
    "HRNet": ("hrnet_w18_small", 64),
    "DLA": ("dla46_c", 64),
    "DPN": ("dpn48b", 64),
    "VoVNet": ("ese_vovnet19b_slim_dw", 64),
    "PoolFormer": ("poolformer_s12", 64),
    "FastViT": ("fastvit_t8", 64),
    "StarNet": ("starnet_s1", 64),
    "PVT": ("pvt_v2_b0", 64),
    "EfficientFormer": ("efficientformerv2_s0", 224),
    "LeViT, a hybrid": ("levit_conv_128s", 224),
    "MaxViT, a hybrid": ("maxvit_pico_rw_256", 256),
}
# Of those, what runs on every processor too.
SHARE = {"ResNeXt", "NF-ResNet", "MobileNet-v3", "GhostNet", "ConvNeXt"}


def narrow(name, module):
    """Choose layers of at most 256 maps; a layer's cost grows with their square."""
    return isinstance(module, nn.modules.conv._ConvNd) and module.out_channels <= 256


def check(model, inputs):
    """Measure a model, and compare one layer with torchmetrics on its stored maps."""
    report = convsim.measure(model, [inputs], layers=narrow)
    defined = [x for x in report if x.filters - x.dead > 1 and x.pixels > 1]
    assert len(defined) > 5
    for layer in report.layers:
        assert (layer in defined) == (0 <= layer.similarity <= 1)
        assert math.isnan(layer.similarity) == (layer not in defined)
        assert 0 <= layer.effective_rank <= layer.filters * (1 + 1e-9)
        if not math.isnan(layer.kernels.bound):
            assert layer.kernels.bound >= layer.kernels.bounded
    chosen = min(defined, key=lambda layer: abs(layer.filters - 48))
    modules = dict(model.named_modules())
    outputs = []
    handle = modules[chosen.name].register_forward_hook(
        lambda m, i, out: outputs.append(out.clone())
    )
    model.eval()
    with torch.no_grad():
        model(inputs)
    handle.remove()
    matrices = [
        pairwise_cosine_similarity(maps.double().flatten(1), zero_diagonal=False).abs()
        for output in outputs
        for maps in output
    ]
    pixels = outputs[0][0, 0].numel()
    assert_close(chosen.matrix, torch.stack(matrices).mean(0), terms=pixels)


@pytest.mark.usefixtures("vision")
@pytest.mark.parametrize(
    "family",
    [pytest.param(x, marks=[pytest.mark.numeric] if x in SHARE else []) for x in TIMM],
)
def test_timm(family):
    name, size = TIMM[family]
    reseed()
    check(build_model(f"timm:{name}", classes=10), torch.randn(2, 3, size, size))


@pytest.mark.parametrize("name", ["resnet", "convnext", "mobilenet_v2"])
def test_transformers(name):
    check(build_model(f"transformers:{name}", classes=10), torch.randn(2, 3, 64, 64))


@pytest.mark.usefixtures("vision")
def test_a_video_network():
    from torchvision.models.video import r3d_18

    reseed()
    check(r3d_18(weights=None), torch.randn(1, 3, 8, 32, 32))


@pytest.mark.usefixtures("vision")
def test_layers_that_eval_mode_skips_are_named():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = build_model("torchvision:googlenet", classes=10)
    with pytest.warns(
        convsim.ConvsimWarning, match=r"never reached these layers: aux1\.conv\.conv"
    ):
        convsim.measure(model, [torch.randn(1, 3, 64, 64)])


@pytest.mark.numeric
def test_shared_and_repeated_modules_are_measured_at_every_use():
    conv = nn.Conv2d(4, 4, 3, padding=1)
    model, images = nn.Sequential(conv, nn.ReLU(), conv), torch.randn(2, 4, 8, 8)
    (layer,) = convsim.measure(model, [images]).layers
    maps = torch.cat([conv(images), model(images)]).detach()
    matrices = [pairwise_cosine_similarity(m.flatten(1), zero_diagonal=False).abs() for m in maps]
    assert_close(layer.matrix, torch.stack(matrices).mean(0), terms=36 + 64 + 36 + 64)
