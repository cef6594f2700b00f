"""Whatever is passed, only clear errors come back, and an error changes nothing.

A tenth of the calls runs with the tests; all 20,000, of 10 s at most, run with::

    pytest tests/test_fuzz.py --hypothesis-profile=thorough
"""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, TinySource
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib import pyplot
from PIL import Image
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.metrics import _ranking as ranking
from sklearn.utils._param_validation import generate_valid_param, make_constraint

import skmkd
from skmkd import MemKDDetector, MKDDetector, datasets, inspection, metrics, monitoring
from skmkd.model_selection import NormalOnlySplit, mean_normal_score

pytestmark = pytest.mark.slow

CLEAR = (ValueError, TypeError, OSError, MemoryError)  # NotFittedError is a ValueError
TOLD = {Path(__file__), Path(ranking.__file__)}  # where warnings point to: ours, and documented
SOURCE = TinySource()
DTYPES = (
    "bool", "uint8", "int8", "uint16", "int32", "int64", "uint64", "float16", "float32", "float64",
    "longdouble", "complex64", "object", "U3", "S2", "datetime64[s]", "timedelta64[s]", ">f4",
    ">u2", [("a", "u1"), ("b", "f4")],
)  # fmt: skip
SHAPES = (
    (), (0,), (5,), (12, 16, 16), (12, 16, 16, 3), (3, 16, 16, 1), (2, 16, 16, 4), (12, 20, 24, 3),
    (1, 16, 16, 3), (0, 16, 16, 3), (12, 0, 16, 3), (12, 16, 0), (12, 16, 16, 0), (16, 16),
    (16, 16, 3), (12, 3, 16, 16), (2, 2, 16, 16, 3), (12, 256), (12, 1, 1, 3), (2, 1, 300, 3),
    (2, 300, 1), (12, 16, 16, 2), (12, 16, 16, 5), (1,) * 8,
)  # fmt: skip


