"""MemKDDetector: distillation guided by a memory of what is normal, reverse or forward."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from numbers import Integral, Real
from typing import Any, ClassVar

import joblib
import numpy as np
import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor, nn

from skmkd._base import BaseDistillationDetector, trainable
from skmkd._features.batches import Batch, fixed_batches
from skmkd._images.checks import ImagesLike
from skmkd._maps.discrepancy import Features, direction_discrepancy, discrepancy_map
from skmkd._maps.finishing import blurred_maximum
from skmkd._networks.forward import ForwardCloner
from skmkd._networks.layers import STAGE_ENDS, Stage
from skmkd._networks.precision import to_device
from skmkd._networks.recall import MemoryCloner, MemoryPlan, entropy
from skmkd._networks.residual import build_residual, style_of
from skmkd._networks.reverse import ReverseCloner
from skmkd._networks.sources import Source
from skmkd._runtime import plain_arithmetic, private_generator
from skmkd._training import Terms


class MemKDDetector(BaseDistillationDetector):
    """Anomaly detection and localization by memory-guided knowledge distillation.

    A *cloner* learns to give what a frozen *source* network sees in normal images, from the
    source's own deep features back to its finer ones. On its way it recalls from small memories
    what is normal, so that it gives normal features even where the image is not; there the two
    disagree [1]_. Without memories this is reverse distillation (RD, RD4AD) [2]_.

    Parameters
    ----------
    source : str or nn.Module, default="vgg16"
        The source network: "vgg16", another classification model of torchvision by its name, or
        a convolutional network that takes images (n, 3, H, W), which is copied. The papers' is
        "wide_resnet50_2", with ``source_weights="imagenet"``.
    source_weights : {"auto", "bundled", "imagenet"}, path, dict or None, default="auto"
        Where the source's weights come from. "bundled" is VGG-16's, which come with skmkd;
        "imagenet" torchvision's, which it downloads; a path leads to a ``.pt`` or
        ``.safetensors`` file of a state dict; None draws random weights, with a warning. "auto"
        is "bundled" for "vgg16" and the module's own weights for a module; other names need an
        explicit choice.
    paradigm : {"reverse", "forward"}, default="reverse"
        What the cloner makes of an image: with "reverse" (MemKD), a bottleneck embeds what the
        source sees, and a decoder gives it back; with "forward" (MemMKD), a residual network
        beside the source sees the image itself.
    memory_size : int, default=50
        Items of each memory; 0 switches memories off.
    memory_levels : "auto" or list of int, default="auto"
        Which memories are on, from 1, the finest grid's. Those of "reverse" lie before the
        decoder's stages, one for each critical layer; those of "forward" behind the stages but
        the last. "auto" is all of them.
    memory_temperature : float, default=0.1
        What cosines are divided by before the softmax of a recall: small values recall the most
        similar item, large ones the mean of all.
    n_exemplars : int, default=16
        Normal images at each training step whose features the values of the memories learn to
        represent: the first of the batch, at most all of it.
    exemplar_weight : float, default=0.1
        Weight of what the values miss of the exemplars, not negative.
    orthogonality_weight : float, default=0.1
        Weight of how far keys and values are from being orthogonal, not negative.
    critical_layers : "auto", int or list of str, default="auto"
        Where both networks are compared: the maps that the last k halvings of the source's grid
        begin with, or layers by name. "auto" is the last three, for a ResNet its stages 1 to 3.
    normalization : {"source"} or None, default="source"
        Whether pixels, scaled to 0-1, are normalised as the training images of torchvision's
        weights were; with ImageNet's mean and deviation for a source that is a module.
    image_size : int or tuple (height, width), default=128
        What images are resized to, in pixels, bilinearly and without keeping their aspect. The
        papers' is 256.
    image_shape : tuple (H, W) or (H, W, C), or None, default=None
        Shape of the images that the rows of a 2-D X hold. None takes them for square grey images
        if their length is a square number, else for one row of pixels.
    augmentation : {"mild"} or None, default=None
        "mild" rotates training images by up to 20 degrees and scales them by 0.9 to 1.05.
    max_iter : int, default=200
        Epochs at most.
    tol : float or None, default=2e-2
        Training has converged when the loss improves on the best so far by less than this share
        for `n_iter_no_change` epochs in a row. None runs `max_iter` epochs.
    n_iter_no_change : int, default=10
        Epochs without improvement before training stops.
    batch_size : int, default=16
        Training images a step; batches come out near-equal, and never hold a single image.
    learning_rate : float, default=5e-3
        Step size of Adam.
    betas : tuple of two floats, default=(0.5, 0.999)
        How much of Adam's running means of the gradient and of its square is kept at a step,
        from 0 to below 1.
    contamination : float in (0, 0.5], default=0.05
        Share of the training images below the threshold of `predict`, and of those with a pixel
        above that of `predict_mask`.
    smoothing_sigma : float, default=4.0
        Width of the Gaussian blur of maps, in pixels of the resized image; 0 switches it off.
    opening_size : int, default=1
        Size of the ellipse of the maps' grey opening, in pixels of the resized image, odd; 1
        switches it off.
    cache : "auto", int or None, default="auto"
        Bytes of memory that `fit` may take to keep the prepared images and the source's
        activations, which are computed once; where they need more, they lie in a
        temporary file instead, which takes at most half of the free space. "auto" is a quarter of
        the memory available to this process. None computes them anew in every epoch, as
        augmentation does.
    memory : str, path, joblib.Memory or None, default=None
        Where to store what the source sees in images, to share it between fits (which fill their
        `cache` from it), calls and processes, as in a grid search. It has nothing to do with the
        memories of the method. It grows with every new image; delete the folder when done, and
        take a detector into service with ``set_params(memory=None)``.
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
        Seed of the cloner's weights, the order of images and augmentation. None takes a fresh
        one, and leaves numpy's global generator alone.
    verbose : int, default=0
        1 or more shows a progress bar.

    Attributes
    ----------
    source_ : nn.Module
        The frozen source: images (n, 3, H, W) to a dict of critical layer -> activations.
    cloner_ : nn.Module
        The trained cloner: images and what the source sees in them to a dict of critical layer
        -> activations. Its ``memories`` have ``keys`` and ``values`` of shape
        (memory_size, channels), by level.
    critical_layers_ : tuple of str
        The layers in use, the finest grid's first.
    memory_levels_ : tuple of int
        The memories in use.
    offset_ : float
        Threshold of `predict`, in the unit of `score_samples`.
    map_offset_ : float
        Threshold of `predict_mask`, in the unit of the maps; from at most 256 training images.
    n_iter_ : int
        Epochs run.
    loss_curve_ : dict of str to ndarray of shape (n_epochs,), float64
        Mean "total" loss of each epoch and its unweighted parts: "distillation", and, with
        memories, "exemplar" and "orthogonality".
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
    MKDDetector : Forward distillation into a small plain cloner, without memory.
    skmkd.metrics.aupro_score : Judge localization maps.
    skmkd.inspection.LocalizationDisplay : Draw them.
    skmkd.load : Read a detector that `save` has written.

    Notes
    -----
    Scores are float64, higher = more normal; maps are float32, higher = more anomalous. A map
    sums over the critical layers one minus the cosine of both networks' features at each
    position, brought to `image_size` bilinearly, and is blurred; an image is as anomalous as the
    maximum of that. Training minimises, summed over the critical layers, one minus the
    cosine of each *whole* layer, plus the weighted losses of the memories, summed over these.

    With ``memory_size=0``, "reverse" is plain reverse distillation; ``source="wide_resnet50_2"``,
    ``source_weights="imagenet"``, ``image_size=256``, ``max_iter=200`` and ``tol=None`` make it
    the published setting [2]_. The cloner's stages follow those of a source that is one of
    torchvision's ResNets; other sources get stages of three bottleneck blocks. The cloner of
    "forward" is a ResNet with blocks of normal width.

    Of MemKD only the supplement has been available here [1]_. These are assumptions where it is
    silent: the number of items; that keys and values are drawn standard normal; that features
    are compared with keys, and exemplars with values, by a softmax over cosines, and its
    temperature; that a memory lies before each stage of the reverse decoder, that of the highest
    level thus behind the bottleneck, where the exemplars' features are not the source's but their
    embeddings, through which no gradient runs; that the exemplars are images of the training
    batch, whose order is random, and no batch of their own; that the
    exemplar loss is half the squared distance of unit vectors at each position, in the mean; that
    the orthogonality loss is the mean squared cosine between different items, of keys and values
    alike; both weights; and that recalled features are laid beside the cloner's as further
    channels. As in `MKDDetector`, the statistics of batch norms are taken anew over all training
    images when training ends.

    References
    ----------
    .. [1] Z. Gu, L. Liu, X. Chen, R. Yi, J. Zhang, Y. Wang, C. Wang, A. Shu, G. Jiang and L. Ma,
       "Remembering Normality: Memory-guided Knowledge Distillation for Unsupervised Anomaly
       Detection", ICCV 2023, supplementary material.
    .. [2] H. Deng and X. Li, "Anomaly Detection via Reverse Distillation from One-Class
       Embedding", CVPR 2022, doi:10.1109/CVPR52688.2022.00951.

    Examples
    --------
    Faces are normal here, and other crops of photographs are not.

    >>> from skimage.data import lfw_subset
    >>> from sklearn.metrics import roc_auc_score
    >>> from skmkd import MemKDDetector
    >>> images = lfw_subset()  # 100 faces, then 100 others, of 25 x 25 pixels
    >>> detector = MemKDDetector(image_size=32, max_iter=3, tol=None, random_state=0)
    >>> scores = detector.fit(images[:80]).score_samples(images[80:])
    >>> bool(roc_auc_score([1] * 20 + [-1] * 100, scores) > 0.9)
    True
    >>> detector.localize(images[80:]).shape
    (120, 25, 25)
    >>> {level: e.shape for level, e in detector.recall_entropy(images[80:]).items()}
    {1: (120, 4, 4), 2: (120, 2, 2), 3: (120, 1, 1)}
    """

    cloner_: MemoryCloner
    _layer_rule = STAGE_ENDS
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseDistillationDetector._parameter_constraints,
        "paradigm": [StrOptions({"reverse", "forward"})],
        "memory_size": [Interval(Integral, 0, None, closed="left")],
        "memory_levels": [StrOptions({"auto"}), list, tuple],
        "memory_temperature": [Interval(Real, 1e-6, None, closed="left")],
        "n_exemplars": [Interval(Integral, 1, None, closed="left")],
        "exemplar_weight": [Interval(Real, 0, None, closed="left")],
        "orthogonality_weight": [Interval(Real, 0, None, closed="left")],
        "betas": [tuple, list],
    }

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
        image_size: int | tuple[int, int] = 128,
        image_shape: tuple[int, ...] | None = None,
        augmentation: str | None = None,
        max_iter: int = 200,
        tol: float | None = 2e-2,
        n_iter_no_change: int = 10,
        batch_size: int = 16,
        learning_rate: float = 5e-3,
        betas: tuple[float, float] = (0.5, 0.999),
        contamination: float = 0.05,
        smoothing_sigma: float = 4.0,
        opening_size: int = 1,
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
        self.image_shape = image_shape
        self.augmentation = augmentation
        self.max_iter = max_iter
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.betas = betas
        self.contamination = contamination
        self.smoothing_sigma = smoothing_sigma
        self.opening_size = opening_size
        self.cache = cache
        self.memory = memory
        self.device = device
        self.precision = precision
        self.on_error = on_error
        self.random_state = random_state
        self.verbose = verbose

    def recall_entropy(self, X: ImagesLike) -> dict[int, np.ndarray]:
        """Say how spread each recall is over the items of a memory.

        Parameters
        ----------
        X : array-like, list of array-like, or list of paths
            Images as in `score_samples`.

        Returns
        -------
        entropy : dict of int to ndarray of shape (n, h, w), float32
            For every memory, by its level, the entropy of the weights at each position of its
            grid, in nats: 0 where one item alone is recalled, ``log(memory_size)`` where all are
            alike. NaN for a file that cannot be read where ``on_error="skip"``.

        Raises
        ------
        NotFittedError
            If the detector is not fitted.
        ValueError
            If X is not as described.
        """
        images = self._take_in(X)
        found: dict[int, list[np.ndarray]] = {level: [] for level in self.memory_levels_}
        batches = fixed_batches(self._reader(images), range(len(images)), self._batch_size)
        for chosen, batch in batches:
            with plain_arithmetic(False, self.device_):
                inputs = self.cloner_.memory_inputs(self._answer(batch))
                for level, (recall, features) in inputs.items():
                    weights = recall.attention(features)[: len(chosen)].cpu()
                    spread = entropy(weights).numpy()
                    spread[[index in images.unreadable for index in chosen]] = np.nan
                    found[level].append(spread)
        return {level: np.concatenate(parts) for level, parts in found.items()}

    def _build_student(self, source: Source, first_batch: Batch, seed: int) -> None:
        """Build the cloner of the paradigm after the source's critical layers."""
        stages = tuple(stage for stage in source.stages if stage.critical)
        signed = tuple(n for n, activations in first_batch.target.items() if activations.min() < 0)
        style = style_of(source.whole)
        self.memory_levels_ = self._choose_memory_levels(stages)
        plan = MemoryPlan(self.memory_size, self.memory_levels_, float(self.memory_temperature))
        size, generator = self._prepare.size, private_generator(seed)
        kind: type[ReverseCloner | ForwardCloner] = ReverseCloner
        if self.paradigm == "forward":
            kind, style = ForwardCloner, style._replace(width=1)
        make = partial(kind, stages, size, style, signed, plan)
        self.cloner_ = to_device(build_residual(make, generator), self.device_)

    def _choose_memory_levels(self, stages: Sequence[Stage]) -> tuple[int, ...]:
        possible = range(1, len(stages) + (self.paradigm == "reverse"))
        if self.memory_size == 0:
            return ()
        if self.memory_levels == "auto":
            return tuple(possible)
        chosen = tuple(level for level in possible if level in self.memory_levels)
        if len(chosen) < len(self.memory_levels):
            raise ValueError(
                f"memory_levels must be among {list(possible)}, each once, with "
                f"paradigm={self.paradigm!r} and {len(stages)} critical layers; got "
                f"{self.memory_levels}."
            )
        return chosen

    def _optimizer(self) -> torch.optim.Optimizer:
        first, second = self.betas
        return torch.optim.Adam(
            trainable(self.cloner_), lr=self.learning_rate, betas=(first, second)
        )

    def _answer(self, batch: Batch) -> Features:
        forward = isinstance(self.cloner_, ForwardCloner)
        return self.cloner_(batch.images if forward else batch.target)

    def _terms(self, batch: Batch) -> Terms:
        target, answer = batch.target, self._answer(batch)
        layers = self.critical_layers_
        directions = (direction_discrepancy(target[i], answer[i], "vector") for i in layers)
        total = _total(directions)  # (n,)
        parts = {"distillation": total}
        if self.memory_levels_:
            normal = {name: target.get(name, seen.detach()) for name, seen in answer.items()}
            recalls = self.cloner_.memory_inputs(normal).values()
            exemplar = _total(m.exemplar_loss(seen[: self.n_exemplars]) for m, seen in recalls)
            orthogonality = _total(m.orthogonality_loss() for m, _ in recalls)
            total = total + self.exemplar_weight * exemplar
            total = total + self.orthogonality_weight * orthogonality
            parts["exemplar"] = exemplar.expand(len(batch))
            parts["orthogonality"] = orthogonality.expand(len(batch))
        return {"total": total, **parts}

    def _anomaly(self, batch: Batch) -> Tensor:
        return self._judge(batch)[0]

    def _score_settings(self) -> dict[str, Any]:
        return {"smoothing_sigma": self.smoothing_sigma}

    def _judge(self, batch: Batch) -> tuple[Tensor, Tensor]:
        raw = self._attribution(batch)
        return blurred_maximum(raw, self.smoothing_sigma), raw

    def _attribution(self, batch: Batch) -> Tensor:
        return discrepancy_map(
            batch.target, self._answer(batch), self.critical_layers_, self._prepare.size, 0.0, 1.0
        )

    def _check_options(self) -> None:
        super()._check_options()
        if len(self.betas) != 2 or not all(
            isinstance(beta, Real) and 0 <= beta < 1 for beta in self.betas
        ):
            raise ValueError(f"betas must be two numbers from 0 to below 1; got {self.betas}.")


def _total(losses: Iterable[Tensor]) -> Tensor:
    """Sum losses over layers or memories."""
    return torch.stack(list(losses)).sum(0)
