"""The output folder: complete files named after their chunk, and a work folder next to them.

Readers see only what was renamed into place. Attempts write below the work folder, each epoch of
the lease in its own folder, which the next epoch removes before it does anything else: a writer
that was wrongly taken for dead then has nothing left to publish.
"""

from __future__ import annotations

import glob
import time
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sparkinfer.exceptions import ConfigError, OutputError
from sparkinfer.jobs.manifest import MANIFEST_FILE
from sparkinfer.logs import get_logger
from sparkinfer.plan.chunks import Chunk
from sparkinfer.storage import (
    SUCCESS_FILE,
    WORK_FOLDER,
    exists,
    file_size,
    file_system,
    is_file,
    join,
    make_folder,
    move,
    names_in,
    remove,
    rename_folder,
    renames_atomically,
    sizes_in,
    sync,
    write_text,
)

logger = get_logger(__name__)

REMOVAL_ATTEMPTS, REMOVAL_PAUSE_S = 5, 0.5

GONE = "gone-"
"""Prefix of the names of staged folders that are about to be removed."""


@dataclass(frozen=True)
class Move:
    """A staged file on its way to where readers look.

    Attributes:
        source: where it is staged.
        target: where it goes.
        size: its bytes.
    """

    source: str
    target: str
    size: int

    @property
    def name(self) -> str:
        """Its name for readers."""
        return self.target.rsplit("/", 1)[-1]