def special(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draw numbers among which some are not, or at the ends of what floats hold."""
    kinds = [0.0, 1.0, np.nan, np.inf, -np.inf, 1e300, -1e300, 5e-324, 1e10, -9999.0]
    return rng.choice(kinds, shape)


FILLS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    "pixels": lambda rng, shape: rng.integers(0, 256, shape),
    "shares": lambda rng, shape: rng.random(shape),
    "signed": lambda rng, shape: rng.normal(size=shape),
    "zeros": lambda rng, shape: np.zeros(shape),
    "ones": lambda rng, shape: np.ones(shape),
    "huge": lambda rng, shape: 1e307 * rng.random(shape),
    "minute": lambda rng, shape: 1e-310 * rng.random(shape),
    "special": special,
    "labels": lambda rng, shape: rng.choice([-1, 1], shape),
}


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """Draw an array of any type, rank and content, in any layout."""
    lengths = st.lists(st.integers(0, 20), max_size=4).map(tuple)
    shape = draw(st.one_of(st.sampled_from(SHAPES), lengths))
    fill = draw(st.sampled_from(sorted(FILLS)))
    values = FILLS[fill](np.random.default_rng(draw(st.integers(0, 9))), shape)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            array = np.asarray(values).astype(draw(st.sampled_from(DTYPES)))
        except (TypeError, ValueError):  # nan is no date
            array = np.asarray(values)
    layout = draw(st.sampled_from(["C", "F", "reversed", "strided", "read-only", "masked"]))
    if layout == "F":
        return np.asfortranarray(array)
    if layout == "reversed" and array.ndim:
        return array[::-1]
    if layout == "strided" and array.ndim:
        return array.repeat(2, axis=-1)[..., ::2]
    if layout == "masked":
        return np.ma.masked_array(array, mask=np.zeros(array.shape, bool))
    if layout == "read-only":
        array.flags.writeable = False
    return array


def nested() -> list:
    """Return a list that holds itself."""
    itself: list = []
    itself.append(itself)
    return itself


OBJECTS: tuple[Callable[[], Any], ...] = (
    object, dict, set, nested, BaseEstimator,
    lambda: iter([np.zeros((16, 16))]),
    lambda: (np.zeros((16, 16)) for _ in range(3)),
    lambda: {"image": np.zeros((2, 16, 16))},
    lambda: range(3),
    lambda: slice(None),
    lambda: MKDDetector,
    lambda: Path("missing.png"),
    lambda: Path("."),
    lambda: ["missing.png", "missing.png"],
    lambda: ["damaged.png"],
    lambda: ["good.png", "damaged.png"],
    lambda: ["good.png"] * 12,
    lambda: Image.new("RGB", (16, 16)),
    lambda: [Image.new("RGB", (16, 16)), Image.new("L", (3, 300)), Image.new("CMYK", (9, 9))],
    lambda: torch.zeros(12, 16, 16, 3),
    lambda: torch.zeros(12, 16, 16, 3, device="meta"),
    lambda: torch.zeros(12, 16, 16, 3, requires_grad=True),
    lambda: [torch.zeros(16, 16)] * 12,
    lambda: sparse.eye_array(12).tocsr(),
    lambda: memoryview(bytes(12)),
    lambda: np.random.RandomState(0),
    lambda: np.random.default_rng(0),
    lambda: [np.zeros((16, 16, 3), np.uint8), np.zeros((20, 12, 3), np.uint8)],
    lambda: [np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16), np.uint16)],
    lambda: [np.zeros((16, 16)), None, "text"],
    lambda: [[0.0, 1.0], [2.0]],
    lambda: np.float32(0.5),
    lambda: np.array([1, 2]),
    lambda: np.eye(16, dtype=bool),
    lambda: np.array(["good.png"] * 12),
    lambda: np.array([Path("good.png"), None], dtype=object),
)  # fmt: skip
SCALARS = st.sampled_from(
    [
        None, True, False, 0, 1, 2, 3, 16, -1, 10**6, 10**30, 0.0, 0.05, 0.5, 1.0, -0.5, 1e-300,
        float("nan"), float("inf"), 1 + 1j, np.int64(4), np.float64(0.2), np.bool_(True), "",
        "auto", "vgg16", "raise", "nan", "position", "vector", "loss", "map_max", "gradients",
        "rigid", "features.2", "cpu", "meta", "float32", "bfloat16", "same", b"bytes", (), (16,),
        (16, 16), (0, 1), (1, 0), (0.5, 0.999), (float("nan"), 1.0), [], ["features.2"], [0, 1], {},
        {"a": 1}, {"n_samples": 2}, object(), int, "mixed",
    ]
)  # fmt: skip
OBJECT = st.sampled_from(OBJECTS).map(lambda make: make())
ANYTHING = st.one_of(
    arrays(),
    arrays().map(lambda array: list(np.atleast_1d(array))),  # of images, or numbers
    OBJECT,
    SCALARS,
    st.text(max_size=5),
    st.lists(st.one_of(arrays(), SCALARS), max_size=3),
)
SLOW = {"max_iter", "engine"}  # among their valid values


def mostly(usual: st.SearchStrategy, odd: st.SearchStrategy = ANYTHING) -> st.SearchStrategy:
    """Draw what is usual in two of three cases."""
    return st.integers(0, 2).flatmap(lambda i: usual if i else odd)


@st.composite
def images(draw: st.DrawFn, n: int = 12) -> np.ndarray:
    """Draw images of the right shape, of a likely type and any content."""
    fill = draw(st.sampled_from(["pixels", "pixels", "pixels", "shares", "ones", "special"]))
    values = FILLS[fill](np.random.default_rng(draw(st.integers(0, 9))), (n, 16, 16, 3))
    dtypes = ["uint8"] * 4 + ["float32", "uint16"] if fill == "pixels" else ["float64"]
    return values.astype(draw(st.sampled_from(dtypes)))


IMAGES = mostly(images(), st.one_of(arrays(), ANYTHING))
DEFAULT = st.none()
MASKS = st.sampled_from(
    [np.arange(2 * 16 * 16).reshape(2, 16, 16) % 7 < k for k in range(-1, 9)]
    + [np.zeros((2, 16, 20), bool), np.zeros((3, 16, 16), np.uint8)]
)
MAPS = st.builds(
    lambda fill, seed: FILLS[fill](np.random.default_rng(seed), (2, 16, 16)),
    st.sampled_from(sorted(FILLS)),
    st.integers(0, 9),
)
LABELS = st.builds(
    lambda seed, n: np.random.default_rng(seed).choice([-1, 1], n),
    st.integers(0, 9),
    st.sampled_from([12, 12, 12, 0, 1]),
)
SCORES = st.builds(
    lambda fill, seed, n: FILLS[fill](np.random.default_rng(seed), (n,)),
    st.sampled_from(sorted(FILLS)),
    st.integers(0, 9),
    st.sampled_from([12, 12, 12, 0, 1, 40]),
)
SHARES = st.sampled_from([0.01, 0.05, 0.3, 1.0])


@st.composite
def settings_of(draw: st.DrawFn, kind: type[MKDDetector] | type[MemKDDetector]) -> dict[str, Any]:
    """Draw up to five parameters, each as its constraints allow or anything."""
    chosen = draw(
        st.lists(st.sampled_from(sorted(set(kind._parameter_constraints) - SLOW)), max_size=5)
    )
    given: dict[str, Any] = {}
    for name in chosen:
        if draw(st.integers(0, 9)) == 0:
            given[name] = draw(SCALARS | OBJECT)
            continue
        constraint = draw(st.sampled_from(kind._parameter_constraints[name]))
        valid = [*getattr(make_constraint(constraint), "options", ())]
        with suppress(NotImplementedError, TypeError):  # of types that are abstract or unknown
            valid = valid or [generate_valid_param(make_constraint(constraint))]
        if valid:
            given[name] = draw(st.sampled_from(sorted(valid, key=str)))
    return given


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Work in a folder of its own, with one image that can be read and one that cannot."""
    folder = tmp_path_factory.mktemp("fuzz")
    Image.new("RGB", (16, 16), "red").save(folder / "good.png")
    (folder / "damaged.png").write_bytes((folder / "good.png").read_bytes()[:-30])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def fitted() -> MKDDetector:
    """A detector with thresholds, which calls must not change."""
    X = np.random.default_rng(0).integers(0, 256, (100, 16, 16, 3), np.uint8)
    return tiny(MKDDetector).fit(X[:12]).calibrate(X)


METHODS = (
    "score_samples", "decision_function", "predict", "localize", "predict_mask", "p_value",
    "iter_results",
)  # fmt: skip


def tiny(kind: type[BaseEstimator], **given: Any) -> Any:
    """Return a detector that fits in a moment, if the given parameters let it."""
    usual = {name: TINY[name] for name in TINY if name in kind._parameter_constraints}
    return kind(**({"source": SOURCE} | usual | {"max_iter": 1} | given))


def world() -> tuple:
    """Return what is global and belongs to the user."""
    name, keys, *position = np.random.get_state()
    return (
        torch.get_rng_state().numpy().tobytes(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        (name, keys.tobytes(), position),
        random.getstate(),
        Path.cwd(),
    )


def state(estimator: Any) -> dict[str, tuple[int, ...]]:
    """Return what an estimator holds, by identity, and how often its tensors were changed."""
    return {
        name: (id(value), *(p._version for p in value.state_dict().values()))
        if isinstance(value, torch.nn.Module)
        else (id(value),)
        for name, value in vars(estimator).items()
    }


def tried(call: Callable[[], Any], *estimators: Any) -> None:
    """Call, and check what is raised, warned and changed."""
    before = world(), [state(each) for each in estimators]
    error = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            call()
        except CLEAR as raised:
            error = raised
    if error is not None:
        assert str(error), "an error says what is wrong"
        assert [state(each) for each in estimators] == before[1]
    below = [w for w in caught if Path(w.filename) not in TOLD]
    assert not below, [str(w) for w in below]
    assert world() == before[0]


def fuzz(share: float) -> Callable[[Any], Any]:
    """Try a share of the profile's calls."""
    return settings(
        max_examples=max(1, int(share * settings.default.max_examples)),
        suppress_health_check=list(HealthCheck),
    )


@fuzz(2)
@given(X=IMAGES, y=mostly(DEFAULT), groups=mostly(DEFAULT), memory=st.booleans())
def test_fit(X: Any, y: Any, groups: Any, memory: bool) -> None:
    detector = tiny(MemKDDetector if memory else MKDDetector)
    tried(lambda: detector.fit(X, y, groups=groups), detector)


@fuzz(2)
@given(X=IMAGES, roi=mostly(DEFAULT))
def test_fit_again(fitted: MKDDetector, X: Any, roi: Any) -> None:
    detector = copy.copy(fitted)
    tried(lambda: detector.fit(X, roi=roi), detector)


@pytest.mark.parametrize("kind", [MKDDetector, MemKDDetector])
@fuzz(1.5)
@given(st.data())
def test_parameters(kind: type[MKDDetector] | type[MemKDDetector], data: st.DataObject) -> None:
    X = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), np.uint8)
    detector = tiny(kind, **data.draw(settings_of(kind)))
    tried(lambda: detector.fit(X).predict(X), detector)


