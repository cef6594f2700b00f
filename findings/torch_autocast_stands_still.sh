#!/usr/bin/env bash
# Training under autocast stands still if another autocast context is open around the loop.
#
# torch 2.14.1 caches the weights that autocast casts, and empties the cache when the outermost
# context closes. With one around the whole loop, each step computes with the weights of the first,
# though the optimizer changes them; there is no warning. cache_enabled=False in the inner context
# helps.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
python3 -m venv venv
venv/bin/pip install -q torch==2.14.1 numpy==2.4.6
venv/bin/python - <<'PYTHON'
from contextlib import nullcontext

import torch
from torch import nn


def losses(outer, **inner):
    """Train a weight of one by three steps of -1 each; return the loss before each."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.ones_(layer.weight)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    found = []
    with outer:
        for _ in range(3):
            with torch.autocast("cpu", torch.bfloat16, **inner):
                loss = layer(torch.ones(1, 1)).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
    return found


alone = losses(nullcontext())
nested = losses(torch.autocast("cpu", torch.bfloat16))
uncached = losses(torch.autocast("cpu", torch.bfloat16), cache_enabled=False)
print("alone", alone, "nested", nested, "nested, without a cache", uncached)
assert alone == uncached == [1.0, 0.0, -1.0]
assert nested == [1.0, 1.0, 1.0]
PYTHON
