"""Shrinking whole networks."""

import copy
import math
import sys
import warnings

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from networks import NETWORKS, Dense, Excited, Residual, network, plant_twins_
from torch import nn

import convsim
from convsim.shrinking.calibration import calibration_batches
from convsim.shrinking.groups import channel_groups
from convsim.shrinking.verification import verified
from seeds import reseed

pytestmark = pytest.mark.numeric

ALL = 10**9
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-9}


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_planted_redundancy_goes_without_a_trace(name, dtype):
    model, images = network(name, dtype)
    groups, _ = channel_groups(model, images[:2])
    groups, refuted = verified(model, groups, images[:2])
    assert not refuted
    plant_twins_(model, groups)
    shrunk = convsim.shrink(model, images.split(100), channels=0.5, uniformly=True, positions=ALL)
    for group in groups:
        for slot in group.producers:
            module = shrunk.model.get_submodule(slot.key.name)
            left = module.out_features if isinstance(module, nn.Linear) else module.out_channels
            assert left == len(slot.channels) // 2
    fresh = torch.randn_like(images[:20])
    with torch.no_grad():
        torch.testing.assert_close(
            shrunk.model(fresh), model(fresh), rtol=0, atol=TOLERANCES[dtype]
        )


def test_sums_and_dead_maps_go_before_a_consumer_without_an_activation_between():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)).eval()
    with torch.no_grad():
        model[0].weight[3] = model[0].weight[:3].sum(0)
        model[0].bias[3] = model[0].bias[:3].sum()
        model[0].weight[4:6], model[0].bias[4:6] = 0, 0
        model[0].weight[6] = 2 * model[0].weight[0] - model[0].weight[7]
        model[0].bias[6] = 2 * model[0].bias[0] - model[0].bias[7]
    images = torch.randn(64, 3, 8, 8)
    shrunk = convsim.shrink(model, [images], channels=0.5, positions=ALL)
    assert shrunk.model[0].out_channels == 4
    torch.testing.assert_close(shrunk.model(images), model(images), rtol=0, atol=1e-5)


def test_a_constant_map_goes_into_the_bias_where_nothing_is_padded_with_zeros():
    for padding, mode, exact in ((0, "zeros", True), (1, "reflect", True), (1, "zeros", False)):
        model = nn.Sequential(
            nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=padding, padding_mode=mode)
        ).eval()
        with torch.no_grad():
            model[0].weight[2], model[0].bias[2] = 0, 3.0
        images = torch.randn(64, 3, 8, 8)
        shrunk = convsim.shrink(model, [images], channels=0.75, positions=ALL, in_sequence=False)
        worst = float((shrunk.model(images) - model(images)).detach().abs().max())
        assert (worst < 1e-5) is exact
        assert (2 not in next(iter(shrunk.plan.axes.values()))) is exact


