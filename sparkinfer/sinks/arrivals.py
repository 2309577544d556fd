"""A sink whose chunks are done once they have arrived elsewhere, too; see `Sink`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from sparkinfer.plan.ports import Publication, PublicationState, Seen
from sparkinfer.sinks.parquet import ParquetFolder
from sparkinfer.sinks.vectors.delivery import receipt_of, receipts_in
from sparkinfer.storage import WORK_FOLDER, join


class Arrivals(Protocol):
    """What has arrived in a store or a table, and the way there."""

    def has_arrived(self, chunk: int, publication: Publication) -> bool:
        """Returns whether what a chunk's files hold has arrived."""

    def deliver(self, chunk: int, paths: Sequence[str], publication: Publication) -> None:
        """Has what a chunk's files hold arrive, unless it has.

        Args:
            chunk: its number.
            paths: of its files.
            publication: of them.
        """


class KnownArrivals:
    """What has arrived in a vector store by the receipts alone, for those who only look.

    Args:
        output: the output folder.
    """

    def __init__(self, output: str) -> None:
        self._receipts = receipts_in(output)

    def has_arrived(self, chunk: int, publication: Publication) -> bool:
        """Returns whether there is a receipt."""
        return receipt_of(publication) in self._receipts

    def deliver(self, chunk: int, paths: Sequence[str], publication: Publication) -> None:
        """Is never called: who only looks changes nothing."""
        raise AssertionError("nothing can be sent without the store")


class _WithArrivals:
    """What both sinks leave to the folder of the files, and what they ask of the arrivals.

    Args:
        files: the folder.
        arrivals: of each store and table.
    """

    def __init__(self, files: ParquetFolder, arrivals: Sequence[Arrivals]) -> None:
        self._files = files
        self._arrivals = arrivals
        self.prepare = files.prepare
        self.look = files.look
        self.chunk_of = files.chunk_of
        self.remove = files.remove
        self.is_finished = files.is_finished
        self.finish = files.finish
        self.unfinish = files.unfinish

    def _has_arrived(self, publication: Publication) -> bool:
        chunk = self._chunk(publication)
        return all(one.has_arrived(chunk, publication) for one in self._arrivals)

    def _deliver(self, paths: Sequence[str], publication: Publication) -> None:
        chunk = self._chunk(publication)
        for one in self._arrivals:
            one.deliver(chunk, paths, publication)

    def _chunk(self, publication: Publication) -> int:
        number = self._files.chunk_of(next(iter(publication.files)))
        if number is None:
            raise AssertionError("a publication is of a chunk of its run")
        return number


class FilesAndMore(_WithArrivals):
    """A folder of Parquet files, each chunk of which is in stores or tables, too; see `Sink`."""

    def state(self, publication: Publication, seen: Seen) -> PublicationState:
        """Returns how far a publication has come: what is to be sent again must be as it was."""
        state = self._files.state(publication, seen)
        if state != "published" or self._has_arrived(publication):
            return state
        return "staged" if self.is_true(publication) else "missing"

    def is_true(self, publication: Publication) -> bool:
        """Returns whether the published files are those that were made."""
        return self._files.is_true(publication)

    def publish(self, publication: Publication, instead_of: Collection[str]) -> None:
        """Moves the files to where readers look, then sends what is in them."""
        self._files.publish(publication, instead_of)
        self._deliver([self._files.path_of(name) for name in publication.files], publication)


class NoFiles(_WithArrivals):
    """Stores and tables in place of files that readers see; see `Sink`.

    A chunk's files are sent from where they are staged, and are gone with that.

    Args:
        files: the folder where they would be.
        output: the output folder.
        arrivals: of each store and table.
    """

    def __init__(self, files: ParquetFolder, output: str, arrivals: Sequence[Arrivals]) -> None:
        super().__init__(files, arrivals)
        self._work = join(output, WORK_FOLDER)

    def state(self, publication: Publication, seen: Seen) -> PublicationState:
        """Returns how far a publication has come: it is shown once it has arrived."""
        if self._has_arrived(publication):
            return "published"
        return self._files.state(publication, seen)

    def is_true(self, publication: Publication) -> bool:
        """Returns that it is: a receipt is of these files and no others."""
        return True

    def publish(self, publication: Publication, instead_of: Collection[str]) -> None:
        """Sends what is in the staged files."""
        sources = publication.sources.values()
        self._deliver([join(self._work, source) for source in sources], publication)
