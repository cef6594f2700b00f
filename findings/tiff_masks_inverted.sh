#!/usr/bin/env bash
# A boolean mask that tifffile writes comes back inverted from Pillow.
#
# tifffile 2026.3.3 writes bool arrays as 1-bit TIFF with photometric "white is zero" but stores True
# as 1 all the same, and reads what it stored. Pillow 13.0.0 honours the tag: True becomes black. So
# a mask written with one and read with the other marks exactly the wrong pixels, with no error.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
python3 -m venv venv
venv/bin/pip install -q tifffile==2026.3.3 pillow==13.0.0 numpy==2.4.6
venv/bin/python - <<'PYTHON'
import numpy as np
import tifffile
from PIL import Image

mask = np.zeros((8, 8), bool)
mask[2:4, 2:4] = True
tifffile.imwrite("mask.tif", mask)
with tifffile.TiffFile("mask.tif") as file:
    print(file.pages[0].photometric.name, file.pages[0].bitspersample)
by_tifffile = tifffile.imread("mask.tif")
with Image.open("mask.tif") as image:
    by_pillow = np.asarray(image)
print("tifffile:", by_tifffile.sum(), "of 64 pixels; Pillow:", by_pillow.sum())
assert (by_tifffile == mask).all()
assert (by_pillow == ~mask).all()
PYTHON
