"""MKDDetector: multiresolution knowledge distillation as a scikit-learn outlier detector."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import joblib
import numpy as np
import torch
from sklearn.utils._param_validation import (
    Interval,
    StrOptions,
)
from torch import Tensor, nn

from skmkd._base import BaseDistillationDetector
from skmkd._features.batches import Batch
from skmkd._images.checks import ImagesLike
from skmkd._inference import Maps
from skmkd._maps.attribution import (
    METHODS,
    USED,
    checked_options,
    gradient,
    guided_backprop,
    smooth_grad,
)
from skmkd._maps.discrepancy import (
    Features,
    balancing_weight,
    discrepancies,
    discrepancy_map,
    total_discrepancy,
)
from skmkd._maps.finishing import blurred_maximum
from skmkd._networks.cloners import build_cloner, check_cloner_output, cloner_blocks
from skmkd._networks.layers import REDUCTIONS
from skmkd._networks.precision import to_device
from skmkd._networks.sources import Source
from skmkd._runtime import forked_rng, private_generator
from skmkd._training import Terms

PAPER: dict[str, Any] = {
    "value_weight": 1.0,
    "direction_weight": "auto",
    "direction": "vector",
    "image_score": "loss",
    "localization": "gradient",
    "normalization": None,
}


class MKDDetector(BaseDistillationDetector):
    """Anomaly detection and localization by multiresolution knowledge distillation.

    A frozen *source* network, trained on ImageNet, teaches a small *cloner* what it sees in
    normal images, at several *critical layers*. On an image unlike those the two disagree: how
    much is the anomaly score, and where is the localization map [1]_.

    Parameters
    ----------
    source : str or nn.Module, default="vgg16"
        The source network: "vgg16", another classification model of torchvision by its name, or
        a convolutional network that takes images (n, 3, H, W), which is copied.
    source_weights : {"auto", "bundled", "imagenet"}, path, dict or None, default="auto"
        Where the source's weights come from. "bundled" is VGG-16's, which come with skmkd;
        "imagenet" torchvision's, which it downloads; a path leads to a ``.pt`` or
        ``.safetensors`` file of a state dict; None draws random weights, with a warning. "auto"
        is "bundled" for "vgg16" and the module's own weights for a module; other names need an
        explicit choice.
    cloner : {"compact", "equal"} or nn.Module, default="compact"
        The cloner network: with few channels wherever it does not answer to the source, with as
        many as the source, or a network of your own, which is copied. It takes images
        (n, 3, H, W) and returns a dict of critical layer -> activations shaped as the source's.
    critical_layers : "auto", int or list of str, default="auto"
        Where both networks are compared: the last k places at which the source's grid is halved
        (for VGG-16 its max-pools), or layers by name. "auto" is the last four, as in the paper.
    score_layers : int, list of str or None, default=None
        The critical layers that scores and maps use: the last k, some by name, or all.
    value_weight : float, default=0.0
        Weight of the value discrepancy in the loss, not negative. Maps of discrepancies, and scores
        from them, count it only with ``localization_params={"value": True}``. Values are many
        times larger than directions: give 0.01, or 1 beside ``direction_weight="auto"``.
    direction_weight : "auto" or float, default=1.0
        Weight λ of the direction discrepancy, not negative. "auto" gives both discrepancies the
        same mean on the untrained cloner, as the paper does. Where `value_weight` is 0 there is
        nothing to weigh against, and it changes next to nothing.
    direction : {"position", "vector"}, default="position"
        Whether directions are compared at each position along the channels, and averaged, or over
        a whole layer at once, as in the paper.
    image_score : {"map_max", "loss"}, default="map_max"
        What makes an image anomalous: the maximum of the blurred feature discrepancy map, or the
        total discrepancy, as in the paper.
    normalization : {"source"} or None, default="source"
        Whether pixels, scaled to 0-1, are normalised as the training images of torchvision's
        weights were; with ImageNet's mean and deviation for a source that is a module.
    image_size : int or tuple (height, width), default=128
        What images are resized to, in pixels, bilinearly and without keeping their aspect.
    image_shape : tuple (H, W) or (H, W, C), or None, default=None
        Shape of the images that the rows of a 2-D X hold. None takes them for square grey images
        if their length is a square number, else for one row of pixels.
    augmentation : {"mild"} or None, default=None
        "mild" rotates training images by up to 20 degrees and scales them by 0.9 to 1.05, as the
        paper does with few images.
    max_iter : int, default=200
        Epochs at most.
    tol : float or None, default=2e-2
        Training has converged when the loss improves on the best so far by less than this share
        for `n_iter_no_change` epochs in a row. None runs `max_iter` epochs.
    n_iter_no_change : int, default=10
        Epochs without improvement before training stops.
    batch_size : int, default=64
        Training images a step; batches come out near-equal, and never hold a single image.
    learning_rate : float, default=1e-3
        Step size of Adam.
    contamination : float in (0, 0.5], default=0.05
        Share of the training images below the threshold of `predict`, and of those with a pixel
        above that of `predict_mask`.
    localization : {"discrepancy", "gradient", "smooth_grad", "guided_backprop"}, \
            default="discrepancy"
        What maps are made of: the discrepancy of the features at each position, the gradient of
        the total discrepancy by the pixels, as in the paper, its mean over noisy copies, or the
        same with negative gradients cut at each ReLU. Gradients suit the paper's setting.
    localization_params : dict or None, default=None
        Options of the methods: ``through_source`` (False), whether gradients also run back
        through the source; ``n_samples`` (16) and ``noise`` (0.1, as a share of the image's
        range) of "smooth_grad"; ``value`` (False), whether "discrepancy" and the
        score "map_max" add the weighted value discrepancy to the direction's.
    smoothing_sigma : float, default=4.0
        Width of the Gaussian blur of maps, also of the one that "map_max" takes the maximum of, in
        pixels of the resized image; 0 switches it off.
    opening_size : int, default=3
        Size of the ellipse of the maps' grey opening, in pixels of the resized image, odd; 1
        switches it off.
    cache : "auto", int or None, default="auto"
        Bytes of memory that `fit` may take to keep the prepared images and the source's
        activations, which are computed once; where they need more, they lie in a
        temporary file instead, which takes at most half of the free space. "auto" is a quarter of
        the memory available to this process. None computes them anew in every epoch, as
        augmentation does. An image of 128 x 128 pixels takes 1.1 MB with VGG-16, and 0.7 MB in
        bfloat16.
    memory : str, path, joblib.Memory or None, default=None
        Where to store what the source sees in images, to share it between fits (which fill their
        `cache` from it), calls and processes, as in a grid search. It grows with every new
        image; delete the folder when done, and take a detector into service with
        ``set_params(memory=None)``.
    device : str, default="auto"
        "auto" or a torch device, such as "cpu", "cuda:0" or "mps".
    precision : {"auto", "float32", "bfloat16"}, default="auto"
        What the source computes in. "auto" is "bfloat16" where the hardware computes in it
        (processors with AVX512-BF16 or AMX, CUDA devices of capability 8.0 and more), and
        "float32" elsewhere. The cloner and all discrepancies are float32.
    on_error : {"raise", "skip"}, default="raise"
        What to do with a file that cannot be read. "skip" warns; `fit` and `calibrate` leave it
        out, its score is NaN, its prediction -1, its map NaN, its mask True.
    random_state : int, RandomState instance or None, default=None
        Seed of the cloner's weights, the order of images, augmentation and noise. None takes a
        fresh one, and leaves numpy's global generator alone.
    verbose : int, default=0
        1 or more shows a progress bar.

    Attributes
    ----------
    source_ : nn.Module
        The frozen source: images (n, 3, H, W) to a dict of critical layer -> activations.
    cloner_ : nn.Module
        The trained cloner, likewise.
    critical_layers_, score_layers_ : tuple of str
        The layers in use.
    direction_weight_ : float
        λ as used.
    offset_ : float
        Threshold of `predict`, in the unit of `score_samples`.
    map_offset_ : float
        Threshold of `predict_mask`, in the unit of the maps of `localization`; from at most 256
        training images.
    n_iter_ : int
        Epochs run.
    loss_curve_ : dict of str to ndarray of shape (n_epochs,), float64
        Mean "total", "value" and "direction" discrepancy of each epoch; the latter two unweighted.
        By default the total is the direction, and the value is only watched.
    image_shape_ : tuple (H, W, C)
        Shape of the training images; H and W are None if they came as a list.
    pixel_range_ : tuple (low, high, kind)
        The pixel values that are scaled to 0 and 1: of uint8, uint16 and bool by their type;
        0 and 1 for other numbers that fit in between, else the training images' extremes. New
        images must be of the same kind; floats may lie outside by up to ten times the range.
    device_ : torch.device
        Where the networks are.
    precision_ : str
        What the source computes in, here and on any other machine, so that thresholds keep
        their meaning: hardware without bfloat16 rounds as others do, and computes in float32.
    n_features_in_ : int
        H * W * C; only if X was an array.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Only if X was a data frame with string columns.

    See Also
    --------
    skmkd.model_selection.NormalOnlySplit : Cross-validation that learns from normal images only.
    skmkd.metrics.aupro_score : Judge localization maps.
    skmkd.inspection.LocalizationDisplay : Draw them.
    skmkd.load : Read a detector that `save` has written.
    sklearn.ensemble.IsolationForest : Outlier detection for tables of features.

    Notes
    -----
    Scores are float64, higher = more normal; maps are float32, higher = more anomalous. For an
    image, the total discrepancy is ``value_weight * V + λ * D``, where over the critical layers V
    sums the mean squared difference of activations (Eq. 1 of [1]_) and D one minus their cosine
    (Eq. 3). Images are scored in batches of one size, so that a score does not depend on its
    neighbours.

    Training minimises the total. The defaults compare directions at each position, and an image
    is as anomalous as its most anomalous place; the paper compares and scores whole images, which
    `MKDDetector.paper` does. The project's page of results holds both against each other.

    The paper says nothing on these, which follow its authors' practice: the absolute value of
    the gradient, summed over colours; a batch norm after every convolution of the cloner but the
    last of each block. Gradients run back through the cloner only, as the paper says, where its
    authors' program takes both networks (``through_source``). Of our own is that the statistics of
    batch norms are taken anew over all training images when training ends, which makes scores
    steadier from epoch to epoch.

    References
    ----------
    .. [1] M. Salehi, N. Sadjadi, S. Baselizadeh, M. H. Rohban and H. R. Rabiee,
       "Multiresolution Knowledge Distillation for Anomaly Detection", CVPR 2021,
       doi:10.1109/CVPR46437.2021.01466.

    Examples
    --------
    Faces are normal here, and other crops of photographs are not.

    >>> from skimage.data import lfw_subset
    >>> from sklearn.metrics import roc_auc_score
    >>> from skmkd import MKDDetector
    >>> images = lfw_subset()  # 100 faces, then 100 others, of 25 x 25 pixels
    >>> detector = MKDDetector(
    ...     image_size=32, batch_size=8, max_iter=8, tol=None, random_state=0
    ... )
    >>> scores = detector.fit(images[:80]).score_samples(images[80:])
    >>> bool(roc_auc_score([1] * 20 + [-1] * 100, scores) > 0.9)
    True
    >>> detector.localize(images[80:]).shape
    (120, 25, 25)
    """

    _layer_rule = REDUCTIONS
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseDistillationDetector._parameter_constraints,
        "cloner": [StrOptions({"compact", "equal"}), nn.Module],
        "score_layers": [Interval(Integral, 1, None, closed="left"), list, tuple, None],
        "value_weight": [Interval(Real, 0, None, closed="left")],
        "direction_weight": [StrOptions({"auto"}), Interval(Real, 0, None, closed="left")],
        "direction": [StrOptions({"position", "vector"})],
        "image_score": [StrOptions({"map_max", "loss"})],
        "localization": [StrOptions(set(METHODS))],
        "localization_params": [dict, None],
    }

    def __init__(
        self,
        *,
        source: str | nn.Module = "vgg16",
        source_weights: str | os.PathLike[str] | Mapping[str, Tensor] | None = "auto",
        cloner: str | nn.Module = "compact",
        critical_layers: str | int | Sequence[str] = "auto",
        score_layers: int | Sequence[str] | None = None,
        value_weight: float = 0.0,
        direction_weight: float | str = 1.0,
        direction: str = "position",
        image_score: str = "map_max",
        normalization: str | None = "source",
        image_size: int | tuple[int, int] = 128,
        image_shape: tuple[int, ...] | None = None,
        augmentation: str | None = None,
        max_iter: int = 200,
        tol: float | None = 2e-2,
        n_iter_no_change: int = 10,
        batch_size: int = 64,
        learning_rate: float = 1e-3,
        contamination: float = 0.05,
        localization: str = "discrepancy",
        localization_params: dict[str, Any] | None = None,
        smoothing_sigma: float = 4.0,
        opening_size: int = 3,
        cache: str | int | None = "auto",
        memory: str | os.PathLike[str] | joblib.Memory | None = None,
        device: str = "auto",
        precision: str = "auto",
        on_error: str = "raise",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.source = source
        self.source_weights = source_weights
        self.cloner = cloner
        self.critical_layers = critical_layers
        self.score_layers = score_layers
        self.value_weight = value_weight
        self.direction_weight = direction_weight
        self.direction = direction
        self.image_score = image_score
        self.normalization = normalization
        self.image_size = image_size
        self.image_shape = image_shape
        self.augmentation = augmentation
        self.max_iter = max_iter
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.contamination = contamination
        self.localization = localization
        self.localization_params = localization_params
        self.smoothing_sigma = smoothing_sigma
        self.opening_size = opening_size
        self.cache = cache
        self.memory = memory
        self.device = device
        self.precision = precision
        self.on_error = on_error
        self.random_state = random_state
        self.verbose = verbose

    @classmethod
    def paper(cls, **parameters: Any) -> Self:
        """Build a detector with the paper's setting; all else is as by default.

        That is ``value_weight=1.0``, ``direction_weight="auto"``, ``direction="vector"``,
        ``image_score="loss"``, ``localization="gradient"`` and ``normalization=None``. The paper
        normalises for CIFAR-10 alone: add ``normalization="source"`` there.

        Parameters
        ----------
        **parameters : Any
            Other parameters of the class, or other values of these.

        Returns
        -------
        detector : MKDDetector
            The detector, not fitted.

        Raises
        ------
        TypeError
            If there is no such parameter.

        References
        ----------
        .. [1] M. Salehi, N. Sadjadi, S. Baselizadeh, M. H. Rohban and H. R. Rabiee,
           "Multiresolution Knowledge Distillation for Anomaly Detection", CVPR 2021,
           doi:10.1109/CVPR46437.2021.01466, sections 3.1, 3.2 and 4.2.1.

        Examples
        --------
        >>> from skmkd import MKDDetector
        >>> MKDDetector.paper(image_size=32).direction_weight
        'auto'
        """
        return cls(**(PAPER | parameters))

    def localize(self, X: ImagesLike, method: str | None = None) -> Maps:
        """Map where each image is anomalous.

        Parameters
        ----------
        X : array-like, list of array-like, or list of paths
            Images as in `score_samples`.
        method : str, default=None
            One of the methods of the parameter `localization`; None takes that parameter's.

        Returns
        -------
        maps : ndarray of shape (n, H, W), or list of n ndarrays of shape (H, W); float32
            Localization maps of the images' own sizes, higher = more anomalous; a list if X is a
            list of arrays or paths.

        Raises
        ------
        NotFittedError
            If the detector is not fitted.
        ValueError
            If X or a parameter is not as described, or there is no such method.
        """
        if method is not None and method not in METHODS:
            raise ValueError(
                f"method must be one of {', '.join(METHODS)}, or None; got {method!r}."
            )
        return self._localize(X, partial(self._attribute, method=method or self.localization))

    def _draws(self) -> AbstractContextManager[None]:
        if isinstance(self.cloner, nn.Module):  # its layers may, as dropout does
            return forked_rng(self._seed, self.device_)
        return super()._draws()

    def _build_student(self, source: Source, first_batch: Batch, seed: int) -> None:
        """Build the cloner, check that it answers the source, and balance both terms on it."""
        self.score_layers_ = self._choose_score_layers()
        target = first_batch.target
        if isinstance(self.cloner, nn.Module):
            cloner = copy.deepcopy(self.cloner)
        else:
            signed = {layer for layer, activations in target.items() if activations.min() < 0}
            size = self._prepare.size
            blocks = cloner_blocks(source.stages, size, self.cloner, signed)
            cloner = build_cloner(blocks, size, private_generator(seed))
        if not any(p.requires_grad for p in cloner.parameters()):
            raise ValueError("cloner must have a parameter that requires a gradient.")
        self.cloner_ = to_device(cloner, self.device_)
        with torch.no_grad():
            untrained = copy.deepcopy(self.cloner_).train()(first_batch.images)
            check_cloner_output(untrained, target)
            terms = discrepancies(target, untrained, self.critical_layers_, self.direction)
        self.direction_weight_ = (
            balancing_weight(*terms)
            if self.direction_weight == "auto"
            else float(self.direction_weight)
        )

    def _choose_score_layers(self) -> tuple[str, ...]:
        chosen, layers = self.score_layers, self.critical_layers_
        if chosen is None:
            return layers
        if isinstance(chosen, Sequence):
            scored = tuple(layer for layer in layers if layer in chosen)
            fits = 0 < len(scored) == len(chosen)
        else:
            scored, fits = layers[-chosen:], chosen <= len(layers)
        if not fits:
            raise ValueError(
                f"score_layers must be among the critical layers {layers}, each once; got {chosen}."
            )
        return scored

    def _answer(self, batch: Batch) -> Features:
        return self.cloner_(batch.images)

    def _terms(self, batch: Batch) -> Terms:
        value, direction = discrepancies(
            batch.target, self._answer(batch), self.critical_layers_, self.direction
        )
        total = total_discrepancy(value, direction, self.value_weight, self.direction_weight_)
        return {"total": total, "value": value, "direction": direction}

    def _loss(self, target: Features, answer: Features) -> Tensor:
        """Return the total discrepancy over the score layers (Eq. 4)."""
        value, direction = discrepancies(target, answer, self.score_layers_, self.direction)
        return total_discrepancy(value, direction, self.value_weight, self.direction_weight_)

    def _anomaly(self, batch: Batch) -> Tensor:
        if self.image_score == "map_max":
            return blurred_maximum(self._discrepancy_map(batch), self.smoothing_sigma)
        return self._loss(batch.target, self._answer(batch))

    def _judge(self, batch: Batch) -> tuple[Tensor, Tensor]:
        raw = self._attribution(batch)
        if self.image_score == "map_max" and self.localization == "discrepancy":  # of one map
            return blurred_maximum(raw, self.smoothing_sigma), raw
        return self._anomaly(batch), raw

    def _score_settings(self) -> dict[str, Any]:
        if self.image_score == "map_max":
            blurred = {"smoothing_sigma": self.smoothing_sigma}
            return {"image_score": "map_max", **self._discrepancy_settings(), **blurred}
        return {"image_score": "loss", **self._loss_settings()}

    def _map_settings(self) -> dict[str, Any]:
        made = {"localization": self.localization, **super()._map_settings()}
        if self.localization == "discrepancy":
            return made | self._discrepancy_settings()
        options = checked_options(self.localization_params)
        return made | self._loss_settings() | {n: options[n] for n in USED[self.localization]}

    def _loss_settings(self) -> dict[str, Any]:
        return {"value_weight": self.value_weight, "direction": self.direction}

    def _discrepancy_settings(self) -> dict[str, Any]:
        with_value = checked_options(self.localization_params)["value"]
        return {"value": with_value} | ({"value_weight": self.value_weight} if with_value else {})

    def _attribution(self, batch: Batch) -> Tensor:
        return self._attribute(batch, self.localization)

    def _attribute(self, batch: Batch, method: str) -> Tensor:
        if method == "discrepancy":
            return self._discrepancy_map(batch)
        options = checked_options(self.localization_params)
        if method == "smooth_grad":
            return smooth_grad(
                self.source_, self.cloner_, self._loss, batch.images, options["through_source"],
                n_samples=options["n_samples"], noise=options["noise"], seed=self._seed,
            )  # fmt: skip
        source = self.source_ if options["through_source"] else lambda _: batch.target
        attribute = gradient if method == "gradient" else guided_backprop
        return attribute(source, self.cloner_, self._loss, batch.images, options["through_source"])

    def _discrepancy_map(self, batch: Batch) -> Tensor:
        both = checked_options(self.localization_params)["value"]
        weights = (self.value_weight, self.direction_weight_) if both else (0.0, 1.0)
        return discrepancy_map(
            batch.target, self._answer(batch), self.score_layers_, self._prepare.size, *weights,
        )  # fmt: skip

    def _check_options(self) -> None:
        super()._check_options()
        with_value = checked_options(self.localization_params)["value"]
        if self.value_weight == 0 and self.direction_weight == 0:
            raise ValueError("value_weight and direction_weight must not both be 0.")
        if self.value_weight == 0 and with_value:
            raise ValueError(
                "localization_params={'value': True} must come with a value_weight above 0; got 0."
            )
        of_features = self.image_score == "map_max" or self.localization == "discrepancy"
        if self.direction_weight == 0 and of_features and not with_value:
            raise ValueError(
                "direction_weight must not be 0 where scores or maps are of directions alone; got "
                f"0 with image_score={self.image_score!r}, localization={self.localization!r} and "
                "without localization_params={'value': True}."
            )
