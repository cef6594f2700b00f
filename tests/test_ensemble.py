"""Ensembles: common scale, combination, honest thresholds, files."""

from __future__ import annotations

import copy
import pickle

import joblib
import numpy as np
import pytest
from conftest import TINY, TinySource, smooth_and_noisy, tiny_detector
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV

import skmkd
from skmkd import DetectorEnsemble, MemKDDetector, MKDDetector
from skmkd._conformal import held_out
from skmkd._features import batches
from skmkd._images.image_files import ImageFile
from skmkd._maps.finishing import Output
from skmkd.inspection import LocalizationDisplay, LossCurveDisplay, ScoreDisplay
from skmkd.model_selection import NormalOnlySplit, anomaly_roc_auc
from skmkd.monitoring import drift_test

pytestmark = pytest.mark.filterwarnings("ignore:.*held-out image")  # of small sets
SOURCES = {"mkd": TinySource(0), "memkd": TinySource(1)}


def pair():
    """Return two small detectors of different kinds and sources, with their names."""
    memkd = MemKDDetector(source=SOURCES["memkd"], memory_size=4, **TINY | {"critical_layers": 1})
    return [("mkd", tiny_detector(source=SOURCES["mkd"])), ("memkd", memkd)]


def tiny_ensemble(detectors=None, **parameters):
    return DetectorEnsemble(detectors or pair(), **{"random_state": 0} | parameters)


@pytest.fixture(scope="module", name="X")
def thirty_normal_and_ten_anomalous():
    return smooth_and_noisy()[0]


@pytest.fixture(scope="module")
def fitted(X):
    return tiny_ensemble().fit(X[:30])


def standardized(member, images, normal):
    """Return anomaly scores and maps on the scale of some normal images."""
    scores, maps = member.score_samples(normal), member.localize(normal)
    low, centre, high = np.quantile(scores, (0.25, 0.5, 0.75))
    level = np.median(np.median(maps, axis=(1, 2)))
    bulk = np.median(np.quantile(maps, 0.95, axis=(1, 2)))
    anomalies = (centre - member.score_samples(images)) / (high - low)
    return anomalies, (member.localize(images) - level) / (bulk - level)


@pytest.mark.parametrize(("combine", "combined"), [("max", np.max), ("mean", np.mean)])
@pytest.mark.parametrize("share", [0.2, 0])
def test_scores_and_maps_are_combined_on_a_common_scale(X, combine, combined, share):
    ensemble = tiny_ensemble(combine=combine, validation_fraction=share).fit(X[:30])
    normal = X[:30]
    if share:
        _, held = held_out(30, share, None, np.random.default_rng(ensemble._seed))
        normal = X[held]
    each = [standardized(member, X, normal) for member in ensemble.detectors_]
    anomalies, maps = (combined(parts, axis=0) for parts in zip(*each, strict=True))
    assert_allclose(ensemble.score_samples(X), -anomalies, rtol=1e-5)
    assert_allclose(ensemble.localize(X), maps, rtol=1e-4, atol=1e-4)
    assert ensemble.localize(X).dtype == np.float32


def test_detectors_learn_from_what_is_not_held_out(X):
    ensemble = tiny_ensemble(random_state=None).fit(X[:30])
    learned, _ = held_out(30, 0.2, None, np.random.default_rng(ensemble._seed))
    for name, detector in pair():  # with seeds of their own
        alone = detector.fit(X[learned])
        member = ensemble.named_detectors_[name]
        assert_array_equal(member.score_samples(X), alone.score_samples(X))
        assert_array_equal(member.localize(X[:3]), alone.localize(X[:3]))


def test_an_ensemble_of_one_judges_as_its_detector(X):
    ensemble = tiny_ensemble([("only", tiny_detector())]).fit(X[:30])
    (member,) = ensemble.detectors_
    order = np.argsort(member.score_samples(X))
    assert_array_equal(np.argsort(ensemble.score_samples(X)), order)
    maps, own = ensemble.localize(X[:4]), member.localize(X[:4])
    assert_array_equal(np.argsort(maps, axis=None), np.argsort(own, axis=None))
    _, held = held_out(30, 0.2, None, np.random.default_rng(ensemble._seed))
    member.calibrate(X[held], fpr=1 / 7)
    assert_array_equal(ensemble.predict(X), member.predict(X))
    assert_array_equal(ensemble.p_value(X), member.p_value(X))


