"""One function over a stream of rows: cut into batches, called, its failures set aside."""

from __future__ import annotations

import hashlib
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields
from itertools import groupby
from typing import NamedTuple, Protocol, TypeAlias

import pyarrow as pa

from sparkinfer.batching.rebatch import rebatch, same_rows
from sparkinfer.exceptions import DeviceError, JobError
from sparkinfer.functions.formats import UnfitBatchError
from sparkinfer.functions.user_function import CALLS_AT_ONCE, OpenFunction
from sparkinfer.messages import first_line
from sparkinfer.workers.devices import breaks_device
from sparkinfer.workers.suspects import Suspects
from sparkinfer.workers.watchdog import Activity, FunctionCall

LANE = "function"
"""In which notes are left of what runs; see `Suspects`."""

DEADLY = "function: its process died over this row, first in a batch and then alone"
"""The `error` of such a row."""


class FailedRows(NamedTuple):
    """Rows over which a function failed; they take no part in what comes after it.

    Attributes:
        rows: as the function was given them.
        reasons: why, of each.
    """

    rows: pa.RecordBatch
    reasons: list[str]


Item: TypeAlias = "pa.RecordBatch | FailedRows"
"""What streams from stage to stage."""


@dataclass
class StageStatistics:
    """What a stage did so far.

    Attributes:
        batches: calls that succeeded.
        errored_batches: batches of which a row failed, at least.
        seconds: in the function.
    """

    batches: int = 0
    errored_batches: int = 0
    seconds: float = 0.0

    def add(self, other: StageStatistics) -> None:
        """Adds what another stage did."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))

    def since(self, before: StageStatistics) -> StageStatistics:
        """Returns what it did since it had done that."""
        names = [one.name for one in fields(self)]
        return StageStatistics(**{n: getattr(self, n) - getattr(before, n) for n in names})


class Stage(Protocol):
    """A step that rows stream through.

    Attributes:
        statistics: what it did so far.
    """

    statistics: StageStatistics

    @property
    def activity(self) -> Activity | None:
        """What it is doing, for the watchdog; None while it waits."""

    def run(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yields what it makes of the rows, in their order."""

    def close(self) -> None:
        """Ends it."""


Finish = Callable[[pa.RecordBatch], pa.RecordBatch]
"""Gives what a function made its final form; raises UnfitBatchError for what has none."""


