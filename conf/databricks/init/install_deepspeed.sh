#!/usr/bin/env bash
# Init script of a cluster: DeepSpeed where the runtime has none. What it needs is installed only where
# it is missing: nothing may replace what the runtime brings.
set -euo pipefail

python=${DATABRICKS_PYTHON:-/databricks/python/bin/python}

if "$python" -c 'import sys; from importlib.util import find_spec; sys.exit(find_spec("deepspeed") is None)'; then
    exit 0
fi
# Its kernels are built at their first use, if at all.
DS_BUILD_OPS=0 "$python" -m pip install --no-deps --no-build-isolation \
    deepspeed==0.19.8 einops hjson msgpack ninja py-cpuinfo