class Output:
    """A folder for scored Parquet files.

    Args:
        path: the folder, as a path or URL that `sparkinfer.storage` accepts.

    Attributes:
        lease_folder: where the lease is kept.
        input_folder: for copies of the input, or of some of its files.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._work = join(path, WORK_FOLDER)
        self._staging = join(self._work, "staging")
        self.lease_folder = join(self._work, "lease")
        self.input_folder = join(self._work, "input")

    def check(self, overwrite: bool) -> None:
        """Raises OutputError unless a run may write here.

        The folder may be missing or empty, or hold an earlier run: one that can be resumed, or any
        with `overwrite`.
        """
        if not renames_atomically(self._path) and glob.has_magic(self._path):
            raise OutputError(
                f"output {self._path!r}: fsspec treats '*', '?' and '[' as a pattern that matches "
                "other folders too; name a folder without them"
            )
        for folder in _with_parents(self._path):
            if is_file(folder):
                raise OutputError(
                    f"output {self._path!r}: {folder!r} is a file, expected a folder; name another"
                )
        names = names_in(self._path)
        present = [name for name in names if name != WORK_FOLDER]
        if not present:
            return
        if WORK_FOLDER not in names:
            raise OutputError(
                f"output {self._path!r} is not empty: it holds {present[0]!r} and no "
                f"{WORK_FOLDER!r} folder, so no run wrote it; name another folder"
            )
        foreign = [name for name in present if not _is_ours(name)]
        if foreign:
            raise OutputError(
                f"output {self._path!r} holds {foreign[0]!r}, which no run wrote; move it "
                "elsewhere or name another folder"
            )
        if not overwrite and not exists(join(self._work, MANIFEST_FILE)):
            raise OutputError(
                f"output {self._path!r} holds {present[0]!r} but no manifest that says where it is "
                "from; give --overwrite to replace it, or name another folder"
            )

    def refuse_overlap(self, sources: Sequence[str]) -> None:
        """Raises ConfigError if the output is one of the inputs, contains it or lies in it."""
        for source in sources:
            output, read = (_comparable(path) + "/" for path in (self._path, source))
            if output.startswith(read) or read.startswith(output):
                raise ConfigError(
                    f"output={self._path!r} and input={source!r} overlap; name another folder"
                )

    def prepare(self) -> None:
        """Creates the work folder.

        Raises:
            OutputError: the output cannot be written.
        """
        try:
            make_folder(self._work)
        except OSError as error:
            raise OutputError(
                f"output {self._path!r} cannot be written ({error.strerror or error}); name "
                "another folder or fix its permissions"
            ) from None

    def staging_folder(self, epoch: int, *names: str) -> str:
        """Returns an epoch's folder for what is not published yet."""
        return join(self._staging, f"{epoch:08d}", *names)

    def fence(self, epoch: int) -> None:
        """Removes what earlier epochs staged, so that they can no longer publish it."""
        for name in names_in(self._staging):
            if name < f"{epoch:08d}" or name.startswith(GONE):
                gone = join(self._staging, f"{GONE}{uuid.uuid4().hex}")
                rename_folder(join(self._staging, name), gone)
                self.remove_folder(gone)

    def remove_published(self, keep: Collection[str] = ()) -> None:
        """Removes what readers see, except the files to keep."""
        for name in names_in(self._path):
            if name != WORK_FOLDER and name not in keep:
                remove(join(self._path, name))

    def remove_records(self) -> None:
        """Removes all traces of an earlier run: its manifest, records and staged input."""
        for name in names_in(self._work):
            if join(self._work, name) != self.lease_folder:
                self.remove_folder(join(self._work, name))

    def sizes(self) -> dict[str, int]:
        """Returns the sizes in bytes of what readers see, by name."""
        return sizes_in(self._path)

    def moves(self, chunk: Chunk, staging: str, files: Sequence[str]) -> tuple[Move, ...]:
        """Returns the moves by which a chunk's staged files are published.

        Raises:
            OSError: a file is missing, or gone by now.
        """
        return tuple(
            Move(
                source=join(staging, name),
                target=join(self._path, f"part-{chunk.name}-{index:03d}.parquet"),
                size=file_size(join(staging, name)),
            )
            for index, name in enumerate(files)
        )

    def publish(self, moves: Sequence[Move]) -> None:
        """Moves staged files to where readers look.

        It can be repeated after a failure: files already moved are left as they are.

        Raises:
            OSError: a file is missing, or gone by now, or cannot be moved.
        """
        for one in moves:
            try:
                sync(one.source)
                move(one.source, one.target)
            except FileNotFoundError:
                if not exists(one.target) or file_size(one.target) != one.size:
                    raise

    def replace(self, staging: str, name: str) -> None:
        """Replaces the published file of this name with the staged one, in one step.

        Raises:
            OSError: the file is missing, or gone by now, or cannot be moved.
        """
        sync(join(staging, name))
        move(join(staging, name), join(self._path, name))

    def remove_folder(self, folder: str) -> None:
        """Removes a folder below the work folder.

        A worker that briefly outlives its attempt may still write there. What is then left is
        invisible to readers, and the next run removes it.
        """
        for _ in range(REMOVAL_ATTEMPTS):
            try:
                remove(folder)
                return
            except OSError as error:
                logger.warning("removing %s failed: %s", folder, error)
                time.sleep(REMOVAL_PAUSE_S)

    def remove_staging(self, epoch: int) -> None:
        """Removes what an epoch staged; other epochs' folders are left to them or to `fence`."""
        self.remove_folder(self.staging_folder(epoch))
        if names_in(self._staging) == []:
            remove(self._staging)

    def remove_empty(self) -> None:
        """Removes the work folder, and the output, if they hold nothing but a lease."""
        if not set(names_in(self._work)) - {"lease"}:
            remove(self._work)
        if names_in(self._path) == []:
            remove(self._path)

    def is_finished(self) -> bool:
        """Returns whether the output is marked as complete."""
        return exists(join(self._path, SUCCESS_FILE))

    def finish(self) -> None:
        """Marks the output as complete."""
        write_text(join(self._path, SUCCESS_FILE), "")

    def unfinish(self) -> None:
        """Removes the mark: there is more to do."""
        remove(join(self._path, SUCCESS_FILE))


def _is_ours(name: str) -> bool:
    hidden_checksum = name.startswith(".") and name.endswith(".crc")
    is_part = name.startswith("part-") and name.endswith(".parquet")
    return is_part or hidden_checksum or name == SUCCESS_FILE


def _comparable(path: str) -> str:
    """Returns a path in a form in which different spellings of the same place are equal."""
    fs, name = file_system(path)
    return str(fs.unstrip_protocol(name)).rstrip("/")


def _with_parents(path: str) -> list[str]:
    """Returns a path and its named parent folders."""
    paths = [path.rstrip("/")]
    while "/" in paths[-1].split("://", 1)[-1].strip("/"):
        paths.append(paths[-1].rsplit("/", 1)[0])
    return [path for path in paths if path]