class FunctionStage:
    """A function in this process; see `Stage`.

    Args:
        function: what is called.
        keeps_failed: whether rows over which it fails go on as `FailedRows`; if not, it is an
            error. A batch of a function that gives a row for each row is halved until the rows
            that it fails over are alone; of another function, all rows of the batch fail.
        finish: for what it returns.
        on_activity: called with each activity when it begins, and with None when it ends.

    Attributes:
        suspects: of the rows that come next. Where a worker has died over them before, it is noted
            which rows the function is called with.
    """

    def __init__(
        self,
        function: OpenFunction,
        keeps_failed: bool,
        finish: Finish | None = None,
        on_activity: Callable[[Activity | None], None] | None = None,
    ) -> None:
        self._function = function
        self._keeps_failed = keeps_failed
        self._finish = finish
        self._on_activity = on_activity
        self._is_one_to_one = function.spec.one_to_one is not False
        self.statistics = StageStatistics()
        self._activity: Activity | None = None
        self.suspects = Suspects()

    @property
    def activity(self) -> Activity | None:
        """The call that is under way."""
        return self._activity

    @property
    def is_one_to_one(self) -> bool:
        """Whether each batch so far gave as many rows as it had."""
        return self._is_one_to_one

    def run(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yields what the function makes of the rows, in their order.

        Raises:
            DeviceError: the accelerator's context is broken; the process must exit.
            JobError: the function fails, and no rows are kept for that.
        """
        begun: deque[tuple[Item, Future[list[pa.RecordBatch]] | None]] = deque()
        most = CALLS_AT_ONCE - 1 if self._function.is_async else 0
        for item in self._cut(items):
            begun.append((item, self._begin(item)))
            while len(begun) > most:
                yield from self._ended(*begun.popleft())
        while begun:
            yield from self._ended(*begun.popleft())

    def close(self) -> None:
        """Ends what the function started."""
        self._function.close()

    def _cut(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yields rows in batches of the function's size; rows of unlike columns share none."""
        max_rows, max_bytes = self._function.spec.limits
        for kind, group in groupby(items, key=_kind):
            if kind is None:
                yield from group
            else:
                yield from rebatch(group, same_rows(max_rows), max_bytes)

    def _begin(self, item: Item) -> Future[list[pa.RecordBatch]] | None:
        is_careful = self._keeps_failed and self.suspects.follows_death
        if isinstance(item, FailedRows) or not self._function.is_async or is_careful:
            return None
        return self._function.begin(item)

    def _ended(self, item: Item, future: Future[list[pa.RecordBatch]] | None) -> Iterator[Item]:
        if isinstance(item, FailedRows):
            yield item
        elif not self._keeps_failed:
            yield from self._made_or_raised(item, future)
        else:
            yield from self._made_or_failed(item, future)

    def _made_or_raised(
        self, rows: pa.RecordBatch, future: Future[list[pa.RecordBatch]] | None
    ) -> Iterator[Item]:
        try:
            yield from self._made(rows, future)
        except JobError:
            raise
        except (Exception, SystemExit) as error:  # the user's code, which may raise anything
            raise JobError(
                f"fn={self._function.spec.name} failed over a batch of {_count(rows.num_rows)}"
                f"{_place(error)}: {reason_of(error)}"
            ) from error

    def _made_or_failed(
        self, rows: pa.RecordBatch, future: Future[list[pa.RecordBatch]] | None
    ) -> list[Item]:
        if self.suspects.follows_death:
            results = list(self._noted_results(rows))
        else:
            results = self._results(rows, future)
        self.statistics.errored_batches += any(isinstance(one, FailedRows) for one in results)
        return results

    def _noted_results(self, rows: pa.RecordBatch) -> Iterator[Item]:
        """Yields the same, with suspects called alone, and notes of what runs."""
        known = self.suspects.known
        hashes = hashes_of(rows)
        start = 0
        for row, one in enumerate(hashes):
            if one not in known.suspected and one not in known.deadly:
                continue
            yield from self._noted(rows.slice(start, row - start), hashes[start:row])
            if one in known.deadly:
                yield FailedRows(rows.slice(row, 1), [DEADLY])
            else:
                yield from self._noted(rows.slice(row, 1), [one], alone=True)
            start = row + 1
        yield from self._noted(rows.slice(start), hashes[start:])

    def _noted(
        self, rows: pa.RecordBatch, hashes: Sequence[str], alone: bool = False
    ) -> list[Item]:
        if not rows.num_rows:
            return []
        self.suspects.running(LANE, hashes, alone=alone)
        results = self._results(rows)
        self.suspects.running(LANE, ())
        return results

    def _results(
        self, rows: pa.RecordBatch, future: Future[list[pa.RecordBatch]] | None = None
    ) -> list[Item]:
        """Returns what is made of the rows, and those that fail; all at once, never in part."""
        try:
            return list(self._made(rows, future))
        except (Exception, SystemExit) as error:  # the user's code, which may raise anything
            if isinstance(error, Exception) and breaks_device(error):
                raise DeviceError(
                    f"the accelerator is broken ({first_line(error)}); the worker process ends so "
                    "that a new one gets a clean device"
                ) from error
            if rows.num_rows == 1 or not self._is_one_to_one:
                return [FailedRows(rows, [f"function: {reason_of(error)}"] * rows.num_rows)]
        middle = rows.num_rows // 2
        return [*self._results(rows.slice(0, middle)), *self._results(rows.slice(middle))]

    def _made(
        self, rows: pa.RecordBatch, future: Future[list[pa.RecordBatch]] | None
    ) -> Iterator[pa.RecordBatch]:
        started, count = time.perf_counter(), 0
        self._enter(FunctionCall(self._function.spec.name, rows.num_rows))
        try:
            for made in future.result() if future is not None else self._function.call(rows):
                finished = self._finish(made) if self._finish is not None else made
                count += finished.num_rows
                self._count(started)
                yield finished
                started = time.perf_counter()
        finally:
            self._enter(None)
            self._count(started)
        self._check(rows.num_rows, count)
        self.statistics.batches += 1

    def _enter(self, activity: Activity | None) -> None:
        self._activity = activity
        if self._on_activity is not None:
            self._on_activity(activity)

    def _count(self, started: float) -> None:
        self.statistics.seconds += time.perf_counter() - started

    def _check(self, given: int, made: int) -> None:
        """Takes note of how many rows were made of a batch."""
        if self._function.spec.one_to_one and made != given:
            raise UnfitBatchError(
                f"it returned {_count(made)} for {given}, and one_to_one=true says one for each"
            )
        self._is_one_to_one &= made == given


def hashes_of(rows: pa.RecordBatch) -> list[str]:
    """Returns what tells each row from others, by its values."""
    values = (repr(row).encode("utf-8", "backslashreplace") for row in rows.to_pylist())
    return [hashlib.blake2b(one, digest_size=16).hexdigest() for one in values]


def chained(stages: Iterable[Stage], items: Iterable[Item]) -> Iterator[Item]:
    """Returns the rows after all stages."""
    for stage in stages:
        items = stage.run(items)
    return iter(items)


def reason_of(error: BaseException) -> str:
    """Returns why a function failed, in one line."""
    if isinstance(error, UnfitBatchError):
        return first_line(error)
    return f"{type(error).__name__}: {first_line(error)}"


def _place(error: BaseException) -> str:
    """Returns where in the user's code an error was raised."""
    if isinstance(error, UnfitBatchError) or error.__traceback__ is None:
        return ""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f" ({frame.filename.rsplit('/', 1)[-1]}, line {frame.lineno})"


def _kind(item: Item) -> pa.Schema | None:
    """Returns the columns of rows, None for failed ones."""
    return None if isinstance(item, FailedRows) else item.schema


def _count(rows: int) -> str:
    return f"{rows} row" if rows == 1 else f"{rows} rows"
