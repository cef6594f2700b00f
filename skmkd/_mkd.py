"""MKDDetector: multiresolution knowledge distillation as a scikit-learn outlier detector."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import joblib
import numpy as np
import torch
from torch import Tensor, nn

from skmkd._base import BaseDistillationDetector
from skmkd._features.batches import Batch, Dataset
from skmkd._images.roi import RoiLike
from skmkd._maps.attribution import OPTIONS, gradient_map
from skmkd._maps.discrepancy import (
    Features,
    balancing_weight,
    discrepancies,
    discrepancy_map,
    total_discrepancy,
)
from skmkd._maps.finishing import blurred_maximum
from skmkd._networks.cloners import check_cloner_output, make_cloner
from skmkd._networks.layers import REDUCTIONS
from skmkd._networks.precision import to_device
from skmkd._networks.sources import Source
from skmkd._parameters import MKD, PAPER, attribute, check_mkd, mkd_settings, score_layers
from skmkd._runtime import private_generator
from skmkd._steps import Terms
from skmkd._training import layer_weights


class MKDDetector(BaseDistillationDetector):
    """Anomaly detection and localization by multiresolution knowledge distillation.

    A small *cloner* network learns to reproduce the activations of a frozen *source* network,
    trained on ImageNet, at several *critical layers*, on normal images only. On other images the
    two disagree: how much is the anomaly score, and where is the localization map [1]_.

    Parameters
    ----------
    source : str or nn.Module, default="vgg16"
        The source network: "vgg16", "efficientnet_lite0", which is faster, another classifier of
        torchvision, or a convolutional network that takes images (n, 3, H, W), which is copied.
    source_weights : {"auto", "bundled", "imagenet"}, path, dict or None, default="auto"
        The source's weights: "bundled", with skmkd, for the first two networks; "imagenet",
        torchvision's download; the path of a ``.pt`` or ``.safetensors`` file; a state dict; None
        for random ones. "auto" is "bundled", or a module's own; other names need a choice.
    cloner : {"compact", "equal"} or nn.Module, default="compact"
        The cloner: with few channels but at critical layers, with as many as the source, or your
        own network, which is copied: images (n, 3, H, W) to a dict of layer -> activations.
    critical_layers : "auto", int or list of str, default="auto"
        Where both are compared: the last k places at which the source's grid is halved (for VGG-16
        its max-pools), or layers by name. "auto" is the last four, as in the paper.
    score_layers : int, list of str or None, default=None
        The critical layers that scores and maps use: the last k, some by name, or all.
    layer_weights : "auto" or None, default="auto"
        How layers count in discrepancy maps: "auto" is ``1 / (q99.9 - q50)``, quantiles of each
        layer's map of training images; None weighs all alike.
    value_weight : float, default=0.0
        Weight of the value discrepancy, not negative; in maps, only with the option "value". Values
        are much larger than directions: use 0.01, or 1 with ``direction_weight="auto"``.
    direction_weight : "auto" or float, default=1.0
        Weight λ of the direction discrepancy, not negative. "auto" gives both the same mean on the
        untrained cloner, as in the paper. Of little effect if `value_weight` is 0.
    direction : {"position", "vector"}, default="position"
        Whether directions are compared at each position, or over a whole layer, as in the paper.
    image_score : {"map_max", "loss"}, default="map_max"
        The anomaly score: the blurred discrepancy map's maximum, or the total, as in the paper.
    normalization : {"source"} or None, default="source"
        Whether pixels are normalised as the source's weights need it; a module's, as ImageNet's.
    image_size : "auto", int or tuple (height, width), default="auto"
        What images or tiles are resized to, in pixels, bilinearly. "auto" is 128 x 128, or as many
        pixels of a strip's aspect; tiles keep their size, up to as many pixels as 256 x 256.
    tile_size : int, tuple (height, width) or None, default=None
        Size of the tiles that images are cut into, in pixels of the image; each is learned and
        scored as an image of its own. None takes images as a whole.
    tile_overlap : float in [0, 0.5], default=0.25
        Share of a tile, at least, that the next one has, too; maps fade from one to the other.
    max_tiles : int, default=2000
        Tiles that `fit` learns from at most, drawn at random; thresholds are of all tiles.
    roi : tuple (top, left, bottom, right), array-like of shape (H, W), path or None, default=None
        Region of interest in pixels of the image: a rectangle, or a mask or its file, not 0 inside.
        What is outside is neither learned nor scored, and 0 in maps.
    pose : {"fixed", "rigid"} or None, default=None
        Where the object is. "fixed": at one place, and maps are compared with what is usual at each
        position. "rigid": shifted by up to 20 % of a side and turned by up to 10 degrees, and
        images are first registered. None: anywhere; or there is none, as in textures.
    image_shape : tuple (H, W) or (H, W, C), or None, default=None
        Shape of the images in the rows of a 2-D X. None means square grey images if their length
        is a square number, else images of one row.
    pixel_range : "auto" or tuple (low, high), default="auto"
        The pixel values that are scaled to 0 and 1, such as ``(0, 4095)`` for 12 bits. "auto" is 0
        to 255 for uint8, 0 to 1 for bool and for floats within; else the extremes at `fit`.
    augmentation : {"mild"} or None, default=None
        "mild" rotates training images by up to 20 degrees and scales them by 0.9 to 1.05.
    max_iter : "auto" or int, default="auto"
        Epochs at most. "auto" is 10, or as many as have 300 steps (600 for 256 x 256 pixels).
    tol : float or None, default=None
        Training stops when the loss has not improved by this share for `n_iter_no_change` epochs
        in a row, or 200 in all; only with ``schedule="constant"``.
    n_iter_no_change : int, default=10
        Epochs without improvement before training stops; more if they have fewer than 50 steps.
    batch_size : "auto" or int, default="auto"
        Training images per step, never a single one. "auto" is a 30th of all, from 4 to 64.
    learning_rate : float, default=5e-3
        Step size of Adam, at its highest.
    schedule : {"one_cycle", "constant"}, default="one_cycle"
        Course of the learning rate: "one_cycle" rises from 0 in the first 30 % of all steps, and
        then falls to 0, so that the last weights are settled.
    contamination : "auto" or float in (0, 0.5], default="auto"
        "auto" sets the thresholds from images that `fit` holds out, for 5 % false alarms; a float
        is the share of the training images below that of `predict`, and above that of masks.
    validation_fraction : float in [0, 1), default=0.2
        Share of the images that "auto" holds out; with 0, it sets thresholds as 0.05 does.
    localization : {"discrepancy", "gradient", "smooth_grad", "guided_backprop"}, \
            default="discrepancy"
        What maps show: the discrepancy; the gradient of its total with respect to the pixels, as in
        the paper; the mean of that over noisy copies; or with negative parts cut at each ReLU.
    localization_params : dict or None, default=None
        Options: ``through_source`` (False), whether gradients also flow through the source;
        ``n_samples`` (16) and ``noise`` (0.1 of the image's range) of "smooth_grad"; ``value``
        (False), whether "discrepancy" and "map_max" include the value discrepancy.
    smoothing_sigma : float, default=4.0
        Width of the Gaussian blur of maps, in pixels of the resized image; 0 switches it off.
    opening_size : int, default=3
        Diameter of the disk of the maps' grey opening, in such pixels; odd, 1 switches it off.
    cache : "auto", int or None, default="auto"
        Bytes of memory for images and features, beyond which they are in a temporary file. "auto"
        is a quarter of what is free. With None or augmentation, each epoch computes features anew.
    feature_store : str, path or None, default=None
        Folder that stores the source's features for other fits, as in a grid search.
    device : str, default="auto"
        "auto" or a torch device, such as "cpu", "cuda:0" or "mps".
    precision : {"auto", "float32", "bfloat16"}, default="auto"
        Number format of convolutions and matrix products. "auto" is "bfloat16" on hardware that
        computes in it (AVX512-BF16, AMX, CUDA devices of capability 8.0 or higher), else "float32".
    engine : {"auto", "torch", "openvino"}, default="auto"
        What computes networks that no longer learn; "openvino" needs its extra. "auto" is "torch".
    on_error : {"raise", "skip"}, default="raise"
        How to treat an image that cannot be read or does not fit the others. "skip" warns; `fit`
        and `calibrate` leave it out, its score and map are NaN, its prediction -1, its mask True.
    max_pixels : int, default=268435456
        Largest image file that is read, in pixels; a small file may claim any size.
    random_state : int, RandomState instance or None, default=None
        Seed of the cloner's weights, the order of images, augmentation and noise; None is random.
    verbose : int, default=0
        1 or more shows a progress bar.
    memory : str, path, joblib.Memory or None, default="deprecated"
        Former name of `feature_store`.

    Attributes
    ----------
    source_, cloner_ : nn.Module
        Frozen source, trained cloner: images (n, 3, H, W) to a dict of layer -> activations.
    critical_layers_, score_layers_ : tuple of str
        The layers in use.
    layer_weights_ : ndarray of shape (n_critical_layers,), float64
        How much each layer counts in discrepancy maps; 1 in the mean.
    direction_weight_ : float
        λ as used.
    offset_, map_offset_ : float
        Thresholds of `predict` and `predict_mask`, in the units of scores and maps.
    calibration_scores_, calibration_peaks_ : ndarray of shape (n,), float64, or None
        Scores of held-out normal images, and maxima of their maps, ascending.
    n_iter_ : int
        Epochs run.
    loss_curve_ : dict of str to ndarray of shape (n_epochs,), float64
        Mean "total", "value" and "direction" discrepancy of each epoch; the latter two unweighted.
    image_shape_ : tuple (H, W, C)
        Shape of the training images; H and W are None for a list.
    pixel_range_ : tuple (low, high, kind)
        Pixel values scaled to 0 and 1, and their kind: "bool", "uint8", "uint16" or "float".
    device_, precision_ : torch.device, str
        Where the networks are, and their number format, on any hardware: that without bfloat16
        emulates it; of 140 predictions, one changed.
    n_features_in_, feature_names_in_ : int, ndarray of shape (`n_features_in_`,)
        H * W * C, if X was an array; names of columns, if it was a data frame.

    See Also
    --------
    skmkd.model_selection.NormalOnlySplit : Cross-validation that learns from normal images only.
    skmkd.inspection.LocalizationDisplay : Draw them.

    Notes
    -----
    Scores are float64, higher = more normal; maps are float32, higher = more anomalous. Training
    minimises the total discrepancy ``value_weight * V + λ * D``, where over the critical layers V
    sums the mean squared difference of activations (Eq. 1 of [1]_) and D one minus their cosine
    (Eq. 3). No score depends on those scored with it.

    Not in the paper, but in its authors' program, are the gradient's absolute value, summed over
    channels, and a batch norm after each of the cloner's convolutions but the last of a block. Our
    own are batch norm statistics of all training images, a one-cycle learning rate, layer weights.

    After `fit`, `image_score`, `score_layers`, `value_weight`, `direction`, the parameters of maps,
    `engine`, `on_error` and `feature_store` act at once, all others at the next `fit`.

    References
    ----------
    .. [1] M. Salehi, N. Sadjadi, S. Baselizadeh, M. H. Rohban and H. R. Rabiee,
       "Multiresolution Knowledge Distillation for Anomaly Detection", CVPR 2021.

    Examples
    --------
    >>> from skimage.data import lfw_subset
    >>> from sklearn.metrics import roc_auc_score
    >>> from skmkd import MKDDetector
    >>> images = lfw_subset()  # 100 faces, then 100 others, of 25 x 25 pixels
    >>> detector = MKDDetector(image_size=32, batch_size=8, max_iter=8, tol=None, random_state=0)
    >>> scores = detector.fit(images[:95]).score_samples(images[95:])
    >>> bool(roc_auc_score([1] * 5 + [-1] * 100, scores) > 0.9)
    True
    >>> detector.localize(images[95:]).shape
    (105, 25, 25)
    """

    _layer_rule = REDUCTIONS
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = MKD
    _check_options = check_mkd
    _settings = mkd_settings
    score_layers_ = attribute(score_layers)

    def __init__(
        self,
        *,
        source: str | nn.Module = "vgg16",
        source_weights: str | os.PathLike[str] | Mapping[str, Tensor] | None = "auto",
        cloner: str | nn.Module = "compact",
        critical_layers: str | int | Sequence[str] = "auto",
        score_layers: int | Sequence[str] | None = None,
        layer_weights: str | None = "auto",
        value_weight: float = 0.0,
        direction_weight: float | str = 1.0,
        direction: str = "position",
        image_score: str = "map_max",
        normalization: str | None = "source",
        image_size: str | int | tuple[int, int] = "auto",
        tile_size: int | tuple[int, int] | None = None,
        tile_overlap: float = 0.25,
        max_tiles: int = 2000,
        roi: RoiLike = None,
        pose: str | None = None,
        image_shape: tuple[int, ...] | None = None,
        pixel_range: str | tuple[float, float] = "auto",
        augmentation: str | None = None,
        max_iter: int | str = "auto",
        tol: float | None = None,
        n_iter_no_change: int = 10,
        batch_size: int | str = "auto",
        learning_rate: float = 5e-3,
        schedule: str = "one_cycle",
        contamination: str | float = "auto",
        validation_fraction: float = 0.2,
        localization: str = "discrepancy",
        localization_params: dict[str, Any] | None = None,
        smoothing_sigma: float = 4.0,
        opening_size: int = 3,
        cache: str | int | None = "auto",
        feature_store: str | os.PathLike[str] | None = None,
        device: str = "auto",
        precision: str = "auto",
        engine: str = "auto",
        on_error: str = "raise",
        max_pixels: int = 2**28,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
        memory: str | os.PathLike[str] | joblib.Memory | None = "deprecated",
    ) -> None:
        self.source = source
        self.source_weights = source_weights
        self.cloner = cloner
        self.critical_layers = critical_layers
        self.score_layers = score_layers
        self.layer_weights = layer_weights
        self.value_weight = value_weight
        self.direction_weight = direction_weight
        self.direction = direction
        self.image_score = image_score
        self.normalization = normalization
        self.image_size = image_size
        self.tile_size = tile_size
        self.tile_overlap = tile_overlap
        self.max_tiles = max_tiles
        self.roi = roi
        self.pose = pose
        self.image_shape = image_shape
        self.pixel_range = pixel_range
        self.augmentation = augmentation
        self.max_iter = max_iter
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.schedule = schedule
        self.contamination = contamination
        self.validation_fraction = validation_fraction
        self.localization = localization
        self.localization_params = localization_params
        self.smoothing_sigma = smoothing_sigma
        self.opening_size = opening_size
        self.cache = cache
        self.feature_store = feature_store
        self.device = device
        self.precision = precision
        self.engine = engine
        self.on_error = on_error
        self.max_pixels = max_pixels
        self.random_state = random_state
        self.verbose = verbose
        self.memory = memory

    @classmethod
    def paper(cls, **parameters: Any) -> Self:
        """Build a detector with the paper's settings; other parameters have their defaults.

        These are ``value_weight=1.0``, ``direction_weight="auto"``, ``direction="vector"``,
        ``image_score="loss"``, ``localization="gradient"``, ``layer_weights=None`` and
        ``normalization=None`` (sections 3.1, 3.2 and 4.2.1; for CIFAR-10, it is "source");
        ``batch_size=64``, ``learning_rate=1e-3``, ``schedule="constant"``, at most 200 epochs.

        Parameters
        ----------
        **parameters : Any
            Other parameters of the class, or other values of these.

        Returns
        -------
        detector : MKDDetector
            The detector, not fitted.

        Examples
        --------
        >>> from skmkd import MKDDetector
        >>> MKDDetector.paper(image_size=32).direction_weight
        'auto'
        """
        return cls(**(PAPER | parameters))

    def _build_cloner(self, source: Source, first: Batch) -> nn.Module:
        """Build the cloner, check its output, and set λ so that both terms are balanced."""
        target, size, seed = first.target, self._prepare.size, self._seed
        cloner = make_cloner(self.cloner, source.stages, size, target, private_generator(seed))
        cloner = to_device(cloner, self.device_)
        with torch.no_grad():
            untrained = copy.deepcopy(cloner).train()(first.images)
            check_cloner_output(untrained, target)
            terms = discrepancies(target, untrained, self.critical_layers_, self.direction)
        given = self.direction_weight
        self.direction_weight_ = balancing_weight(*terms) if given == "auto" else float(given)
        return cloner

    def _weigh_layers(self, dataset: Dataset) -> None:
        how = dataset, self.critical_layers_, self._prepare.size
        self.layer_weights_ = np.ones(len(self.critical_layers_))
        if self.layer_weights is not None:
            self.layer_weights_ = layer_weights(self._cloner_output, *how)

    def _loss_terms(self, batch: Batch) -> Terms:
        value, direction = discrepancies(
            batch.target, self._cloner_output(batch), self.critical_layers_, self.direction
        )
        total = total_discrepancy(value, direction, self.value_weight, self.direction_weight_)
        return {"total": total, "value": value, "direction": direction}

    def _loss(self, target: Features, output: Features) -> Tensor:
        """Return the total discrepancy over the score layers (Eq. 4)."""
        value, direction = discrepancies(target, output, score_layers(self), self.direction)
        return total_discrepancy(value, direction, self.value_weight, self.direction_weight_)

    def _judge(
        self, batch: Batch, scores: bool, maps: bool, method: str | None, inside: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        method = (method or self.localization) if maps else None
        images, target = batch
        options = OPTIONS | (self.localization_params or {})
        weights = (self.value_weight, self.direction_weight_) if options["value"] else (0.0, 1.0)
        by_maximum = scores and self.image_score == "map_max"
        anomaly: Tensor | None = None
        raw: Tensor | None = None
        if by_maximum or method == "discrepancy":
            output, size = self._cloner_output(batch), self._prepare.size
            each = zip(self.critical_layers_, self.layer_weights_.tolist(), strict=True)
            layers = {layer: weight for layer, weight in each if layer in score_layers(self)}
            found = self._compared(discrepancy_map(target, output, layers, size, *weights), inside)
            if by_maximum:
                anomaly = blurred_maximum(found, self.smoothing_sigma, inside)
            raw = found if method == "discrepancy" else None
        if scores and not by_maximum:
            anomaly = self._loss(target, self._cloner_output(batch))
        if method is not None and method != "discrepancy":
            raw = gradient_map(
                method, self.source_, lambda pixels: self._cloner_output(Batch(pixels, target)),
                self._loss, images, target, options, self._seed,
            )  # fmt: skip
        return anomaly, raw
