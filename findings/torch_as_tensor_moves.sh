#!/usr/bin/env bash
# torch.as_tensor moves a tensor that exists, inside a device context or with a default device.
#
# In torch 2.14.1 `with torch.device(d):` is for tensors that are made anew; arithmetic keeps the
# device of its operands. But torch.as_tensor(t) and torch.asarray(t) return t on d: on "meta" its
# values are lost, and a library that guards itself with torch.device("cpu") copies from the GPU
# and waits for it, wherever it calls as_tensor on what may be a tensor already.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
python3 -m venv venv
venv/bin/pip install -q torch==2.14.1 numpy==2.4.6
venv/bin/python - <<'PYTHON'
import torch

made_before = torch.arange(3.0)
with torch.device("meta"):
    devices = {
        "as_tensor": torch.as_tensor(made_before).device.type,
        "asarray": torch.asarray(made_before).device.type,
        "sum": (made_before + 1).device.type,
        "stack": torch.stack([made_before]).device.type,
    }
print(devices)
assert devices == {"as_tensor": "meta", "asarray": "meta", "sum": "cpu", "stack": "cpu"}
PYTHON
