"""The output folder: checked before a run, filled by renames, whole once `_SUCCESS` is there."""

from __future__ import annotations

from collections.abc import Sequence

from sparkinfer.exceptions import OutputError
from sparkinfer.storage import (
    SUCCESS_FILE,
    WORK_FOLDER,
    count_rows,
    exists,
    is_file,
    join,
    make_folder,
    move,
    names_in,
    remove,
    write_text,
)


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
        present = [name for name in names_in(self._path) if not self._is_leftover(name)]
        if not present:
            return
        if not self._overwrite:
            raise OutputError(
                f"output {self._path!r} is not empty ({len(present)} entries, such as "
                f"{present[0]!r}); give --overwrite or name another folder"
            )
        foreign = [name for name in present if not _is_ours(name)]
        if foreign:
            raise OutputError(
                f"output {self._path!r} holds {foreign[0]!r}, which no run wrote; --overwrite "
                "removes only scored Parquet files. Move it away or name another folder"
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

    def publish(self, staging: str, files: Sequence[str]) -> None:
        """Moves staged files to where readers look, in the place of an earlier run's."""
        for name in names_in(self._path):
            if name != WORK_FOLDER:
                remove(join(self._path, name))
        for name in files:
            move(join(staging, name), join(self._path, name))

    def drop_staging(self) -> None:
        """Removes what attempts left in the staging folder."""
        remove(self._staging())
        if exists(self._path) and names_in(join(self._path, WORK_FOLDER)) == []:
            remove(join(self._path, WORK_FOLDER))

    def finish(self, result: str) -> None:
        """Records the result, then marks the output as complete."""
        make_folder(join(self._path, WORK_FOLDER))
        write_text(join(self._path, WORK_FOLDER, "result.json"), result)
        write_text(join(self._path, SUCCESS_FILE), "")

    def _staging(self) -> str:
        return join(self._path, WORK_FOLDER, "staging")

    def _is_leftover(self, name: str) -> bool:
        """Returns whether a run that died left this before it published anything."""
        inside = names_in(join(self._path, WORK_FOLDER))
        return name == WORK_FOLDER and set(inside) <= {"staging"}


def _is_ours(name: str) -> bool:
    hidden_checksum = name.startswith(".") and name.endswith(".crc")
    is_part = name.startswith("part-") and name.endswith(".parquet")
    return is_part or hidden_checksum or name in (SUCCESS_FILE, WORK_FOLDER)


def _with_parents(path: str) -> list[str]:
    """Returns a path and the folders above it that have names."""
    paths = [path.rstrip("/")]
    while "/" in paths[-1].split("://", 1)[-1].strip("/"):
        paths.append(paths[-1].rsplit("/", 1)[0])
    return [name for name in paths if name]
