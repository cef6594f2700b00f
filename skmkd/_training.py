"""The training loop: a cloner learns on normal images until its loss has converged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil, cos, pi, sqrt
from typing import NamedTuple

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn
from tqdm.auto import tqdm

from skmkd._features.batches import Batch, Dataset, consecutive, evenly_spaced
from skmkd._images.preparation import mild_augmentation
from skmkd._maps.discrepancy import Features, layer_map
from skmkd._maps.finishing import resized_masks
from skmkd._maps.weighing import tail_weights
from skmkd._runtime import private_generator
from skmkd._steps import RecordedStep, Step, Terms
from skmkd._warnings import warn

MIN_STEPS, MIN_EPOCHS = 300, 10  # of a training whose length is automatic
MAX_EPOCHS = 200  # of one that stops when it has converged
STEPS_SIDE = 128  # side of an image in pixels, above which it takes more steps
MIN_BATCH, MAX_BATCH, BATCHES = 4, 64, 30  # images in an automatic batch; batches in an epoch
PATIENCE_STEPS = 50  # without improvement, at least, before a loss counts as converged
WEIGHING_PIXELS = 2**22  # of the maps that set layer weights: 256 images of 128 x 128
RISE = 0.3  # share of the steps in which a one-cycle learning rate rises


def distill(
    cloner: nn.Module,
    epochs: Iterator[Iterable[Batch]],
    terms: Callable[[Batch], Terms],
    plan: Plan,
    *,
    learning_rate: float,
    schedule: str,
    betas: tuple[float, float],
    recorded: bool,
    tol: float | None,
    n_iter_no_change: int,
    verbose: int,
    after_epoch: Callable[[int], None] | None,
) -> dict[str, np.ndarray]:
    """Train the cloner and return the mean of each term at every epoch.

    Parameters
    ----------
    cloner : nn.Module
        The network to train; left in eval mode, without gradients.
    epochs : iterator
        The batches of each epoch.
    terms : callable
        Computes the loss terms of every image in a batch.
    plan : Plan
        Batches in an epoch, and epochs at most.
    learning_rate, schedule, betas, tol, n_iter_no_change, verbose
        As in the estimators; `learning_rate` and `betas` are Adam's.
    recorded : bool
        Whether steps are recorded and replayed on a GPU.
    after_epoch : callable or None
        Called with the number of each finished epoch, the cloner in eval mode.

    Returns
    -------
    loss_curve : dict of str to ndarray of shape (n_epochs,), float64

    Raises
    ------
    ValueError
        If the loss diverges.
    """
    max_iter, n_steps = plan.max_iter, plan.max_iter * plan.n_batches
    convergence = Convergence(tol, max(n_iter_no_change, ceil(PATIENCE_STEPS / plan.n_batches)))
    step = (RecordedStep if recorded else Step)(cloner, terms, betas)
    rates = (learning_rate * SCHEDULES[schedule]((i + 0.5) / n_steps) for i in range(n_steps))
    curve: list[dict[str, float]] = []
    with tqdm(total=max_iter, desc="Distilling", unit="epoch", disable=verbose < 1) as progress:
        try:
            for epoch, batches in zip(range(1, max_iter + 1), epochs, strict=False):
                means = _train_epoch(cloner, batches, step, rates)
                if not np.isfinite(means["total"]):
                    raise ValueError(divergence(epoch, learning_rate))
                curve.append(means)
                progress.set_postfix(loss=f"{means['total']:.4g}", refresh=False)
                progress.update()
                if after_epoch is not None:
                    after_epoch(epoch)
                if convergence.reached(means["total"]):
                    break
            else:
                if tol is not None:
                    warn(
                        f"The loss has not yet gone {convergence.patience} epochs without "
                        f"improving by the share tol={tol:g} after max_iter={max_iter}; increase "
                        "max_iter.",
                        ConvergenceWarning,
                    )
        except KeyboardInterrupt:
            if not curve:
                raise
            warn(
                f"Training was interrupted after {len(curve)} of at most {max_iter} epochs; what "
                "was learned is kept. Interrupt again to stop without it.",
                ConvergenceWarning,
            )
    cloner.eval()
    step.free()
    return {name: np.array([means[name] for means in curve]) for name in curve[0]}


def one_cycle(progress: float) -> float:
    """Return the share of the highest learning rate: it rises, then falls to zero, as a cosine.

    After L. N. Smith and N. Topin, "Super-Convergence", 2018; `progress` is from 0 to 1.
    """
    if progress < RISE:
        return (1 - cos(pi * progress / RISE)) / 2
    return (1 + cos(pi * (progress - RISE) / (1 - RISE))) / 2


SCHEDULES: dict[str, Callable[[float], float]] = {
    "one_cycle": one_cycle,
    "constant": lambda progress: 1.0,
}


class Plan(NamedTuple):
    """How long a training is."""

    n_images: int
    n_batches: int  # in an epoch; each is a step
    max_iter: int  # epochs at most


def plan_training(
    n_images: int,
    size: tuple[int, int],
    batch_size: int | str,
    max_iter: int | str,
    converges: bool = False,
) -> Plan:
    """Settle what is "auto" by the number of images and their size (height, width).

    A batch is a 30th of them, from 4 to 64, and never a single image, from which batch norm could
    not learn. Epochs are 10, or as many as have 300 steps; images of more than 128 x 128 pixels,
    whose details are more, take more steps in proportion to their side. A training that stops when
    it has converged has at most 200 epochs.
    """
    if batch_size == "auto":
        batch_size = min(MAX_BATCH, max(MIN_BATCH, n_images // BATCHES))
    n_batches = max(1, min(ceil(n_images / int(batch_size)), n_images // 2))
    if max_iter == "auto":
        n_steps = MIN_STEPS * max(1.0, sqrt(size[0] * size[1]) / STEPS_SIDE)
        max_iter = MAX_EPOCHS if converges else max(MIN_EPOCHS, ceil(n_steps / n_batches))
    return Plan(n_images, n_batches, int(max_iter))


def shuffled_batches(n_images: int, n_batches: int, generator: torch.Generator) -> list[list[int]]:
    """Split the indices of all images, in random order, into batches of near-equal size."""
    order = torch.randperm(n_images, generator=generator).numpy()
    return [indices.tolist() for indices in np.array_split(order, n_batches)]


def training_epochs(
    dataset: Dataset,
    plan: Plan,
    generator: torch.Generator,
    augmented: bool,
) -> Iterator[Iterator[Batch]]:
    """Yield epochs without end: all images in batches, in a new random order each time."""

    def epoch() -> Iterator[Batch]:
        batches = shuffled_batches(plan.n_images, plan.n_batches, generator)
        if not augmented:
            yield from dataset.batches(batches)
            return
        for images in dataset.tensors(batches):
            changed = mild_augmentation(images, generator)
            yield Batch(changed, dataset.features(changed))

    while True:
        yield epoch()


def settle_batch_norm(
    cloner: nn.Module,
    output: Callable[[Batch], object],
    dataset: Dataset,
    plan: Plan,
    seed: int,
) -> None:
    """Recompute the statistics of every batch norm over all training images.

    Training leaves a running average over its last few batches, of a network that was still
    changing; with it, scores would fluctuate from epoch to epoch.
    """
    norms = [m for m in cloner.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over all batches
            norm.train()
        with torch.no_grad():
            generator = private_generator(seed)
            batches = shuffled_batches(plan.n_images, plan.n_batches, generator)
            for batch in dataset.batches(batches):
                output(batch)
    finally:  # an interrupt may end this, and the cloner may be kept all the same
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        cloner.eval()


def layer_weights(
    output: Callable[[Batch], Features],
    dataset: Dataset,
    layers: Sequence[str],
    size: tuple[int, int],
) -> np.ndarray:
    """Weigh layers by the tails of their direction maps of training images, within the regions.

    It looks at as many images, evenly spaced, as have `WEIGHING_PIXELS`.
    """
    chosen = evenly_spaced(len(dataset.tiles), max(1, WEIGHING_PIXELS // (size[0] * size[1])))
    batches = consecutive(chosen, dataset.batch_size)
    values: dict[str, list[np.ndarray]] = {layer: [] for layer in layers}
    for indices, batch in zip(batches, dataset.batches(batches), strict=True):
        learned = output(batch)
        inside = resized_masks(dataset.tiles.masks(indices), size, torch.device("cpu"))
        for layer, found in values.items():
            maps = layer_map(batch.target[layer], learned[layer], size, 0.0, 1.0).cpu()
            found.append((maps.flatten() if inside is None else maps[inside]).numpy())
    return tail_weights([np.concatenate(found) for found in values.values()])


def divergence(epoch: int, learning_rate: float) -> str:
    """Return the message for a loss that is not finite."""
    return (
        f"The loss is not finite after epoch {epoch} with learning_rate={learning_rate:g}; "
        "lower learning_rate."
    )


@dataclass
class Convergence:
    """Count epochs that do not improve on the best so far by the share ``tol``."""

    tol: float | None
    patience: int
    best: float = np.inf
    stale: int = 0

    def reached(self, loss: float) -> bool:
        """Add the loss of one more epoch and return whether training is done."""
        if self.tol is None:
            return False
        improved = np.isinf(self.best) or loss < self.best * (1 - self.tol)
        self.stale = 0 if improved else self.stale + 1
        self.best = min(self.best, loss)
        return self.stale >= self.patience


def _train_epoch(
    cloner: nn.Module,
    batches: Iterable[Batch],
    step: Step,
    rates: Iterator[float],
) -> dict[str, float]:
    """Update once per batch; return the mean of every term over the epoch's images."""
    cloner.train()
    sums: dict[str, Tensor] = {}
    n_images = 0
    for batch in batches:
        losses = step(batch, next(rates))
        n_images += len(batch.images)
        for name, loss in losses.items():
            sums[name] = sums.get(name, torch.zeros(())).to(loss) + loss.sum()
    cloner.eval()
    return {name: float(total) / n_images for name, total in sums.items()}
