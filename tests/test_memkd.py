"""MemKDDetector; what all detectors share is tested in test_base."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Counting, TinySource, smooth_and_noisy
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.data import lfw_subset
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from torchvision.models import get_model

import skmkd
from skmkd import MemKDDetector
from skmkd import _base as base
from skmkd._features.batches import Batch
from skmkd._networks.sources import build_source
from skmkd._runtime import private_generator
from skmkd._training import shuffled_batches
from skmkd.model_selection import NormalOnlySplit, anomaly_roc_auc


def tiny_memkd(**parameters) -> MemKDDetector:
    """Return a detector that fits in well under a second."""
    defaults = {
        "source": TinySource(),
        "critical_layers": 2,
        "memory_size": 5,
        "image_size": 16,
        "batch_size": 5,
        "max_iter": 2,
        "tol": None,
        "precision": "float32",
        "random_state": 0,
        "validation_fraction": 0,
    }
    return MemKDDetector(**(defaults | parameters))


PARADIGMS = pytest.mark.parametrize("paradigm", ["reverse", "forward"])


@PARADIGMS
def test_memories_learn(images, paradigm):
    before = {}

    def keep(detector, epoch):
        if epoch == 1:
            before.update({k: v.clone() for k, v in detector.cloner_.state_dict().items()})

    alone = {
        "exemplar_weight": 0,
        "orthogonality_weight": 0,
    }  # trained by the distillation loss alone
    detector = tiny_memkd(paradigm=paradigm, max_iter=4, **alone).fit(images, callback=keep)
    after = detector.cloner_.state_dict()
    items = [name for name in after if name.endswith((".keys", ".values"))]
    assert len(items) == 2 * len(detector.memory_levels_) > 0
    for name in items:
        assert (before[name] != after[name]).any(1).all(), name  # every key and value


@PARADIGMS
def test_losses_fall(images, paradigm):
    curve, without = (
        tiny_memkd(paradigm=paradigm, max_iter=50, exemplar_weight=w).fit(images).loss_curve_
        for w in (0.1, 0)
    )
    assert set(curve) == {"total", "distillation", "exemplar", "orthogonality"}
    assert curve["exemplar"][-1] < 0.97 * curve["exemplar"][0]
    assert curve["exemplar"][-1] < 0.97 * without["exemplar"][-1]
    assert curve["distillation"][-1] < 0.7 * curve["distillation"][0]
    parts = curve["distillation"] + 0.1 * curve["exemplar"] + 0.1 * curve["orthogonality"]
    assert_allclose(curve["total"], parts, rtol=1e-5)


@PARADIGMS
def test_memories_begin_as_normal_features_that_weigh_nothing(images, paradigm):
    detector = tiny_memkd(paradigm=paradigm, max_iter=1, learning_rate=1e-30).fit(images)
    scores = detector.score_samples(images)
    items = [memory.values for memory in detector.cloner_.memories.values()]
    for values in items:
        assert abs(values.detach().mean()) < 0.5
        assert 0.5 < values.detach().std() < 2  # standardized
        values.data += 1
    assert_array_equal(detector.score_samples(images), scores)


@pytest.mark.slow
def test_recall_tells_normal_details_only():
    """With memories, the cloner reconstructs normal images better, but no others."""
    images = lfw_subset()
    gaps = {}
    for size in (0, 50):
        detector = MemKDDetector(
            memory_size=size,
            image_size=32,
            max_iter=5,
            batch_size=8,
            random_state=0,
            validation_fraction=0,
        ).fit(images[:80])
        maps = detector.localize(images[80:])
        gaps[size] = maps[:20].mean(), maps[20:].mean()
    assert gaps[50][0] < gaps[0][0]
    assert gaps[50][1] / gaps[50][0] > gaps[0][1] / gaps[0][0]


def test_orthogonality_loss_falls_where_it_weighs(images):
    few, much = (
        tiny_memkd(orthogonality_weight=weight, max_iter=30, memory_size=3).fit(images)
        for weight in (0, 10)
    )
    assert much.loss_curve_["orthogonality"][-1] < 0.5 * few.loss_curve_["orthogonality"][-1]


@PARADIGMS
def test_training_is_the_naive_loop(images, paradigm):
    settings = {"paradigm": paradigm, "exemplar_weight": 0.3, "orthogonality_weight": 0.2}
    steps = {"learning_rate": 1e-4, "betas": (0.4, 0.9), "schedule": "constant"}
    # small: rounding errors grow with each
    detector = tiny_memkd(**settings, **steps, n_exemplars=3, max_iter=3).fit(images)
    untrained = tiny_memkd(**settings, max_iter=1, learning_rate=1e-30).fit(images)
    cloner = untrained.cloner_.train()
    for norm in cloner.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.reset_running_stats()
    optimizer = torch.optim.Adam(cloner.parameters(), lr=1e-4, betas=(0.4, 0.9))
    prepared = detector._prepare(list(images)).contiguous()
    generator = private_generator(detector._seed)
    shuffled_batches(12, 3, generator)  # the first batch, before training
    for epoch in range(3):
        sums = np.zeros(4)
        for indices in shuffled_batches(12, 3, generator):
            x = prepared[indices]
            with torch.no_grad():
                target = detector.source_(x)
            fine, coarse = detector.critical_layers_
            output = cloner(target if paradigm == "reverse" else x)
            distillation = sum(
                1 - F.cosine_similarity(target[i].flatten(1), output[i].flatten(1)) for i in target
            )
            before = {"1": target[fine]}  # the input of each memory, from the source
            if paradigm == "reverse":
                before = {"1": target[coarse], "2": output["the embedding"].detach()}
            exemplar = orthogonality = 0.0
            for level, features in before.items():
                memory = cloner.memories[level]
                rows = features.permute(0, 2, 3, 1)
                mean, variance = rows.mean((0, 1, 2)), rows.var((0, 1, 2), unbiased=False)
                rows = ((rows - mean) / (variance + 1e-5).sqrt())[:3].flatten(0, 2)
                unit = F.normalize(rows)
                weights = (unit @ F.normalize(memory.values).T / 0.1).softmax(1)
                recalled = F.normalize(weights @ memory.values)
                nonzero = rows.norm(dim=1) > 0  # zero features have no direction
                gaps = (unit - recalled).square().sum(1) / 2
                exemplar = exemplar + torch.where(nonzero, gaps, torch.zeros(())).mean()
                for items in (memory.keys, memory.values):
                    cosines = F.normalize(items) @ F.normalize(items).T
                    different = ~torch.eye(5, dtype=torch.bool)
                    orthogonality = orthogonality + cosines[different].square().mean() / 2
            total = distillation + 0.3 * exemplar + 0.2 * orthogonality
            optimizer.zero_grad()
            total.mean().backward()
            optimizer.step()
            terms = [total, distillation, exemplar, orthogonality]
            sums += [float((term.detach() + torch.zeros(len(x))).sum()) for term in terms]
        names = ("total", "distillation", "exemplar", "orthogonality")
        curve = [detector.loss_curve_[name][epoch] for name in names]
        assert_allclose(curve, sums / 12, rtol=1e-3)


def test_adam_takes_rate_and_betas(images, monkeypatch):
    adam, made = torch.optim.Adam, []

    def watched(*args, **kwargs):
        made.append(adam(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(torch.optim, "Adam", watched)
    tiny_memkd(learning_rate=1e-4, schedule="constant", betas=(0.4, 0.9)).fit(images)
    (settings,) = (group for optimizer in made for group in optimizer.param_groups)
    assert (settings["lr"], settings["betas"]) == (1e-4, (0.4, 0.9))


def test_without_items_it_is_plain_reverse_distillation(images):
    detector = tiny_memkd(memory_size=0).fit(images)
    assert detector.memory_levels_ == ()
    assert set(detector.loss_curve_) == {"total", "distillation"}
    assert not any("memories" in name for name in detector.cloner_.state_dict())
    assert detector.recall_entropy(images) == {}
    assert (detector.score_samples(images) != tiny_memkd().fit(images).score_samples(images)).all()


@pytest.mark.parametrize(
    ("paradigm", "levels", "expected"),
    [("reverse", "auto", (1, 2)), ("reverse", [2], (2,)), ("reverse", (2, 1), (1, 2)),
     ("reverse", [], ()), ("forward", "auto", (1,))],
)  # fmt: skip
def test_memory_levels(images, paradigm, levels, expected):
    detector = tiny_memkd(paradigm=paradigm, memory_levels=levels).fit(images)
    assert detector.memory_levels_ == expected
    assert set(detector.recall_entropy(images)) == set(expected)


@PARADIGMS
def test_scores_are_maxima_of_blurred_maps_of_directions(images, paradigm):
    detector = tiny_memkd(paradigm=paradigm, smoothing_sigma=1.5).fit(images)
    prepared = detector._prepare(list(images))
    with torch.no_grad():
        batch = Batch(prepared, detector.source_(prepared))
        output = detector._cloner_output(batch)
    maps = np.zeros((12, 16, 16))
    for layer in detector.critical_layers_:
        cosine = F.cosine_similarity(batch.target[layer], output[layer])
        zero = (batch.target[layer] == 0).all(1)
        single = torch.where(zero, 0, 1 - cosine)[:, None]
        maps += F.interpolate(single, (16, 16), mode="bilinear")[:, 0].numpy()
    blurred = np.stack([gaussian_filter(single, 1.5) for single in maps])
    assert_allclose(-detector.score_samples(images), blurred.max((1, 2)), rtol=1e-4)
    assert detector.localize(images).shape == images.shape[:3]
    small = tiny_memkd(paradigm=paradigm, image_size=(20, 24), smoothing_sigma=1.5).fit(images)
    assert_allclose(  # no opening, no resizing
        small.localize(images).max((1, 2)), -small.score_samples(images), rtol=1e-5
    )


def test_entropy_follows_the_temperature(images):
    sharp, flat = (
        tiny_memkd(memory_temperature=temperature).fit(images).recall_entropy(images)
        for temperature in (1e-4, 1e4)
    )
    for level, side in [(1, 8), (2, 4)]:
        assert sharp[level].shape == (12, side, side)
        assert sharp[level].dtype == np.float32
        assert sharp[level].mean() < 0.1
        assert_allclose(flat[level], np.log(5), rtol=1e-4)


def test_entropy_of_unreadable_files_is_not_a_number(images, tmp_path):
    Image.fromarray(images[0]).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"")
    detector = tiny_memkd(on_error="skip").fit(images)
    with pytest.warns(UserWarning, match=r"bad.png.*skipped"):
        found = detector.recall_entropy([tmp_path / "bad.png", tmp_path / "good.png"])
    assert np.isnan(found[1][0]).all()
    assert_allclose(found[1][1], detector.recall_entropy(images[:1])[1][0], rtol=1e-6)


@PARADIGMS
def test_saved_loaded_and_pickled_it_scores_the_same_to_the_bit(images, paradigm, tmp_path):
    detector = tiny_memkd(paradigm=paradigm).fit(images)
    scores, maps = detector.score_samples(images), detector.localize(images)
    detector.save(tmp_path / "model.skmkd")
    loaded = skmkd.load(tmp_path / "model.skmkd", source=TinySource())
    for other in (loaded, pickle.loads(pickle.dumps(detector))):
        assert type(other) is MemKDDetector
        assert_array_equal(other.score_samples(images), scores)
        assert_array_equal(other.localize(images), maps)
        assert other.memory_levels_ == detector.memory_levels_
    with pytest.raises(ValueError, match="cloner must be None"):
        skmkd.load(tmp_path / "model.skmkd", source=TinySource(), cloner=TinySource())


def test_grid_search_and_pipeline():
    X, y = smooth_and_noisy()
    grid = {"memory_size": [0, 4], "paradigm": ["reverse", "forward"]}
    search = GridSearchCV(
        tiny_memkd(max_iter=4), grid, scoring=anomaly_roc_auc, refit=False,
        cv=NormalOnlySplit(2, random_state=0),
    ).fit(X, y)  # fmt: skip
    found = search.cv_results_["mean_test_score"]
    assert len(found) == 4
    assert np.isfinite(found).all()
    halved = make_pipeline(FunctionTransformer(lambda X: X[:, ::2, ::2]), tiny_memkd())
    expected = tiny_memkd().fit(X[:30, ::2, ::2]).score_samples(X[:, ::2, ::2])
    assert_array_equal(halved.fit(X[:30]).score_samples(X), expected)


@PARADIGMS
def test_source_is_computed_once(images, paradigm, monkeypatch):
    passes = []

    def counted(*arguments):
        source = build_source(*arguments)
        return source._replace(network=Counting(source.network, passes))

    monkeypatch.setattr(base, "build_source", counted)
    cached = tiny_memkd(paradigm=paradigm, max_iter=5, cache=10**8).fit(images)
    assert len(passes) == 1  # the twelve images fit into one batch
    uncached = tiny_memkd(paradigm=paradigm, max_iter=5, cache=None).fit(images)
    assert len(passes) > 6
    assert_array_equal(cached.score_samples(images), uncached.score_samples(images))


def test_a_resnet_has_a_cloner_of_its_style_by_name_or_as_a_module():
    X = np.random.default_rng(0).integers(0, 256, (4, 32, 32), dtype=np.uint8)
    network = get_model("resnet18", weights=None)
    settings = {"critical_layers": "auto", "image_size": 32, "max_iter": 1}
    by_name, module = (
        tiny_memkd(source=source, source_weights=weights, **settings).fit(X)
        for source, weights in (("resnet18", network.state_dict()), (network, "auto"))
    )
    assert by_name.cloner_.architecture == module.cloner_.architecture
    assert_array_equal(by_name.score_samples(X), module.score_samples(X))


def test_a_threshold_is_only_for_the_scores_it_was_set_for(images):
    detector = tiny_memkd().fit(images).set_params(smoothing_sigma=1.0)
    assert detector.score_samples(images).shape == (12,)
    for method in (detector.predict, detector.decision_function, detector.predict_mask):
        with pytest.raises(
            ValueError, match="offset_ was set for .*4.0.*1.0.* Call calibrate or fit"
        ):
            method(images)
    assert detector.calibrate(images, fpr=0.1).predict(images).shape == (12,)


@PARADIGMS
def test_scores_do_not_depend_on_other_images(images, paradigm):
    detector = tiny_memkd(paradigm=paradigm).fit(images)
    scores = detector.score_samples(images)
    assert_array_equal(detector.score_samples(images[3:5]), scores[3:5])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"memory_levels": [3]}, r"memory_levels must be among \[1, 2\].*got \[3\]"),
        ({"memory_levels": [1, 1]}, r"each once.*got \[1, 1\]"),
        ({"paradigm": "forward", "memory_levels": [2]}, r"must be among \[1\].*'forward'"),
        ({"betas": (0.5, 1)}, r"betas must be two numbers.*got \(0.5, 1\)"),
        ({"betas": (0.5,)}, "betas must be two numbers"),
        ({"memory_size": -1}, "'memory_size' parameter"),
        ({"memory_temperature": 0}, "'memory_temperature' parameter"),
        ({"paradigm": "sideways"}, "'paradigm' parameter"),
        (
            {"critical_layers": 3},
            "critical_layers must name the layers, or be at most 2.*stage ends.*got 3",
        ),
        ({"opening_size": 2}, "opening_size must be odd"),
        ({"learning_rate": 1e30}, "not finite after epoch"),
    ],
)
def test_bad_parameters_are_named_and_change_nothing(images, parameters, message):
    detector = tiny_memkd().fit(images)
    before = {name: value for name, value in vars(detector).items() if name.endswith("_")}
    with pytest.raises(ValueError, match=message):
        detector.set_params(**parameters).fit(images)
    after = {name: value for name, value in vars(detector).items() if name.endswith("_")}
    assert after == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"opening_size": 2}, "opening_size must be odd; got 2"),
        ({"image_size": (8, 8, 8)}, r"image_size must be .*got \(8, 8, 8\)"),
        ({"smoothing_sigma": -1.0}, "'smoothing_sigma' parameter"),
        ({"betas": (0.5, 1)}, "betas must be two numbers"),
    ],
    ids=str,
)
def test_bad_parameter_set_after_fit_is_an_error_everywhere(images, change, message):
    detector = tiny_memkd().fit(images).set_params(**change)
    for method in ("score_samples", "predict", "localize", "predict_mask", "recall_entropy"):
        with pytest.raises(ValueError, match=message):
            getattr(detector, method)(images)


def test_parameters_of_training_set_after_fit_act_at_the_next_fit(images):
    detector = tiny_memkd().fit(images)
    scores, maps = detector.score_samples(images), detector.localize(images)
    levels = detector.recall_entropy(images).keys()
    detector.set_params(
        image_size=8, critical_layers=1, max_iter=7, memory_size=9, memory_levels=[1],
        paradigm="forward", memory_temperature=1.0, exemplar_weight=3.0,
    )  # fmt: skip
    assert_array_equal(detector.score_samples(images), scores)
    assert_array_equal(detector.localize(images), maps)
    assert detector.recall_entropy(images).keys() == levels
    assert detector.predict(images).shape == (12,)


def test_global_generators_are_left_alone(images):
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    tiny_memkd(random_state=None, augmentation="mild").fit(images).predict(images)
    assert_array_equal(torch.get_rng_state(), state)
    assert_array_equal(np.random.get_state()[1], numpy_state)


@pytest.mark.parametrize("parameters", [{}, {"memory_size": 0}, {"paradigm": "forward"}])
def test_bundled_source_separates_faces_from_other_crops(parameters):
    images = lfw_subset()
    detector = MemKDDetector(
        validation_fraction=0, image_size=32, max_iter=3, tol=None, random_state=0, **parameters
    )
    scores = detector.fit(images[:80]).score_samples(images[80:])
    assert roc_auc_score(np.repeat([1, -1], [20, 100]), scores) > 0.95
    assert detector.critical_layers_ == ("features.15", "features.22", "features.29")
