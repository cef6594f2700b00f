#!/usr/bin/env bash
# A file that torch.onnx.export writes tells the folders and the source lines of who exported it.
#
# torch 2.14.1, onnxscript 0.7.2: with dynamo=True (the default) each node's metadata_props hold
# pkg.torch.onnx.stack_trace, absolute paths of the program's files with line numbers and the text
# of the lines, beside class names and the node as torch.fx prints it. A model that is handed out
# thus names its author's home folder and quotes unpublished code. No parameter turns that off.
# Inference needs none of it: clear metadata_props of the graph, its nodes, inputs, outputs and
# weights before the file is written; that also makes files of small networks a good deal smaller.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
python3 -m venv venv
venv/bin/pip install -q torch==2.14.1 numpy==2.4.6 onnx==1.23.2 onnxscript==0.7.2
cat > secret_plan.py <<'PYTHON'
import onnx
import torch
from torch import nn


class Secret(nn.Module):
    def forward(self, images):
        unpublished_trick = 2 * images
        return unpublished_trick.relu()


torch.onnx.export(Secret().eval(), (torch.zeros(2, 3),), "model.onnx", dynamo=True, verbose=False)
content = open("model.onnx", "rb").read()
for text in (__file__, "unpublished_trick = 2 * images", "Secret"):
    print(f"{text!r} in the file:", text.encode() in content)
    assert text.encode() in content

model = onnx.load("model.onnx")
graph = model.graph
for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info,
             *graph.initializer):
    del part.metadata_props[:]
cleared = model.SerializeToString()
onnx.checker.check_model(model)
print("bytes:", len(content), "and", len(cleared), "without")
assert b"secret_plan" not in cleared and b"unpublished" not in cleared
PYTHON
venv/bin/python "$place/secret_plan.py"
