"""Loading of saved detectors, and the classes that a file may hold."""

from __future__ import annotations

import os

from skmkd._ensemble import DetectorEnsemble
from skmkd._files.persistence import Modules, Sources, load_detector
from skmkd._memkd import MemKDDetector
from skmkd._mkd import MKDDetector
from skmkd._runtime import uninterrupted

DETECTORS = {
    detector.__name__: detector for detector in (MKDDetector, MemKDDetector, DetectorEnsemble)
}


@uninterrupted
def load(
    path: str | os.PathLike[str],
    *,
    source: Sources = None,
    cloner: Modules = None,
    device: str | None = None,
) -> MKDDetector | MemKDDetector | DetectorEnsemble:
    """Load a detector that was saved with its method `save`.

    Loading runs no code from the file, so that files from others are safe to load.

    Parameters
    ----------
    path : str or path
        The file.
    source : nn.Module, "imagenet", path, dict or None, default=None
        The part of the source that the file does not hold: the module, if the detector was fitted
        with one; or, if the file was saved without the source and its weights are not those that
        come with skmkd, the weights as in the parameter `source_weights`, or a module with these
        weights. They must be the same as in `fit`. For an ensemble, a dict of these
        by the names of its detectors.
    cloner : nn.Module or dict, default=None
        A module of the same architecture, if the detector was fitted with a module as its cloner.
        It is copied, and the trained weights are loaded into the copy. For an ensemble, a dict of
        modules by the names of its detectors.
    device : str, default=None
        "auto" or a torch device to load to, such as "cpu". None means the device that the detector
        was saved on, or "auto" if there is no such device.

    Returns
    -------
    detector : MKDDetector, MemKDDetector or DetectorEnsemble
        The fitted detector. On the same machine, its scores and maps are identical to those of
        the saved one.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, was not written by skmkd or was written by a later version in a
        newer format; or if `source`, `cloner` or `device` is missing or does not fit.

    See Also
    --------
    MKDDetector.save : Write the file; lists the parameters that are not in it.

    Examples
    --------
    >>> import os, tempfile
    >>> from skimage.data import lfw_subset
    >>> import skmkd
    >>> faces = lfw_subset()[:20]
    >>> detector = skmkd.MKDDetector(image_size=32, max_iter=1, contamination=0.05).fit(faces)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "faces.skmkd")
    ...     detector = detector.save(path)
    ...     loaded = skmkd.load(path, device="cpu")
    >>> loaded.localize(faces[:2]).shape
    (2, 25, 25)
    """
    return load_detector(path, DETECTORS, source, cloner, device)
