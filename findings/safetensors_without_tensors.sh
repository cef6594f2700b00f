#!/usr/bin/env bash
# safetensors 0.4.3 writes a file that it cannot read where there are no tensors.
#
# save({}, metadata=...) and load of what it returned: 0.4.3 raises InvalidHeaderDeserialization on its
# own output, 0.4.4 reads it.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
for version in 0.4.3 0.4.4; do
    python3 -m venv "$version"
    "$version/bin/pip" install -q "safetensors==$version" numpy==2.2.6
    "$version/bin/python" - "$version" <<'PYTHON'
import sys

from safetensors.numpy import load, save

content = save({}, metadata={"title": "empty"})
try:
    load(content)
    found = "read"
except Exception as error:
    found = f"{type(error).__name__}: {error}"
print(sys.argv[1], len(content), "bytes:", found)
assert (found == "read") is (sys.argv[1] == "0.4.4")
PYTHON
done