@pytest.mark.parametrize("combine", ["max", "mean"])
def test_the_order_of_detectors_is_irrelevant(X, combine):
    one, other = (
        tiny_ensemble(pairs, combine=combine).fit(X[:30]) for pairs in (pair(), pair()[::-1])
    )
    assert_array_equal(one.score_samples(X), other.score_samples(X))
    assert_array_equal(one.localize(X), other.localize(X))
    assert (one.offset_, one.map_offset_) == (other.offset_, other.map_offset_)
    assert list(one.named_detectors_) == list(other.named_detectors_)[::-1]


def test_detectors_of_one_kind_have_seeds_of_their_own(X):
    pairs = [("a", tiny_detector()), ("b", tiny_detector())]
    ensemble = tiny_ensemble(pairs).fit(X[:30])
    first, second = (member.score_samples(X) for member in ensemble.detectors_)
    assert (first != second).all()
    again = tiny_ensemble(pairs).fit(X[:30])
    assert_array_equal(again.score_samples(X), ensemble.score_samples(X))


def test_detectors_that_are_given_stay_as_they_are(X):
    pairs = pair()
    before = joblib.hash([vars(detector) for _, detector in pairs])
    ensemble = tiny_ensemble(pairs).fit(X[:30])
    assert joblib.hash([vars(detector) for _, detector in pairs]) == before
    assert ensemble.detectors is pairs
    for name, detector in pairs:
        member = ensemble.named_detectors_[name]
        assert member is not detector
        assert joblib.hash(member.get_params()) == joblib.hash(detector.get_params())
        with pytest.raises(NotFittedError):
            member.predict(X)


# Thresholds


class Simulated:
    """A detector whose scores of images 0, 1, ... are drawn, and are one of three map pixels."""

    def __init__(self, anomalies):
        self.anomalies = anomalies

    def _outputs(self, images, *, scores=True, maps=True, indices=None):
        for i in range(len(images)) if indices is None else indices:
            value = self.anomalies[i]
            yield Output(i, -value, np.array([[0, 0, value]], np.float32))

    def _check_scores(self, scores):
        assert np.isfinite(scores).all()

    def _settings(self):
        return {}, {}


class SimulatedEnsemble(DetectorEnsemble):
    """An ensemble of simulated detectors, which have no datasets."""

    def __init__(self, *members):
        super().__init__([], combine="max")
        self.named_detectors_ = dict(enumerate(members))

    def _outputs_of_each(self, images, **options):
        return zip(*(each._outputs(images, **options) for each in self.detectors_), strict=True)


class Normal(list):
    """Images, of which simulated detectors need the number alone."""

    regions, unreadable = None, frozenset()


@pytest.mark.parametrize("draw", ["normal", "lognormal", "standard_cauchy"])
@pytest.mark.parametrize(("n", "due", "more"), [(20, 1 / 21, 0.01), (100, 5 / 101, 0.004)])
def test_thresholds_are_nearly_honest_though_the_scale_is_of_the_same_images(draw, n, due, more):
    rng = np.random.default_rng(0)
    n_new, rates, map_rates = 200, [], []
    for _ in range(300):
        first, second = (getattr(rng, draw)(size=(2, n + n_new)) * [[1], [1000]]).tolist()
        ensemble = SimulatedEnsemble(Simulated(first), Simulated(second))
        ensemble._set_scales(Normal(range(n)))
        ensemble._set_held_out_thresholds(Normal(range(n)))
        (a, x), (b, y) = ensemble.score_scaling_
        new = np.maximum((np.add(first, a)) / x, np.add(second, b) / y)[n:]
        rates.append(np.mean(-new < ensemble.offset_))
        x, y = ensemble.map_scaling_[:, 1]  # levels are 0
        peaks = np.maximum(np.divide(first, x), np.divide(second, y))[n:]
        map_rates.append(np.mean(peaks > ensemble.map_offset_))
    for found in (rates, map_rates):
        assert due - 0.004 < np.mean(found) < due + more


