"""What reads a saved detector, and which classes it may be of."""

from __future__ import annotations

import os
from collections.abc import Mapping

from torch import Tensor, nn

from skmkd._files.persistence import load_detector
from skmkd._memkd import MemKDDetector
from skmkd._mkd import MKDDetector

DETECTORS = {detector.__name__: detector for detector in (MKDDetector, MemKDDetector)}


def load(
    path: str | os.PathLike[str],
    *,
    source: nn.Module | str | os.PathLike[str] | Mapping[str, Tensor] | None = None,
    cloner: nn.Module | None = None,
    device: str | None = None,
) -> MKDDetector | MemKDDetector:
    """Read a detector that its method `save` has written.

    No code in the file is run, whoever made it.

    Parameters
    ----------
    path : str or path
        The file.
    source : nn.Module, "imagenet", path, dict or None, default=None
        What the file does not hold of the source: the module, if the detector was fitted with
        one; its weights, as in the parameter `source_weights`, or a module that has them, if they
        were left out and are not those that come with skmkd. The weights must be the same.
    cloner : nn.Module, default=None
        If the detector was fitted with a module as its cloner, another that is built alike. It is
        copied, and the copy takes the trained weights.
    device : str, default=None
        "auto" or a torch device to load to, such as "cpu". None is the device that the detector
        was saved on if there is one here, else the best there is.

    Returns
    -------
    detector : MKDDetector or MemKDDetector
        The fitted detector. On the same machine it gives the same answers.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file was not written by skmkd, or by a later version, or is damaged; or if
        `source`, `cloner` or `device` is missing or does not fit.

    See Also
    --------
    MKDDetector.save : Write the file; it says which parameters come back differently.

    Examples
    --------
    >>> import os, tempfile
    >>> from skimage.data import lfw_subset
    >>> import skmkd
    >>> faces = lfw_subset()[:20]
    >>> detector = skmkd.MKDDetector(image_size=32, max_iter=1, tol=None).fit(faces)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "faces.skmkd")
    ...     detector = detector.save(path)
    ...     loaded = skmkd.load(path, device="cpu")
    >>> loaded.localize(faces[:2]).shape
    (2, 25, 25)
    """
    return load_detector(path, DETECTORS, source, cloner, device)
