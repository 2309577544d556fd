"""Which chunks of an output are done, and the steps by which one becomes part of it.

A chunk's files are whole where they are staged. First its record is created: it says what readers
are to see, and where that is staged. Then the files are moved. Whoever comes later, after a crash
at any moment, does the moves of the record again, and those that are done change nothing. Two
writers never both record one generation of a chunk where files can be created exclusively: the
second finds the first one's record, finishes that, and drops what it made itself. Elsewhere the
lease keeps the second from getting so far.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Protocol, TypeVar

from sparkinfer.jobs.records import ChunkRecord, Records
from sparkinfer.logs import get_logger
from sparkinfer.plan.chunks import Chunk
from sparkinfer.plan.ports import PublicationState, Seen, Sink

logger = get_logger(__name__)

T = TypeVar("T")

CHUNKS_AT_ONCE = 32
"""Whose records and files are read concurrently: on an object store each takes a round trip."""


class Insist(Protocol):
    """Does something that may be repeated; raises if this writer must not go on."""

    def __call__(self, act: Callable[[], T]) -> T: ...  # noqa: D102


class Ledger:
    """The records of a run, and what readers see of them.

    Args:
        records: of the run.
        sink: where readers look.
        chunks: of the manifest.
    """

    def __init__(self, records: Records, sink: Sink, chunks: Sequence[Chunk]) -> None:
        self._records = records
        self._sink = sink
        self._chunks = chunks
        self._highest: dict[int, int] = {}
        self._visible: dict[int, list[str]] = {}
        self._open: set[tuple[int, int]] = set()
        self._looks_inside = False
        self._true: set[tuple[int, int]] = set()

    @property
    def is_settled(self) -> bool:
        """Whether nothing that this writer has recorded still waits where it was staged."""
        return not self._open

    def standing(self) -> Iterator[ChunkRecord]:
        """Yields the valid record of each chunk that is done, in order.

        It is the newest whose files readers see, or can be made to see. A chunk without any is to
        be scored again; what is wrong with its records is logged. From `recover` on, each file is
        looked into once.
        """
        for record, _ in self._standing():
            yield record

    def extend(self, chunks: Sequence[Chunk]) -> None:
        """Takes the chunks of a larger manifest of the same run, which begin with those so far."""
        self._chunks = chunks

    def recover(self, insist: Insist) -> Iterator[ChunkRecord]:
        """Yields the records that stand, each once its files are where readers look.

        What a record says and an interrupted writer left undone is finished on the way: exhaust it
        before anything that is staged is removed. What readers see of a chunk that is to be scored
        again stays until its next commit, which replaces it.
        """
        self._looks_inside = True
        self._highest = {number: known[0] for number, known in self._known().items()}
        self._visible = self._by_chunk(self._sink.look().files)
        for record, state in self._standing():
            doubled = set(self._visible.pop(record.number, ())) - set(record.files)
            if state == "staged":
                # What has its names may be of an earlier generation, in files of other rows.
                self._publish(record, insist, doubled | set(record.files))
            elif doubled:
                insist(partial(self._sink.remove, doubled))
            yield record

    def commit(
        self, draft: ChunkRecord, insist: Insist, instead_of: Collection[str] = ()
    ) -> ChunkRecord:
        """Records a chunk and shows its files; returns the record that is valid then.

        It is another writer's, if that was faster. May be called from several threads at once.

        Args:
            draft: the record but for its generation.
            insist: does each step.
            instead_of: names of what readers see of the chunk until then, beside what `recover`
                has found.

        Raises:
            OSError: a file is missing, or cannot be moved.
        """
        generation = self._highest.get(draft.number, -1) + 1
        while True:
            chunk = self._chunks[draft.number].digest
            mine = replace(draft, generation=generation, chunk=chunk)
            self._open.add((mine.number, generation))  # its files may be all there is from here on
            there = insist(partial(self._records.create, mine))
            if there is not None and there.sources == mine.sources:
                self._publish(mine, insist, instead_of)
                self._true.add((mine.number, generation))
                return mine
            self._open.discard((mine.number, generation))
            if there is not None and self._adopt(there, insist):
                return there
            generation += 1

    def _adopt(self, record: ChunkRecord, insist: Insist) -> bool:
        """Finishes what another writer began; returns whether its files were there."""
        if self._state(record, self._sink.look()) == "missing":
            return False
        logger.warning("chunk %d: another run was faster; its files are kept", record.number)
        try:
            self._publish(record, insist)
        except FileNotFoundError:  # taken away meanwhile
            self._open.discard((record.number, record.generation))
            return False
        return True

    def _publish(
        self, record: ChunkRecord, insist: Insist, instead_of: Collection[str] = ()
    ) -> None:
        key = record.number, record.generation
        self._open.add(key)
        others = {*instead_of, *self._visible.get(record.number, ())}
        insist(lambda: self._sink.publish(record.publication, others))
        self._highest[record.number] = record.generation
        self._open.discard(key)

    def _standing(self) -> Iterator[tuple[ChunkRecord, PublicationState]]:
        """Yields the records that stand, each with how far it has come."""
        generations = list(self._known().items())
        seen = self._sink.look() if generations else Seen({}, ())
        with ThreadPoolExecutor(CHUNKS_AT_ONCE) as pool:
            for start in range(0, len(generations), CHUNKS_AT_ONCE):
                some = generations[start : start + CHUNKS_AT_ONCE]
                found = pool.map(lambda one: self._newest(one[0], one[1], seen), some)
                yield from (one for one in found if one is not None)

    def _newest(
        self, number: int, generations: Sequence[int], seen: Seen
    ) -> tuple[ChunkRecord, PublicationState] | None:
        """Returns the newest record of a chunk whose files are there, None without any."""
        for generation in generations:
            record = self._records.read(number, generation)
            if record is None:
                continue
            state = self._state(record, seen)
            if state != "missing":
                return record, state
        logger.warning(
            "chunk %d: its record or a file of it is missing or has changed; it is scored again",
            number,
        )
        return None

    def _state(self, record: ChunkRecord, seen: Seen) -> PublicationState:
        """Returns whether a record's files are, or can be, what readers see of its chunk."""
        chunk = self._chunks[record.number]
        is_of_chunk = record.rows_read == chunk.rows and record.chunk in ("", chunk.digest)
        if not is_of_chunk or any(self._sink.chunk_of(n) != chunk.number for n in record.files):
            return "missing"
        state = self._sink.state(record.publication, seen)
        key = record.number, record.generation
        if state != "published" or not self._looks_inside or key in self._true:
            return state
        if not self._sink.is_true(record.publication):
            return "missing"
        self._true.add(key)
        return "published"

    def _known(self) -> dict[int, list[int]]:
        """Returns the generations of each chunk of the manifest that has any."""
        found = self._records.generations()
        return {number: known for number, known in found.items() if number < len(self._chunks)}

    def _by_chunk(self, seen: Mapping[str, int]) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {}
        for name in seen:
            number = self._sink.chunk_of(name)
            if number is not None:
                found.setdefault(number, []).append(name)
        return found
