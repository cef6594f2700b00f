"""MemKDDetector: distillation guided by a memory of what is normal, reverse or forward."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import joblib
import numpy as np
import torch
from torch import Tensor, nn

from skmkd._base import BaseDistillationDetector
from skmkd._features.batches import Batch, consecutive
from skmkd._images.inputs import ImagesLike
from skmkd._images.roi import RoiLike
from skmkd._maps.discrepancy import Features, direction_discrepancy, discrepancy_map, products
from skmkd._maps.finishing import blurred_maximum
from skmkd._networks.forward import ForwardCloner
from skmkd._networks.layers import STAGE_ENDS
from skmkd._networks.precision import to_device
from skmkd._networks.recall import MemoryCloner, MemoryPlan, chosen_levels, entropy
from skmkd._networks.residual import build_residual, style_of
from skmkd._networks.reverse import ReverseCloner
from skmkd._networks.sources import Source
from skmkd._parameters import MEMKD, check_memkd
from skmkd._runtime import plain_arithmetic, private_generator, uninterrupted
from skmkd._steps import Terms


class MemKDDetector(BaseDistillationDetector):
    """Anomaly detection and localization by memory-guided knowledge distillation.

    A *cloner* learns to reconstruct the features of a frozen *source* network on normal images,
    from its deep features back to its fine ones. Small memories recall normal features, so that the
    output is normal even where the image is not [1]_. Without them this is reverse distillation
    (RD, RD4AD) [2]_.

    Parameters
    ----------
    source : str or nn.Module, default="vgg16"
        The source network: "vgg16", "efficientnet_lite0", another classifier of torchvision, or
        a convolutional network that takes images (n, 3, H, W), which is copied.
    source_weights : {"auto", "bundled", "imagenet"}, path, dict or None, default="auto"
        The source's weights: "bundled", with skmkd, for the first two networks; "imagenet",
        torchvision's download; the path of a ``.pt`` or ``.safetensors`` file; a state dict; None
        for random ones. "auto" is "bundled", or a module's own; other names need a choice.
    paradigm : {"reverse", "forward"}, default="reverse"
        With "reverse" (MemKD), a bottleneck embeds what the source sees, and a decoder gives it
        back; with "forward" (MemMKD), a residual network beside the source sees the image itself.
    memory_size : int, default=50
        Items of each memory; 0 switches memories off.
    memory_levels : "auto" or list of int, default="auto"
        Which memories are on, from 1, the finest grid's: before the decoder's stages, one for each
        critical layer, or with "forward" behind the stages but the last. "auto" is all of them.
    memory_temperature : float, default=0.1
        Divides cosines before the softmax of a recall: small values recall the nearest item.
    n_exemplars : int, default=16
        Images of each step, at most all, that the values of the memories learn.
    exemplar_weight : float, default=0.1
        Weight of what the values miss of the exemplars, not negative.
    orthogonality_weight : float, default=0.1
        Weight of how far keys and values are from being orthogonal, not negative.
    critical_layers : "auto", int or list of str, default="auto"
        Where both networks are compared: the maps that the last k halvings of the source's grid
        begin with, or layers by name. "auto" is the last three, for a ResNet its stages 1 to 3.
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
        Training stops when the loss has not improved on the best so far by this share for
        `n_iter_no_change` epochs in a row, or 200 in all; only with ``schedule="constant"``.
    n_iter_no_change : int, default=10
        Epochs without improvement before training stops; more if they have fewer than 50 steps.
    batch_size : "auto" or int, default="auto"
        Training images per step, never a single one. "auto" is a 30th of all, from 4 to 64.
    learning_rate : float, default=5e-3
        Step size of Adam, at its highest.
    schedule : {"one_cycle", "constant"}, default="one_cycle"
        Course of the learning rate: "one_cycle" rises from 0 in the first 30 % of all steps, and
        then falls to 0, so that the last weights are settled.
    betas : tuple of two floats, default=(0.5, 0.999)
        How much Adam keeps of its running means at a step, from 0 to below 1.
    contamination : "auto" or float in (0, 0.5], default="auto"
        "auto" sets the thresholds from images that `fit` holds out, for 5 % false alarms; a float
        is the share of the training images below that of `predict`, and above that of masks.
    validation_fraction : float in [0, 1), default=0.2
        Share of the images that "auto" holds out; with 0, it sets thresholds as 0.05 does.
    smoothing_sigma : float, default=4.0
        Width of the Gaussian blur of maps, in resized pixels; 0 switches it off.
    opening_size : int, default=1
        Diameter of the disk of the maps' grey opening, in resized pixels, odd; 1 switches it off.
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
        Seed of the cloner's weights, the order of images and augmentation; None is random.
    verbose : int, default=0
        1 or more shows a progress bar.
    memory : str, path, joblib.Memory or None, default="deprecated"
        Former name of `feature_store`.

    Attributes
    ----------
    source_, cloner_ : nn.Module
        Frozen source, trained cloner: images (n, 3, H, W), or the source's features, to a dict of
        critical layer -> activations. ``cloner_.memories`` hold ``keys`` and ``values`` by level.
    critical_layers_, memory_levels_ : tuple of str, tuple of int
        The layers, the finest grid's first, and the memories in use.
    offset_, map_offset_ : float
        Thresholds of `predict` and `predict_mask`, in the units of scores and maps.
    calibration_scores_, calibration_peaks_ : ndarray of shape (n,), float64, or None
        Scores of held-out normal images, and maxima of their maps, ascending.
    n_iter_ : int
        Epochs run.
    loss_curve_ : dict of str to ndarray of shape (n_epochs,), float64
        Mean "total" loss of each epoch, and parts: "distillation", "exemplar", "orthogonality".
    image_shape_ : tuple (H, W, C)
        Shape of the training images; H and W are None if they came as a list.
    pixel_range_ : tuple (low, high, kind)
        The pixel values that are scaled to 0 and 1, and the kind of number of all images: "bool",
        "uint8", "uint16" or "float". Pixels outside by more than ten times the range are clipped.
    device_, precision_ : torch.device, str
        Where the networks are, and their number format, on any hardware.
    n_features_in_, feature_names_in_ : int, ndarray of shape (`n_features_in_`,)
        H * W * C, if X was an array; names of columns, if it was a data frame.

    See Also
    --------
    MKDDetector : Forward distillation into a small plain cloner, without memory.

    Notes
    -----
    Scores are float64, higher = more normal; maps float32, higher = more anomalous. A map sums over
    the critical layers one minus the cosine of both networks' features at each position, and is
    blurred; an image is as anomalous as its maximum. Training minimises one minus the cosine of
    each *whole* layer, plus the weighted losses of the memories.

    With ``memory_size=0``, "reverse" is plain reverse distillation; ``source="wide_resnet50_2"``,
    ``source_weights="imagenet"``, ``image_size=256``, ``max_iter=200``, ``batch_size=16`` and
    ``schedule="constant"`` make it the published setting [2]_. The cloner's stages follow those of
    a ResNet of torchvision; other sources get stages of three bottleneck blocks. The cloner of
    "forward" is a ResNet with blocks of normal width.

    Of MemKD only the supplement has been available here [1]_. These are assumptions: the number of
    items, which begin as features of the first batch; that softmaxes over cosines compare
    standardized features with keys, and exemplars, of the training batch, with values; that what is
    recalled is further channels, of no weight at first; both losses of memories, half the squared
    distance of unit vectors and the squared cosine of different items; and their weights. A memory
    lies before each stage of the reverse decoder. In the paper the cloner's features ask it; here
    the source's do, behind the bottleneck the embedding, and in "forward" the cloner's.

    References
    ----------
    .. [1] Z. Gu, L. Liu, X. Chen et al., "Remembering Normality: Memory-guided Knowledge
       Distillation for Unsupervised Anomaly Detection", ICCV 2023, supplementary material.
    .. [2] H. Deng and X. Li, "Anomaly Detection via Reverse Distillation from One-Class
       Embedding", CVPR 2022, doi:10.1109/CVPR52688.2022.00951.

    Examples
    --------
    >>> from skimage.data import lfw_subset
    >>> from sklearn.metrics import roc_auc_score
    >>> from skmkd import MemKDDetector
    >>> images = lfw_subset()  # 100 faces, then 100 others, of 25 x 25 pixels
    >>> detector = MemKDDetector(image_size=32, max_iter=3, tol=None, random_state=0)
    >>> scores = detector.fit(images[:95]).score_samples(images[95:])
    >>> bool(roc_auc_score([1] * 5 + [-1] * 100, scores) > 0.9)
    True
    >>> detector.localize(images[95:]).shape
    (105, 25, 25)
    >>> {level: e.shape for level, e in detector.recall_entropy(images[95:]).items()}
    {1: (105, 4, 4), 2: (105, 2, 2), 3: (105, 1, 1)}
    """

    cloner_: MemoryCloner
    _layer_rule = STAGE_ENDS
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = MEMKD
    _check_options = check_memkd

    def __init__(
        self,
        *,
        source: str | nn.Module = "vgg16",
        source_weights: str | os.PathLike[str] | Mapping[str, Tensor] | None = "auto",
        paradigm: str = "reverse",
        memory_size: int = 50,
        memory_levels: str | Sequence[int] = "auto",
        memory_temperature: float = 0.1,
        n_exemplars: int = 16,
        exemplar_weight: float = 0.1,
        orthogonality_weight: float = 0.1,
        critical_layers: str | int | Sequence[str] = "auto",
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
        betas: tuple[float, float] = (0.5, 0.999),
        contamination: str | float = "auto",
        validation_fraction: float = 0.2,
        smoothing_sigma: float = 4.0,
        opening_size: int = 1,
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
        self.paradigm = paradigm
        self.memory_size = memory_size
        self.memory_levels = memory_levels
        self.memory_temperature = memory_temperature
        self.n_exemplars = n_exemplars
        self.exemplar_weight = exemplar_weight
        self.orthogonality_weight = orthogonality_weight
        self.critical_layers = critical_layers
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
        self.betas = betas
        self.contamination = contamination
        self.validation_fraction = validation_fraction
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

    @uninterrupted
    def recall_entropy(self, X: ImagesLike, *, roi: RoiLike = None) -> dict[int, np.ndarray]:
        """Compute how widely each recall is spread over the items of a memory.

        Parameters
        ----------
        X : array-like, list of array-like, or list of paths
            Images as in `score_samples`.
        roi : region or list of n regions, default=None
            As in `score_samples`.

        Returns
        -------
        entropy : dict of int to ndarray of shape (n, h, w), float32
            Of n images or, with `tile_size`, tiles, and for every memory, by its level: the
            entropy of the weights at each position of its grid, in nats. It is 0 where one item
            alone is recalled, ``log(memory_size)`` where all are alike, and NaN for a file that
            cannot be read where ``on_error="skip"``.

        Raises
        ------
        NotFittedError
            If the detector is not fitted.
        ValueError
            If X is not as described.
        """
        images = self._check_images(X, roi=roi)
        dataset = self._dataset(self._tiles(images))
        found: dict[int, list[np.ndarray]] = {level: [] for level in self.memory_levels_}
        batches = consecutive(range(len(dataset.tiles)), dataset.batch_size)
        for chosen, batch in zip(batches, dataset.batches(batches), strict=True):
            with plain_arithmetic(False, self.device_):
                queries = self.cloner_.queries(batch.target, self._cloner_output(batch))
                for level, (memory, features) in self.cloner_.memory_inputs(queries).items():
                    spread = entropy(memory.attention(features).cpu()).numpy()
                    unread = [dataset.tiles.place(tile)[0] in images.unreadable for tile in chosen]
                    spread[unread] = np.nan
                    found[level].append(spread)
        return {level: np.concatenate(parts) for level, parts in found.items()}

    def _build_cloner(self, source: Source, first: Batch) -> nn.Module:
        """Build the cloner of the paradigm for the source's critical layers."""
        stages = tuple(stage for stage in source.stages if stage.critical)
        signed = tuple(n for n, activations in first.target.items() if activations.min() < 0)
        style, temperature = style_of(source.whole), float(self.memory_temperature)
        n_levels = len(stages) - (self.paradigm == "forward")
        given = self.memory_levels if self.memory_size else ()
        self.memory_levels_ = chosen_levels(given, n_levels, self.paradigm)
        plan = MemoryPlan(self.memory_size, self.memory_levels_, temperature, of_source=True)
        size, generator = self._prepare.size, private_generator(self._seed)
        kind: type[ReverseCloner | ForwardCloner] = ReverseCloner
        if self.paradigm == "forward":
            kind, style = ForwardCloner, style._replace(width=1)
        make = partial(kind, stages, size, style, signed, plan)
        self.cloner_ = to_device(build_residual(make, generator), self.device_).train()
        if self.memory_levels_:
            with torch.no_grad():
                self.cloner_.begin(first.target, self._cloner_output(first), generator)
        return self.cloner_

    def _cloner_input(self, batch: Batch) -> Tensor | Features:
        return batch.images if isinstance(self.cloner_, ForwardCloner) else batch.target

    def _loss_terms(self, batch: Batch) -> Terms:
        target, output = batch.target, self._cloner_output(batch)
        pairs = (products(target[layer], output[layer]) for layer in self.critical_layers_)
        directions = (direction_discrepancy(each, "vector") for each in pairs)
        parts = {"distillation": (total := torch.stack(list(directions)).sum(0))}  # (n,)
        if self.memory_levels_:
            inputs = self.cloner_.exemplars(target, output)
            losses = [m.exemplar_loss(seen, self.n_exemplars) for m, seen in inputs]
            exemplar = torch.stack(losses).sum(0)
            orthogonality = torch.stack([m.orthogonality_loss() for m, _ in inputs]).sum(0)
            total = total + self.exemplar_weight * exemplar
            total = total + self.orthogonality_weight * orthogonality
            parts["exemplar"] = exemplar.expand(len(batch.images))
            parts["orthogonality"] = orthogonality.expand(len(batch.images))
        return {"total": total, **parts}

    def _judge(
        self, batch: Batch, scores: bool, maps: bool, method: str | None, inside: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        size, output = self._prepare.size, self._cloner_output(batch)
        layers = dict.fromkeys(self.critical_layers_, 1.0)
        raw = self._compared(discrepancy_map(batch.target, output, layers, size, 0.0, 1.0), inside)
        anomaly = blurred_maximum(raw, self.smoothing_sigma, inside) if scores else None
        return anomaly, raw if maps else None

    def _settings(self) -> tuple[dict[str, Any], dict[str, Any]]:
        sigma = {"smoothing_sigma": self.smoothing_sigma}
        return sigma, {**sigma, "opening_size": self.opening_size}
