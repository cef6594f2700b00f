"""Images, true defects and localization maps, side by side on one colour scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils._optional_dependencies import check_matplotlib_support

from skmkd._inference import BaseInference
from skmkd._validation import Images, check_images, image_list
from skmkd.metrics._pixels import Masks, check_mask

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Pictures = np.ndarray | Sequence[ArrayLike]


class LocalizationDisplay:
    """Images, the outlines of their true defects, and their localization maps laid over them.

    One column an image. One colour scale serves all maps, and it begins at the threshold: where a
    map is at or below it, the image is left as it is, so that a normal image does not glow.

    Parameters
    ----------
    images : sequence of n array-likes of shape (H, W) or (H, W, C)
        Pixels from 0 to 1, with C of 3 or 4.
    maps : array-like of shape (n, H, W) or sequence of n array-likes of shape (H, W)
        Localization maps, higher = more anomalous.
    masks : array-like of shape (n, H, W) or sequence of n array-likes of shape (H, W), default=None
        True = anomalous. None leaves the row of true defects out.
    threshold : float, default=None
        What a map exceeds where it is anomalous, in the unit of the maps. None colours the maps
        from their lowest value on.

    Attributes
    ----------
    axes_ : ndarray of shape (n_rows, n), matplotlib Axes
        The rows: images; true defects, if there are masks; maps over images.
    overlays_ : list of n matplotlib AxesImage
        The maps, masked where they do not exceed the threshold.
    colorbar_ : matplotlib Colorbar
        The scale that all maps share.
    figure_ : matplotlib Figure
        What holds the axes.

    Examples
    --------
    >>> import numpy as np
    >>> from skmkd.inspection import LocalizationDisplay
    >>> image, mask = np.zeros((2, 8, 8)), np.zeros((2, 8, 8), bool)
    >>> image[1, 2:5, 2:5], mask[1, 2:5, 2:5] = 1, True  # a bright spot
    >>> maps = image + 0.1
    >>> display = LocalizationDisplay.from_maps(image, maps, mask, threshold=0.5)
    >>> [int(overlay.get_array().count()) for overlay in display.overlays_]  # coloured pixels
    [0, 9]
    """

    def __init__(
        self,
        *,
        images: Pictures,
        maps: Masks,
        masks: Masks | None = None,
        threshold: float | None = None,
    ) -> None:
        self.images = images
        self.maps = maps
        self.masks = masks
        self.threshold = threshold

    @classmethod
    def from_estimator(
        cls,
        detector: Any,
        X: ArrayLike | Sequence[ArrayLike],
        masks: Masks | None = None,
        *,
        ax: np.ndarray | None = None,
        **kwargs: Any,
    ) -> Self:
        """Localize with a fitted detector, and draw.

        Parameters
        ----------
        detector : object
            A fitted detector of skmkd. Of a pipeline, give the last step, and X as that gets it.
        X : array-like or list of array-like
            Images, as in `localize`; each gets a column, so give a few.
        masks : array-like of shape (n, H, W) or sequence of n array-likes, default=None
            True = anomalous. None leaves the row of true defects out.
        ax : ndarray of shape (n_rows, n), matplotlib Axes, default=None
            Where to draw; None makes a figure.
        **kwargs : dict
            Passed to `plot`.

        Returns
        -------
        display : LocalizationDisplay
            The drawn display. Its threshold is the detector's `map_offset_`.

        Raises
        ------
        NotFittedError
            If the detector is not fitted.
        TypeError
            If the detector is not one of skmkd.
        ValueError
            If X or masks are not as described, or the parameters that make maps were changed
            since `map_offset_` was set.
        """
        check_matplotlib_support(f"{cls.__name__}.from_estimator")
        if not isinstance(detector, BaseInference):
            raise TypeError(
                "detector must be a detector of skmkd, such as the last step of a pipeline; got "
                f"{type(detector).__name__}."
            )
        threshold = detector._map_threshold()
        maps = detector.localize(X)
        images = pictures(check_images(detector, X, reset=False))
        display = cls(images=images, maps=maps, masks=masks, threshold=threshold)
        return display.plot(ax=ax, **kwargs)

    @classmethod
    def from_maps(
        cls,
        images: Pictures,
        maps: Masks,
        masks: Masks | None = None,
        *,
        threshold: float | None = None,
        ax: np.ndarray | None = None,
        **kwargs: Any,
    ) -> Self:
        """Draw maps that are there already.

        Parameters
        ----------
        images : array-like of shape (n, H, W[, C]) or sequence of n array-likes
            Bytes, 16 bits, bool or floats: what is black and white goes by the type, for floats
            that are not from 0 to 1 by the lowest and the highest of all pixels.
        maps : array-like of shape (n, H, W) or sequence of n array-likes of shape (H, W)
            Localization maps, higher = more anomalous.
        masks : array-like of shape (n, H, W) or sequence of n array-likes, default=None
            True = anomalous. None leaves the row of true defects out.
        threshold : float, default=None
            What a map exceeds where it is anomalous, in the unit of the maps. None colours the
            maps from their lowest value on.
        ax : ndarray of shape (n_rows, n), matplotlib Axes, default=None
            Where to draw; None makes a figure.
        **kwargs : dict
            Passed to `plot`.

        Returns
        -------
        display : LocalizationDisplay
            The drawn display.

        Raises
        ------
        ValueError
            If images, maps or masks are not as described, or differ in number or size.
        """
        display = cls(
            images=pictures(image_list(images)), maps=maps, masks=masks, threshold=threshold
        )
        return display.plot(ax=ax, **kwargs)

    def plot(
        self, ax: np.ndarray | None = None, *, cmap: Any = "autumn_r", alpha: float = 0.6
    ) -> Self:
        """Draw one column an image.

        Parameters
        ----------
        ax : ndarray of shape (n_rows, n), matplotlib Axes, default=None
            Where to draw; None makes a figure.
        cmap : str or matplotlib Colormap, default="autumn_r"
            Colours of the maps, from the threshold to the highest value of all maps.
        alpha : float, default=0.6
            Opacity of the maps over the images.

        Returns
        -------
        display : LocalizationDisplay
            The display itself.

        Raises
        ------
        ValueError
            If the images, maps and masks differ in number or size, or `ax` has another shape.
        """
        check_matplotlib_support(f"{type(self).__name__}.plot")
        import matplotlib.pyplot as plt
        from matplotlib.colors import Normalize

        self._check_sizes()
        rows, n = ["image", "true defect", "map over image"], len(self.images)
        if self.masks is None:
            rows.remove("true defect")
        if ax is None:
            figsize = (1.4 * n + 1.2, 1.5 * len(rows) + 0.2)
            _, ax = plt.subplots(len(rows), n, figsize=figsize, squeeze=False, layout="constrained")
        if np.shape(ax) != (len(rows), n):
            raise ValueError(
                f"ax must be an array of Axes of shape (n_rows, n) = {(len(rows), n)}; got shape "
                f"{np.shape(ax)}."
            )
        self.axes_ = np.asarray(ax)
        for i, image in enumerate(self.images):
            for each in self.axes_[:, i]:
                each.imshow(image, cmap="gray", vmin=0, vmax=1)
                each.set(xticks=[], yticks=[])
            if self.masks is not None:
                outline(self.axes_[1, i], check_mask(self.masks[i], i), "lime")
        for each, row in zip(self.axes_[:, 0], rows, strict=True):
            each.set_ylabel(row)
        self.overlays_ = []
        start, end = self._scale()
        for each, single in zip(self.axes_[-1], self.maps, strict=True):
            anomalous = np.asarray(single) > start
            overlay = np.ma.masked_array(single, ~anomalous)
            scale = Normalize(start, end)
            self.overlays_.append(each.imshow(overlay, cmap=cmap, alpha=alpha, norm=scale))
            outline(each, anomalous, "black")
        self.figure_ = self.axes_[0, 0].figure
        self.colorbar_ = self.figure_.colorbar(
            self.overlays_[0], ax=self.axes_, label="more anomalous →", shrink=0.8
        )
        return self

    def _check_sizes(self) -> None:
        sizes = [np.shape(image)[:2] for image in self.images]
        for name, arrays in (("maps", self.maps), ("masks", self.masks)):
            if arrays is not None and (found := [np.shape(array) for array in arrays]) != sizes:
                raise ValueError(
                    f"{name} must be as many and of the same sizes as the images; got {name} of "
                    f"shapes {found} for images of sizes {sizes}."
                )

    def _scale(self) -> tuple[float, float]:
        """Return what a map must exceed to be coloured, and the highest value of all maps."""
        lowest = min(float(np.min(single)) for single in self.maps)
        highest = max(float(np.max(single)) for single in self.maps)
        start = np.nextafter(lowest, -np.inf) if self.threshold is None else self.threshold
        return start, highest if highest > start else start + (abs(start) or 1.0)


def outline(ax: Axes, mask: np.ndarray, colour: str) -> None:
    """Draw the outline of a mask, if it has one."""
    if mask.any() and not mask.all() and min(mask.shape) > 1:
        ax.contour(mask, levels=[0.5], colors=colour, linewidths=1.2)


def pictures(images: Images) -> list[np.ndarray]:
    """Return images as matplotlib draws them: (H, W) or (H, W, C), from 0 to 1."""
    assert images.pixel_range is not None  # set by whoever checked the images
    low, high, _ = images.pixel_range
    scaled = [np.clip((image - low) / ((high - low) or 1.0), 0, 1) for image in images]
    return [image[..., 0] if image.shape[2] == 1 else image for image in scaled]