def random_network(draw):
    """Draw a chain of units, residual blocks, concatenations, groups and gates, and a head."""
    channels, layers = 3, []
    for _ in range(draw(st.integers(1, 3))):
        kinds = ["unit", "plain", "residual", "depthwise", "grouped", "excited"]
        kinds += ["dense"] * bool(layers)
        kind = draw(st.sampled_from(kinds))
        width = 2 * draw(st.integers(2, 4))
        if kind == "unit":
            kernel = draw(st.sampled_from([1, 3]))
            layers += [
                nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=draw(st.booleans())),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=draw(st.booleans())),
            ]
        elif kind == "plain":
            layers += [nn.Conv2d(channels, width, 3, draw(st.integers(1, 2)), 1), nn.LeakyReLU()]
        elif kind == "residual":
            layers.append(Residual(channels, width, pre=draw(st.booleans())))
        elif kind == "dense":
            layers.append(Dense(channels, width // 2))
            width = channels + 2 * (width // 2)
        elif kind == "excited":
            layers += [nn.Conv2d(channels, width, 1), nn.ReLU(), Excited(width)]
        else:
            width *= 1 if kind == "depthwise" else 2
            groups = width if kind == "depthwise" else 2
            layers += [
                nn.Conv2d(channels, width, 1),
                nn.Conv2d(width, width, 3, padding=1, groups=groups),
                nn.ReLU(),
            ]
        channels = width
    if draw(st.booleans()):
        head = [nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(4 * channels, 4)]
    else:
        head = [nn.Conv2d(channels, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *head)


@settings(max_examples=16, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(st.data())
def test_in_random_networks_planted_twins_go_and_budgets_are_kept(data):
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    model = random_network(data.draw).double()
    images = torch.randn(96, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        model.train()(images)
    model.eval()
    groups, _ = verified(model, channel_groups(model, images[:2])[0], images[:2])
    if not groups:  # Torch-Pruning cannot follow some that are concatenated and flattened
        with pytest.raises(convsim.ConvsimError, match="No channel of the model"):
            convsim.shrink(model, [images], channels=0.5)
        return
    plant_twins_(model, groups)
    shrunk = convsim.shrink(model, [images], channels=0.5, uniformly=True, positions=ALL)
    for group in groups:
        kept = shrunk.plan.axes[group.producers[0].key]
        assert len(kept) == math.ceil(len(group.units) / 2) * len(group.units[0])
    with torch.no_grad():
        scale = float(model(images).abs().max())
        torch.testing.assert_close(
            shrunk.model(images), model(images), rtol=0, atol=1e-9 * max(scale, 1)
        )
    share = data.draw(st.sampled_from([0.9, 0.7]))
    try:
        smaller = convsim.shrink(model, [images], parameters=share)
    except convsim.ConvsimError as error:
        if "cannot be reached" not in str(error) or not shrunk.left:
            raise
        return
    count = sum(p.numel() for p in smaller.model.parameters())
    assert count <= share * sum(p.numel() for p in model.parameters())
    assert smaller.report.parameters.after == count
    rebuilt = smaller.plan.apply(model)
    rebuilt.load_state_dict(smaller.model.state_dict())
    assert torch.equal(rebuilt(images), smaller.model(images))
    assert smaller.model(images).isfinite().all()


def test_the_original_is_untouched_and_the_smaller_one_takes_its_modes():
    model, images = network("residual")
    model.train()
    model[0].eval()
    model[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    shrunk = convsim.shrink(model, [images], parameters=0.5)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert type(shrunk.model) is type(model)
    assert [m.training for m in shrunk.model.modules()] == [m.training for m in model.modules()]
    assert not shrunk.model[0].weight.requires_grad
    assert shrunk.model[3].body[0].weight.requires_grad
    shrunk.model(images).sum().backward()


@pytest.mark.parametrize("target", ["channels", "parameters", "macs"])
@pytest.mark.parametrize("uniformly", [True, False])
def test_every_target_is_met_and_nearly_used_up(target, uniformly):
    model, images = network("plain")
    shrunk = convsim.shrink(model, [images], **{target: 0.6}, uniformly=uniformly)
    if target == "channels":
        share = sum(one.channels.after for one in shrunk.report.layers[:2]) / 20
    else:
        share = getattr(shrunk.report, target).share
    assert 0.4 < share <= (0.65 if uniformly and target == "channels" else 0.6)


@pytest.mark.parametrize("share", [0.8, 0.6, 0.5])
def test_multiples_are_kept(share):
    model, images = network("grouped")
    shrunk = convsim.shrink(model, [images], parameters=share, multiple_of=4)
    assert all(one.channels.after % 4 == 0 for one in shrunk.report.layers[:-1])


def test_fitting_in_sequence_loses_less():
    model, images = network("residual")
    errors = [
        convsim.shrink(
            model, [images], channels=0.5, uniformly=True, in_sequence=how
        ).report.output_error
        for how in (True, False)
    ]
    assert errors[0] < errors[1]


def test_statistics_of_norms_are_the_originals_and_estimating_them_anew_loses_more():
    model, images = network("depthwise")
    images, fresh = images[:200], torch.randn(200, 3, 8, 8)
    shrunk = convsim.shrink(model, [images], channels=0.6, uniformly=True, positions=ALL)
    anew = copy.deepcopy(shrunk.model)
    for norm in anew.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
    with torch.no_grad():
        anew(images)
        anew.eval()
        want = model(fresh)
        errors = [float((net(fresh) - want).square().mean()) for net in (shrunk.model, anew)]
    assert errors[0] < errors[1] / 1.2
    smaller, bare = (dict(net.named_buffers()) for net in (shrunk.model, shrunk.plan.apply(model)))
    variances = [key for key in bare if key.endswith("running_var")]
    assert variances
    assert all(torch.equal(smaller[key], bare[key]) for key in variances)


def test_compensation_alone_for_channels_that_somebody_else_chose():
    model, images = network("plain")
    shrunk = convsim.shrink(model, [images], keep={"0": range(4)})
    assert shrunk.model[0].out_channels == 4
    assert shrunk.model[3].out_channels == 12
    torch.testing.assert_close(shrunk.model[0].weight, model[0].weight[:4], rtol=0.2, atol=0.1)
    with torch.no_grad():
        want, got = model(images), shrunk.model(images)
        bare = shrunk.plan.apply(model)(images)
    assert (got - want).square().mean() < (bare - want).square().mean() / 2


def test_the_split_into_batches_does_not_matter():
    model, images = network("plain", torch.float64)
    one, many = (
        convsim.shrink(
            model, images.split(n), channels=0.5, positions=ALL, in_sequence=False
        ).model(images)
        for n in (256, 50)
    )
    torch.testing.assert_close(one, many, rtol=0, atol=1e-9)


def test_a_second_run_gives_the_same_and_draws_nothing_from_the_global_generator():
    model, images = network("residual")
    state = torch.get_rng_state()
    one, two = (convsim.shrink(model, [images], macs=0.5, positions=8) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert one.plan == two.plan
    assert torch.equal(one.model(images), two.model(images))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_networks_of_half_precision_keep_it(dtype):
    model, images = network("residual")
    groups, _ = channel_groups(model, images[:2])
    plant_twins_(model, groups)
    half = model.to(dtype)
    shrunk = convsim.shrink(half, [images.to(dtype)], channels=0.5, uniformly=True)
    assert all(p.dtype == dtype for p in shrunk.model.parameters())
    assert shrunk.report.output_error < 0.01


def test_a_mapping_and_a_sequence_with_labels_are_read_as_measure_reads_them():
    model, images = network("plain")
    batches = ([images], [(images, torch.zeros(256))], [{"pixel_values": images, "labels": 1}])
    plans = [convsim.shrink(model, batch, channels=0.5).plan for batch in batches]
    assert plans[0] == plans[1] == plans[2]


def test_images_of_several_sizes_are_taken():
    model, images = network("plain")
    shrunk = convsim.shrink(model, [images, images[:, :, :6, :6]], parameters=0.7)
    assert shrunk.report.images == 512


def nan_images():
    images = torch.randn(8, 3, 8, 8)
    images[3, 0, 0, 0] = float("nan")
    return [images]


def infinite_weights():
    model, _ = network("plain")
    with torch.no_grad():
        model[0].weight[0] = float("inf")
    return model


class Overflow(nn.Module):
    def forward(self, x):
        return (x * 1e30).exp()


class Hidden(nn.Module):
    """Maps that overflow, which the outputs do not show."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)

    def forward(self, x):
        return self.two((self.one(x) * 1e30).exp()).nan_to_num(0, 1, -1)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x, weights):
        return self.conv(x * weights[:, :, None, None])


GOOD = {"channels": 0.5}
BAD_INPUT = {
    "no batch": ("plain", list, GOOD, "needs calibration images"),
    "an empty batch": ("plain", lambda: [torch.empty(0, 3, 8, 8)], GOOD, "got none"),
    "a tensor": ("plain", lambda: torch.randn(8, 3, 8, 8), GOOD, r"such as \[images\]"),
    "a batch of text": ("plain", lambda: ["x"], GOOD, "must be a tensor"),
    "a mapping without images": ("plain", lambda: [{"text": 1}], GOOD, "with 'pixel_values'"),
    "a network of two inputs": (
        TwoInputs, lambda: [(torch.randn(8, 3, 8, 8), torch.randn(8, 3))], GOOD, "takes 2 inputs",
    ),
    "NaN images": ("plain", nan_images, GOOD, "images hold NaN"),
    "infinite weights": (infinite_weights, None, GOOD, "'0.weight' holds NaN or infinite"),
    "infinite maps": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), Overflow(), nn.Conv2d(4, 2, 3)),
        None, GOOD, "outputs hold NaN or infinite",
    ),
    "infinite maps that the outputs hide": (
        Hidden, None, GOOD, "'two' read a map with NaN or infinite",
    ),
    "no target": ("plain", None, {}, "one target.*got none"),
    "two targets": ("plain", None, {"channels": 0.5, "macs": 0.5}, "channels and macs"),
    "a share of 0": ("plain", None, {"macs": 0}, "above 0 and at most 1; got 0"),
    "a share above 1": ("plain", None, {"parameters": 50}, "at most 1; got 50"),
    "a share that is NaN": ("plain", None, {"parameters": float("nan")}, "at most 1; got nan"),
    "a share that is text": ("plain", None, {"channels": "half"}, "got 'half'"),
    "nothing that can go": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3)), None, GOOD, "No channel .* can go.*0: no layer",
    ),
    "no such layer": ("plain", None, {**GOOD, "layers": "nowhere"}, "No module is selected"),
    "too few images": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 2)),
        lambda: [torch.randn(32, 3, 8, 8)], GOOD, "cannot be told apart by 32 samples",
    ),
    "a target out of reach": (
        "plain", None, {"parameters": 0.05, "layers": "0"}, "cannot be reached",
    ),
    "a model on meta": (
        lambda: network("plain")[0].to("meta"), None, GOOD, "on the meta device",
    ),
    "no model": (lambda: "resnet18", None, GOOD, "must be a torch.nn.Module"),
    "no parameters": (nn.ReLU, None, GOOD, "no parameters"),
    "a lazy model": (lambda: nn.LazyConv2d(4, 3), None, GOOD, "lazy"),
    "an unknown layer to keep": ("plain", None, {"keep": {"9": [0]}}, "'9' cannot be cut"),
    "nothing to keep": ("plain", None, {"keep": {"0": []}}, "at least one must be kept"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_refused_with_the_rule_and_the_remedy(case):
    model, batches, options, message = BAD_INPUT[case]
    built = network(model)[0] if isinstance(model, str) else model()
    images = [torch.randn(64, 3, 8, 8)] if batches is None else batches()
    with pytest.raises(convsim.ConvsimError, match=message):
        convsim.shrink(built, images, **options)


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)


def test_a_quantized_model_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        linear = torch.ao.nn.quantized.dynamic.Linear(8, 2)  # as quantize_dynamic puts it in
    for model in (nn.Sequential(nn.Linear(3, 8), linear), Packed()):
        with pytest.raises(convsim.ConvsimError, match=r"quantized.*Shrink the model first"):
            convsim.shrink(model, [torch.randn(2, 3)], channels=0.5)


def test_a_missing_torch_pruning_names_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    model, images = network("plain")
    with pytest.raises(convsim.MissingExtraError, match=r"pip install '\.\[shrink\]'"):
        convsim.shrink(model, [images], channels=0.5)


def test_images_sorted_by_class_serve_as_well_as_images_in_any_order():
    """Each layer is fitted to some batches: of sorted images these would be of one class."""
    reseed()
    model, images = network("plain")
    images = torch.cat([images, images.flip(0) * 3 + 1])  # two kinds of images, one after the other
    mixed = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
    in_turn = images.view(2, -1, *images.shape[1:]).transpose(0, 1).flatten(0, 1)
    errors = []
    for order in (mixed, images, in_turn):
        small = convsim.shrink(model, order.split(len(images) // 8), channels=0.5).model
        with torch.no_grad():
            errors.append(float((small.eval()(images) - model.eval()(images)).square().mean()))
    assert max(errors) < 2 * errors[0]


def test_batches_are_dealt_out_and_keep_their_memory_format():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    images = (torch.arange(40.0) % 10).view(40, 1, 1, 1) * torch.ones(1, 3, 5, 5)
    images = images.contiguous(memory_format=torch.channels_last)
    dealt = calibration_batches(model, images.split(12))
    assert all(batch.is_contiguous(memory_format=torch.channels_last) for batch in dealt)
    assert sorted(torch.cat(dealt)[:, 0, 0, 0].tolist()) == sorted(list(range(10)) * 4)
    assert all(len(batch) == 10 for batch in dealt)


def test_a_budget_that_is_spent_to_the_last_is_not_passed_by_rounding():
    """0.7 · 650 is a little less than 455 in floating point, and 7 of 10 maps cost 455."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 10, 3, bias=False), nn.ReLU(), nn.Conv2d(10, 38, 1, bias=False)
    model, images = nn.Sequential(*layers).eval(), torch.randn(40, 3, 6, 6)
    small = convsim.shrink(model, [images], parameters=0.7).model
    counts = [sum(p.numel() for p in net.parameters()) for net in (small, model)]
    assert counts == [390, 650]
    assert counts[0] <= 0.7 * counts[1]


def test_images_of_several_sizes_are_dealt_out_size_by_size():
    model, _ = network("residual")
    sizes = [
        torch.arange(40.0)[:, None, None, None].div(4).floor().expand(-1, 3, size, size)
        for size in (8, 12)
    ]
    batches = [
        batch for images in zip(*(x.split(10) for x in sizes), strict=True) for batch in images
    ]
    dealt = calibration_batches(model, batches)
    assert [len(batch) for batch in dealt] == [10] * 8
    for size in (8, 12):
        alike = [batch for batch in dealt if batch.shape[-1] == size]
        assert sorted(torch.cat(alike)[:, 0, 0, 0].tolist()) == sorted(list(range(10)) * 4)
        assert all(len(batch[:, 0, 0, 0].unique()) > 3 for batch in alike)


def test_a_compiled_model_is_shrunk_as_the_model_it_was_made_of():
    model, images = network("plain")
    shrunk = convsim.shrink(torch.compile(model, backend="eager"), [images], channels=0.5)
    assert type(shrunk.model) is type(model)
    expected = convsim.shrink(model, [images], channels=0.5).model
    torch.testing.assert_close(shrunk.model(images), expected(images))


def test_channels_to_keep_may_be_numbers_of_any_kind():
    model, images = network("plain")
    kept = torch.tensor([0, 2, 3])
    for own in (kept, kept.numpy()):
        shrunk = convsim.shrink(model, [images], keep={"0": own})
        assert shrunk.report["0"].channels.after == 3


def test_batches_of_several_kinds_are_refused():
    model, images = network("plain")
    for other in (images.double(), images[0], torch.zeros(4).long()):
        with pytest.raises(convsim.ConvsimError, match=r"batches differ: the first .* labels\)\]"):
            convsim.shrink(model, [images, other], channels=0.5)


@pytest.mark.parametrize("kept", [[0, 99], [-1], [1.0], [0, "a"]])
def test_channels_that_are_not_there_cannot_be_kept(kept):
    model, images = network("plain")
    with pytest.raises(convsim.ConvsimError, match=r"'0' are numbered from 0 to 7; got"):
        convsim.shrink(model, [images], keep={"0": kept})
