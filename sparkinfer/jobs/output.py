"""The output folder as a whole: who may write there, and the work folder that readers pass over.

Attempts write below the work folder, each epoch of the lease in its own folder, which the next
epoch removes once it has finished what the records say: a writer that was wrongly taken for dead
then has nothing left to publish.
"""

from __future__ import annotations

import glob
import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial

from sparkinfer.exceptions import ConfigError, OutputError, ResumeError
from sparkinfer.jobs.manifest import Manifest, manifest_numbers, read_manifest, remove_manifests
from sparkinfer.jobs.mlflow_note import notes_of_others
from sparkinfer.jobs.records import recorded, records_of_others
from sparkinfer.jobs.sessions import sessions_of_others
from sparkinfer.logs import get_logger
from sparkinfer.rows.reading import COPIES
from sparkinfer.sinks.parquet import STAGING_FOLDER, ParquetFolder
from sparkinfer.storage import (
    WORK_FOLDER,
    file_system,
    is_file,
    is_local_path,
    join,
    make_folder,
    names_in,
    remove,
    remove_if_empty,
    rename_folder,
)

logger = get_logger(__name__)

REMOVAL_ATTEMPTS, REMOVAL_PAUSE_S = 5, 0.5

GONE = "gone-"
"""Prefix of the names of staged folders that are about to be removed."""

REPORT_FILE = "report.html"
"""Of the work folder: the page that shows what was done."""


class Output:
    """A folder for scored Parquet files.

    Args:
        path: the folder, as a path or URL that `sparkinfer.storage` accepts.

    Attributes:
        path: the folder.
        lease_folder: where the lease is kept.
        input_folder: for copies of the input, or of some of its files.
        notes_folder: for what workers note in case they die.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._work = join(path, WORK_FOLDER)
        self._staging = join(self._work, STAGING_FOLDER)
        self.lease_folder = join(self._work, "lease")
        self.input_folder = join(self._work, "input")
        self.notes_folder = join(self._work, "notes")

    def check(self, overwrite: bool) -> None:
        """Raises OutputError unless a run may write here.

        The folder may be missing or empty, or hold an earlier run: one that can be resumed, or any
        with `overwrite`.
        """
        if not is_local_path(self.path) and glob.has_magic(self.path):
            raise OutputError(
                f"output {self.path!r}: fsspec treats '*', '?' and '[' as a pattern that matches "
                "other folders too; name a folder without them"
            )
        for folder in _with_parents(self.path):
            if is_file(folder):
                raise OutputError(
                    f"output {self.path!r}: {folder!r} is a file, expected a folder; name another"
                )
        names = names_in(self.path)
        present = [name for name in names if name != WORK_FOLDER]
        if not present:
            return
        if WORK_FOLDER not in names:
            raise OutputError(
                f"output {self.path!r} is not empty: it holds {present[0]!r} and no "
                f"{WORK_FOLDER!r} folder, so no run wrote it; name another folder"
            )
        ParquetFolder(self.path).refuse_strangers(self.runs())
        if not overwrite and not manifest_numbers(self.path):
            raise OutputError(
                f"output {self.path!r} holds {present[0]!r} but no manifest that says where it is "
                "from; give --overwrite to replace it, or name another folder"
            )

    def runs(self) -> list[str]:
        """Returns the ids of the runs that wrote here, the latest last.

        The manifest names them. Without one that can be read, it is the runs that have records:
        beside a manifest, records of other runs are from another output.
        """
        try:
            manifest = read_manifest(self.path)
        except ResumeError:
            manifest = None
        if manifest is None:
            return sorted({run for run, _ in recorded(self.path)})
        return [*manifest.replaced, manifest.run]

    def refuse_overlap(self, sources: Sequence[str]) -> None:
        """Raises ConfigError if the output overlaps with one of the inputs."""
        for source in sources:
            if self.overlaps(source):
                raise ConfigError(
                    f"output={self.path!r} and input={source!r} overlap; name another folder"
                )

    def overlaps(self, path: str) -> bool:
        """Returns whether the output is a file or folder, contains it or lies in it."""
        output, other = (_comparable(one) + "/" for one in (self.path, path))
        return output.startswith(other) or other.startswith(output)

    def prepare(self) -> None:
        """Creates the work folder.

        Raises:
            OutputError: the output cannot be written.
        """
        try:
            make_folder(self._work)
        except OSError as error:
            raise OutputError(
                f"output {self.path!r} cannot be written ({error.strerror or error}); name "
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

    def forget(self, manifest: Manifest, insist: Callable[[Callable[[], None]], None]) -> None:
        """Removes what is no longer needed once all chunks of a run are done.

        What is removed was there before `insist` was asked: a run that has taken over meanwhile
        loses nothing.

        Args:
            manifest: of the run.
            insist: does each step, unless this writer must not go on.
        """
        used = {name.removeprefix(COPIES).split("/")[0] for name in manifest.read_files}
        unused = [join(self.input_folder, n) for n in names_in(self.input_folder) if n not in used]
        others = [
            *records_of_others(self.path, manifest.run),
            *sessions_of_others(self.path, manifest.run),
            *notes_of_others(self.path, manifest.run),
        ]
        insist(lambda: remove_manifests(self.path, below=manifest.number))
        for path in (*others, *unused, self.notes_folder):
            insist(partial(self.remove_folder, path))

    def remove_folder(self, folder: str) -> None:
        """Removes a folder, or a file, below the work folder.

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
        remove_if_empty(self._staging)

    def is_unused(self) -> bool:
        """Returns whether the work folder holds nothing but a lease."""
        return not set(names_in(self._work)) - {"lease"}

    def remove_if_empty(self) -> None:
        """Removes the work folder, and the output, if they hold nothing."""
        remove_if_empty(self._work)
        remove_if_empty(self.path)


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
