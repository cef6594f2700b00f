#!/usr/bin/env bash
# torch.fx keeps the code of each graph module for as long as the process lives.
#
# In torch 2.14.1 GraphModule.recompile, which its constructor calls as well, hands the generated
# source to a global loader and a lazy entry of it to linecache, for tracebacks. Neither is dropped
# with the module: the modules below are gone, their code is not. torchvision's
# create_feature_extractor makes such a module at each call, so a service that builds extractors
# grows by some kilobytes with each.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
python3 -m venv venv
venv/bin/pip install -q torch==2.14.1 torchvision==0.29.1 numpy==2.4.6
venv/bin/python - <<'PYTHON'
import gc
import linecache
import weakref

import torchvision
from torchvision.models.feature_extraction import create_feature_extractor


def kept():
    return sum(name.startswith("<eval_with_key>") for name in linecache.cache)


network = torchvision.models.resnet18(weights=None).eval()
create_feature_extractor(network, ["layer1"])
before, modules = kept(), []
for _ in range(20):
    modules.append(weakref.ref(create_feature_extractor(network, ["layer1"])))
gc.collect()
alive = sum(module() is not None for module in modules)
lines = linecache.getlines(next(reversed(linecache.cache)))
added = (kept() - before) / len(modules)
print(f"modules alive: {alive}, sources kept per module: {added}, lines in the last: {len(lines)}")
assert alive == 0
assert added >= 1
assert any("layer1" in line for line in lines)
PYTHON
