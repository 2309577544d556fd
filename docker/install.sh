#!/usr/bin/env bash
# Lays out an environment by the steps of `make setup`, without what only the tests need.
#   docker/install.sh FOLDER [options of pip for torch]
set -euo pipefail

folder=$1
shift
constraints=conf/constraints/spark35.txt

python3 -m venv "$folder"
install() {
    "$folder/bin/python" -m pip install --no-cache-dir --disable-pip-version-check \
        --no-build-isolation --constraint "$constraints" "$@"
}
install pip setuptools wheel
# Before DeepSpeed and Horovod, whose builds look at the torch that is there.
install "$@" torch
install ninja psutil py-cpuinfo
"$folder/bin/python" scripts/install_horovod.py -c "$constraints"
install '.[spark,horovod,deepspeed,openvino,delta,mlflow,s3,vectordb]'
