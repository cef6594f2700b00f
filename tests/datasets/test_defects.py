"""Made defects: what they change, what they leave, and that they can be repeated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from scipy import ndimage
from skimage.data import astronaut, brick, grass

from skmkd.datasets import make_defects
from skmkd.datasets._defects import AREA, KINDS, _noise, _other_tone
from skmkd.metrics import pixel_roc_auc_score

GREY = np.stack([texture()[64:128, 32:128] for texture in (brick, grass)])  # uint8
DTYPES = [bool, np.uint8, np.uint16, np.int16, np.int64, np.float16, np.float32, np.float64]


def in_dtype(images, dtype):
    if np.dtype(dtype).kind == "b":
        return images > 120
    if np.issubdtype(dtype, np.floating):
        return (images / 255).astype(dtype)
    return images.astype(dtype) * (257 if dtype == np.uint16 else 1)


def check(X, X_bad, masks):
    """Check the promises about each image and its mask."""
    for old, new, mask in zip(X, X_bad, masks, strict=True):
        old = np.asarray(old)
        assert (new.dtype, new.shape) == (old.dtype, old.shape)
        assert (mask.dtype, mask.shape) == (bool, old.shape[:2])
        changed = new != old
        assert_array_equal(changed.any(axis=2) if changed.ndim == 3 else changed, mask)
        assert AREA[0] <= mask.mean() <= AREA[1]
        if old.dtype.kind == "f":
            assert np.isfinite(new).all()


@pytest.mark.parametrize("kind", [*KINDS, "mixed"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_masks_tell_exactly_what_was_changed(kind, dtype):
    X = in_dtype(GREY, dtype)
    before = X.copy()
    X_bad, masks = make_defects(X, kind=kind, random_state=0)
    assert isinstance(X_bad, np.ndarray)
    assert isinstance(masks, np.ndarray)
    check(X, X_bad, masks)
    assert_array_equal(X, before)
    assert not np.shares_memory(X, X_bad)


@given(
    st.sampled_from([*KINDS, "mixed"]),
    st.tuples(st.integers(16, 70), st.integers(16, 70), st.sampled_from([1, 3, 4])),
    st.sampled_from(["texture", "noise", "black", "mid", "white", "gradient"]),
    st.sampled_from(DTYPES),
    st.integers(0, 2**31 - 1),
)
def test_any_image_gets_a_visible_defect(kind, shape, content, dtype, seed):
    assume(shape[2] < 4 or dtype not in (np.int16, np.int64))  # alpha needs a known range
    assume(shape[2] < 4 or content != "black")  # nothing is visible where alpha is 0
    images = {
        "texture": np.resize(astronaut()[: shape[0], : shape[1]], shape),
        "noise": np.random.default_rng(seed).integers(0, 256, shape),
        "black": np.zeros(shape),
        "mid": np.full(shape, 127),
        "white": np.full(shape, 255),
        "gradient": np.broadcast_to(np.linspace(0, 255, shape[1])[:, None], shape),
    }
    X = in_dtype(images[content].astype(np.uint8), dtype)[None]
    X_bad, masks = make_defects(X, kind=kind, random_state=seed)
    check(X, X_bad, masks)
    if shape[2] == 4:
        assert_array_equal(X_bad[..., 3], X[..., 3])


@pytest.mark.parametrize("shape", [(16, 16), (16, 400), (400, 16), (512, 512)])
@pytest.mark.parametrize("kind", KINDS)
def test_any_size_will_do(shape, kind):
    X = np.resize(brick(), (3, *shape))
    check(X, *make_defects(X, kind=kind, random_state=0))


def test_lists_of_different_sizes_come_back_as_lists():
    X = [astronaut()[:40, :50], astronaut()[:64, :30], astronaut()[:16, :16]]
    X_bad, masks = make_defects(X, random_state=0)
    assert isinstance(X_bad, list)
    assert isinstance(masks, list)
    check(X, X_bad, masks)
    objects = np.empty(3, dtype=object)
    objects[:] = X
    for same in (tuple(X), objects):
        for new, other in zip(make_defects(same, random_state=0)[0], X_bad, strict=True):
            assert_array_equal(new, other)
    nested, masks = make_defects([image[..., 0].tolist() for image in X], random_state=0)
    assert [image.shape for image in nested] == [(40, 50), (64, 30), (16, 16)]


def test_read_only_images_will_do():
    X = GREY.copy()
    X.setflags(write=False)
    check(X, *make_defects(X, random_state=0))


def test_pixel_ranges_beyond_1_are_kept():
    X = 1000.0 + 50 * (GREY / 255)
    X_bad, masks = make_defects(X, random_state=0)
    check(X, X_bad, masks)
    assert X.min() - 1e-9 <= X_bad.min() <= X_bad.max() <= X.max() + 1e-9


def test_the_same_seed_makes_the_same_defects():
    first, _ = make_defects(GREY, random_state=3)
    assert_array_equal(make_defects(GREY, random_state=3)[0], first)
    state = np.random.RandomState(3)
    assert_array_equal(make_defects(GREY, random_state=state)[0], first)
    assert (make_defects(GREY, random_state=state)[0] != first).any()
    assert (make_defects(GREY, random_state=4)[0] != first).any()
    assert (make_defects(GREY)[0] != make_defects(GREY)[0]).any()
    assert_array_equal(make_defects(GREY[:1], random_state=3)[0], first[:1])


def test_global_generators_are_left_alone():
    np.random.seed(0)
    torch.manual_seed(0)
    expected = np.random.random(), torch.rand(1)
    np.random.seed(0)
    torch.manual_seed(0)
    make_defects(GREY)
    make_defects(GREY, random_state=0)
    assert (np.random.random(), torch.rand(1)) == expected


def test_mixed_draws_all_kinds(monkeypatch):
    drawn = []
    for name, draw in list(KINDS.items()):
        monkeypatch.setitem(
            KINDS, name, lambda image, rng, name=name, draw=draw: (
                drawn.append(name), draw(image, rng)
            )[1]
        )  # fmt: skip
    X = np.resize(grass(), (60, 32, 32))
    make_defects(X, random_state=0)
    assert set(drawn) == set(KINDS)
    drawn.clear()
    make_defects(X, kind=("blur", "scratch"), random_state=0)
    assert set(drawn) == {"blur", "scratch"}


def test_a_blur_is_smoother_and_a_scratch_thin():
    X = np.stack([grass()[i : i + 128, :128] for i in range(0, 300, 100)]) / 255
    blurred, masks = make_defects(X, kind="blur", random_state=0)
    assert all(b[m].std() < 0.5 * x[m].std() for x, b, m in zip(X, blurred, masks, strict=True))
    _, masks = make_defects(X, kind="scratch", random_state=0)
    assert ndimage.distance_transform_edt(masks[0]).max() < 6


def test_a_rectangle_is_pasted():
    _, masks = make_defects(grass()[None, :256, :256] / 255, kind="cut_paste", random_state=0)
    rows, columns = np.nonzero(masks[0])
    spread = np.linalg.eigvalsh(np.cov(rows, columns))
    assert 12 * np.sqrt(spread.prod()) == pytest.approx(masks.sum(), rel=0.05)


def test_defects_are_found_by_what_they_change():
    X_bad, masks = make_defects(GREY / 255, kind="missing", random_state=0)
    assert pixel_roc_auc_score(masks, np.abs(X_bad - GREY / 255)) == 1


def test_tones_differ_from_the_region():
    rng = np.random.default_rng(0)
    region = np.ones((4, 4), dtype=bool)
    for level in np.linspace(0, 1, 21):
        tone = _other_tone(np.full((4, 4, 1), level), region, rng)
        assert abs(tone - level) > 0.15  # the tint apart, 0.35


def test_noise_is_smooth_and_centred():
    noise = np.stack([_noise((60, 80), 12, np.random.default_rng(seed)) for seed in range(50)])
    assert noise.shape == (50, 60, 80)
    assert np.abs(noise).max() <= 1.1
    assert abs(noise.mean()) < 0.02
    assert np.abs(np.diff(noise, axis=1)).max() < 0.4
    assert_array_equal(_noise((24, 24), 12, np.random.default_rng(0))[::12, ::12], 0)


@pytest.mark.parametrize("kind", ["dent", "", [], ["blur", "dent"], ["blur", "mixed"], 3 * [None]])
def test_bad_kinds_are_refused(kind):
    with pytest.raises(ValueError, match="kind must be 'mixed', or one or several of 'scratch', "):
        make_defects(GREY, kind=kind)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (GREY[:, :15], r"at least 16 x 16 pixels; got 15 x 96 for X\[0\]"),
        ([GREY[0], GREY[1, :, :8]], r"at least 16 x 16 pixels; got 64 x 8 for X\[1\]"),
        (GREY[0], r"X\[0\] must hold images of shape"),
        (GREY[:0], "at least one image; got none"),
        (np.full((1, 16, 16), np.nan), "contains NaN"),
        (np.zeros((1, 16, 16, 2)), "C in 1, 3, 4"),
        (np.zeros((1, 16, 16), complex), "real numbers"),
        ([GREY[0], GREY[1] / 255], "all be of one kind"),
    ],
)
def test_bad_images_are_refused(X, message):
    with pytest.raises(ValueError, match=message):
        make_defects(X)
