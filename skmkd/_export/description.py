"""What an exported file says of its detector, checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from skmkd._images.pixel_range import OPAQUE, PixelRange
from skmkd._images.roi import Roi


class Description(NamedTuple):
    """What checks of new images and thresholds need to know, as in `ExportedDetector`."""

    offset: float
    map_offset: float
    image_shape: tuple[int | None, int | None, int]
    pixel_range: PixelRange
    seen_pixels: tuple[float, float, float] | None
    image_size: tuple[int, int]
    roi: Roi | None


def read_description(told: dict[str, Any]) -> Description:
    """Return the description that metadata, as decoded from JSON, holds.

    Raises
    ------
    ValueError
        If an entry is missing or is not what it should be.
    """

    def entry(name: str, convert: Callable[[Any], Any]) -> Any:
        try:
            return convert(told[name])
        except (KeyError, TypeError, ValueError) as error:
            got = repr(told[name]) if name in told else "none"
            raise ValueError(f"metadata must have a valid {name!r}; got {got}") from error

    box, frame = entry("roi", _optional(_sides(4))), entry("frame", _optional(_sides(2)))
    return Description(
        entry("offset", float),
        entry("map_offset", float),
        entry("image_shape", _image_shape),
        entry("pixel_range", _pixel_range),
        entry("seen_pixels", _optional(_three_floats)),
        entry("image_size", _sides(2)),
        None if box is None else Roi(box, None, frame),
    )


def _optional(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else convert(value)


def _sides(n: int) -> Callable[[Any], tuple[int, ...]]:
    """Return what makes n whole numbers of a list; the last two are positive."""

    def convert(values: Any) -> tuple[int, ...]:
        sides = tuple(map(int, values))
        if len(sides) != n or min(sides) < 0 or min(sides[-2:]) < 1:
            raise ValueError
        return sides

    return convert


def _image_shape(values: Any) -> tuple[int | None, int | None, int]:
    height, width, channels = values
    if height is None and width is None:
        return None, None, int(channels)
    return int(height), int(width), int(channels)


def _pixel_range(values: Any) -> PixelRange:
    low, high, kind = values
    if kind not in OPAQUE:
        raise ValueError
    return PixelRange(float(low), float(high), kind)


def _three_floats(values: Any) -> tuple[float, float, float]:
    first, second, third = map(float, values)
    return first, second, third
