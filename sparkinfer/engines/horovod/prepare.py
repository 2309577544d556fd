"""Prepared rows: tokenised, and written as Parquet that ranks can share.

Every row gets a key and goes into one row group with rows of similar length. A row group is a pair
of files of the same name, one Parquet row group each: `tokens/NAME` holds the key, the token ids
and what is known about the text, `carried/NAME` the columns that the output keeps, in the same
order. Where several models need the tokens of several tokenizers, the first file holds those of
each. Padding is left to the ranks. Rows are sorted only within what a task holds at a time, so no
shuffle is needed.

If the processor does not encode ahead, there is only the second file, with the columns it reads.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sparkinfer.batching.planner import IntArray
from sparkinfer.batching.rebatch import rebatch, same_rows
from sparkinfer.batching.row_groups import cut_row_groups, growing_limits
from sparkinfer.batching.runs import Hashes, hash_inputs_of, whole_runs
from sparkinfer.models.encoded import EncodedRows
from sparkinfer.models.scorer import DEFAULT_BATCH_TOKENS
from sparkinfer.option_groups import BatchingConfig
from sparkinfer.plan.chunks import Chunk
from sparkinfer.plan.plan import Plan
from sparkinfer.rows.processor import encodes_ahead
from sparkinfer.storage import file_system, join, read_text, replace_text
from sparkinfer.workers.suspects import Suspects
from sparkinfer.workers.watchdog import Tokenising

if TYPE_CHECKING:
    pass

TOKENS, CARRIED, LISTS = "tokens", "carried", "lists"
"""Folders for the two files of a row group, and for lists of row groups."""

ROW, N_TOKENS, TRUNCATED, SEQUENCES = "row", "n_tokens", "truncated", "sequences"
ERROR, LENGTHS = "error", "lengths"
"""Columns of a tokens file besides the model's inputs. `n_tokens` is NULL_LENGTH where there is no
text; `error` says why a row has no tokens, null if the text is null; `sequences` is the number of
sequences of a row, and `lengths` lists the number of tokens of each."""

KEPT = "kept."
"""Before the name of a column with what the task kept of each row's input."""

OF_OTHERS = re.compile(r"of\d+_")
"""Before the name of a column, but `ROW`, of what a second tokenizer made, or a third."""


def of_encoding(number: int) -> str:
    """Returns what precedes the names of an encoding's columns: of the first, nothing."""
    return f"of{number}_" if number else ""


NULL_LENGTH = -1

BATCHES_IN_ROW_GROUP = 16
"""Full batches in a full row group, by tokens: many, so that its last, partial batch costs
little."""

KEYS_PER_PART = 1 << 33
"""Row keys reserved for each task, as in Spark's `monotonically_increasing_id`."""


@dataclass(frozen=True)
class PreparedFile:
    """One row group.

    Attributes:
        chunk: number of the chunk that its rows belong to.
        name: of both its files.
        first_row: key of its first row; the other keys follow without gaps.
        rows: number of rows.
        tokens: number of tokens of all its rows.
    """

    chunk: int
    name: str
    first_row: int
    rows: int
    tokens: int


@dataclass(frozen=True)
class PrepareJob:
    """All that a task needs to prepare its rows.

    Attributes:
        plan: how rows are scored.
        batching: limits on what a task holds at a time, and the token budget of a batch.
        cores: cores that Spark gives to a task.
        folder: where to write the files, in one folder per kind. Files there that no list names
            are left over from failed attempts.
    """

    plan: Plan
    batching: BatchingConfig
    cores: int
    folder: str


def read_list(folder: str, name: str) -> list[PreparedFile]:
    """Returns the row groups that one task wrote."""
    lines = (read_text(join(folder, LISTS, name)) or "").splitlines()
    return [PreparedFile(**json.loads(line)) for line in lines]


def write_list(folder: str, name: str, files: Iterable[PreparedFile]) -> None:
    """Writes a list of row groups, which is there as a whole or not at all."""
    lines = "".join(json.dumps(asdict(file)) + "\n" for file in files)
    replace_text(join(folder, LISTS, name), lines)


class Encoding:
    """Encodes rows ahead in this process.

    Args:
        job: how.
        suspects: inputs that may have killed a worker, and where to note what runs.
    """

    def __init__(self, job: PrepareJob, suspects: Suspects) -> None:
        spec = job.plan.processor
        self._encode = spec.encoder(job.cores) if encodes_ahead(spec) else None
        self._inputs = spec.inputs
        self._suspects = suspects
        self._now: Tokenising | None = None

    def activities(self) -> tuple[Tokenising | None]:
        """Returns what is in the tokenizer, for the watchdog."""
        return (self._now,)

    def encode(self, window: pa.RecordBatch) -> tuple[EncodedRows, ...]:
        """Returns the inputs for some rows by tokenizer, none if it does not encode ahead."""
        if self._encode is None:
            return ()
        self._now = Tokenising(window.column(self._inputs[0]))
        try:
            return self._encode(window, self._suspects)
        finally:
            self._now = None


