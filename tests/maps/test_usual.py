from __future__ import annotations

from functools import reduce

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from skmkd._maps.usual import STEADY, Sums


@pytest.fixture
def maps():
    """Twelve synthetic maps (12, 5, 6), of different spread at each position."""
    rng = np.random.default_rng(0)
    return torch.from_numpy((3 + rng.random((5, 6)) * rng.random((12, 5, 6))).astype(np.float32))


def naive(maps, single):
    """Compute by how much a map exceeds others, position by position."""
    mean, deviation = maps.double().mean(0), maps.double().std(0, unbiased=False)
    scale = deviation + STEADY * deviation.mean()
    return ((single - mean) / scale).clamp_min(0)


def test_what_is_usual_is_mean_and_deviation_at_each_position(maps):
    usual = Sums.each(maps, None).over_all().usual(1)
    assert usual.known.all()
    assert_allclose(usual.mean, maps.numpy().mean(0), rtol=1e-6)
    deviation = maps.numpy().std(0)
    assert_allclose(usual.scale, deviation + STEADY * deviation.mean(), rtol=1e-4)
    assert_allclose(usual.excess(maps, None), naive(maps, maps), rtol=1e-3, atol=1e-4)


def test_sums_of_parts_are_those_of_the_whole(maps):
    parts = [Sums.each(part, None).over_all() for part in maps.split(5)]
    for part, whole in zip(reduce(Sums.plus, parts), Sums.each(maps, None).over_all(), strict=True):
        assert_allclose(part, whole, rtol=1e-12)


def test_maps_left_out_are_compared_with_the_others_as_if_recomputed(maps):
    everything = Sums.each(maps, None).over_all()
    found = everything.without(Sums.each(maps, None)).usual(1).excess(maps, None)
    for i in range(len(maps)):
        others = torch.cat([maps[:i], maps[i + 1 :]])
        assert_allclose(found[i], naive(others, maps[i]), rtol=1e-3, atol=1e-4)


def test_only_what_is_inside_counts(maps):
    inside = torch.ones(maps.shape, dtype=torch.bool)
    inside[:, 0, 0] = False  # shown by none
    inside[:4, 1, 1] = False
    spoiled = maps.masked_fill(~inside, 1e6)
    usual = Sums.each(spoiled, inside).over_all().usual(6)
    assert (~usual.known).nonzero().tolist() == [[0, 0]]
    assert float(usual.mean[1, 1]) == pytest.approx(float(maps[4:, 1, 1].mean()))
    excess = usual.excess(spoiled, inside)
    assert (excess[~inside] == 0).all()
    assert excess.isfinite().all()
    assert (usual.excess(spoiled, None)[:, 0, 0] == 0).all()  # unknown
    assert Sums.each(spoiled, inside).over_all().usual(9).known.sum() == 28


def test_maps_that_do_not_vary_are_finite():
    usual = Sums.each(torch.full((3, 2, 2), 0.3), None).over_all().usual(1)
    assert (usual.excess(torch.full((1, 2, 2), 0.3), None) < 1).all()
    assert usual.excess(torch.full((1, 2, 2), 5.0), None).isfinite().all()
    nothing = Sums.each(torch.ones(3, 2, 2), torch.zeros(3, 2, 2, dtype=torch.bool)).over_all()
    assert (nothing.usual(1).excess(torch.ones(1, 2, 2), None) == 0).all()
