#!/usr/bin/env bash
# OpenVINO's ReLU turns NaN into 0 on a CPU: a network with broken weights gives finite outputs.
#
# OpenVINO 2026.4.1: a convolution whose weights are all NaN gives NaN, and zeros as soon as a ReLU
# follows. numpy.maximum(x, 0) keeps NaN, and so does torch's ReLU. A check that outputs are finite
# says nothing of a network that ends with a ReLU; its weights have to be checked. Numbers that are
# not NaN, infinity among them, are rectified right.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
python3 -m venv venv
venv/bin/pip install -q --no-deps openvino==2026.4.1 numpy==2.4.6
venv/bin/python - <<'PYTHON'
import numpy as np
import openvino as ov
from openvino import opset13 as op


def computed(output, parameter, values):
    model = ov.Model([output], [parameter])
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled(values)[0].ravel()


x = op.parameter([4], np.float32)
values = np.array([np.nan, -1, 2, np.inf], np.float32)
found = computed(op.relu(x), x, values)
print("ReLU of", values, "is", found, "and numpy's maximum with 0", np.maximum(values, 0))
assert np.array_equal(found, [0, 0, 2, np.inf])

images = op.parameter([1, 3, 2, 2], np.float32)
weights = op.constant(np.full((1, 3, 1, 1), np.nan, np.float32))
convolution = op.convolution(images, weights, [1, 1], [0, 0], [0, 0], [1, 1])
for name, output in (("convolution", convolution), ("with a ReLU", op.relu(convolution))):
    found = computed(output, images, np.ones((1, 3, 2, 2), np.float32))
    print(f"{name}, weights NaN:", found)
    assert np.isnan(found).all() == (name == "convolution")
PYTHON
