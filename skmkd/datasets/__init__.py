"""Load datasets from folders, with labels and masks; add synthetic defects. No downloads."""

from skmkd.datasets._defects import make_defects
from skmkd.datasets._files import list_images
from skmkd.datasets._loaders import (
    load_btad,
    load_image_folder,
    load_mpdd,
    load_mvtec_ad,
    load_visa,
)

__all__ = [
    "list_images",
    "load_btad",
    "load_image_folder",
    "load_mpdd",
    "load_mvtec_ad",
    "load_visa",
    "make_defects",
]
