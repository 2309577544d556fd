"""Rows that come one by one, from any thread, and share the batches of one scorer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import pyarrow as pa

from sparkinfer.batching.dynamic import BatchProcessor
from sparkinfer.exceptions import InputError
from sparkinfer.messages import first_line, shown
from sparkinfer.validation import Options, at_least

Row = dict[str, Any]
"""A scored row: the columns that a job would add."""

BATCH_ROWS, TIMEOUT_MS = 256, 5.0
"""Most rows that are scored together, and how long the first of fewer waits for others."""

TEXTS = "texts"
"""Kind of rows that are a text each, which need no schema of their own."""


@dataclass(frozen=True, init=False)
class RequestOptions(Options):
    """How many rows wait for one another, and how long."""

    batch_rows: int = field(default=BATCH_ROWS, metadata=at_least(1))
    """Most rows that are scored together."""
    timeout_ms: float = field(default=TIMEOUT_MS, metadata=at_least(0))
    """How long the first of fewer waits for others, in milliseconds."""


@dataclass(frozen=True)
class Request:
    """A row that waits to be scored.

    Attributes:
        kind: `TEXTS`, or the columns; rows of one kind are scored together.
        row: the values of its columns.
    """

    kind: str | pa.Schema
    row: Mapping[str, Any]


class Requests:
    """Scores rows for callers in many threads or coroutines; closed, it takes no more.

    Args:
        process: adds columns to rows; called in one thread. See `Processor.process`.
        columns: that it reads, in its order.
        check_types: raises InputError for columns that it cannot read.
        options: how many rows wait for one another.
    """

    def __init__(
        self,
        process: Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]],
        columns: Sequence[str],
        check_types: Callable[[pa.Schema], None],
        options: RequestOptions | None = None,
    ) -> None:
        self._process = process
        self._columns = tuple(columns)
        self._check_types = check_types

        def score(requests: list[Request]) -> list[Row]:
            return self._score(requests)

        score.__qualname__ = "the model"  # in messages
        options = options or RequestOptions()
        self._batcher: BatchProcessor[Request, Row] = BatchProcessor(
            score, options.batch_rows, options.timeout_ms
        )

    @property
    def stats(self) -> Any:
        """How many rows and batches there were, and how long they took."""
        return self._batcher.stats

    def __call__(self, items: Any, timeout_s: float | None = None) -> Any:
        """Returns the scored row of a text or a row, or a list of them for a list.

        Args:
            items: a text, a mapping of the columns that are read, or a list of such.
            timeout_s: how long to wait; None: as long as it takes.

        Raises:
            InputError: it is none.
            CallError: there is no result; see `sparkinfer.exceptions`.
        """
        if isinstance(items, list):
            return self._batcher([self._request(item) for item in items], timeout_s=timeout_s)
        return self._batcher(self._request(items), timeout_s=timeout_s)

    def submit(self, item: Any) -> Future[Row]:
        """Returns what will hold the scored row of a text or a row; see a call."""
        return self._batcher.submit(self._request(item))

    async def asubmit(self, item: Any) -> Row:
        """Returns the same, without keeping the event loop waiting."""
        return await asyncio.wrap_future(self.submit(item))

    def close(self) -> None:
        """Ends what waits with an error."""
        self._batcher.close()

    def _request(self, item: Any) -> Request:
        """Returns a row that can be scored beside others; what cannot is its caller's alone."""
        row = item if isinstance(item, Mapping) else {self._only_column: item}
        missing = [name for name in self._columns if name not in row]
        if missing:
            raise InputError(
                f"the row {shown(dict(row))} has no {missing[0]!r}; give a mapping with "
                f"{', '.join(self._columns)}"
            )
        values = {name: row[name] for name in self._columns}
        try:
            if all(isinstance(value, str | None) for value in values.values()):
                for value in values.values():
                    (value or "").encode()
                return Request(TEXTS, values)
            schema = _schema_of(values)
        except (pa.ArrowException, UnicodeEncodeError, TypeError, OverflowError) as error:
            row_text = " ".join(shown(values).split())
            raise InputError(f"the row {row_text} cannot be read: {first_line(error)}") from error
        self._check_types(schema)
        return Request(schema, values)

    @property
    def _only_column(self) -> str:
        if len(self._columns) != 1:
            raise InputError(
                f"the model reads {', '.join(self._columns)}: give a mapping of these, not one text"
            )
        return self._columns[0]

    def _score(self, requests: list[Request]) -> list[Row]:
        """Returns the scored rows, in the order of the requests."""
        found: list[Row] = []
        for kind, group in groupby(requests, key=lambda request: request.kind):
            schema = kind
            if not isinstance(schema, pa.Schema):
                schema = pa.schema([(name, pa.string()) for name in self._columns])
            rows = pa.RecordBatch.from_pylist([dict(one.row) for one in group], schema)
            for scored in self._process([rows]):
                found += scored.to_pylist()
        return found


def _schema_of(values: Mapping[str, Any]) -> pa.Schema:
    """Returns the types of a row's values; a null, which has none, is that of a text."""
    fields = pa.RecordBatch.from_pylist([values]).schema
    return pa.schema(
        [(one.name, pa.string() if pa.types.is_null(one.type) else one.type) for one in fields]
    )
