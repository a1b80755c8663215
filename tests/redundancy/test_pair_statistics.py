"""Maps that have no direction: of one pixel, zero, or constant."""

import math

import pytest
import torch
from torch import nn

import convsim
from closeness import assert_close
from seeds import new_generator

pytestmark = pytest.mark.core


def on(*batches, **options):
    """Measure given maps (N, M, …)."""
    return convsim.measure(nn.Identity(), batches, modules="", **options).layers[0]


def plainly(maps):
    """The mean |cosine| of the pairs of each image, in plain float64."""
    unit = maps.double().flatten(2)
    unit = unit / unit.norm(dim=2, keepdim=True)
    pairs = torch.triu_indices(maps.shape[1], maps.shape[1], 1)
    return (unit @ unit.mT).abs()[:, pairs[0], pairs[1]].mean().item()


def drawn(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=new_generator())


LARGE, MORE, SINGLE = drawn(3, 5, 4, 4), drawn(2, 5, 7, 3), drawn(4, 5, 1, 1)


@pytest.mark.parametrize(
    "batches", [(LARGE, SINGLE, MORE), (SINGLE, SINGLE, LARGE, MORE), (LARGE, MORE, SINGLE)]
)
def test_maps_of_one_pixel_do_not_count_beside_larger_ones(batches):
    layer, expected = on(*batches), on(LARGE, MORE)
    right = (3 * plainly(LARGE) + 2 * plainly(MORE)) / 5
    assert layer.similarity == pytest.approx(right, rel=1e-12)
    assert layer.similarity == pytest.approx(expected.similarity, rel=1e-12)
    assert layer.correlation == pytest.approx(expected.correlation, rel=1e-12)
    assert layer.effective_rank == pytest.approx(expected.effective_rank, rel=1e-9)
    assert layer.pixels == 21


def test_a_head_shared_over_a_pyramid_down_to_one_pixel():
    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Conv2d(4, 8, 3, padding=1)

        def forward(self, x):
            return [self.head(nn.functional.adaptive_avg_pool2d(x, k)) for k in (8, 4, 1)]

    model, images = Pyramid(), torch.randn(5, 4, 16, 16)
    with torch.no_grad():
        right = sum(map(plainly, model(images)[:2])) / 2
    assert_close(convsim.measure(model, [images]).similarity, right, terms=36 + 64, size=1)


def test_a_map_seen_only_where_it_has_one_pixel_is_not_dead():
    maps = LARGE.clone()
    maps[:, 0] = 0
    assert on(maps).dead == 1
    assert on(maps, SINGLE).dead == 0


def test_a_dead_map_is_like_nothing():
    maps = drawn(6, 5, 4, 4)
    maps[:, 3] = 0
    layer, without = on(maps), on(maps[:, [0, 1, 2, 4]])
    assert layer.dead == 1
    assert layer.similarity == pytest.approx(without.similarity, rel=1e-12)
    assert layer.correlation == pytest.approx(without.correlation, rel=1e-12)
    assert layer.effective_rank == pytest.approx(without.effective_rank, rel=1e-9)
    assert layer.matrix[3].isnan().all()
    assert layer.matrix[:3, :3].isfinite().all()
    assert sum(layer.histogram) == len(layer.worst) == 6
    assert all(3 not in (pair.first, pair.second) for pair in layer.worst)
    assert len(layer.duplicates(0)) == 6


def test_a_map_that_is_zero_on_some_images_counts_as_dissimilar_there():
    maps = LARGE.clone()
    maps[0, 0] = 0
    layer = on(maps)
    assert layer.dead == 0
    assert_close(layer.matrix[0, 1], on(LARGE[1:]).matrix[0, 1] * 2 / 3, terms=2)


def test_a_map_that_is_constant_on_every_image_has_no_correlation():
    maps = drawn(6, 5, 4, 4)
    maps[:, 3] = 2.0
    layer, without = on(maps), on(maps[:, [0, 1, 2, 4]])
    assert layer.correlation == pytest.approx(without.correlation, rel=1e-12)
    assert layer.matrix.isfinite().all()
    assert math.isnan(on(torch.ones(2, 3, 4, 4)).correlation)
    assert_close(on(torch.ones(2, 3, 4, 4)).similarity, 1.0, terms=16)


@pytest.mark.parametrize("alive", [0, 1])
def test_a_layer_without_two_live_maps_has_no_similarity(alive):
    maps = torch.zeros(2, 4, 3, 3)
    maps[:, :alive] = torch.randn(2, alive, 3, 3)
    layer = on(maps)
    assert layer.dead == 4 - alive
    assert math.isnan(layer.similarity)
    assert math.isnan(layer.correlation)
    assert layer.effective_rank == pytest.approx(alive)
    assert (layer.worst, layer.pictures, layer.duplicates(0)) == ((), None, [])