def prepare_part(
    job: PrepareJob, index: int, part: Chunk, encoding: Encoding
) -> Iterator[PreparedFile]:
    """Yields the row groups of a chunk or part of one, each once its files are written.

    Args:
        job: how to prepare them.
        index: of the part among all parts; determines the keys of the rows.
        part: where the rows are.
        encoding: encodes them.
    """
    row = index * KEYS_PER_PART
    plan, batching = job.plan, job.batching
    budget = batching.max_batch_tokens or DEFAULT_BATCH_TOKENS[plan.workers.device_type]
    limits = growing_limits(budget, budget * BATCHES_IN_ROW_GROUP)
    batches = plan.reader.read(part.pieces)
    kept = _kept_columns(plan)
    inputs: Hashes | None = None
    windows = rebatch(batches, same_rows(batching.window_rows), batching.window_bytes)
    are_gathered = any(piece.is_gathered for piece in part.pieces)
    if are_gathered:
        windows = whole_runs(windows, partial(hash_inputs_of, plan.processor.inputs))
    for window in windows:
        if are_gathered:
            inputs = hash_inputs_of(plan.processor.inputs, window)
        encodings = encoding.encode(window)
        lengths = _lengths(encodings, window.num_rows)
        for group in cut_row_groups(lengths, limits, batching.window_rows, inputs):
            name = f"part-{part.number:08d}-{uuid.uuid4()}.parquet"
            if encodings:
                _write(job.folder, TOKENS, name, _tokens_table(encodings, group, row))
            carried = pa.Table.from_batches([window]).select(kept).take(pa.array(group))
            _write(job.folder, CARRIED, name, carried)
            yield PreparedFile(part.number, name, row, len(group), int(lengths[group].sum()))
            row += len(group)


def _kept_columns(plan: Plan) -> list[str]:
    """Returns the columns that ranks need beside what is encoded."""
    spec = plan.processor
    if not encodes_ahead(spec):
        return list(plan.columns.read.names)
    return list(dict.fromkeys([*plan.columns.carried.names, *spec.read_beside]))


def _lengths(encodings: Sequence[EncodedRows], rows: int) -> IntArray:
    """Returns by how many tokens rows are put together, int64 (rows,): those of all tokenizers."""
    if not encodings:
        return np.ones(rows, np.int64)
    total: IntArray = np.sum([_row_tokens(one) for one in encodings], axis=0)
    return total


def _row_tokens(rows: EncodedRows) -> IntArray:
    """Returns the number of tokens of each row, int64 (rows,); 0 for a row without an input."""
    tokens: IntArray = np.append(rows.inputs.n_tokens, 0)[rows.indices]
    return tokens


def _tokens_table(encodings: Sequence[EncodedRows], group: IntArray, first_row: int) -> pa.Table:
    """Returns the tokens file's rows for some rows of a window."""
    columns = {ROW: pa.array(np.arange(first_row, first_row + len(group)))}
    for number, rows in enumerate(encodings):
        of_this = _tokens_columns(rows, group)
        columns |= {of_encoding(number) + name: column for name, column in of_this.items()}
    return pa.table(columns)


def _tokens_columns(rows: EncodedRows, group: IntArray) -> dict[str, pa.Array]:
    """Returns the columns of one encoding for some rows of a window."""
    inputs, encoded = rows.inputs, rows.inputs.encoded
    indices = rows.indices[group]
    is_null = indices < 0
    n_tokens = np.where(is_null, NULL_LENGTH, np.append(inputs.n_tokens, 0)[indices])
    counts = np.append(inputs.counts, 0)[indices]
    sequences = inputs.sequences_of(indices[~is_null])
    taken = encoded.values_of(sequences)
    errors = inputs.errors(encoded.errors)
    reasons = [errors.get(int(index)) for index in indices]
    if rows.unreadable:
        pairs = zip(group.tolist(), reasons, strict=True)
        reasons = [rows.unreadable.get(row, reason) for row, reason in pairs]
    columns = {
        N_TOKENS: pa.array(n_tokens.astype(np.int32)),
        TRUNCATED: pa.array(np.append(inputs.truncated, False)[indices]),
        SEQUENCES: pa.array(counts.astype(np.int32)),
        ERROR: pa.array(reasons, pa.string()),
        LENGTHS: _lists(encoded.n_tokens[sequences], counts),
    }
    for name, values in encoded.columns.items():
        columns[name] = _lists(values[taken], np.maximum(n_tokens, 0))
    kept = inputs.kept_of(np.maximum(indices, 0)) if len(inputs) else inputs.kept
    return columns | {KEPT + name: kept.column(name) for name in kept.column_names}


def _lists(values: npt.NDArray[Any], lengths: npt.NDArray[Any]) -> pa.ListArray:
    """Returns int32 values as one list per row."""
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(values.astype(np.int32)))


def _write(folder: str, kind: str, name: str, table: pa.Table) -> None:
    fs, path = file_system(join(folder, kind, name))
    with fs.open(path, "wb") as handle:
        pq.write_table(table, handle, row_group_size=max(table.num_rows, 1))