@fuzz(4)
@given(st.sampled_from(METHODS), mostly(images(3), st.one_of(arrays(), ANYTHING)), mostly(DEFAULT))
def test_scoring(fitted: MKDDetector, method: str, X: Any, roi: Any) -> None:
    def call() -> None:
        answer = getattr(fitted, method)(X, roi=roi)
        if method == "iter_results":
            list(answer)

    tried(call, fitted)


@fuzz(1)
@given(mostly(images(3)), mostly(DEFAULT, SCALARS | OBJECT))
def test_localization_methods(fitted: MKDDetector, X: Any, method: Any) -> None:
    tried(lambda: fitted.localize(X, method), fitted)


@fuzz(2)
@given(mostly(images(40)), mostly(SHARES, SCALARS), mostly(DEFAULT))
def test_calibrate(fitted: MKDDetector, X: Any, fpr: Any, groups: Any) -> None:
    detector = copy.copy(fitted)
    tried(lambda: detector.calibrate(X, fpr=fpr, groups=groups), detector)
    tried(lambda: detector.set_fpr(fpr), detector)


@fuzz(2)
@given(
    st.sampled_from(metrics.__all__), mostly(MASKS), mostly(MAPS), mostly(st.booleans(), SCALARS)
)
def test_metrics(name: str, masks: Any, maps: Any, exact: Any) -> None:
    tried(lambda: getattr(metrics, name)(masks, maps, exact=exact))


