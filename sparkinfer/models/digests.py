"""What files hold, as a digest; of files that never change, read once per node."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path

from sparkinfer.storage import replace_text

FOLDER = "digests"
"""Of the cache folder, for files of caches: nobody writes to one of them twice."""


class FileDigests:
    """The sha256 (hex) of files.

    Args:
        kept: folder in which those of files that never change are kept for other processes of this
            node; None: of files that may change, which are read each time.
    """

    def __init__(self, kept: Path | None = None) -> None:
        self._kept = kept

    def known(self, file: Path) -> str | None:
        """Returns the digest of a file that was read before and is still the same, else None."""
        if self._kept is None:
            return None
        try:
            found = json.loads(self._note(file).read_text(encoding="utf-8"))
            return str(found["sha256"]) if found["state"] == _state(file) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def read(self, file: Path) -> str:
        """Returns the digest of a file, after reading it.

        Raises:
            OSError: it cannot be read.
        """
        digest, before = hashlib.sha256(), _state(file)
        with file.open("rb") as content:
            while block := content.read(2**20):
                digest.update(block)
        if self._kept is not None and before == _state(file):
            self._keep(file, {"state": before, "sha256": digest.hexdigest()})
        return digest.hexdigest()

    def _keep(self, file: Path, what: object) -> None:
        note = self._note(file)
        with suppress(OSError):  # then it is read again next time
            note.parent.mkdir(parents=True, exist_ok=True)
            replace_text(str(note), json.dumps(what))

    def _note(self, file: Path) -> Path:
        if self._kept is None:
            raise AssertionError("nothing is kept of files that may change")
        name = hashlib.sha256(str(file.resolve()).encode("utf-8", "surrogatepass")).hexdigest()
        return self._kept / f"{name[:32]}.json"


def _state(file: Path) -> list[int]:
    """Returns what changes when a file does: size, times, place on the disk."""
    found = file.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev]
