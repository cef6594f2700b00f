"""What makes a fitted detector portable: its method `save`, and pickles that load anywhere."""

from __future__ import annotations

import os
from typing import Any, Self

from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from skmkd._files.persistence import save_detector
from skmkd._runtime import portable_state, restored_device, uninterrupted
from skmkd._version import __version__
from skmkd._warnings import warn


class SavingMixin(BaseEstimator):
    """Save to one file, and pickle so that a detector fitted on a GPU loads without one."""

    @uninterrupted
    def save(self, path: str | os.PathLike[str], *, include_source: bool = True) -> Self:
        """Write the fitted detector into one file, which `skmkd.load` reads.

        Unlike a pickle, the file runs no code when it is loaded. An existing file is replaced only
        when the new one is complete.

        Parameters
        ----------
        path : str or path
            The file, usually with the suffix ``.skmkd``.
        include_source : bool, default=True
            Whether the file holds the source's weights, or only their hash, which makes it smaller:
            by 59 MB with VGG-16, by half of that in bfloat16. `skmkd.load` then takes the weights
            that come with skmkd; other weights have to be passed to it.

        Returns
        -------
        self : object
            The detector.

        Raises
        ------
        NotFittedError
            If the detector is not fitted.
        ValueError
            If a parameter or attribute is of a kind that the file cannot hold, or the detector's
            class is not one of skmkd's own.
        OSError
            If the file cannot be written.

        See Also
        --------
        skmkd.load : Read the file.

        Notes
        -----
        The file is a safetensors file; parameters and attributes are JSON in its metadata, and a
        checksum covers all of it. Some parameters are not in the file: a `random_state` that is a
        generator is None after loading; so is `feature_store`, since a store belongs to its
        machine; a `source` or `cloner` that is a module has to be passed to `skmkd.load` (the file
        has the hash of the source's weights, and the trained weights of the cloner);
        `source_weights` that are a dict are the source's own after loading. The parameter
        `detectors` of an ensemble is those that were fitted.

        Examples
        --------
        >>> import os, tempfile
        >>> from skimage.data import lfw_subset
        >>> import skmkd
        >>> faces = lfw_subset()[:20]
        >>> detector = skmkd.MKDDetector(image_size=32, max_iter=1, contamination=0.05).fit(faces)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "faces.skmkd")
        ...     detector = detector.save(path, include_source=False)
        ...     loaded = skmkd.load(path)
        >>> bool((loaded.score_samples(faces) == detector.score_samples(faces)).all())
        True
        """
        check_is_fitted(self)
        save_detector(self, path, include_source)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return portable_state(super().__getstate__()) | {"_skmkd_version": __version__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        version = state.pop("_skmkd_version", "unknown")
        if version != __version__:
            warn(
                f"This {type(self).__name__} was pickled by skmkd {version} and is read by "
                f"{__version__}; its scores may differ, and it may fail."
            )
        super().__setstate__(state)
        if "device_" in state:
            self.device_ = restored_device(state["device_"], state["device"])
            self.source_.to(self.device_)
            self.cloner_.to(self.device_)
