"""A folder of Parquet files, named after their chunk, that readers see once they are whole."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from sparkinfer.exceptions import JobError, OutputError
from sparkinfer.plan.chunks import Chunk
from sparkinfer.plan.ports import Publication, PublicationState, Seen
from sparkinfer.sinks.footers import BrokenFileError, Footer, read_footer
from sparkinfer.storage import (
    SUCCESS_FILE,
    WORK_FOLDER,
    exists,
    file_size,
    is_file,
    join,
    move,
    names_in,
    remove,
    sizes_in,
    sync,
    write_text,
)

STAGING_FOLDER = "staging"
"""In the work folder: for what is not published yet, a folder for each epoch."""

PART_NAME = re.compile(r"part-(\d{8})-\d{3,}(?:\.\d{8,})?(?:-([0-9a-f]{8}))?\.parquet")
"""Number of the chunk, index, epoch, and id of the run; runs of older versions have no id.

The first file of a chunk has no epoch: that of the next generation takes its place in one step. The
others go before, and a writer that wakes up while it removes them must not remove a later one's.
"""


class ParquetFolder:
    """The visible part of an output folder; see `Sink`.

    Args:
        path: the output folder.
        run: id of the run that publishes there; empty for one that an older version began.
    """

    def __init__(self, path: str, run: str = "") -> None:
        self._path = path
        self._work = join(path, WORK_FOLDER)
        self._run = run

    def prepare(self, chunk: Chunk, staging: str, names: Sequence[str]) -> Publication:
        """Returns what readers are to see of staged files, which are made durable; see `Sink`."""
        files, sources, digests, rows = {}, {}, {}, 0
        for index, name in enumerate(names):
            path = join(staging, name)
            sync(path)
            source = path.removeprefix(self._work + "/")
            target = self._name(chunk, index, epoch=source.split("/")[1])
            files[target], sources[target] = file_size(path), source
            footer = _footer_of_staged(path, files[target])
            digests[target] = footer.digest
            rows += footer.rows
        return Publication(files, sources, digests, rows)

    def _name(self, chunk: Chunk, index: int, epoch: str) -> str:
        of_epoch = f".{epoch}" if index else ""
        of_run = f"-{self._run}" if self._run else ""
        return f"part-{chunk.name}-{index:03d}{of_epoch}{of_run}.parquet"

    def look(self) -> Seen:
        """Returns what the output holds now; what moves meanwhile is seen where it moves to."""
        staging = names_in(join(self._work, STAGING_FOLDER))
        return Seen(sizes_in(self._path), staging)

    def state(self, publication: Publication, seen: Seen) -> PublicationState:
        """Returns how far a publication has come; see `Sink`."""
        folders = tuple(f"{STAGING_FOLDER}/{name}/" for name in seen.staging)
        staged = {
            name
            for name, source in publication.sources.items()
            if source.startswith(folders) and self._is_staged(publication, name)
        }
        if any(
            seen.files.get(n) != size for n, size in publication.files.items() if n not in staged
        ):
            return "missing"
        return "staged" if staged else "published"

    def is_true(self, publication: Publication) -> bool:
        """Returns whether the published files are those that were made, by their footers."""
        rows = 0
        for name, size in publication.files.items():
            try:
                footer = read_footer(join(self._path, name), size)
            except (FileNotFoundError, BrokenFileError):
                return False
            if footer.digest != publication.digests.get(name, footer.digest):
                return False
            rows += footer.rows
        return rows == publication.rows

    def publish(self, publication: Publication, instead_of: Collection[str]) -> None:
        """Moves staged files to where readers look; see `Sink`.

        The first file takes the place of an old one in one step; the other old ones go before. So a
        reader may miss rows of a chunk in several files for a moment, and never sees one twice.
        """
        first = next(iter(publication.files))
        for name in instead_of:
            is_done = name in publication.files and not self._is_staged(publication, name)
            if name != first and not is_done:
                remove(join(self._path, name))
        for name, source in publication.sources.items():
            target = join(self._path, name)
            try:
                move(join(self._work, source), target)
            except FileNotFoundError:
                if not exists(target) or file_size(target) != publication.files[name]:
                    raise

    def path_of(self, name: str) -> str:
        """Returns the path of something that readers see."""
        return join(self._path, name)

    def chunk_of(self, name: str) -> int | None:
        """Returns the number of the chunk that a file of this run is of, None for other files."""
        match = PART_NAME.fullmatch(name)
        return int(match[1]) if match and (match[2] or "") == self._run else None

    def remove(self, names: Iterable[str]) -> None:
        """Removes some of what readers see."""
        for name in names:
            remove(join(self._path, name))

    def of_runs(self, runs: Collection[str]) -> list[str]:
        """Returns the names of the files that one of these runs wrote."""
        return [name for name in sorted(sizes_in(self._path)) if _is_of(name, runs)]

    def refuse_strangers(self, runs: Collection[str]) -> None:
        """Raises OutputError if there is something that none of these runs wrote."""
        files = sizes_in(self._path)
        ours = {WORK_FOLDER, *(n for n in files if _is_of(n, runs) or _is_hidden(n))}
        foreign = [name for name in names_in(self._path) if name not in ours]
        if foreign:
            raise OutputError(
                f"output {self._path!r} holds {foreign[0]!r}, which no run wrote there; move it "
                "elsewhere or name another folder"
            )

    def is_finished(self) -> bool:
        """Returns whether the output is marked as complete."""
        return is_file(join(self._path, SUCCESS_FILE))

    def finish(self) -> None:
        """Marks the output as complete."""
        write_text(join(self._path, SUCCESS_FILE), "")

    def unfinish(self) -> None:
        """Removes the mark: there is more to do."""
        remove(join(self._path, SUCCESS_FILE))

    def _is_staged(self, publication: Publication, name: str) -> bool:
        source = publication.sources.get(name)
        if source is None:
            return False
        path = join(self._work, source)
        return exists(path) and file_size(path) == publication.files[name]


def _footer_of_staged(path: str, size: int) -> Footer:
    try:
        return read_footer(path, size)
    except BrokenFileError as error:
        raise JobError(str(error)) from error


def _is_of(name: str, runs: Collection[str]) -> bool:
    """Returns whether a file is named as one of these runs names its files."""
    match = PART_NAME.fullmatch(name)
    return match is not None and (match[2] or "") in runs


def _is_hidden(name: str) -> bool:
    return name == SUCCESS_FILE or (name.startswith(".") and name.endswith(".crc"))
