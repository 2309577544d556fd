"""Builds Horovod for the torch of this environment and installs it: run with its Python.

Usage: VENV/bin/python scripts/install_horovod.py [pip options, such as -c FILE]

Horovod's last release asks for C++14, which the headers of torch 2.1 and later do not compile
with; the change to C++17 was made after it and never released. So the release's source is fetched,
that setting is changed, and a wheel is built. One more line is changed: with a CUDA build of torch
Horovod would want a CUDA toolkit to build operations on tensors in GPU memory; ranks that score
rows exchange none.

The wheel is kept outside the environment (`SPARKINFER_CACHE`, by default `~/.cache/sparkinfer`),
by Python and torch version: a second environment installs it in seconds. Building takes a few
minutes.

Source: https://github.com/horovod/horovod/pull/3998
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HOROVOD = "0.28.1"
SHA256 = "92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0"
CXX17 = ("set(CMAKE_CXX_STANDARD 14)", "set(CMAKE_CXX_STANDARD 17)")
NO_CUDA = ("(torch.version.cuda is not None) and (CUDA_HOME is not None)", "False")
CHANGES = {
    "CMakeLists.txt": CXX17,
    "horovod/torch/CMakeLists.txt": CXX17,
    "cmake/Modules/FindPytorch.cmake": NO_CUDA,
}
FLAGS = {
    "HOROVOD_WITH_PYTORCH": "1",
    "HOROVOD_WITHOUT_TENSORFLOW": "1",
    "HOROVOD_WITHOUT_MXNET": "1",
    "HOROVOD_WITH_GLOO": "1",
    "HOROVOD_WITHOUT_MPI": "1",
}
# Horovod's build scripts call for a policy that CMake 4 no longer has.
BUILD_NEEDS = (
    "cmake<4",
    "setuptools",
    "wheel",
    "packaging",
    "cloudpickle",
    "psutil",
    "pyyaml",
    "cffi",
)


def main(pip_options: list[str]) -> None:
    torch = _torch_version()
    wheel = _cached_wheel(torch)
    if wheel is None:
        _check_compiler()
        _pip(["install", *pip_options, *BUILD_NEEDS])
        print(f"building Horovod {HOROVOD} for torch {torch}; this takes a few minutes", flush=True)
        wheel = _build(torch)
    # Once by force: for pip any Horovod of this version is as good, built for whatever torch.
    _pip(["install", "--force-reinstall", "--no-deps", str(wheel)])
    _pip(["install", *pip_options, str(wheel)])
    print(f"installed {wheel}")


def _torch_version() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        sys.exit(
            "install_horovod: torch is not installed here, and Horovod is built against it; "
            "run: pip install torch"
        )


def _cached_wheel(torch: str) -> Path | None:
    return next(_cache_folder(torch).glob("horovod-*.whl"), None)


def _cache_folder(torch: str) -> Path:
    """Returns the folder of wheels for this Python, torch, machine and version of this script."""
    root = Path(os.environ.get("SPARKINFER_CACHE") or Path.home() / ".cache" / "sparkinfer")
    script = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    python = sysconfig.get_python_version()
    return root / f"horovod-{HOROVOD}-py{python}-torch{torch}-{platform.machine()}-{script}"


def _check_compiler() -> None:
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        sys.exit(
            f"install_horovod: no C++ compiler ({compiler}) on PATH; install one, on Debian and "
            "Ubuntu: apt-get install g++, or set CXX"
        )
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        sys.exit(
            "install_horovod: no Python.h for this Python; on Debian and Ubuntu: "
            "apt-get install python3-dev"
        )
    if shutil.which("make") is None:
        sys.exit("install_horovod: no make on PATH; on Debian and Ubuntu: apt-get install make")


def _build(torch: str) -> Path:
    """Returns the wheel, built in a temporary folder and moved into the cache whole."""
    target = _cache_folder(torch)
    with tempfile.TemporaryDirectory() as folder:
        source = _fetch_source(Path(folder))
        _change(source)
        # pip's scripts, CMake's among them, must be found before those of the machine.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        command = ["wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", folder, str(source)]
        _pip(command, env=os.environ | FLAGS | {"PATH": path})
        [built] = Path(folder).glob("horovod-*.whl")
        target.mkdir(parents=True, exist_ok=True)
        partial = target / f"{built.name}.{os.getpid()}"
        shutil.move(built, partial)
        return partial.replace(target / built.name)


def _fetch_source(folder: Path) -> Path:
    wanted = folder / "wanted.txt"
    wanted.write_text(f"horovod=={HOROVOD} --hash=sha256:{SHA256}\n", encoding="utf-8")
    by_hash = ["--require-hashes", "--requirement", str(wanted)]  # before any of its code runs
    _pip(["download", "--no-deps", "--no-binary", "horovod", *by_hash, "--dest", str(folder)])
    archive = folder / f"horovod-{HOROVOD}.tar.gz"
    with tarfile.open(archive) as contents:
        contents.extractall(folder)
    return folder / f"horovod-{HOROVOD}"


def _change(source: Path) -> None:
    for name, (old, new) in CHANGES.items():
        text = (source / name).read_text(encoding="utf-8")
        if old not in text:
            sys.exit(f"install_horovod: no {old!r} in {name}, expected one to change")
        (source / name).write_text(text.replace(old, new), encoding="utf-8")


def _pip(arguments: list[str], env: dict[str, str] | None = None) -> None:
    quiet = ["-qq", "--disable-pip-version-check"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", arguments[0], *quiet, *arguments[1:]], env=env
    )
    if done.returncode:
        sys.exit(f"install_horovod: pip {arguments[0]} failed; what it printed is above")


if __name__ == "__main__":
    main(sys.argv[1:])