@pytest.mark.parametrize("n", [20, 100])
def test_thresholds_of_other_images_are_honest(n):
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(300):
        first, second = rng.normal(size=(2, 20 + n + 200))
        ensemble = SimulatedEnsemble(Simulated(first), Simulated(second))
        ensemble._set_scales(Normal(range(20)))
        for member in ensemble.detectors_:
            member.anomalies = member.anomalies[20:]
        ensemble._set_held_out_thresholds(Normal(range(n)))
        found = [output.score for output in ensemble._outputs(Normal(range(n + 200)))][n:]
        rates.append(np.mean(np.array(found) < ensemble.offset_))
    assert np.mean(rates) == pytest.approx({20: 1 / 21, 100: 5 / 101}[n], abs=0.003)


def test_methods_agree_with_each_other(X, fitted):
    ensemble = copy.deepcopy(fitted)
    scales = ensemble.score_scaling_, ensemble.map_scaling_
    assert ensemble.calibrate(X[:30], fpr=0.1) is ensemble
    assert_array_equal(scales[0], ensemble.score_scaling_)
    assert_array_equal(scales[1], ensemble.map_scaling_)
    scores, maps = ensemble.score_samples(X), ensemble.localize(X)
    assert ensemble.offset_ == np.sort(scores[:30])[2]
    assert ensemble.map_offset_ == pytest.approx(np.sort(maps[:30].max(axis=(1, 2)))[-3], rel=1e-6)
    assert_array_equal(ensemble.decision_function(X), scores - ensemble.offset_)
    assert_array_equal(ensemble.predict(X), np.where(scores >= ensemble.offset_, 1, -1))
    assert_array_equal(ensemble.predict_mask(X), maps > ensemble.map_offset_)
    for result in ensemble.iter_results(X, maps=True):
        assert result.score == pytest.approx(scores[result.index], rel=1e-6)
        assert_allclose(result.map, maps[result.index], rtol=1e-5)
    assert_array_equal([r.p_value for r in ensemble.iter_results(X)], ensemble.p_value(X))
    assert ensemble.set_fpr(0.2).offset_ == np.sort(scores[:30])[5]
    assert drift_test(ensemble, scores[30:]).n_calibration == 30


@pytest.mark.parametrize("contamination", [0.1, 0.5])
def test_contamination(X, contamination):
    ensemble = tiny_ensemble(contamination=contamination).fit(X[:30])
    assert (ensemble.predict(X[:30]) == -1).sum() == contamination * 30
    assert ensemble.calibration_scores_ is None


def test_a_combination_acts_at_once_but_has_other_thresholds(X, fitted):
    ensemble = copy.deepcopy(fitted).set_params(combine="max")
    expected = tiny_ensemble(combine="max").fit(X[:30])
    assert_array_equal(ensemble.score_samples(X), expected.score_samples(X))
    with pytest.raises(ValueError, match="offset_ was set for the parameters"):
        ensemble.predict(X)
    assert ensemble.calibrate(X[:30]).predict(X).shape == (40,)
    ensemble.named_detectors_["mkd"].smoothing_sigma = 1.0
    with pytest.raises(ValueError, match="map_offset_ was set for the parameters"):
        ensemble.predict_mask(X)


@pytest.mark.filterwarnings("ignore:Nearly none of the images")
def test_images_that_are_all_alike_give_finite_scores(X):
    ensemble = tiny_ensemble().fit(np.repeat(X[:1], 20, axis=0))
    assert np.isfinite(ensemble.score_samples(X)).all()
    assert np.isfinite(ensemble.localize(X)).all()
    assert (ensemble.predict(X[30:]) == -1).all()


# Images


def with_roi(**parameters):
    return [(name, detector.set_params(**parameters)) for name, detector in pair()]


def test_maps_are_0_outside_the_region_of_interest(X):
    mask = np.zeros((16, 16), bool)
    mask[3:12, 2:9] = True
    mask[5, 5] = False
    ensemble = tiny_ensemble(with_roi(roi=mask)).fit(X[:30])
    maps = ensemble.localize(X)
    assert (maps[:, ~mask] == 0).all()
    assert (maps[:, mask] != 0).all()
    _, held = held_out(30, 0.2, None, np.random.default_rng(ensemble._seed))
    for member, (level, height) in zip(ensemble.detectors_, ensemble.map_scaling_, strict=True):
        inside = member.localize(X[held])[:, mask]
        assert level == pytest.approx(np.median(np.median(inside, axis=1)))
        assert level + height == pytest.approx(np.median(np.quantile(inside, 0.95, axis=1)))
    cut = ensemble.score_samples(X)
    outside = np.where(mask[..., None], X, 1 - X)
    assert_array_equal(ensemble.score_samples(outside), cut)


