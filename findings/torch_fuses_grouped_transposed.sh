#!/usr/bin/env bash
# torch.nn.utils.fuse_conv_bn_eval cannot fold a batch norm into a grouped transposed convolution.
#
# In torch 2.14.1, with transpose=True, it scales the weights (inputs, outputs / groups, h, w) as if
# their second dimension had all outputs. With two groups the product itself fails; with one output
# a group it is broadcast to the square of the channels, and only the folded convolution fails, when
# it is called. Plain grouped convolutions are folded right.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
python3 -m venv venv
venv/bin/pip install -q torch==2.14.1 numpy==2.4.6
venv/bin/python - <<'PYTHON'
import torch
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval


def folded(kind, groups):
    convolution = kind(4, 4, 2, stride=2, groups=groups).eval()
    norm = nn.BatchNorm2d(4).eval()
    images = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = norm(convolution(images))
        try:
            fused = fuse_conv_bn_eval(convolution, norm, kind is nn.ConvTranspose2d)
        except RuntimeError:
            return "an error when it is folded"
        try:
            return "right" if torch.allclose(fused(images), expected, atol=1e-6) else "wrong"
        except RuntimeError:
            return f"an error when it is called, with weights {tuple(fused.weight.shape)}"


found = {
    f"{kind.__name__}, groups={groups}": folded(kind, groups)
    for kind in (nn.Conv2d, nn.ConvTranspose2d)
    for groups in (1, 2, 4)
}
for case, outcome in found.items():
    print(f"{case}: {outcome}")
assert [found[f"Conv2d, groups={groups}"] for groups in (1, 2, 4)] == ["right"] * 3
assert found["ConvTranspose2d, groups=1"] == "right"
assert found["ConvTranspose2d, groups=2"] == "an error when it is folded"
assert found["ConvTranspose2d, groups=4"].endswith("with weights (4, 4, 2, 2)")
PYTHON
