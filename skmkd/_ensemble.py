"""DetectorEnsemble: several detectors, of several sources, that judge each image together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial, reduce
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import OutlierMixin, _fit_context, clone
from sklearn.utils import Tags
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.metaestimators import _BaseComposition
from sklearn.utils.validation import check_is_fitted

from skmkd._base import BaseDistillationDetector, each_left_out
from skmkd._export.exporting import ExportMixin
from skmkd._features.batches import Dataset, evenly_spaced, in_step
from skmkd._files.saving import SavingMixin
from skmkd._images.images import Images
from skmkd._images.inputs import ImagesLike
from skmkd._images.roi import RoiLike
from skmkd._maps.finishing import Output
from skmkd._parameters import SHARED, attribute, unfitted
from skmkd._runtime import draw_seed, uninterrupted
from skmkd._scoring import ScoringMixin
from skmkd._thresholds import MAP_THRESHOLD_IMAGES, ThresholdMixin

Pairs = list[tuple[str, BaseDistillationDetector]]
COMBINATIONS: dict[str, Callable[[Sequence[Any]], Any]] = {  # of scores (floats) or maps (H, W)
    "max": lambda anomalies: reduce(np.maximum, anomalies),
    "mean": lambda anomalies: reduce(np.add, anomalies) / len(anomalies),
}
READING = ("image_shape", "pixel_range", "roi", "max_pixels")
OWN = ("contamination", "validation_fraction", "on_error", "random_state")
ABOUT_X = (
    "image_shape_", "pixel_range_", "_seen_pixels", "n_features_in_", "feature_names_in_", "_roi",
    "_roi_of_each",
)  # fmt: skip
BULK = 0.95  # of a normal map's pixels; more let its few peaks decide, which are the noisiest
ALIKE = 1e-3  # of a centre: a smaller scale is rounding, which bfloat16 does to 3 digits


def in_common(name: str, ensemble: DetectorEnsemble) -> Any:
    """Return a parameter of all detectors that says how images are read."""
    first, *others = (getattr(detector, name) for _, detector in ensemble._pairs())
    for other in others:
        if not np.array_equal(first, other):
            raise ValueError(
                f"{name} must be the same for all detectors, which learn from the same images; got "
                f"{first!r} and {other!r}."
            )
    return first


class DetectorEnsemble(
    OutlierMixin, ScoringMixin, ThresholdMixin, SavingMixin, ExportMixin, _BaseComposition
):
    """Several detectors, such as those of several sources, that judge each image together.

    Scores and maps of each detector are brought to a common scale, on normal images that none has
    learned from, and then combined: sources differ in the anomalies that they see.

    Parameters
    ----------
    detectors : list of tuple (str, MKDDetector or MemKDDetector)
        The detectors and their names, which `set_params` takes as in ``vgg16__max_iter=20``. They
        are copied and not changed. `image_shape`, `pixel_range`, `roi` and `max_pixels` must be the
        same for all; thresholds are those of the ensemble.
    combine : {"mean", "max"}, default="mean"
        How anomaly scores, and maps at each place, are combined once they are on a common scale:
        "mean" averages out what is noise in one, "max" finds what any detector finds.
    contamination : "auto" or float in (0, 0.5], default="auto"
        "auto" sets the thresholds from images that `fit` holds out, for 5 % false alarms; a float
        is the share of the training images below that of `predict`, and above that of masks.
    validation_fraction : float in [0, 1), default=0.2
        Share of the images that "auto" holds out, for the common scale as well; with 0, scale and
        thresholds are of the training images.
    on_error : {"raise", "skip"}, default="raise"
        How to treat an image that cannot be read or does not fit the others, as in `MKDDetector`.
    random_state : int, RandomState instance or None, default=None
        Seed of the images that are held out, and of each detector, by its name. With None, these
        are drawn at random, and detectors have seeds of their own.

    Attributes
    ----------
    detectors_ : list of MKDDetector or MemKDDetector
        The fitted detectors. They have scores and maps, but no thresholds of their own.
    named_detectors_ : dict of str to MKDDetector or MemKDDetector
        The same by their names.
    score_scaling_ : ndarray of shape (n_detectors, 2), float64
        Median and interquartile range of each detector's scores of normal images.
    map_scaling_ : ndarray of shape (n_detectors, 2), float64
        Median of each detector's maps of normal images, and how far their 95 % quantile exceeds it.
    loss_curve_ : dict of str to ndarray of shape (n_epochs,), float64
        The loss curves of all detectors, such as "vgg16__total".
    offset_, map_offset_ : float
        Thresholds of `predict` and `predict_mask`, in the units of scores and maps.
    calibration_scores_, calibration_peaks_ : ndarray of shape (n,), float64, or None
        Scores of held-out normal images, and maxima of their maps, ascending.
    image_shape_, pixel_range_ : tuple
        Shape of the training images, and what their pixel values mean, as in `MKDDetector`.
    n_features_in_, feature_names_in_ : int, ndarray of shape (`n_features_in_`,)
        H * W * C, if X was an array; names of columns, if it was a data frame.

    See Also
    --------
    MKDDetector : A single detector.

    Notes
    -----
    Each detector's scores are taken as ``(score - median) / interquartile range`` of at most 256
    normal images, so that they spread alike. In its maps, 0 becomes the median pixel and 1 the one
    that 5 % exceed, both in the median over these images, so that an odd one has no weight.

    `fit` takes scale and thresholds from the same held-out images, which fit their scale a little
    better than new images do: these raise more false alarms than they should. The scale is
    therefore of the bulk of scores and pixels, and thresholds are of the most anomalous ones. In
    simulations of two detectors with ``combine="max"``, 20 held-out images gave 4.7 to 5.5 % false
    alarms where 4.8 % were due. Thresholds that `calibrate` sets on other images are exact.

    Detectors score images in step, a batch at a time, so that memory does not grow with the number
    of images. A file is decoded once for all whose `tile_size` is None. `combine` and `on_error`
    act at once; parameters of detectors, at the next `fit`.

    Examples
    --------
    >>> from skimage.data import lfw_subset
    >>> from sklearn.metrics import roc_auc_score
    >>> from skmkd import DetectorEnsemble, MKDDetector
    >>> images = lfw_subset()  # 100 faces, then 100 others, of 25 x 25 pixels
    >>> small = dict(image_size=32, batch_size=8, max_iter=8)
    >>> sources = "vgg16", "efficientnet_lite0"
    >>> ensemble = DetectorEnsemble(
    ...     [(source, MKDDetector(source=source, **small)) for source in sources], random_state=0
    ... ).fit(images[:95])
    >>> bool(roc_auc_score([1] * 5 + [-1] * 100, ensemble.score_samples(images[95:])) > 0.9)
    True
    >>> ensemble.localize(images[95:]).shape
    (105, 25, 25)
    """

    __metadata_request__fit: ClassVar = {"groups": False}  # of a search are for its splitter
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "detectors": [list],
        "combine": [StrOptions(set(COMBINATIONS))],
        **{name: SHARED[name] for name in OWN},
    }
    image_shape, pixel_range, roi, max_pixels = (
        attribute(partial(in_common, name)) for name in READING
    )

    def __init__(
        self,
        detectors: Pairs,
        *,
        combine: str = "mean",
        contamination: str | float = "auto",
        validation_fraction: float = 0.2,
        on_error: str = "raise",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.detectors = detectors
        self.combine = combine
        self.contamination = contamination
        self.validation_fraction = validation_fraction
        self.on_error = on_error
        self.random_state = random_state

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Get the parameters of the ensemble and of its detectors.

        Parameters
        ----------
        deep : bool, default=True
            Whether those of the detectors are among them, as in ``vgg16__max_iter``.

        Returns
        -------
        params : dict of str to Any
            The parameters and their values.
        """
        return self._get_params("detectors", deep=deep)

    def set_params(self, **params: Any) -> Self:
        """Set parameters of the ensemble or of its detectors, or replace detectors by name.

        Parameters
        ----------
        **params : Any
            Parameters as `get_params` returns them.

        Returns
        -------
        self : object
            The ensemble.
        """
        self._set_params("detectors", **params)
        return self

    @property
    def detectors_(self) -> list[BaseDistillationDetector]:
        """The fitted detectors."""
        check_is_fitted(self, "named_detectors_")
        return list(self.named_detectors_.values())

    @property
    def loss_curve_(self) -> dict[str, np.ndarray]:
        """The loss curves of all detectors."""
        return {
            f"{name}__{term}": curve
            for detector, name in zip(self.detectors_, self.named_detectors_, strict=True)
            for term, curve in detector.loss_curve_.items()
        }

    @uninterrupted
    @_fit_context(prefer_skip_nested_validation=False)
    def fit(
        self,
        X: ImagesLike,
        y: Any = None,
        *,
        groups: ArrayLike | None = None,
        roi: RoiLike = None,
    ) -> Self:
        """Learn from normal images.

        If it fails, the ensemble stays as it was before.

        Parameters
        ----------
        X : array-like, list of array-like, or list of paths
            At least two normal images, as in `MKDDetector.fit`.
        y : None
            Ignored: all images of X are taken to be normal.
        groups : array-like of shape (n,), default=None
            The lot, day or object of each image; whole groups are held out for the thresholds.
        roi : list of n regions, default=None
            The region of interest of each image, instead of the parameter of the detectors.

        Returns
        -------
        self : object
            The fitted ensemble.

        Raises
        ------
        ValueError
            If X or a parameter is not as described, or the loss of a detector diverges.
        """
        fitted = unfitted(self)
        fitted._fit(X, groups, roi)
        self.__dict__ = dict(vars(fitted))  # only now: a fit that fails leaves self unchanged
        return self

    def _fit(self, X: Any, groups: Any, roi: Any) -> None:
        split = images, held = self._admit(X, groups, roi)
        self.named_detectors_ = {
            name: self._learned(name, detector, split) for name, detector in self.detectors
        }
        with each_left_out(self.detectors_):
            self._set_scales(images if held is None else held)
            if held is None:
                self._set_training_thresholds(images, None)
            else:
                self._set_held_out_thresholds(held)

    def _learned(
        self, name: str, detector: BaseDistillationDetector, split: tuple[Images, Images | None]
    ) -> BaseDistillationDetector:
        """Return a copy of a detector that has learned from checked images, all of them."""
        member = clone(detector)
        vars(member).update({n: value for n, value in vars(self).items() if n in ABOUT_X})
        if self.random_state is None:
            member._seed = draw_seed(member.random_state)
        else:  # whatever the order of detectors
            member._seed = int(np.random.default_rng([self._seed, *name.encode()]).integers(2**31))
        member._learn(*split)
        return member

    def _set_scales(self, images: Images) -> None:
        """Set the common scale of scores and of maps, by normal images."""
        chosen = evenly_spaced(len(images), MAP_THRESHOLD_IMAGES)
        together = self._outputs_of_each(images, indices=chosen)
        found = [[(e.score, *level_and_bulk(e, images)) for e in outputs] for outputs in together]
        scores, levels, bulks = np.array(found, dtype=np.float64).transpose(2, 0, 1)  # (n, k)
        for member, own in zip(self.detectors_, scores.T, strict=True):
            member._check_scores(own)
        low, centre, high = np.quantile(scores, (0.25, 0.5, 0.75), axis=0)
        self.score_scaling_ = scaling(centre, high - low)
        level = np.median(levels, axis=0)
        self.map_scaling_ = scaling(level, np.median(bulks, axis=0) - level)

    def _outputs_of_each(
        self, images: Images, *, indices: Sequence[int] | None = None, **options: Any
    ) -> Iterator[tuple[Output, ...]]:
        """Yield what the detectors compute for each image, in step with each other."""
        chosen = range(len(images)) if indices is None else indices
        datasets = [detector._dataset(detector._tiles(images)) for detector in self.detectors_]
        computed = [
            detector._outputs(images, dataset=dataset, indices=chosen, **options)
            for detector, dataset in zip(self.detectors_, in_step(datasets, chosen), strict=True)
        ]
        return zip(*computed, strict=True)

    def _outputs(
        self, images: Images, *, method: str | None = None, dataset: Dataset | None = None,
        **options: Any,
    ) -> Iterator[Output]:  # fmt: skip
        """Yield combined score and map of each image; each detector has a dataset of its own."""
        for outputs in self._outputs_of_each(images, **options):
            yield self._combined(outputs, images)

    def _combined(self, outputs: Sequence[Output], images: Images) -> Output:
        """Return score and map of an image from those of each detector."""
        combine, index = COMBINATIONS[self.combine], outputs[0].index
        pairs = zip(outputs, self.score_scaling_, strict=True)
        score = -float(combine([(centre - each.score) / scale for each, (centre, scale) in pairs]))
        if outputs[0].map is None:
            return Output(index, score, None)
        pairs = zip(outputs, self.map_scaling_.astype(np.float32), strict=True)
        whole = combine([(each.map - centre) / scale for each, (centre, scale) in pairs])
        if images.regions is not None and index not in images.unreadable:
            region = images.regions[index]
            whole = region.placed(region.rectangle(whole), whole.shape)
        return Output(index, score, whole)

    def _check_options(self, method: str | None = None) -> None:
        """Check the detectors, and what the limits of single parameters cannot say.

        Raises
        ------
        ValueError
            If a detector or its name is not as described, detectors read images differently, or a
            method is given.
        """
        if method is not None:
            raise ValueError(
                f"method must be None for DetectorEnsemble, whose scale is that of its detectors' "
                f"maps; got {method!r}. Set the detectors' localization before fit."
            )
        given = "named_detectors_" not in vars(self)
        for _, detector in self._pairs():
            checked = unfitted(detector) if given else detector
            checked._validate_params()
            checked._check_options()
        for name in READING:
            in_common(name, self)

    def _pairs(self) -> Pairs:
        """Names and detectors: the fitted ones if there are any, else those given, checked."""
        if (fitted := vars(self).get("named_detectors_")) is not None:
            return list(fitted.items())
        pairs = self.detectors
        listed = isinstance(pairs, list) and all(isinstance(p, (tuple, list)) for p in pairs)
        if not listed or not pairs or any(len(pair) != 2 for pair in pairs):
            raise ValueError(
                f"detectors must be a list of one (name, detector) pair or more; got {pairs!r}."
            )
        for name, detector in pairs:
            if not isinstance(name, str) or not isinstance(detector, BaseDistillationDetector):
                raise ValueError(
                    "detectors must be pairs of a str and an MKDDetector or MemKDDetector; got "
                    f"({name!r}, {detector!r})."
                )
        self._validate_names([name for name, _ in pairs])
        return pairs

    def _settings(self) -> tuple[dict[str, Any], dict[str, Any]]:
        settings = {name: each._settings() for name, each in self.named_detectors_.items()}
        scores, maps = ({name: of[i] for name, of in settings.items()} for i in range(2))
        return {"combine": self.combine, **scores}, {"combine": self.combine, **maps}

    def _check_scores(self, scores: ArrayLike) -> None:
        self.detectors_[0]._check_scores(scores)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags


def level_and_bulk(output: Output, images: Images) -> np.ndarray:
    """Return median and 95 % quantile of a map within the region of interest: (2,)."""
    inside = output.map
    if images.regions is not None:
        inside = images.regions[output.index].inside(inside)
    return np.quantile(inside, (0.5, BULK))


def scaling(centre: np.ndarray, scale: np.ndarray) -> np.ndarray:  # (k,), (k,) -> (k, 2)
    """Return centre and scale of each detector; a scale that is rounding is replaced."""
    least = ALIKE * np.abs(centre)
    return np.stack([centre, np.where(scale > least, scale, np.where(least > 0, least, 1.0))], 1)