def test_regions_of_each_image(X):
    rois = [(0, 0, 16, 12 + i % 3) for i in range(30)]
    ensemble = tiny_ensemble().fit(X[:30], roi=rois)
    assert ensemble.score_samples(X[:30], roi=rois).shape == (30,)
    with pytest.raises(ValueError, match="roi must be given"):
        ensemble.score_samples(X)


@pytest.fixture
def paths(X, tmp_path):
    paths = [tmp_path / f"{i:02}.png" for i in range(len(X))]
    for i, (path, image) in enumerate(zip(paths, X, strict=True)):
        cut = image[: 16 - i % 2]
        Image.fromarray((255 * cut).astype(np.uint8)).save(path)
    return paths


@pytest.mark.parametrize(
    ("tile_sizes", "times"), [((None, None), 1), ((None, 8), 2), ((8, 12), 1.5)]
)
def test_files_of_any_size_are_decoded_once_a_pass(paths, monkeypatch, tile_sizes, times):
    pairs = pair()
    for (_, detector), tile_size in zip(pairs, tile_sizes, strict=True):
        detector.set_params(tile_size=tile_size, max_iter=1)
    ensemble = tiny_ensemble(pairs).fit(paths[:10])
    monkeypatch.setattr(batches, "CPU_PIXELS", 64)  # of a batch: one image, or one tile
    paths = paths[:6]
    arrays = [np.asarray(Image.open(path)) for path in paths]
    scores = ensemble.score_samples(arrays)
    decoded = []
    plain = ImageFile.__array__
    monkeypatch.setattr(
        ImageFile, "__array__",
        lambda self, *given, **named: (decoded.append(self.path), plain(self, *given, **named))[1],
    )  # fmt: skip
    assert_array_equal(ensemble.score_samples(paths), scores)
    assert len(decoded) <= times * len(paths)  # the first image was let go by one detector
    assert [m.shape for m in ensemble.localize(arrays)] == [a.shape[:2] for a in arrays]


def test_detectors_in_step_judge_to_the_bit_as_each_alone(paths):
    pairs = pair()
    pairs[0][1].set_params(image_size=24, normalization=None)  # batches of another size
    ensemble = tiny_ensemble(pairs).fit(paths[:30])
    images = ensemble._check_images(paths)
    together = [*ensemble._outputs_of_each(images, indices=[3, 4, 39])]
    assert [output.index for output, _ in together] == [3, 4, 39]
    for outputs, member in zip(zip(*together, strict=True), ensemble.detectors_, strict=True):
        alone = member._outputs(images, indices=[3, 4, 39])
        for own, expected in zip(outputs, alone, strict=True):
            assert own.score == expected.score
            assert_array_equal(own.map, expected.map)


def test_files_that_cannot_be_read(paths):
    ensemble = tiny_ensemble(on_error="skip").fit(paths[:30])
    paths[3].write_bytes(b"")
    good = [path for path in paths if path != paths[3]]
    expected = ensemble.score_samples(good)
    with pytest.warns(UserWarning, match=r"03\.png.*It is skipped") as record:
        scores = ensemble.score_samples(paths)
    assert len(record) == 1
    assert_array_equal(np.flatnonzero(np.isnan(scores)), [3])
    assert_array_equal(np.delete(scores, 3), expected)
    with pytest.warns(UserWarning, match="It is skipped"):
        assert np.isnan(ensemble.localize(paths)[3]).all()
    with pytest.warns(UserWarning, match="It is skipped"):
        assert ensemble.predict_mask(paths)[3].all()
    results = list(tiny_ensemble().fit(good[:30]).iter_results(paths, maps=True))
    assert [r.index for r in results if r.error] == [3]
    assert results[3].map is None
    with pytest.warns(UserWarning, match="It is left out") as record:
        again = ensemble.fit(paths[:30])
    assert sum("left out" in str(each.message) for each in record) == 1
    assert np.isfinite(again.score_samples(good)).all()


