"""What is said of two sets of scores."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from skmkd._export.parity import parity


def scored(scores, offset=-2.0):
    """Return something that has these scores for any images."""
    values = np.array(scores, dtype=float)
    return SimpleNamespace(score_samples=lambda _: values, offset_=offset)


def test_scores_are_compared():
    found = parity(scored([-1.0, -3.0, -4.0, -1.5]), scored([-1.0, -3.2, -3.0, -2.5]), None)
    assert found.n_images == 4
    assert found.largest_difference == pytest.approx(1 / 4)
    assert found.rank_correlation == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)
    assert found.n_labels_changed == 1


def test_equal_scores_do_not_differ():
    assert parity(scored([-1, -3, -2]), scored([-1, -3, -2]), None) == (3, 0, pytest.approx(1), 0)


def test_images_that_cannot_be_read_are_left_out():
    found = parity(scored([-1, np.nan, -2]), scored([-1, np.nan, -2]), None)
    assert found == (2, 0, pytest.approx(1), 0)
    with pytest.raises(ValueError, match="got 2, and none can"):
        parity(scored([np.nan, np.nan]), scored([np.nan, np.nan]), None)


def test_scores_that_the_file_alone_lacks_are_no_agreement():
    assert np.isnan(parity(scored([-1, -2, -3]), scored([-1, np.nan, -3]), None)[1])


@pytest.mark.parametrize("scores", [[-1], [-1, -1]])
def test_what_has_no_order_has_no_rank_correlation(scores):
    found = parity(scored(scores), scored(scores), None)
    assert np.isnan(found.rank_correlation)
    assert found.largest_difference == 0
