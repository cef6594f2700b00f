"""Images, true defects and localization maps on one colour scale."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils._optional_dependencies import check_matplotlib_support

from skmkd._images.checks import image_list
from skmkd._images.images import Images
from skmkd._images.roi import RoiLike
from skmkd.inspection._plotting import check_detector
from skmkd.metrics._pixels import Arrays, check_map, check_mask

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class LocalizationDisplay:
    """Images, outlines of their true defects, and localization maps as overlays.

    Each image has a column. All maps share a colour scale that begins at the threshold: where a map
    is at or below it, nothing is drawn over the image.

    Parameters
    ----------
    images : sequence of n array-likes of shape (H, W) or (H, W, C)
        Pixels from 0 to 1, with C of 3 or 4.
    maps : array-like of shape (n, H, W) or sequence of n array-likes of shape (H, W)
        Localization maps, higher = more anomalous.
    masks : array-like of shape (n, H, W) or sequence of n array-likes of shape (H, W), default=None
        True = anomalous. None omits the row of true defects.
    threshold : float, default=None
        Pixels above it are anomalous; in the unit of the maps. None colours the whole maps.

    Attributes
    ----------
    axes_ : ndarray of shape (n_rows, n), matplotlib Axes
        The rows: images; true defects, if there are masks; maps over images.
    overlays_ : list of n matplotlib AxesImage
        The maps, masked where they are not above the threshold.
    colorbar_ : matplotlib Colorbar
        Colour bar of the shared scale.
    figure_ : matplotlib Figure
        Figure of the axes.

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
        images: Arrays,
        maps: Arrays,
        masks: Arrays | None = None,
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
        masks: Arrays | None = None,
        *,
        roi: RoiLike = None,
        ax: np.ndarray | None = None,
        **kwargs: Any,
    ) -> Self:
        """Draw the maps that a fitted detector computes.

        Parameters
        ----------
        detector : object
            A fitted detector of skmkd. For a pipeline, pass its last step, and X as
            transformed for it.
        X : array-like or list of array-like
            Images, as in `localize`. Each gets a column, so pass a few.
        masks : array-like of shape (n, H, W) or sequence of n array-likes, default=None
            True = anomalous. None omits the row of true defects.
        roi : region or list of n regions, default=None
            As in `localize`. Images are drawn as a whole.
        ax : ndarray of shape (n_rows, n), matplotlib Axes, default=None
            Axes to draw on. None creates a figure.
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
            If X or masks are invalid, a file was skipped and its map is NaN, or parameters that
            affect the maps were changed since `map_offset_` was set.
        """
        check_matplotlib_support(f"{cls.__name__}.from_estimator")
        check_detector(detector)
        threshold = detector._threshold("map_offset_")
        maps = detector.localize(X, roi=roi)
        images = list(pictures(detector._check_images(X, roi=roi)))
        display = cls(images=images, maps=maps, masks=masks, threshold=threshold)
        return display.plot(ax=ax, **kwargs)

    @classmethod
    def from_maps(
        cls,
        X: Arrays,
        maps: Arrays,
        masks: Arrays | None = None,
        *,
        threshold: float | None = None,
        ax: np.ndarray | None = None,
        **kwargs: Any,
    ) -> Self:
        """Draw given maps.

        Parameters
        ----------
        X : array-like of shape (n, H, W[, C]) or sequence of n array-likes
            Images of 8-bit or 16-bit integers, bool or floats. Black and white are the limits of
            the type; of floats, 0 and 1, or the lowest and highest pixel if these exceed 0 and 1.
        maps : array-like of shape (n, H, W) or sequence of n array-likes of shape (H, W)
            Localization maps, higher = more anomalous.
        masks : array-like of shape (n, H, W) or sequence of n array-likes, default=None
            True = anomalous. None omits the row of true defects.
        threshold : float, default=None
            Pixels above it are anomalous; in the unit of the maps. None colours the whole maps.
        ax : ndarray of shape (n_rows, n), matplotlib Axes, default=None
            Axes to draw on. None creates a figure.
        **kwargs : dict
            Passed to `plot`.

        Returns
        -------
        display : LocalizationDisplay
            The drawn display.

        Raises
        ------
        ValueError
            If X, maps or masks are invalid, or differ in number or size.
        """
        check_matplotlib_support(f"{cls.__name__}.from_maps")
        images = list(pictures(image_list(X)))
        display = cls(images=images, maps=maps, masks=masks, threshold=threshold)
        return display.plot(ax=ax, **kwargs)

    def plot(
        self,
        ax: np.ndarray | None = None,
        *,
        cmap: Any = "autumn_r",
        alpha: float = 0.6,
        vmax: float | None = None,
    ) -> Self:
        """Draw a column for each image.

        Parameters
        ----------
        ax : ndarray of shape (n_rows, n) of matplotlib Axes, default=None
            Axes to draw on. None creates a figure.
        cmap : str or matplotlib Colormap, default="autumn_r"
            Colour map of the overlays, from the threshold up.
        alpha : float, default=0.6
            Opacity of the overlays.
        vmax : float, default=None
            Upper end of the colour scale, in the unit of the maps; set it to compare displays.
            None takes the highest value of all maps, but at least 1.5 times the threshold.

        Returns
        -------
        display : LocalizationDisplay
            The display itself.

        Raises
        ------
        ValueError
            If the images, maps and masks differ in number or size, a map is not finite, or `ax`
            has another size.
        """
        check_matplotlib_support(f"{type(self).__name__}.plot")
        import matplotlib.pyplot as plt
        from matplotlib.colors import Normalize

        maps = [check_map(single, i) for i, single in enumerate(self.maps)]
        check_sizes("maps", maps, self.images)
        masks = None
        if self.masks is not None:
            masks = [check_mask(mask, i) for i, mask in enumerate(self.masks)]
            check_sizes("masks", masks, self.images)
        start, end = self._scale(maps)
        rows = ["image", *([] if masks is None else ["true defect"]), "map over image"]
        shape = (len(rows), len(maps))
        if ax is None:
            figsize = (1.4 * shape[1] + 1.2, 1.5 * shape[0] + 0.2)
            _, ax = plt.subplots(*shape, figsize=figsize, squeeze=False, layout="constrained")
        elif np.size(ax) != shape[0] * shape[1]:
            raise ValueError(
                f"ax must hold Axes for (n_rows, n) = {shape}; got {np.size(ax)} of them."
            )
        self.axes_ = np.reshape(ax, shape)
        for axes, row in zip(self.axes_, rows, strict=True):
            axes[0].set_ylabel(row)
            for each, image in zip(axes, self.images, strict=True):
                each.imshow(image, cmap="gray", vmin=0, vmax=1)
                each.set(xticks=[], yticks=[])
        for each, mask in zip(self.axes_[1], masks or [], strict=False):
            outline(each, mask, "lime")
        norm = Normalize(start, end if vmax is None else vmax)
        self.overlays_ = []
        for each, single in zip(self.axes_[-1], maps, strict=True):
            anomalous = single > start
            shown = np.ma.masked_array(single, ~anomalous)
            self.overlays_.append(each.imshow(shown, cmap=cmap, alpha=alpha, norm=norm))
            if self.threshold is not None:
                outline(each, anomalous, "black")
        self.figure_ = self.axes_[0, 0].figure
        self.colorbar_ = self.figure_.colorbar(
            self.overlays_[0], ax=self.axes_, label="more anomalous →", shrink=0.8
        )
        return self

    def _scale(self, maps: Sequence[np.ndarray]) -> tuple[float, float]:
        """Return both ends of the colour scale; values at the lower end are masked."""
        highest = max(float(single.max()) for single in maps)
        if self.threshold is None:
            return np.nextafter(min(float(single.min()) for single in maps), -np.inf), highest
        return self.threshold, max(highest, self.threshold + (abs(self.threshold) / 2 or 1.0))