def test_images_on_another_scale_are_told_of_once(X):
    ensemble = tiny_ensemble().fit(X[:30] * 3)
    with pytest.warns(UserWarning, match="Nearly none of the images") as record:
        ensemble.score_samples(X / 100)
    assert len(record) == 1


# Parameters


def test_parameters_of_detectors(X, fitted):
    ensemble = tiny_ensemble()
    assert ensemble.get_params()["mkd__max_iter"] == 2
    assert ensemble.get_params()["memkd"] is ensemble.detectors[1][1]
    assert set(ensemble.get_params(deep=False)) == {
        "detectors", "combine", "contamination", "validation_fraction", "on_error", "random_state"
    }  # fmt: skip
    ensemble.set_params(mkd__max_iter=3, memkd=tiny_detector(), combine="max")
    assert ensemble.detectors[0][1].max_iter == 3
    assert isinstance(ensemble.detectors[1][1], MKDDetector)
    other = clone(ensemble)
    assert other.detectors[0][1] is not ensemble.detectors[0][1]
    assert other.fit(X[:30]).named_detectors_["mkd"].n_iter_ == 3
    later = copy.deepcopy(fitted).set_params(mkd__max_iter=9)
    assert_array_equal(later.score_samples(X), fitted.score_samples(X))


def test_a_search_finds_its_parameters():
    X, y = smooth_and_noisy()
    search = GridSearchCV(
        tiny_ensemble(), {"combine": ["max", "mean"], "mkd__max_iter": [1, 2]},
        scoring=anomaly_roc_auc, cv=NormalOnlySplit(2, random_state=0),
    ).fit(X, y)  # fmt: skip
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_estimator_.score_samples(X).shape == (40,)


@pytest.mark.parametrize(
    ("detectors", "message"),
    [
        ([], "detectors must be a list of one"),
        ([tiny_detector()], "detectors must be a list of one"),
        ([("a", 3)], "detectors must be pairs of a str and an MKDDetector or MemKDDetector; got"),
        ([(1, tiny_detector())], "detectors must be pairs of a str"),
        ([("a", tiny_ensemble())], "detectors must be pairs of a str"),
        ([("a", tiny_detector())] * 2, "not unique"),
        ([("a__b", tiny_detector())], "must not contain __"),
        ([("combine", tiny_detector())], "conflict with constructor arguments"),
        ([("a", tiny_detector(max_iter=0))], "'max_iter' parameter of MKDDetector must be"),
        ([("a", tiny_detector(opening_size=2))], "opening_size must be odd"),
        (
            [("a", tiny_detector()), ("b", tiny_detector(roi=(0, 0, 9, 9)))],
            r"roi must be the same for all detectors.* got None and \(0, 0, 9, 9\)",
        ),
        (
            [("a", tiny_detector(pixel_range=(0, 1))), ("b", tiny_detector(pixel_range=(0, 2)))],
            "pixel_range must be the same",
        ),
    ],
)
def test_detectors_that_do_not_make_an_ensemble(X, detectors, message):
    with pytest.raises(ValueError, match=message):
        DetectorEnsemble(detectors).fit(X)


@pytest.mark.parametrize(
    "detectors",
    [[], 3, [3], [("a", 3)], [("a", tiny_detector()), ("b", tiny_detector(roi=(0, 0, 9, 9)))]],
)
def test_what_detectors_that_make_no_ensemble_have_in_common_is_missing(detectors):
    ensemble = DetectorEnsemble(detectors)
    assert "roi" not in dir(ensemble)
    with pytest.raises(AttributeError, match="^(detectors|roi) must be"):
        _ = ensemble.roi


@pytest.mark.parametrize("name", ["combine", "contamination", "validation_fraction", "on_error"])
def test_parameters_out_of_range(X, name):
    with pytest.raises(ValueError, match=f"'{name}' parameter of DetectorEnsemble must be"):
        tiny_ensemble(**{name: "other"}).fit(X)


def test_a_fit_that_fails_changes_nothing(X, fitted):
    ensemble = copy.deepcopy(fitted)
    before, scores = dict(vars(ensemble)), ensemble.score_samples(X)
    ensemble.set_params(memkd__learning_rate=1e30)
    with pytest.raises(ValueError, match="learning_rate"):
        ensemble.fit(X)
    assert vars(ensemble) == before
    assert_array_equal(ensemble.score_samples(X), scores)


