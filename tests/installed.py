"""The package as users install it: built from a copy of the checkout, in its own environment."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.standalone_cluster import CHECKOUT

BUILT_FROM = ("setup.py", "pyproject.toml", "README.md", "sparkinfer")


def copy_of_source(folder: Path) -> Path:
    """Returns a folder with what the package is built from; builds leave files in it."""
    folder.mkdir(parents=True)
    for name in BUILT_FROM:
        source = CHECKOUT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder


def build_wheel(source: Path, folder: Path) -> Path:
    """Returns the wheel of a source folder or sdist."""
    pip("wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", str(folder), str(source))
    [wheel] = folder.glob("*.whl")
    return wheel


def make_environment(folder: Path, wheel: Path) -> Path:
    """Returns a virtual environment of this Python with a wheel.

    What the wheel needs it takes from where this process has it: one that holds torch and
    transformers themselves would take minutes to make, and more than a gigabyte.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    pip("--python", str(python), "install", "--no-deps", "--no-index", str(wheel))
    others = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site_packages(folder) / "others.pth").write_text("\n".join(sorted(others)))
    return folder


def site_packages(environment: Path) -> Path:
    """Returns the folder of an environment's packages."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return environment / "lib" / version / "site-packages"


def pip(*arguments: str) -> None:
    """Runs pip and shows what it says only if it fails."""
    quiet = ("--quiet", "--disable-pip-version-check")
    subprocess.run([sys.executable, "-m", "pip", *quiet, *arguments], check=True)