@fuzz(1)
@given(mostly(images()), mostly(LABELS), mostly(st.integers(2, 5), SCALARS))
def test_model_selection(fitted: MKDDetector, X: Any, labels: Any, n_splits: Any) -> None:
    tried(lambda: list(NormalOnlySplit(n_splits, random_state=0).split(X, labels)))
    tried(lambda: mean_normal_score(fitted, X, labels), fitted)


@fuzz(0.5)
@given(mostly(images(2)), mostly(MAPS), mostly(MASKS), mostly(SHARES, SCALARS))
def test_displays_of_maps(X: Any, maps: Any, masks: Any, threshold: Any) -> None:
    tried(lambda: inspection.LocalizationDisplay.from_maps(X, maps, masks, threshold=threshold))
    tried(lambda: inspection.PerRegionOverlapDisplay.from_maps(masks, maps, max_fpr=threshold))
    pyplot.close("all")


@fuzz(0.5)
@given(mostly(LABELS), mostly(SCORES), mostly(SHARES, SCALARS))
def test_displays_of_scores(labels: Any, scores: Any, threshold: Any) -> None:
    of_scores = inspection.ScoreDisplay.from_predictions
    tried(lambda: of_scores(labels, scores, threshold=threshold))
    pyplot.close("all")


@fuzz(0.5)
@given(mostly(st.just("."), ANYTHING), mostly(st.just([".png"]), ANYTHING), mostly(DEFAULT))
def test_folders(folder: Any, extensions: Any, bad: Any) -> None:
    tried(lambda: datasets.list_images(folder, extensions=extensions))
    tried(lambda: datasets.load_image_folder(folder, good=extensions, bad=bad))


@fuzz(0.5)
@given(IMAGES, mostly(st.just("mixed")), mostly(st.just(0)))
def test_made_defects(X: Any, kind: Any, random_state: Any) -> None:
    tried(lambda: datasets.make_defects(X, kind=kind, random_state=random_state))


@fuzz(0.5)
@given(ANYTHING, mostly(DEFAULT), st.binary(max_size=100))
def test_files(path: Any, device: Any, content: bytes) -> None:
    Path("model.skmkd").write_bytes(content)
    tried(lambda: skmkd.load("model.skmkd", device=device))
    tried(lambda: skmkd.load(path, source=device))


@fuzz(1)
@given(mostly(SCORES), mostly(SCORES), mostly(SHARES, SCALARS))
def test_monitoring(fitted: MKDDetector, calibration: Any, scores: Any, alpha: Any) -> None:
    tried(lambda: monitoring.drift_test(calibration, scores, alpha=alpha))
    tried(lambda: monitoring.drift_test(fitted, scores, alpha=alpha), fitted)
    tried(lambda: monitoring.DriftMonitor(fitted, contamination=alpha).update(scores), fitted)