def test_localization_is_that_of_the_detectors(X, fitted):
    with pytest.raises(ValueError, match="method must be None for DetectorEnsemble"):
        fitted.localize(X, "gradient")
    pairs = pair()
    pairs[0][1].set_params(localization="gradient")
    ensemble = tiny_ensemble(pairs, combine="mean").fit(X[:30])
    assert not np.allclose(ensemble.localize(X[:2]), fitted.localize(X[:2]))


def test_not_fitted(X):
    for method in ("score_samples", "predict", "localize", "p_value"):
        with pytest.raises(NotFittedError):
            getattr(tiny_ensemble(), method)(X)
    for name in ("detectors_", "loss_curve_", "calibration_scores_", "calibration_peaks_"):
        with pytest.raises(NotFittedError):
            getattr(tiny_ensemble(), name)


# Files and displays


def assert_same(ensemble, other, X):
    assert_array_equal(ensemble.score_samples(X), other.score_samples(X))
    assert_array_equal(ensemble.localize(X), other.localize(X))
    assert_array_equal(ensemble.p_value(X), other.p_value(X))
    assert_array_equal(ensemble.predict_mask(X), other.predict_mask(X))


def test_a_saved_ensemble_is_loaded_with_the_same_results(X, fitted, tmp_path):
    path = tmp_path / "ensemble.skmkd"
    fitted.save(path)
    loaded = skmkd.load(path, source=SOURCES, device="cpu")
    assert_same(loaded, fitted, X)
    assert set(vars(loaded)) == set(vars(fitted))
    plain = {"detectors", "mkd", "memkd", "mkd__source", "memkd__source"}
    expected = {n: v for n, v in fitted.get_params().items() if n not in plain}
    assert {n: v for n, v in loaded.get_params().items() if n not in plain} == expected
    again = clone(loaded).fit(X[:30])
    assert_same(again, fitted, X)
    loaded.save(path)
    assert_same(skmkd.load(path, source=SOURCES), fitted, X)
    single = fitted.named_detectors_["mkd"].save(path)
    assert_array_equal(
        skmkd.load(path, source=SOURCES["mkd"]).score_samples(X), single.score_samples(X)
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "source must be the module that"),
        (TinySource(), r"source must be a dict with keys among \['mkd', 'memkd'\]"),
        (SOURCES | {"other": TinySource()}, r"got \['mkd', 'memkd', 'other'\]"),
        ({"mkd": TinySource(0), "memkd": TinySource(0)}, "source must have the weights"),
    ],
)
def test_what_a_file_does_not_hold_must_fit(fitted, tmp_path, source, message):
    fitted.save(tmp_path / "ensemble.skmkd")
    with pytest.raises(ValueError, match=message):
        skmkd.load(tmp_path / "ensemble.skmkd", source=source)


@pytest.mark.parametrize("include_source", [True, False])
def test_files_of_both_bundled_sources(X, tmp_path, include_source):
    sources = ("vgg16", "efficientnet_lite0")
    small = {"image_size": 32, "max_iter": 1, "batch_size": 8}
    ensemble = DetectorEnsemble(
        [(name, MKDDetector(source=name, **small)) for name in sources], random_state=0
    ).fit(X[:12])
    path = tmp_path / "ensemble.skmkd"
    assert_same(
        skmkd.load(ensemble.save(path, include_source=include_source) and path), ensemble, X
    )


def test_pickles_and_copies(X, fitted):
    assert_same(pickle.loads(pickle.dumps(fitted)), fitted, X)
    assert_same(copy.deepcopy(fitted), fitted, X)


def test_displays(X, fitted):
    y = np.repeat([1, -1], [30, 10])
    assert LocalizationDisplay.from_estimator(fitted, X[:2]).threshold == fitted.map_offset_
    assert ScoreDisplay.from_estimator(fitted, X, y).threshold_line_ is not None
    display = LossCurveDisplay.from_estimator(fitted)
    assert {"mkd__total", "memkd__total"} <= set(display.lines_)
    assert fitted.loss_curve_["mkd__total"].shape == (2,)
