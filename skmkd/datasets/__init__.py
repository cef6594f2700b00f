"""Load datasets from folders, with labels and masks; add synthetic defects. No downloads."""

from skmkd.datasets._defects import make_defects
from skmkd.datasets._files import list_images
from skmkd.datasets._image_folder import load_image_folder
from skmkd.datasets._kolektor import load_kolektor_sdd, load_kolektor_sdd2
from skmkd.datasets._loaders import (
    load_btad,
    load_mpdd,
    load_mvtec_3d_ad,
    load_mvtec_ad,
    load_mvtec_ad_2,
    load_mvtec_loco,
    load_visa,
)

__all__ = [
    "list_images",
    "load_btad",
    "load_image_folder",
    "load_kolektor_sdd",
    "load_kolektor_sdd2",
    "load_mpdd",
    "load_mvtec_3d_ad",
    "load_mvtec_ad",
    "load_mvtec_ad_2",
    "load_mvtec_loco",
    "load_visa",
    "make_defects",
]
