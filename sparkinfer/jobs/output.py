"""The output folder: checked before a run, filled by renames, whole once `_SUCCESS` is there."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from sparkinfer.exceptions import ConfigError, OutputError
from sparkinfer.storage import (
    SUCCESS_FILE,
    WORK_FOLDER,
    count_rows,
    file_system,
    is_file,
    join,
    make_folder,
    move,
    names_in,
    remove,
    write_text,
)

logger = logging.getLogger(__name__)

REMOVAL_ATTEMPTS, REMOVAL_PAUSE_S = 5, 0.5


class Output:
    """A folder that receives scored Parquet files.

    Args:
        path: the folder, in any notation that the storage seam reads.
        overwrite: whether what an earlier run wrote there may be replaced.
    """

    def __init__(self, path: str, overwrite: bool) -> None:
        self._path = path
        self._overwrite = overwrite

    def check(self) -> None:
        """Raises OutputError unless the folder is absent, empty or may be overwritten."""
        for folder in _with_parents(self._path):
            if is_file(folder):
                raise OutputError(
                    f"output {self._path!r}: {folder!r} is a file, expected a folder; name another"
                )
        names = names_in(self._path)
        present = [name for name in names if name != WORK_FOLDER]
        if not present:
            return
        if not self._overwrite:
            raise OutputError(
                f"output {self._path!r} is not empty ({len(present)} entries, such as "
                f"{present[0]!r}); give --overwrite or name another folder"
            )
        if WORK_FOLDER not in names:
            raise OutputError(
                f"output {self._path!r} holds {present[0]!r} and no {WORK_FOLDER!r} folder, so no "
                "run wrote it; --overwrite replaces only what a run wrote. Name another folder"
            )
        foreign = [name for name in present if not _is_ours(name)]
        if foreign:
            raise OutputError(
                f"output {self._path!r} holds {foreign[0]!r}, which no run wrote; --overwrite "
                "removes only scored Parquet files. Move it away or name another folder"
            )

    def refuse_overlap(self, source: str) -> None:
        """Raises ConfigError if the output is, holds or lies in what is read."""
        output, read = (_comparable(path) + "/" for path in (self._path, source))
        if output.startswith(read) or read.startswith(output):
            raise ConfigError(
                f"output={self._path!r} and input={source!r} hold one another; name another folder"
            )

    def staging_folder(self, attempt: str) -> str:
        """Returns a folder for the files of one attempt, out of the sight of readers."""
        return join(self._staging(), attempt)

    def count(self, staging: str, files: Sequence[str], prefix: str) -> tuple[int, int]:
        """Returns the rows of staged files, and how many of them have an error."""
        rows = errors = 0
        for name in files:
            in_file, without_error = count_rows(join(staging, name), f"{prefix}error")
            rows += in_file
            errors += in_file - without_error
        return rows, errors

    def prepare(self) -> None:
        """Makes the folder that attempts stage in.

        Raises:
            OutputError: the output cannot be written.
        """
        try:
            make_folder(self._staging())
        except OSError as error:
            raise OutputError(
                f"output {self._path!r} cannot be written ({error.strerror or error}); name "
                "another folder or mend its permissions"
            ) from None

    def publish(self, staging: str, files: Sequence[str]) -> None:
        """Moves staged files to where readers look, in the place of an earlier run's.

        Raises:
            OutputError: another run published there meanwhile, and overwriting was not asked for.
        """
        self.check()
        old = [name for name in names_in(self._path) if name != WORK_FOLDER]
        if SUCCESS_FILE in old:
            remove(join(self._path, SUCCESS_FILE))
        moved = []
        try:
            for name in files:
                move(join(staging, name), join(self._path, name))
                moved.append(name)
        except BaseException:
            for name in moved:
                remove(join(self._path, name))
            raise
        for name in old:
            remove(join(self._path, name))
        remove(self._staging())  # what runs that were killed left there

    def drop(self, staging: str) -> None:
        """Removes what an attempt staged, and the work folder if nothing else is in it.

        A worker that outlives the attempt for a moment may still write there. What is left then is
        out of the sight of readers, and the next run that succeeds removes it.
        """
        for _ in range(REMOVAL_ATTEMPTS):
            try:
                remove(staging)
                break
            except OSError as error:
                logger.warning("%s was not removed: %s", staging, error)
                time.sleep(REMOVAL_PAUSE_S)
        for folder in (self._staging(), join(self._path, WORK_FOLDER)):
            if names_in(folder) == []:
                remove(folder)

    def record(self, result: str) -> None:
        """Writes what the run did into the work folder."""
        write_text(join(self._path, WORK_FOLDER, "result.json"), result)

    def finish(self) -> None:
        """Marks the output as complete."""
        write_text(join(self._path, SUCCESS_FILE), "")

    def _staging(self) -> str:
        return join(self._path, WORK_FOLDER, "staging")


def _is_ours(name: str) -> bool:
    hidden_checksum = name.startswith(".") and name.endswith(".crc")
    is_part = name.startswith("part-") and name.endswith(".parquet")
    return is_part or hidden_checksum or name == SUCCESS_FILE


def _comparable(path: str) -> str:
    """Returns a path such that two notations of one place are equal."""
    fs, name = file_system(path)
    return str(fs.unstrip_protocol(name)).rstrip("/")


def _with_parents(path: str) -> list[str]:
    """Returns a path and the folders above it that have names."""
    paths = [path.rstrip("/")]
    while "/" in paths[-1].split("://", 1)[-1].strip("/"):
        paths.append(paths[-1].rsplit("/", 1)[0])
    return [name for name in paths if name]
