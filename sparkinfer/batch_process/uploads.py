"""Files that a rank hands in: staged as they are written, published with the rank's next commit."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparkinfer.batch_process.commits import Move
from sparkinfer.storage import join, make_folder, put_file, sync

TENSORBOARD = "tensorboard"


class Uploads:
    """What one rank hands in.

    Args:
        output: the output folder.
        staging: where it is staged, in the output.
        target: where it is published, in the output.
    """

    def __init__(self, output: str, staging: str, target: str) -> None:
        self._output, self._staging, self._target = output, staging, target
        self._numbers = itertools.count()
        self._moves: dict[str, Move] = {}
        self._tensorboard: Path | None = None
        self._seen: dict[str, tuple[int, int]] = {}

    @contextmanager
    def path(self) -> Iterator[Path]:
        """Yields an empty folder on this machine; its files are staged when the context ends.

        Nothing is staged if the context ends with an error.
        """
        with tempfile.TemporaryDirectory(prefix="sparkinfer-upload-") as name:
            folder = Path(name)
            yield folder
            for file in _files_in(folder):
                self._stage(file, file.relative_to(folder).as_posix())

    def tensorboard_path(self) -> Path:
        """Returns a folder on this machine whose new files are staged before each commit."""
        if self._tensorboard is None:
            self._tensorboard = Path(tempfile.mkdtemp(prefix="sparkinfer-tensorboard-"))
        return self._tensorboard

    def add(self, content: bytes, target: str) -> None:
        """Stages a file that goes elsewhere in the output."""
        with tempfile.TemporaryDirectory(prefix="sparkinfer-upload-") as name:
            file = Path(name, "file")
            file.write_bytes(content)
            self._moves[target] = self._put(file, target)

    def take(self) -> list[Move]:
        """Returns what was staged since the last call."""
        if self._tensorboard is not None:
            self._stage_tensorboard(self._tensorboard)
        moves, self._moves = [*self._moves.values()], {}
        return moves

    def close(self) -> None:
        """Removes what was not handed in."""
        if self._tensorboard is not None:
            shutil.rmtree(self._tensorboard, ignore_errors=True)

    def _stage_tensorboard(self, folder: Path) -> None:
        for file in _files_in(folder):
            name, status = file.relative_to(folder).as_posix(), file.stat()
            state = (status.st_size, status.st_mtime_ns)
            if self._seen.get(name) != state:
                self._seen[name] = state
                self._stage(file, f"{TENSORBOARD}/{name}")

    def _stage(self, file: Path, name: str) -> None:
        target = f"{self._target}/{name}"
        self._moves[target] = self._put(file, target)

    def _put(self, file: Path, target: str) -> Move:
        source = f"{self._staging}/{next(self._numbers):08d}"
        make_folder(join(self._output, self._staging))
        put_file(file, join(self._output, source))
        sync(join(self._output, source))
        return Move(source, target, file.stat().st_size)


def _files_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())
