"""Tiles and regions of interest through the detectors' methods."""

from __future__ import annotations

import pickle
import weakref

import numpy as np
import pytest
import torch
from conftest import TINY, TinySource, needs_bfloat16, smooth_and_noisy, tiny_detector
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV

import skmkd
from skmkd import MemKDDetector
from skmkd._images.image_files import ImageFile
from skmkd._images.tiles import Tiling, grid
from skmkd.model_selection import NormalOnlySplit, anomaly_roc_auc


@pytest.fixture
def large():
    """Six synthetic images, uint8, of shape (6, 40, 56, 3)."""
    return np.random.default_rng(1).integers(0, 256, (6, 40, 56, 3), dtype=np.uint8)


def tiny_memkd(**parameters):
    return MemKDDetector(
        source=TinySource(), memory_size=4, **TINY | {"critical_layers": 1} | parameters
    )


BUILDERS = pytest.mark.parametrize("build", [tiny_detector, tiny_memkd])


@BUILDERS
def test_tiles_as_large_as_the_images_change_nothing(large, build):
    whole, tiled = build().fit(large), build(tile_size=(40, 100)).fit(large)
    assert_array_equal(tiled.score_samples(large), whole.score_samples(large))
    assert_array_equal(tiled.localize(large), whole.localize(large))
    assert (tiled.offset_, tiled.map_offset_) == (whole.offset_, whole.map_offset_)


@BUILDERS
def test_tiling_is_cutting_by_hand(large, build):
    tiled = build(tile_size=(16, 20), tile_overlap=0.25).fit(large)
    cut = grid((40, 56), Tiling((16, 20), 0.25))
    pieces = np.stack([image[cut.box(i)] for image in large for i in range(len(cut.cells))])
    by_hand = build().fit(pieces)
    scores = by_hand.score_samples(pieces).reshape(len(large), -1).min(axis=1)
    assert_allclose(tiled.score_samples(large), scores, rtol=1e-6)
    assert tiled.offset_ == pytest.approx(np.quantile(scores, 0.05))
    maps = by_hand.localize(pieces).reshape(len(large), len(cut.cells), 16, 20)
    found = tiled.localize(large)
    assert found.shape == (6, 40, 56)
    assert found.dtype == np.float32
    once = [(0, 0), (39, 55), (0, 55)]  # pixels of one tile
    for (row, column), number in zip(once, [0, -1, len(cut.columns) - 1], strict=True):
        rows, columns = cut.box(number)
        assert_allclose(
            found[:, row, column], maps[:, number, row - rows.start, column - columns.start],
            rtol=1e-5,
        )  # fmt: skip


def test_an_image_s_score_and_map_do_not_depend_on_others(large):
    detector = tiny_detector(tile_size=16).fit(large)
    scores, maps = detector.score_samples(large), detector.localize(large)
    order = [4, 0, 5]
    assert_array_equal(detector.score_samples(large[order]), scores[order])
    assert_array_equal(detector.localize(large[order]), maps[order])
    assert_allclose(detector.score_samples(large[2:3]), scores[2:3], rtol=1e-6)


def test_images_of_any_size_as_arrays_and_files(large, tmp_path):
    images = [large[0], large[1][:16, :9], large[2][:30], large[3]]
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    detector = tiny_detector(tile_size=16).fit(images)
    maps = detector.localize(images)
    assert [m.shape for m in maps] == [image.shape[:2] for image in images]
    from_files = tiny_detector(tile_size=16).fit(paths)
    assert_array_equal(from_files.score_samples(paths), detector.score_samples(images))
    for found, expected in zip(from_files.localize(paths), maps, strict=True):
        assert_array_equal(found, expected)
    assert [m.shape for m in detector.predict_mask(images)] == [m.shape for m in maps]


def test_fit_learns_from_some_tiles_and_sets_thresholds_on_all(large):
    lengths = []
    detector = tiny_detector(tile_size=8, max_tiles=20, contamination=0.5)

    class Noting(type(detector)):
        def _loss_terms(self, batch):
            lengths.append(len(batch.images))
            return super()._loss_terms(batch)

    detector = Noting(**detector.get_params()).fit(large)
    assert sum(lengths) == 20 * detector.n_iter_
    assert (detector.predict(large) == -1).sum() == 3
    again = Noting(**detector.get_params()).fit(large)
    assert_array_equal(again.score_samples(large), detector.score_samples(large))


