"""What reaches a network is what its library's own preprocessing makes of the photograph."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn

from convsim.errors import ConvsimError
from convsim.lab.datasets import ImageData
from convsim.lab.loading import prepared
from convsim.lab.models import build_model
from convsim.lab.preprocessing import (
    ImageFunction,
    Standardised,
    own_preprocessing,
    own_size,
    users_preprocessing,
)

TIMM = (
    "resnet18", "mobilenetv3_small_050", "convnext_atto", "tf_efficientnet_lite0", "inception_v3",
)  # fmt: skip
PHOTOGRAPHS = [Image.fromarray(pixels) for pixels in load_sample_images().images]
PHOTOGRAPHS += [PHOTOGRAPHS[0].resize((90, 200)), PHOTOGRAPHS[1].convert("L")]


def made_by(own: ImageFunction) -> list[torch.Tensor]:
    return [own(photograph) for photograph in PHOTOGRAPHS]


def agree(own: ImageFunction, reference, tolerance: float) -> None:
    for photograph in PHOTOGRAPHS:
        expected = reference(photograph.convert("RGB"))
        made = own(photograph)
        assert made.shape == expected.shape
        assert (made - expected).abs().max() <= tolerance


@pytest.mark.usefixtures("vision")
@pytest.mark.parametrize("name", TIMM)
@pytest.mark.parametrize("size", [None, 96])
def test_timm(name, size):
    import timm

    model = build_model(f"timm:{name}", classes=10)
    config = timm.data.resolve_data_config({}, model=model)
    if size is not None:
        config |= {"input_size": (3, size, size)}
    reference = timm.data.create_transform(**config, is_training=False)
    own = own_preprocessing(f"timm:{name}", model, size)
    agree(own, reference, 0)
    assert own(PHOTOGRAPHS[0]).shape == (3, *[size or own_size(f"timm:{name}")] * 2)


@pytest.mark.usefixtures("vision")
@pytest.mark.parametrize(("name", "size"), [("resnet18", None), ("efficientnet_b0", 64)])
def test_torchvision(name, size):
    from torchvision.models import get_model_weights
    from torchvision.transforms import functional as F  # noqa: N812

    chosen = get_model_weights(name).DEFAULT.transforms()
    crop, resize = chosen.crop_size[0], chosen.resize_size[0]
    if size is not None:
        crop, resize = size, round(size * resize / crop)

    def step_by_step(image):
        image = F.resize(image, resize, chosen.interpolation, antialias=True)
        tensor = F.to_tensor(F.center_crop(image, crop))
        return F.normalize(tensor, chosen.mean, chosen.std)

    model = nn.Module()
    agree(own_preprocessing(f"torchvision:{name}", model, size), step_by_step, 1e-6)


@pytest.mark.usefixtures("vision")
@pytest.mark.parametrize(("name", "size"), [("resnet", None), ("mobilenet_v2", 64)])
def test_transformers(name, size, tmp_path):
    from transformers import AutoImageProcessor
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

    model = build_model(f"transformers:{name}", classes=10)
    kinds = IMAGE_PROCESSOR_MAPPING[type(model.config)]
    options = {}
    if size is not None:
        options = {"crop_size": {"height": size, "width": size}}
        options |= {"size": {"shortest_edge": round(size * 256 / 224)}}
    kinds["pil"](**options).save_pretrained(tmp_path)
    reference = AutoImageProcessor.from_pretrained(tmp_path)
    own = own_preprocessing(f"transformers:{name}", model, size)
    agree(own, lambda x: reference(x, return_tensors="pt")["pixel_values"][0], 0)
    if size is None:  # a folder brings its own
        kinds["pil"](image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path)
        model.save_pretrained(tmp_path)
        saved = AutoImageProcessor.from_pretrained(tmp_path)
        own = own_preprocessing(f"transformers:{tmp_path}", model, None)
        agree(own, lambda x: saved(x, return_tensors="pt")["pixel_values"][0], 0)


def test_other_networks_have_none_of_their_own():
    assert own_preprocessing("cnn", nn.Module(), None) is None
    assert own_preprocessing("a.b:c", nn.Module(), None) is None


def test_standardised_is_the_same_image_by_image_and_at_once():
    images = torch.randint(256, (5, 3, 12, 12), dtype=torch.uint8)
    data = ImageData("x", images, torch.zeros(5).long(), images, torch.zeros(5).long(), ("a",))
    standardised = Standardised.of(data.train_images)
    (batch,) = prepared(images, standardised, 5)
    pixels = images.double()
    expected = (pixels - pixels.mean((0, 2, 3), keepdim=True)) / pixels.transpose(0, 1).flatten(
        1
    ).std(1).view(1, 3, 1, 1)
    assert (batch - expected).abs().max() < 1e-5
    singly = [standardised(Image.fromarray(x.permute(1, 2, 0).numpy())) for x in images]
    assert torch.equal(torch.stack(singly), batch)
    small = Standardised(standardised.mean, standardised.std, 6)
    whole = small.batch(images)
    assert whole.shape == (5, 3, 6, 6)
    for one, image in zip(whole, images, strict=True):
        alone = small(Image.fromarray(image.permute(1, 2, 0).numpy()))
        assert (alone - one).abs().max() * max(small.std) <= 1.01  # Pillow rounds to whole levels


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_colour_come_to_what_the_network_reads(channels):
    standardised = Standardised((0.0,) * channels, (1.0,) * channels)
    colour = torch.randint(256, (4, 3, 9, 9), dtype=torch.uint8)
    for images in (colour, colour[:, :1]):
        batch = standardised.batch(images)
        assert batch.shape[1] == channels
        mode = "RGB" if images.shape[1] == 3 else "L"
        for one, image in zip(batch, images, strict=True):
            pixels = image.permute(1, 2, 0).numpy().squeeze()
            assert (one - standardised(Image.fromarray(pixels, mode))).abs().max() <= 0.51


def test_a_preprocessing_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "my_preprocessing.py").write_text(
        "import numpy, torch\n"
        "def good(image): return torch.tensor(numpy.array(image)).permute(2, 0, 1) / 255\n"
        "def bad(image): return numpy.array(image)\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    own = users_preprocessing("my_preprocessing:good")
    assert own(Image.new("L", (4, 3), 51)).unique().tolist() == [pytest.approx(0.2)]
    with pytest.raises(ConvsimError, match=r"returns a tensor .* returned a ndarray\. End it"):
        users_preprocessing("my_preprocessing:bad")(Image.new("L", (4, 3)))
    for name in ("my_preprocessing:number", "my_preprocessing:absent"):
        with pytest.raises(ConvsimError, match=r"no function .*package\.module:function"):
            users_preprocessing(name)
    with pytest.raises(ConvsimError, match=r"'nowhere' cannot be imported .*A preprocessing is"):
        users_preprocessing("nowhere:f")


def test_images_that_come_out_of_many_sizes_are_told():
    pictures = torch.randint(256, (2, 3, 9, 9), dtype=torch.uint8)
    sizes = iter([4, 5])
    odd = ImageFunction("odd", lambda image: torch.zeros(3, next(sizes), 4))
    with pytest.raises(ConvsimError, match=r"must have one size: .* 4×4 and 5×4"):
        list(prepared(pictures, odd, 2))


@pytest.mark.usefixtures("vision")
def test_random_crops_are_torchvisions():
    from torchvision.transforms import RandomResizedCrop

    from convsim.lab.augmentation import crop_box, resized_crop

    for seed, photograph in enumerate([*PHOTOGRAPHS, Image.new("RGB", (400, 7))] * 4):
        torch.manual_seed(seed)
        top, left, height, width = RandomResizedCrop.get_params(
            photograph, (0.08, 1.0), (3 / 4, 4 / 3)
        )
        box = crop_box(*photograph.size, torch.Generator().manual_seed(seed))
        assert box == (left, top, width, height)
    first, again, other = (resized_crop(PHOTOGRAPHS[0], (32, 24), seed=n) for n in (1, 1, 2))
    assert first.size == (24, 32)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
