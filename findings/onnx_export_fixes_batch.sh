#!/usr/bin/env bash
# torch.onnx.export with a named dimension fixes it silently where code asks for len(x).
#
# torch 2.14.1: dynamic_shapes=({0: Dim("n")},) and a forward that calls len(x), as in
# x.reshape(len(x), -1), give a file whose input has the size of the example, [2, 3]: no error, no
# warning. torch.export.export refuses the same with "you marked n as dynamic but your code
# specialized it"; torch.onnx.export then tries again in other ways and writes what it gets.
# Dim.DYNAMIC, or x.shape[0] instead of len(x), gives a free batch. Look at the shape of the input
# that was written, or run the file with another number of images.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
python3 -m venv venv
venv/bin/pip install -q torch==2.14.1 numpy==2.4.6 onnx==1.23.2 onnxscript==0.7.2
venv/bin/python -W error - <<'PYTHON'
import torch
from torch import nn
from torch.export import Dim


class ByLen(nn.Module):
    def forward(self, x):
        return x.reshape(len(x), -1).sum(1)


class ByShape(nn.Module):
    def forward(self, x):
        return x.reshape(x.shape[0], -1).sum(1)


def written(network, dim):
    program = torch.onnx.export(
        network.eval(), (torch.zeros(2, 3),), dynamo=True, verbose=False,
        dynamic_shapes=({0: dim},),
    )
    dims = program.model_proto.graph.input[0].type.tensor_type.shape.dim
    return [dim.dim_param or dim.dim_value for dim in dims]


found = {
    "len(x), Dim('n')": written(ByLen(), Dim("n")),
    "x.shape[0], Dim('n')": written(ByShape(), Dim("n")),
    "len(x), Dim.DYNAMIC": written(ByLen(), Dim.DYNAMIC),
}
for how, shape in found.items():
    print(how, "->", shape)
assert found["len(x), Dim('n')"] == [2, 3]
assert all(isinstance(shape[0], str) for shape in list(found.values())[1:])
try:
    torch.export.export(ByLen(), (torch.zeros(2, 3),), dynamic_shapes=({0: Dim("n")},))
except Exception as error:
    print("torch.export:", str(error).splitlines()[0])
else:
    raise AssertionError("torch.export accepts it")
PYTHON
