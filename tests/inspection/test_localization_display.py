"""LocalizationDisplay: what its artists hold."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import smooth_and_noisy, tiny_detector
from matplotlib import pyplot
from matplotlib.contour import QuadContourSet
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline

from skmkd.inspection import LocalizationDisplay

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (3, 12, 10, 3), dtype=np.uint8)
GREY = IMAGES[..., 0]
MASKS = np.zeros((3, 12, 10), bool)
MASKS[1, 2:6, 3:7] = True
MAPS = RNG.random((3, 12, 10)) + 2 * MASKS
MAPS[0] /= 4  # a normal image, far below the threshold


def outlines(ax):
    return [c for c in ax.collections if isinstance(c, QuadContourSet)]


def test_rows_hold_images_true_defects_and_maps():
    display = LocalizationDisplay.from_maps(IMAGES, MAPS, MASKS, threshold=0.5)
    assert display.axes_.shape == (3, 3)
    for i in range(3):
        for ax in display.axes_[:, i]:
            assert_allclose(ax.images[0].get_array(), IMAGES[i] / 255)
        assert len(outlines(display.axes_[0, i])) == 0
        assert len(outlines(display.axes_[1, i])) == (i == 1)
        assert len(outlines(display.axes_[2, i])) == (i > 0)
    assert [ax.get_ylabel() for ax in display.axes_[:, 0]] == [
        "image", "true defect", "map over image",
    ]  # fmt: skip


def test_outline_runs_around_the_true_defect():
    display = LocalizationDisplay.from_maps(IMAGES, MAPS, MASKS, threshold=0.5)
    (outline,) = outlines(display.axes_[1, 1])
    assert_allclose(outline.get_paths()[0].get_extents().extents, [2.5, 1.5, 6.5, 5.5])


def test_outline_follows_the_border_where_the_defect_reaches_it():
    masks = np.zeros_like(MASKS)
    masks[0] = True
    masks[2, 8:, :3] = True
    display = LocalizationDisplay.from_maps(IMAGES, MAPS, masks, threshold=0.5)
    for i, box in ((0, [-0.25, -0.25, 9.25, 11.25]), (2, [-0.25, 7.5, 2.5, 11.25])):
        (outline,) = outlines(display.axes_[1, i])
        assert_allclose(outline.get_paths()[0].get_extents().extents, box)
        assert display.axes_[1, i].get_xlim() == (-0.5, 9.5)
        assert display.axes_[1, i].get_ylim() == (11.5, -0.5)


def test_one_scale_from_the_threshold_to_the_highest_value():
    display = LocalizationDisplay.from_maps(IMAGES, MAPS, MASKS, threshold=0.5)
    for overlay, single in zip(display.overlays_, MAPS, strict=True):
        assert overlay.get_clim() == (0.5, MAPS.max())
        assert_array_equal(overlay.get_array().mask, single <= 0.5)
        assert_allclose(overlay.get_array().compressed(), single[single > 0.5])
        assert overlay.norm is display.colorbar_.norm
    assert display.colorbar_.vmin == 0.5
    assert display.colorbar_.vmax == MAPS.max()


def test_colours_end_well_above_the_threshold():
    maps = np.minimum(MAPS, 0.51)
    display = LocalizationDisplay.from_maps(IMAGES, maps, threshold=0.5)
    assert display.overlays_[0].get_clim() == (0.5, 0.75)
    display = LocalizationDisplay.from_maps(IMAGES, maps, threshold=0.5, vmax=9)
    assert display.overlays_[0].get_clim() == (0.5, 9)


def test_normal_image_is_not_coloured():
    display = LocalizationDisplay.from_maps(IMAGES, MAPS, threshold=0.5)
    display.figure_.canvas.draw()
    pixels = np.asarray(display.figure_.canvas.buffer_rgba())
    boxes = [ax.get_window_extent().padded(-2).extents.astype(int) for ax in display.axes_[:, 0]]
    image, overlaid = (pixels[-top:-bottom, left:right] for left, bottom, right, top in boxes)
    assert np.ptp(image) > 100
    assert_array_equal(image, overlaid)


def test_without_masks_their_row_is_omitted():
    display = LocalizationDisplay.from_maps(IMAGES, MAPS, threshold=0.5)
    assert display.axes_.shape == (2, 3)
    assert display.axes_[1, 0].get_ylabel() == "map over image"


def test_without_threshold_maps_are_coloured_as_a_whole():
    display = LocalizationDisplay.from_maps(IMAGES, MAPS)
    for i, overlay in enumerate(display.overlays_):
        assert overlay.get_array().count() == MAPS[i].size
        assert_allclose(overlay.get_clim(), (MAPS.min(), MAPS.max()))
        assert not outlines(display.axes_[1, i])


@pytest.mark.parametrize("threshold", [4.0, 0.0, -1.0])
def test_threshold_that_nothing_exceeds_colours_nothing(threshold):
    maps = np.full(MAPS.shape, threshold)
    display = LocalizationDisplay.from_maps(IMAGES, maps, threshold=threshold)
    low, high = display.overlays_[0].get_clim()
    assert low == threshold < high
    assert all(overlay.get_array().count() == 0 for overlay in display.overlays_)


@pytest.mark.parametrize(
    ("images", "shown"),
    [
        (GREY, GREY / 255),
        (IMAGES[..., :1], GREY / 255),
        (GREY > 99, (GREY > 99).astype(float)),
        (GREY.astype(np.uint16) * 257, GREY / 255),
        (GREY.astype(np.uint16) * 4, GREY / 1023 * 4),
        (GREY / 255, GREY / 255),
        (GREY / 100 - 1, (GREY - GREY.min()) / np.ptp(GREY)),
    ],
    ids=["bytes", "one channel", "bool", "16 bits", "10 bits", "0 to 1", "other floats"],
)  # fmt: skip
def test_grey_goes_from_black_to_white(images, shown):
    display = LocalizationDisplay.from_maps(images, MAPS, threshold=0.5)
    for ax, expected in zip(display.axes_[0], shown, strict=True):
        assert_allclose(ax.images[0].get_array(), expected, atol=1e-12)
        assert ax.images[0].get_clim() == (0, 1)
        assert ax.images[0].get_cmap().name == "gray"


def test_sizes_may_differ():
    images = [IMAGES[0], IMAGES[1, :1], IMAGES[2, :, :5]]
    maps = [MAPS[0], MAPS[1, :1], MAPS[2, :, :5]]
    masks = [MASKS[0], ~MASKS[1, :1], ~MASKS[2, :, :5]]
    display = LocalizationDisplay.from_maps(images, maps, masks, threshold=0.5)
    assert [overlay.get_array().shape for overlay in display.overlays_] == [
        (12, 10), (1, 10), (12, 5),
    ]  # fmt: skip
    assert [len(outlines(ax)) for ax in display.axes_[1]] == [0, 1, 1]


def test_from_estimator_takes_maps_images_and_threshold_from_the_detector():
    X, _ = smooth_and_noisy()
    detector = tiny_detector().fit(X[:20])
    for given in (X[28:32], X[28:32].reshape(4, -1)):
        display = LocalizationDisplay.from_estimator(detector, given, np.ones((4, 16, 16), bool))
        assert display.threshold == detector.map_offset_
        assert_array_equal(display.maps, detector.localize(given))
        for ax, image in zip(display.axes_[0], X[28:32], strict=True):
            assert_allclose(ax.images[0].get_array(), image)


def test_axes_and_style_are_the_callers():
    figure, axes = pyplot.subplots(2, 3)
    display = LocalizationDisplay.from_maps(IMAGES, MAPS, threshold=0.5, ax=axes, cmap="viridis",
                                            alpha=0.3)  # fmt: skip
    assert display.figure_ is figure
    assert (display.axes_ == axes).all()
    assert display.overlays_[0].get_cmap().name == "viridis"
    assert display.overlays_[0].get_alpha() == 0.3
    _, column = pyplot.subplots(2)
    single = LocalizationDisplay.from_maps(IMAGES[:1], MAPS[:1], ax=column)
    assert single.axes_.shape == (2, 1)
    assert display.plot() is display
    assert display.figure_ is not figure


BAD = [
    ({"maps": MAPS[:2]}, "maps must be as many as the 3 images; got 2"),
    (
        {"maps": MAPS[:, :5]},
        r"maps must have the sizes of the images; got maps\[0\] .*\(5, 10\)",
    ),
    ({"maps": np.where(MASKS, np.nan, MAPS)}, r"finite; got NaN or infinity in maps\[1\]"),
    ({"masks": []}, "masks must be as many"),
    ({"masks": MASKS[:, :5]}, r"masks must have the sizes of the images; got masks\[0\]"),
    ({"masks": 3 * MASKS}, "masks must be boolean, or 0 and 1 only"),
    ({"X": [IMAGES[0], IMAGES[1] / 255.0, IMAGES[2]]}, "images of X must all be of one kind"),
    ({"X": GREY[0]}, r"X\[0\] must hold images of shape \(H, W\)"),
    ({"X": [], "maps": []}, "X must hold at least one image"),
    ({"ax": np.empty((3, 3), object)}, r"Axes for \(n_rows, n\) = \(2, 3\); got 9"),
]


@pytest.mark.parametrize(("given", "message"), BAD)
def test_bad_input_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        LocalizationDisplay.from_maps(**{"X": IMAGES, "maps": MAPS} | given)
    assert not pyplot.get_fignums()


def test_threshold_of_other_maps_is_refused():
    X, _ = smooth_and_noisy()
    with pytest.raises(NotFittedError):
        LocalizationDisplay.from_estimator(tiny_detector(), X[:2])
    detector = tiny_detector().fit(X[:20]).set_params(smoothing_sigma=1.0)
    with pytest.raises(ValueError, match="Call calibrate or fit again"):
        LocalizationDisplay.from_estimator(detector, X[:2])


def test_other_estimators_are_refused():
    with pytest.raises(TypeError, match="last step of a pipeline; got Pipeline"):
        LocalizationDisplay.from_estimator(make_pipeline(tiny_detector()), IMAGES)


def test_images_are_drawn_as_a_whole_with_a_region_of_interest():
    images = np.random.default_rng(0).random((6, 20, 24, 3))
    images[:, 0] = np.nan  # outside
    detector = tiny_detector(roi=(1, 0, 20, 24)).fit(images)
    display = LocalizationDisplay.from_estimator(detector, images[:2])
    assert display.images[0].shape == (*display.maps[0].shape, 3) == (20, 24, 3)
    assert not display.maps[0][0].any()
    regions = [(1, 0, 10, 10), (5, 5, 20, 20)]
    display = LocalizationDisplay.from_estimator(detector, images[:2], roi=regions)
    assert not display.maps[1][:5].any()
