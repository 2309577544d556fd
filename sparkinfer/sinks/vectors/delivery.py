"""Puts the vectors of whole chunks into a store, and keeps receipts of what has arrived.

A receipt says that a chunk's files, as they are, have arrived in a collection. It is written after
the rows: whoever comes later, after a crash at any moment, sends those without a receipt again, and
the store has them in place of what is there. Receipts are kept by the collection's token, so one
that was recreated gets all.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from sparkinfer.exceptions import JobError, OutputError
from sparkinfer.logs import get_logger
from sparkinfer.plan.ports import Publication
from sparkinfer.sinks.vectors.asked import AskedVectors
from sparkinfer.sinks.vectors.base import (
    About,
    RepeatedKeyError,
    StoreAwayError,
    VectorRows,
    VectorStore,
)
from sparkinfer.sinks.vectors.rows import read_vectors, repeated_key
from sparkinfer.storage import WORK_FOLDER, join, make_folder, names_in, remove, write_text

logger = get_logger(__name__)

RECEIPTS_FOLDER = "vectors"
"""In the work folder: for receipts, a folder for each token."""

PAUSES_S = (0.5, 2.0, 8.0, 20.0)
"""Before a store that did not answer is asked again."""

T = TypeVar("T")


class Delivery:
    """The way of one run's vectors into a store; thread-safe, one chunk at a time.

    Args:
        asked: what goes there.
        store: where to.
        output: the output folder.
        about: of the collection, which is there.
        may_go_on: raises if this writer must not go on.
    """

    def __init__(
        self,
        asked: AskedVectors,
        store: VectorStore,
        output: str,
        about: About,
        may_go_on: Callable[[], object],
    ) -> None:
        self._asked = asked
        self._store = store
        self._about = about
        self._may_go_on = may_go_on
        self._all = join(output, WORK_FOLDER, RECEIPTS_FOLDER)
        self._receipts = join(self._all, about.token)
        self._lock = threading.Lock()
        self._known: set[str] | None = None

    def has_arrived(self, chunk: int, publication: Publication) -> bool:
        """Returns whether there is a receipt of a chunk's files."""
        return receipt_of(publication) in self._arrived()

    def deliver(self, chunk: int, paths: Sequence[str], publication: Publication) -> None:
        """Has the vectors of a chunk's files arrive in the store, unless they have.

        Args:
            chunk: its number.
            paths: of its files.
            publication: of them.

        Raises:
            JobError: the store does not answer, or does not take them.
            OSError: a file is missing.
        """
        with self._lock:
            if self.has_arrived(chunk, publication):
                return
            for rows in read_vectors(paths, self._asked):
                self._may_go_on()
                self._write(chunk, rows)
            receipt = receipt_of(publication)
            make_folder(self._receipts)
            write_text(join(self._receipts, receipt), json.dumps({"chunk": chunk}))
            self._arrived().add(receipt)

    def forget_others(self) -> None:
        """Removes the receipts of collections that this one has taken the place of."""
        for token in names_in(self._all):
            if token != self._about.token:
                remove(join(self._all, token))

    def count(self) -> int:
        """Returns the number of vectors in the store; raises JobError if it does not answer."""
        with self._lock:
            return patiently(self._asked, self._store.count)

    def _arrived(self) -> set[str]:
        if self._known is None:
            self._known = set(names_in(self._receipts))
        return self._known

    def _write(self, chunk: int, rows: VectorRows) -> None:
        if len(rows.ids) and rows.vectors.shape[1] != self._about.dimension:
            raise JobError(
                f"{self._asked.uri} holds vectors of {self._about.dimension} numbers, and chunk "
                f"{chunk} has some of {rows.vectors.shape[1]}; name another collection or table"
            )
        try:
            patiently(self._asked, partial(self._store.write, self._about, chunk, rows))
        except RepeatedKeyError as error:
            raise repeated_key(error.message) from error
        except OutputError as error:
            raise JobError(error.message) from error


def receipt_of(publication: Publication) -> str:
    """Returns the name of the receipt of a chunk's files: it tells them from all others."""
    what = [sorted(publication.files.items()), sorted(publication.digests.items())]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]


def receipts_in(output: str) -> set[str]:
    """Returns the names of all receipts of an output, as far as it is known without the store."""
    folder = join(output, WORK_FOLDER, RECEIPTS_FOLDER)
    return {name for token in names_in(folder) for name in names_in(join(folder, token))}


def patiently(asked: AskedVectors, act: Callable[[], T]) -> T:
    """Returns what a store does, which is asked again if it does not answer.

    Raises:
        JobError: it does not answer at all.
    """
    for pause_s in (*PAUSES_S, None):
        try:
            return act()
        except StoreAwayError as error:
            if pause_s is None:
                raise JobError(
                    f"{asked.uri} does not answer ({error}); look at the server or the disk, and "
                    "run the same command to resume"
                ) from error
            logger.warning("%s: trying again in %g s: %s", asked.uri, pause_s, error)
            time.sleep(pause_s)
    raise AssertionError("the last try returns or raises")
