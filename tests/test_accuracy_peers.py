"""anomalib's methods in the accuracy protocols; most need the extra `peers`."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.metrics import roc_auc_score

from benchmarks.accuracy import baselines, peers

pytestmark = pytest.mark.benchmarks

PEERS = ("AnomalibPatchCore", "AnomalibPaDiM")
SIDE = 64


def needs_anomalib():
    with warnings.catch_warnings(action="ignore"):
        return pytest.importorskip("anomalib")


def spotted(n, seed):
    """Synthetic smooth images (n, SIDE, SIDE), and the same with a bright spot each."""
    rng = np.random.default_rng(seed)
    plain = np.linspace(60, 120, SIDE)[None, :, None] + rng.normal(0, 3, (n, SIDE, SIDE))
    bad = plain.copy()
    bad[:, 24:40, 8:24] += 110
    return plain.clip(0, 255).astype(np.uint8), bad.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_that_is_not_installed_names_its_extra(name, monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=rf'{name} needs anomalib: pip install "skmkd\[peers\]"'):
        getattr(peers, name)().fit(spotted(4, 0)[0])


@pytest.mark.parametrize("name", PEERS)
def test_peers_find_what_is_plain_to_see_and_leave_no_trace(name):
    needs_anomalib()
    learn, (good, bad) = spotted(24, 0)[0], spotted(6, 1)
    test = [*good, *bad[:, :60]]
    model = getattr(peers, name)(image_size=SIDE, random_state=3)
    before = np.random.get_state()[1], torch.get_rng_state(), list(warnings.filters)
    scores = model.fit(learn).score_samples(test)
    after = np.random.get_state()[1], torch.get_rng_state(), list(warnings.filters)
    assert_array_equal(after[0], before[0])
    assert_array_equal(after[1], before[1])
    assert after[2] == before[2]
    assert roc_auc_score(np.repeat([1, -1], 6), scores) > 0.95
    maps = model.localize(test)
    assert [single.shape for single in maps] == [(64, 64)] * 6 + [(60, 64)] * 6
    inside = np.zeros((60, 64), bool)
    inside[24:40, 8:24] = True
    assert all(single[inside].mean() > 1.1 * single[~inside].mean() for single in maps[6:])
    assert_array_equal(clone(model).fit(learn).score_samples(test), scores)


def test_distances_to_all_patches_are_those_of_our_baseline():
    needs_anomalib()
    learn, (good, bad) = spotted(12, 0)[0], spotted(3, 1)
    test = np.concatenate([good, bad])
    ours = baselines.PatchNeighbours(
        image_size=SIDE, precision="float32", smoothing_sigma=0.0, n_patches=10**6
    ).fit(learn)
    theirs = peers.AnomalibPatchCore(
        image_size=SIDE, coreset_sampling_ratio=1.0, num_neighbors=1
    ).fit(learn)
    theirs._network.anomaly_map_generator.blur = torch.nn.Identity()
    expected = [-ours._distances(next(ours._patches([image]))).max() for image in test]
    assert_allclose(theirs.score_samples(test), expected, rtol=1e-3)
    # one enlarges maps bilinearly, the other to the nearest position
    ours.score_samples(test)
    assert np.corrcoef(np.ravel(ours.localize(test)), np.ravel(theirs.localize(test)))[0, 1] > 0.9