def check_sizes(name: str, arrays: Sequence[np.ndarray], images: Arrays) -> None:
    """Check that there is an array for each image, of the same size."""
    if len(arrays) != len(images):
        raise ValueError(f"{name} must be as many as the {len(images)} images; got {len(arrays)}.")
    for i, (array, image) in enumerate(zip(arrays, images, strict=True)):
        if array.shape != (size := np.shape(image)[:2]):
            raise ValueError(
                f"{name} must have the sizes of the images; got {name}[{i}] of shape {array.shape} "
                f"for an image of size {size}."
            )


def outline(ax: Axes, mask: np.ndarray, colour: str) -> None:
    """Draw the outline of a mask; at the border of the image it follows the border."""
    if mask.any():
        rows, columns = (np.clip(np.arange(-1, n + 1), -0.5, n - 0.5) for n in mask.shape)
        ax.contour(columns, rows, np.pad(mask, 1), levels=[0.5], colors=colour, linewidths=1.2)


def pictures(images: Images) -> Iterator[np.ndarray]:
    """Yield whole images for drawing: (H, W) or (H, W, C), from 0 to 1."""
    assert images.pixel_range is not None  # set by check_images and image_list
    low, width = images.pixel_range.low, images.pixel_range.width
    for index in range(len(images)):
        image = images.read(index) if images.regions is None else images.whole(index)
        scaled = np.clip((image - low) / width, 0, 1)
        yield scaled[..., 0] if scaled.shape[2] == 1 else scaled
