"""What makes a fitted detector deployable without torch: its method `export`."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from skmkd._atomic import remove_leftovers
from skmkd._export.exported import load_exported
from skmkd._export.parity import Parity, parity
from skmkd._export.writing import UnfaithfulExportError, exported_content
from skmkd._files.archive import check_target, write_whole
from skmkd._images.inputs import ImagesLike
from skmkd._runtime import CPU, uninterrupted

TOLERANCES = {"float32": 1e-5, "bfloat16": 2e-2}  # relative difference of scores, by precision
OF_GPUS = 1e-3  # at least: they may compute float32 in TF32


class ExportMixin(BaseEstimator):
    """Export to one ONNX file."""

    @uninterrupted
    def export(
        self,
        path: str | os.PathLike[str],
        *,
        check: ImagesLike | None = None,
        tolerance: float | None = None,
    ) -> Parity | None:
        """Write the fitted detector into one ONNX file, which takes images as they are.

        Scaling, resizing, both networks, maps and thresholds are all in it, so that a program in
        any language needs an engine and nothing else. `skmkd.load_exported` scores it in Python
        without torch. An existing file is replaced only when the new one is complete and answers,
        in onnxruntime and for images of noise of several sizes, as the detector does.

        Parameters
        ----------
        path : str or path
            The file, usually with the suffix ``.onnx``.
        check : array-like, list of array-like, or list of paths, default=None
            Images, as in `score_samples`, to compare the scores of the file with the detector's.
        tolerance : float or None, default=None
            Largest difference of two scores of an image of `check`, as a share of the largest
            score; None is 1e-5, 1e-3 for a detector on a GPU, which may compute in TF32, and 0.02
            for one that computes in bfloat16.

        Returns
        -------
        parity : Parity or None
            ``n_images``, ``largest_difference``, ``rank_correlation`` and ``n_labels_changed`` of
            the images of `check`; None without them.

        Raises
        ------
        NotFittedError
            If the detector is not fitted.
        ValueError
            If the detector cannot be exported: it draws maps from gradients, cuts images into
            tiles, has a pose, has a region of interest for each image, has a source or cloner of
            yours that torch cannot export, or is an ensemble; or if the file's scores differ by
            more than `tolerance`. Then no file is written.
        ImportError
            If the extra is not installed: ``pip install "skmkd[onnx]"``.
        OSError
            If the file cannot be written.

        See Also
        --------
        skmkd.load_exported : Score the file without torch.

        Notes
        -----
        The input is ``images``: (n, H, W, C), any n, H and W, in the kind of number of the images
        at fit: uint8, uint16, bool, or float32. Grey images have C = 1. The outputs are

        - ``score``: (n,), float32, higher = more normal;
        - ``decision``: (n,), float32, ``score - offset_``;
        - ``label``: (n,), int64, 1 for normal images and -1 for anomalies;
        - ``map``: (n, H, W), float32, higher = more anomalous;
        - ``mask``: (n, H, W), bool, where the map exceeds ``map_offset_``;
        - ``p_value``: (n,), float32, if the detector has calibration scores.

        The graph computes in float32, with weights rounded as the detector's are; those that
        float16 holds exactly are stored in it. Images are resized by two matrix products, whose
        weights are those of torchvision's antialiased bilinear resize.

        Examples
        --------
        >>> import os, tempfile
        >>> from skimage.data import lfw_subset
        >>> import skmkd
        >>> faces = lfw_subset()[:100]
        >>> detector = skmkd.MKDDetector(image_size=32, max_iter=1, random_state=0).fit(faces)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "faces.onnx")
        ...     parity = detector.export(path, check=faces)
        ...     labels = skmkd.load_exported(path).predict(faces)
        >>> parity.n_images, len(labels)
        (100, 100)
        """
        check_is_fitted(self)
        check_target(path)
        if tolerance is not None and (check is None or not tolerance >= 0):
            raise ValueError(
                f"tolerance must be at least 0, and images must be given as check; got {tolerance}."
            )
        content = exported_content(self)
        found = None
        if check is not None:
            with TemporaryDirectory() as folder:
                file = Path(folder) / "model.onnx"
                file.write_bytes(content)
                exported = load_exported(file, engine="onnxruntime", on_error=self.on_error)
                found = parity(self, exported.set_params(max_pixels=self.max_pixels), check)
            usual = max(TOLERANCES[self.precision_], 0 if self.device_ == CPU else OF_GPUS)
            limit = usual if tolerance is None else tolerance
            if not found.largest_difference <= limit:
                raise UnfaithfulExportError(
                    f"The scores of the exported detector differ by {found.largest_difference:.2g} "
                    f"of the largest, more than tolerance={limit:g}; {found.n_labels_changed} of "
                    f"{found.n_images} labels change."
                )
        remove_leftovers(path)
        write_whole(path, content)
        return found
