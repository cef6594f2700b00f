"""Weights of layers by the tails of their maps of normal images."""

from __future__ import annotations

import numpy as np
import pytest

from skmkd._maps.weighing import tail_weights


def test_a_layer_counts_less_the_higher_its_peaks_over_its_median():
    flat = np.linspace(0, 1, 1001, dtype=np.float32)  # q99.9 - q50 = 0.499
    weights = tail_weights([flat, 3 * flat, 3 * flat + 7])
    np.testing.assert_allclose(weights, [9 / 5, 3 / 5, 3 / 5], rtol=1e-6)


def test_peaks_are_what_one_pixel_in_a_thousand_exceeds():
    rare, frequent = np.zeros((2, 10_000), np.float32)
    rare[:5], frequent[:50] = 1, 1
    rare += np.linspace(0, 0.1, 10_000, dtype=np.float32)
    frequent += np.linspace(0, 0.1, 10_000, dtype=np.float32)
    weights = tail_weights([rare, frequent])
    assert weights[0] > 10 * weights[1]


@pytest.mark.parametrize("scale", [1e-6, 1, 1e6])
def test_weights_are_1_in_the_mean_whatever_the_scale(scale):
    rng = np.random.default_rng(0)
    maps = [scale * rng.exponential(s, 5000) for s in (0.1, 1, 5)]
    weights = tail_weights(maps)
    assert weights.mean() == pytest.approx(1)
    assert weights[0] > weights[1] > weights[2]


def test_a_layer_that_never_varies_does_not_silence_the_others():
    weights = tail_weights([np.zeros(100), np.linspace(0, 1, 100)])
    assert weights[1] / weights[0] == pytest.approx(0.01)


def test_layers_count_alike_where_none_varies():
    np.testing.assert_array_equal(tail_weights([np.zeros(9), np.ones(4)]), [1, 1])
