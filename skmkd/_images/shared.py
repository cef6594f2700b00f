"""Images that several detectors read, in step with each other."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

import numpy as np

from skmkd._images.images import Images

MAX_BYTES = 2**28  # of images that wait for other readers; more are decoded again
N_LOCKS = 64


class SharedImages(Images):
    """Images that several readers read once each, and that are decoded once if memory allows.

    Parameters
    ----------
    images : Images
        The images.
    n_readers : int
        How many read each of them.
    """

    def __init__(self, images: Images, n_readers: int) -> None:
        vars(self).update(vars(images))
        self._n_readers = n_readers
        self._waiting: OrderedDict[int, tuple[np.ndarray, int]] = OrderedDict()
        self._change = Lock()
        self._locks = [Lock() for _ in range(N_LOCKS)]

    def read(self, index: int) -> np.ndarray:
        """Return an image of shape (H, W, C), or the blank if it cannot be read."""
        with self._locks[index % N_LOCKS]:  # one of several readers decodes it
            with self._change:
                image, n_left = self._waiting.pop(index, (None, self._n_readers))
            if image is None:
                image = super().read(index)
            if n_left > 1:
                self._keep(index, image, n_left - 1)
        return image

    def _keep(self, index: int, image: np.ndarray, n_left: int) -> None:
        """Keep an image for other readers; those that have waited longest make room for it."""
        with self._change:
            self._waiting[index] = image, n_left
            while sum(kept.nbytes for kept, _ in self._waiting.values()) > MAX_BYTES:
                self._waiting.popitem(last=False)
