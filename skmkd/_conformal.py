"""Conformal prediction: thresholds and p-values from the scores of held-out normal images.

A new normal image is as likely to be the most anomalous as any of the images held out, so that few
are more anomalous than nearly all of these (Vovk et al., Algorithmic Learning in a Random World,
2005).
"""

from __future__ import annotations

from math import ceil
from numbers import Real
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike

ROUNDING = 1e-12  # relative; 20 images must be enough for a twentieth of 21


class Calibration(NamedTuple):
    """Anomaly scores of held-out normal images.

    Each of n images weighs 1 / (n + 1): what is left is the share of new images that are more
    anomalous than all of them. Each of k groups, such as lots or days, weighs 1 / (k + 1), whatever
    its size, so that the same holds for an image of a new group (hierarchical conformal prediction;
    Lee, Barber and Willett, "Distribution-free inference with hierarchical data", 2023).

    Parameters
    ----------
    anomaly : ndarray of shape (n,), float64
        The scores, ascending: higher = more anomalous.
    shares : ndarray of shape (n,), float64
        The share that each has in its group.
    n_groups : int
        Number of groups; of images, if each is its own.
    """

    anomaly: np.ndarray
    shares: np.ndarray
    n_groups: int

    @classmethod
    def of(cls, anomaly: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Weigh scores, each alike or each group alike."""
        scores = np.asarray(anomaly, dtype=np.float64)
        labels = np.arange(len(scores)) if groups is None else groups
        _, of_each, sizes = np.unique(labels, return_inverse=True, return_counts=True)
        order = np.argsort(scores, kind="stable")
        return cls(scores[order], 1 / sizes[of_each[order]], len(sizes))

    @property
    def lowest_fpr(self) -> float:
        """The lowest false-positive rate that so many images, or groups, allow."""
        return 1 / (self.n_groups + 1)

    def _tails(self) -> np.ndarray:
        """Return the p-value of each score, and of a higher one than all: (n + 1,)."""
        beyond = np.append(np.cumsum(self.shares[::-1])[::-1], 0)
        return (beyond + 1) / (self.n_groups + 1)

    def threshold(self, fpr: float) -> float:
        """Return the lowest score that a share `fpr` of new normal images exceeds at most.

        That is the ``ceil((n + 1) * (1 - fpr))``-th smallest of n images that weigh alike.
        """
        return float(self.anomaly[np.argmax(self._tails()[1:] <= fpr * (1 + ROUNDING))])

    def p_values(self, anomaly: ArrayLike) -> np.ndarray:
        """Return the share of new normal images that are at least as anomalous, at most.

        That is the number of n images that are, plus one, divided by n + 1, if they weigh alike.
        NaN for NaN.
        """
        scores = np.asarray(anomaly, dtype=np.float64)
        found = self._tails()[np.searchsorted(self.anomaly, scores, side="left")]
        return np.where(np.isnan(scores), np.nan, found)


def check_fpr(fpr: float, n: int, name: str = "X", noun: str = "images") -> None:
    """Check that `fpr` is in (0, 1) and that n held-out images, or groups, are enough for it.

    Raises
    ------
    ValueError
        If `fpr` is out of range, or less than ``1 / (n + 1)``. It names what holds the images.
    """
    if not isinstance(fpr, Real) or not 0 < fpr < 1:
        raise ValueError(f"fpr must be a float between 0 and 1, both excluded; got {fpr!r}.")
    if (n + 1) * fpr * (1 + ROUNDING) < 1:
        enough = ceil(1 / fpr - ROUNDING) - 1
        raise ValueError(f"{name} must hold at least {enough} {noun} for fpr={fpr}; got {n}.")


def as_groups(groups: ArrayLike, n: int) -> np.ndarray:
    """Return the label of each of n images.

    Raises
    ------
    ValueError
        If there is not one for each.
    """
    labels = np.asarray(groups)
    if labels.shape != (n,):
        raise ValueError(
            f"groups must hold one label for each of {n} images; got shape {labels.shape}."
        )
    return labels


def held_out(
    n: int, share: float, groups: ArrayLike | None, rng: np.random.Generator
) -> tuple[list[int], list[int]]:
    """Split the indices of n images at random: those to learn from, and a share to hold out.

    At least two are left to learn from. With groups, whole ones are held out, as many as have the
    share.

    Raises
    ------
    ValueError
        If there is not one group for each image, or there is only one group.
    """
    labels = np.arange(n) if groups is None else as_groups(groups, n)
    found, of_each, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    if len(found) == 1:
        raise ValueError(f"groups must hold two labels at least; got {found[0]} alone.")
    order = rng.permutation(len(found))
    reached = np.cumsum(sizes[order])
    last = np.searchsorted(reached, share * n - ROUNDING) + 1
    while last and n - reached[last - 1] < 2:
        last -= 1
    is_held = np.isin(of_each, order[:last])
    return np.flatnonzero(~is_held).tolist(), np.flatnonzero(is_held).tolist()
