#!/usr/bin/env bash
# Pillow reads an uncompressed TIFF of 16-bit RGB in separate planes as noise, without an error.
#
# Written by tifffile 2026.3.3, read by Pillow 13.0.0: the image opens as RGB of 8 bits, and its
# pixels have nothing to do with those of the file. The same file with the channels interleaved is
# read right, to its high bytes.
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

rows, columns = np.mgrid[:32, :32]
ramps = np.stack([rows * 2000, columns * 2000, (rows + columns) * 1000], axis=2).astype(np.uint16)
high = (ramps >> 8).astype(np.uint8)
for planes in ("contig", "separate"):
    pixels = ramps if planes == "contig" else np.moveaxis(ramps, 2, 0)
    tifffile.imwrite("ramps.tif", pixels, photometric="rgb", planarconfig=planes)
    with Image.open("ramps.tif") as image:
        read = np.asarray(image)
    wrong = float((read != high).mean())
    print(planes, image.mode, read.dtype, f"{wrong:.0%} of the high bytes are wrong")
    assert (wrong == 0) if planes == "contig" else (wrong > 0.5)
PYTHON
