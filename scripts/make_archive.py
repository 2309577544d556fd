"""Packs a virtual environment for `spark-submit --archives`.

Usage: python scripts/make_archive.py ENVIRONMENT ARCHIVE.tar.gz

What is in the archive runs from whatever folder it is unpacked to, by its `bin/python`. That is a
link to the Python which the environment was made with, so the nodes need the same one at the same
path.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

LOOK = "import sparkinfer; print(sparkinfer.__file__)"
FAST = 1
"""zlib's level: half the time of its own choice, and a few percent more bytes."""


def pack(environment: Path, archive: Path) -> None:
    """Writes the archive; its members are named as in the environment, `bin/python` first of all.

    Raises:
        ValueError: the environment does not hold the package itself.
    """
    refuse_without_package(environment)
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz", compresslevel=FAST) as tar:
        for member in sorted(environment.iterdir()):
            tar.add(member, member.name)


def refuse_without_package(environment: Path) -> None:
    """Raises ValueError if the package is not there, or is a link to a checkout.

    An editable install is a path in a small file: what it leads to would stay behind.
    """
    python = environment / "bin" / "python"
    # -I: neither the current folder nor PYTHONPATH takes the place of what is installed.
    done = subprocess.run([python, "-I", "-c", LOOK], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ValueError(f"{environment} does not hold sparkinfer; install the wheel (make wheel)")
    found = Path(done.stdout.strip())
    if not found.is_relative_to(environment.resolve()):
        raise ValueError(
            f"sparkinfer in {environment} is a link to {found.parent}, which nodes do not have; "
            "install the wheel (make wheel)"
        )


def main(environment: str, archive: str) -> int:
    """Packs and returns the exit status."""
    try:
        pack(Path(environment).absolute(), Path(archive))
    except ValueError as error:
        print(f"no archive made: {error}", file=sys.stderr)
        return 1
    size_mb = Path(archive).stat().st_size / 1e6
    print(f"{archive}: {size_mb:.0f} MB; for spark-submit --archives {archive}#environment")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