def test_calibration_is_through_tiles(large):
    detector = tiny_detector(tile_size=16).fit(large[:3]).calibrate(large, fpr=0.2)
    assert detector.offset_ == np.sort(detector.score_samples(large))[0]
    assert detector.map_offset_ == pytest.approx(detector.localize(large).max(), rel=1e-6)
    assert not detector.predict_mask(large).any()


def test_an_unreadable_file_among_tiles(large, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, image in zip(paths, large, strict=False):
        Image.fromarray(image).save(path)
    detector = tiny_detector(tile_size=16, on_error="skip").fit(large)
    expected = detector.score_samples(paths)
    paths[1].write_bytes(paths[1].read_bytes()[:3000])  # its header can be read
    with pytest.warns(UserWarning, match=r"1.png.*It is skipped"):
        scores = detector.score_samples(paths)
    assert_allclose(scores, [expected[0], np.nan, expected[2]], rtol=1e-6)
    with pytest.warns(UserWarning, match=r"1.png.*It is skipped"):
        maps = detector.localize(paths)
    assert [bool(np.isnan(m).all()) for m in maps] == [False, True, False]
    assert [m.shape for m in maps] == [(40, 56)] * 3


@BUILDERS
def test_a_rectangle_is_cropping(large, build):
    top, left, bottom, right = roi = (4, 6, 30, 50)
    cropped = large[:, top:bottom, left:right]
    for tiles in ({}, {"tile_size": 16}):
        detector, expected = build(roi=roi, **tiles).fit(large), build(**tiles).fit(cropped)
        assert_array_equal(detector.score_samples(large), expected.score_samples(cropped))
        maps = detector.localize(large)
        assert maps.shape == (6, 40, 56)
        assert_array_equal(maps[:, top:bottom, left:right], expected.localize(cropped))
        maps[:, top:bottom, left:right] = 0
        assert not maps.any()
        assert (detector.offset_, detector.map_offset_) == (expected.offset_, expected.map_offset_)


def masked():
    rows, columns = np.mgrid[:40, :56]
    return (rows - 18) ** 2 + (columns - 25) ** 2 < 14**2


@BUILDERS
@pytest.mark.parametrize("tiles", [{}, {"tile_size": 16}], ids=["whole", "tiles"])
def test_what_is_outside_a_mask_changes_nothing(large, build, tiles):
    mask = masked()
    other = np.where(mask[..., None], large, 255 - large)
    first, second = (build(roi=mask, **tiles).fit(X) for X in (large, other))
    assert_array_equal(first.score_samples(large), second.score_samples(other))
    assert_array_equal(first.score_samples(large), first.score_samples(other))
    maps = first.localize(large)
    assert_array_equal(maps, second.localize(other))
    assert not maps[:, ~mask].any()
    assert (maps[:, mask] > 0).mean() > 0.9
    assert not first.predict_mask(large)[:, ~mask].any()


def test_floats_outside_a_mask_are_neither_learned_nor_refused():
    X = np.random.default_rng(0).random((6, 40, 56))
    mask = masked()
    far = np.where(mask, X, np.nan)
    far[:, 0, 0] = 1e30
    detector, expected = (tiny_detector(roi=mask).fit(images) for images in (far, X))
    assert detector.pixel_range_ == expected.pixel_range_ == (0, 1, "float")
    assert_array_equal(detector.score_samples(far), expected.score_samples(X))


def test_scores_are_maxima_within_a_mask(large):
    mask = masked()  # its rectangle has 27 x 27 pixels, which stay as they are
    detector = tiny_detector(roi=mask, image_size=27, smoothing_sigma=0, opening_size=1).fit(large)
    maps = detector.localize(large)
    assert_array_equal(-detector.score_samples(large), maps.max(axis=(1, 2)))
    whole = tiny_detector(image_size=27, smoothing_sigma=0, opening_size=1)
    filled = np.stack([detector._roi.cut(image) for image in large])
    assert (whole.fit(filled).score_samples(filled) <= detector.score_samples(large)).all()


def test_one_region_for_each_image(large):
    regions = [(0, 0, 20, 20), (10, 10, 30, 30), masked(), (5, 5, 25, 25), masked(), (0, 3, 9, 56)]
    detector = tiny_detector().fit(large, roi=regions)
    scores, maps = detector.score_samples(large, roi=regions), detector.localize(large, roi=regions)
    for i, region in enumerate(regions):
        assert_allclose(detector.score_samples(large[i : i + 1], roi=region), scores[i], rtol=1e-5)
        assert_allclose(
            detector.localize(large[i : i + 1], roi=[region])[0], maps[i], rtol=1e-4, atol=1e-6
        )
    assert_array_equal(detector.decision_function(large, roi=regions), scores - detector.offset_)
    assert_array_equal(
        detector.predict(large, roi=regions), np.where(scores >= detector.offset_, 1, -1)
    )
    assert_array_equal(detector.predict_mask(large, roi=regions), maps > detector.map_offset_)
    with pytest.raises(ValueError, match="roi must be given, since images had one each at fit"):
        detector.score_samples(large)
    with pytest.raises(ValueError, match="one for each of 2 images; got 6"):
        detector.score_samples(large[:2], roi=regions)
    calibrated = tiny_detector().fit(large).calibrate(large, fpr=0.2, roi=regions)
    assert calibrated.offset_ == calibrated.score_samples(large, roi=regions).min()


def test_a_region_that_does_not_fit_an_image_is_an_error_or_skipped(large, tmp_path):
    detector = tiny_detector(roi=masked()).fit(large)
    images = [large[0], large[1][:30]]
    with pytest.raises(ValueError, match=r"X\[1\] must have the size of the mask roi.*\(30, 56\)"):
        detector.score_samples(images)
    detector.set_params(on_error="skip")
    with pytest.warns(UserWarning, match="size of the mask roi.*It is skipped"):
        scores = detector.score_samples(images)
    assert_array_equal(np.isnan(scores), [False, True])
    with pytest.warns(UserWarning, match="It is skipped"):
        maps = detector.localize(images)
    assert [m.shape for m in maps] == [(40, 56), (30, 56)]
    with pytest.raises(ValueError, match=r"must hold the rectangle roi=\(0, 0, 99, 9\)"):
        tiny_detector(roi=(0, 0, 99, 9)).fit(large)
    with pytest.warns(UserWarning, match="It is left out"):
        fitted = tiny_detector(roi=masked(), on_error="skip").fit([*large, large[1][:30]])
    assert_array_equal(fitted.score_samples(list(large)), detector.score_samples(list(large)))


@pytest.mark.parametrize("roi", [(2, 3, 33, 44), "mask", "file"])
def test_saved_and_pickled(large, tmp_path, roi):
    if isinstance(roi, str) and roi == "mask":
        roi = masked()
    elif roi == "file":
        roi = tmp_path / "mask.png"
        Image.fromarray(masked()).save(roi)
    detector = tiny_detector(tile_size=16, roi=roi, source="vgg16", image_size=32).fit(large)
    scores = detector.score_samples(large)
    if isinstance(roi, type(tmp_path)):
        roi.unlink()  # the mask itself was learned
    assert_array_equal(pickle.loads(pickle.dumps(detector)).score_samples(large), scores)
    loaded = skmkd.load(detector.save(tmp_path / "model.skmkd") and tmp_path / "model.skmkd")
    assert_array_equal(loaded.score_samples(large), scores)
    assert loaded.offset_ == detector.offset_
    assert repr(loaded.get_params()["roi"]) == repr(roi)


def test_grid_search_over_tiles(large):
    X = np.concatenate([large, 255 - large // 4])
    y = np.repeat([1, -1], 6)
    search = GridSearchCV(
        tiny_detector(), {"tile_size": [None, 16], "roi": [None, (0, 0, 30, 30)]},
        cv=NormalOnlySplit(2), scoring=anomaly_roc_auc, error_score="raise",
    ).fit(X, y)  # fmt: skip
    assert len(search.cv_results_["params"]) == 4
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_tiles_of_memories(large):
    detector = tiny_memkd(tile_size=(20, 28), tile_overlap=0).fit(large)
    ((_, entropy),) = detector.recall_entropy(large).items()
    assert len(entropy) == 4 * len(large)
    with pytest.raises(ValueError, match="method must be None for MemKDDetector; got 'gradient'"):
        detector.localize(large, method="gradient")


def test_tiling_and_regions_act_at_the_next_fit(large):
    detector = tiny_detector(tile_size=16).fit(large)
    scores = detector.score_samples(large)
    detector.set_params(tile_size=8, tile_overlap=0.5, roi=(0, 0, 9, 9), max_tiles=7)
    assert_array_equal(detector.score_samples(large), scores)
    assert (detector.fit(large).score_samples(large) != scores).any()


def written(folder, images):
    """Write images as files and return their paths."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{i}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    return paths


def turned_at_the_end(path):
    """Make the PNG file of an image one that says only at its end that it lies on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)
    content = path.read_bytes()
    start = content.index(b"eXIf") - 4
    stop = start + 12 + int.from_bytes(content[start : start + 4])
    path.write_bytes(content[:start] + content[stop:-12] + content[start:stop] + content[-12:])


@BUILDERS
@pytest.mark.parametrize("tiles", [{}, {"tile_size": 16}], ids=["whole", "tiles"])
def test_results_are_what_the_other_methods_return(large, build, tiles):
    detector = build(**tiles).fit(large[:3]).calibrate(large, fpr=0.2)
    X = np.concatenate([large, 255 - large])
    results = list(detector.iter_results(X, maps=True))
    assert [result.index for result in results] == list(range(12))
    assert {(result.path, result.error) for result in results} == {(None, None)}
    for name, expected in [
        ("score", detector.score_samples(X)), ("decision", detector.decision_function(X)),
        ("label", detector.predict(X)), ("p_value", detector.p_value(X)),
        ("map", detector.localize(X)),
    ]:  # fmt: skip
        assert_array_equal([getattr(result, name) for result in results], expected)
    roi = (0, 0, 20, 20)
    scores = [result.score for result in detector.iter_results(X, roi=roi)]
    assert_array_equal(scores, detector.score_samples(X, roi=roi))


def test_results_without_maps_or_calibration(large):
    (result,) = tiny_detector().fit(large).iter_results(large[:1])
    assert np.isnan(result.p_value)
    assert result.map is None
    assert np.isfinite(result.score)


@pytest.fixture
def odd_files(large, tmp_path):
    """Paths of eight images, of which the second to sixth have no score."""
    paths = written(tmp_path / "odd", [*large, large[0], large[1]])
    paths[1].write_bytes(b"")
    paths[2].write_bytes(paths[2].read_bytes()[:3000])  # its header can be read
    paths[3].unlink()
    Image.fromarray(large[0, ..., 0].astype(np.uint16)).save(paths[4])  # another kind of number
    Image.fromarray(np.dstack([large[0], large[0, ..., 0]])).save(paths[5])  # transparent
    return paths


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("tiles", [{}, {"tile_size": 16}], ids=["whole", "tiles"])
def test_files_without_a_score_are_results_with_an_error(large, odd_files, tiles, on_error):
    detector = tiny_detector(on_error=on_error, **tiles).fit(large).calibrate(large, fpr=0.2)
    results = list(detector.iter_results(odd_files, maps=True))  # a warning would be an error
    assert [result.path for result in results] == [str(path) for path in odd_files]
    failed = [result.index for result in results if result.error is not None]
    assert failed == [1, 2, 3, 4, 5]
    for result in results[1:6]:
        assert result.path in result.error
        assert np.isnan([result.score, result.decision, result.p_value]).all()
        assert (result.map, result.label) == (None, -1)
    good = [odd_files[i] for i in (0, 6, 7)]
    rest = [results[i] for i in (0, 6, 7)]
    assert_allclose([result.score for result in rest], detector.score_samples(good), rtol=1e-5)
    for result, expected in zip(rest, detector.localize(good), strict=True):
        assert_allclose(result.map, expected, rtol=1e-3, atol=1e-6)


def test_files_that_do_not_fit_to_tiles_or_regions_are_errors_of_their_own(large, tmp_path):
    paths = written(tmp_path / "turned", large[:3])
    turned_at_the_end(paths[1])
    detector = tiny_detector(tile_size=16).fit(large)
    errors = [result.error for result in detector.iter_results(paths)]
    assert errors[::2] == [None, None]
    assert "1.png) must have the size in its header, (" in errors[1]
    with pytest.raises(
        ValueError, match="to be cut into tiles; got .*: its end says that it is turned"
    ):
        detector.score_samples(paths)
    Image.fromarray(large[1, :30]).save(paths[1])
    errors = [result.error for result in detector.iter_results(paths, roi=(0, 0, 35, 20))]
    assert errors[::2] == [None, None]
    assert "1.png)" in errors[1]


def test_arrays_and_pictures_without_a_score(large, tmp_path):
    floats = large / 255
    floats[1, 0, 0, 0] = np.nan
    detector = tiny_detector().fit(large / 255)
    errors = [result.error for result in detector.iter_results(floats)]
    assert [error is None for error in errors] == [True, False, True, True, True, True]
    assert errors[1].startswith("X[1] contains NaN")
    paths = written(tmp_path / "cut", large[:3])
    paths[1].write_bytes(paths[1].read_bytes()[:3000])
    pictures = [Image.open(path) for path in paths]  # their pixels are read later
    errors = [result.error for result in tiny_detector().fit(large).iter_results(pictures)]
    assert [error is None for error in errors] == [True, False, True]
    assert errors[1].startswith("X[1] (")
    for picture in pictures:
        picture.close()


def test_what_is_wrong_with_all_of_x_is_raised_at_once(large):
    detector = tiny_detector().fit(large)
    for X, message in [
        ([], "must hold at least one image"), ("a.png", "must be a list of paths"),
        (large[:, :9], "as at fit"), (["a.png", None], "must be a path"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            detector.iter_results(X)
    with pytest.raises(NotFittedError):
        tiny_detector().iter_results(large)
    with pytest.raises(ValueError, match="offset_ was set for the parameters"):
        detector.set_params(image_score="loss").iter_results(large)


def test_results_come_as_they_are_computed_and_one_look_is_enough(large, tmp_path, monkeypatch):
    paths = written(tmp_path / "many", list(large) * 30)
    detector = tiny_detector(image_size=64).fit(large)
    reads = []
    read = ImageFile.__array__
    monkeypatch.setattr(
        ImageFile, "__array__", lambda file, *args: reads.append(file.path) or read(file, *args)
    )
    results = detector.iter_results(paths)
    assert reads == []
    next(results)
    assert len(reads) < len(paths)
    detector.set_params(on_error="skip", image_score="loss")  # after the call: no effect
    rest = [result.score for result in results]
    assert sorted(reads) == sorted(map(str, paths))
    detector.set_params(image_score="map_max")
    assert_array_equal(rest, detector.score_samples(paths)[1:])


def test_results_that_are_gone_leave_no_memory_behind(large):
    detector = tiny_detector().fit(large)
    X = [np.tile(image, (4, 4, 1)) for image in large] * 30
    maps = []
    for result in detector.iter_results(X, maps=True):
        maps.append(weakref.ref(result.map))
        del result
        assert sum(map_() is not None for map_ in maps) < 100


@needs_bfloat16
def test_scores_without_bfloat16_are_those_with_it_up_to_rounding(monkeypatch):
    X, _ = smooth_and_noisy()
    detector = tiny_detector(precision="bfloat16").fit(X[:20])
    scores = {}
    for native in (True, False):
        for module in ("precision", "fusion"):
            monkeypatch.setattr(
                f"skmkd._networks.{module}.is_native", lambda _, native=native: native
            )
        fitted = pickle.loads(pickle.dumps(detector))  # nothing that was prepared before
        scores[native] = fitted.score_samples(X)
        assert_array_equal(fitted.score_samples(X), scores[native])
    assert_allclose(scores[True], scores[False], rtol=0.02)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_scores_with_other_threads_differ_by_rounding(precision):
    X, _ = smooth_and_noisy()
    detector = tiny_detector(precision=precision).fit(X[:20])
    n_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = detector.score_samples(X)
        torch.set_num_threads(2)
        two = detector.score_samples(X)
    finally:
        torch.set_num_threads(n_threads)
    assert_allclose(one, two, rtol=1e-5 if precision == "float32" else 0.02)
