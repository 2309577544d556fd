"""A user's functions as a processor of rows: what they return takes the rows' place."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import pyarrow as pa

from sparkinfer.batching.rebatch import rebatch, same_rows
from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import ConfigError
from sparkinfer.files.columns import refuse_unknown
from sparkinfer.functions.columns import fit, in_common, infer_schema
from sparkinfer.functions.formats import UnfitBatchError
from sparkinfer.functions.pipeline import OpenFunctions
from sparkinfer.functions.stages import FailedRows, Item
from sparkinfer.functions.user_function import Arguments, UserFunction
from sparkinfer.models.ahead import NOTHING_KNOWN, RowsAhead
from sparkinfer.models.any_pipeline import PipelineVerdict
from sparkinfer.models.ddl import columns_as_ddl, parse_columns
from sparkinfer.rows.processor import Report, RowsOfInput
from sparkinfer.workers import resident
from sparkinfer.workers.devices import release_memory
from sparkinfer.workers.host_slots import HostSlots
from sparkinfer.workers.slot import WorkerSlot
from sparkinfer.workers.statistics import ScoringStatistics
from sparkinfer.workers.suspects import Suspects
from sparkinfer.workers.watchdog import Activity

TRIED_ROWS = 256
"""Rows of the input that functions are tried with before the run, at most a batch."""

ERROR = pa.field("error", pa.string())
"""Column that says why a row has no result; comes after what the functions return."""


@dataclass(frozen=True)
class FunctionVerdict(PipelineVerdict):
    """What the trial of functions found; see `PipelineVerdict`.

    Attributes:
        one_to_one: whether each row gave one row.
    """

    one_to_one: bool = True


@dataclass(frozen=True)
class FunctionScoring:
    """Has functions process rows, one after the other; see `PlannedProcessor`.

    Attributes:
        functions: in the order in which rows go through them.
        prefix: before the name of the column `error`.
        inputs: columns that the first function is given; none: all of the input.
        columns: of what the last function returns; None before they are known.
        keeps_failed: whether a row that a function fails over is kept, with the reason as its
            `error`; if not, it ends the job.
        slots: how many of these may run on one host.
        first_rows: of the input; None: there are none to look at.
        verdict: what the trial found; None before it.
    """

    functions: tuple[UserFunction, ...]
    prefix: str = ""
    inputs: tuple[str, ...] = ()
    columns: pa.Schema | None = None
    keeps_failed: bool = True
    slots: HostSlots = field(default_factory=HostSlots)
    first_rows: RowsOfInput | None = None
    verdict: FunctionVerdict | None = None

    labels = ()
    evaluation = None
    replaces_rows = True

    @classmethod
    def of(cls, config: ScoringConfig) -> FunctionScoring:
        """Returns the configured functions.

        Raises:
            ConfigError: one of them is none, or an option has a wrong value.
        """
        given = config.fn
        arguments = Arguments(
            given.args, given.kwargs, given.constructor_args, given.constructor_kwargs
        )
        functions = tuple(
            UserFunction.of(
                function,
                arguments,
                batch_size=given.batch_size,
                batch_format=given.batch_format,
                zero_copy=given.zero_copy_batch,
                one_to_one=given.one_to_one,
            )
            for function in given.function
        )
        columns = None if given.schema is None else parse_columns(given.schema, "fn.schema")
        slots = HostSlots(given.num_cpus)
        return cls(functions, config.output_prefix, given.input_cols, columns, slots=slots)

    @property
    def fields(self) -> pa.Schema:
        """What the last function returns, and why a row has no result."""
        known = [] if self.columns is None else list(self.columns)
        added = [ERROR.with_name(self.prefix + ERROR.name)] if self.keeps_failed else []
        return pa.schema([*known, *added])

    def on_hosts(self, application: str, cores: Mapping[str, int]) -> FunctionScoring:
        """Returns the spec for the hosts of an application; see `SharesHosts`."""
        return replace(self, slots=replace(self.slots, name=application, cores=dict(cores)))

    def check(self) -> None:
        """Raises ConfigError for a column of the result that the run adds itself."""
        self._check_columns()

    def check_names(self, columns: Sequence[str]) -> None:
        """Raises InputError for columns that the input does not have."""
        for name in self.inputs:
            refuse_unknown("fn.input_cols", name, columns)

    def check_types(self, inputs: pa.Schema) -> None:
        """Does nothing: a function may be given any column that can be read."""

    def longest_text(self, of_column: Callable[[str], int | None]) -> int | None:
        """Returns None: what a function reads has no limit."""
        return None

    def resolved(self) -> FunctionScoring:
        """Returns it as it is: there are no files."""
        return self

    def settings(self) -> dict[str, Any]:
        """Returns what determines the output, by name."""
        columns = None if self.columns is None else columns_as_ddl(self.columns)
        settings = {
            "fn": [function.identity() for function in self.functions],
            "fn.batch_format": self.functions[0].batch_format,
            "fn.input_cols": list(self.inputs),
        }
        return settings if columns is None else settings | {"fn.schema": columns}

    def pinned(self, verdict: Mapping[str, Any]) -> FunctionScoring:
        """Returns the spec with the columns that an earlier trial found."""
        if self.columns is not None:
            return self
        return replace(self, columns=parse_columns(verdict["schema"], "fn.schema"))

    def warm_up(self) -> None:
        """Does nothing: what a function needs is not known."""

    def looking_at(self, first_rows: Callable[[], RowsOfInput]) -> FunctionScoring:
        """Returns the spec, to be tried on rows of the input; see `LooksAtRows`."""
        return replace(self, first_rows=first_rows())

    def try_out(self, slot: WorkerSlot, ahead: RowsAhead = NOTHING_KNOWN) -> FunctionVerdict:
        """Returns what comes of the input's first rows; the run makes the functions again.

        Raises:
            ConfigError: a function cannot be constructed, fails over all of these rows, or returns
                no columns, or others than it should.
        """
        opened, accepted = self._opened(slot), " > ".join(one.name for one in self.functions)
        given = self._tried_rows()
        pipeline = opened.start()
        with self.slots.taken():
            items = list(pipeline.run([given])) if given is not None else []
        made = [one for one in items if not isinstance(one, FailedRows)]
        columns = self.columns if self.columns is not None else self._inferred(given, items, made)
        self._check_made(made, columns)
        resident.release()  # what a function keeps of these rows, the run has not seen
        return FunctionVerdict(
            accepted,
            slot.device.partition(":")[0],
            columns_as_ddl(columns),
            one_to_one=pipeline.is_one_to_one,
        )

    def decided(self, found: FunctionVerdict) -> FunctionScoring:
        """Returns the spec as every worker opens it."""
        columns = parse_columns(found.schema, "fn.schema")
        functions = self.functions
        if not found.one_to_one and functions[-1].one_to_one is None:
            functions = (*functions[:-1], replace(functions[-1], one_to_one=False))
        decided = replace(
            self, columns=columns, functions=functions, first_rows=None, verdict=found
        )
        decided._check_columns()
        return decided

    def open(self, slot: WorkerSlot, report: Report) -> FunctionRows:
        """Returns the functions, ready in this process and its children."""
        if self.columns is None:
            raise AssertionError("rows can be processed only once their columns are known")
        return FunctionRows(self._opened(slot), self.columns, self.fields, self.slots, report)

    def _opened(self, slot: WorkerSlot) -> OpenFunctions:
        return open_functions(self.functions, self.keeps_failed, slot)

    def _tried_rows(self) -> pa.RecordBatch | None:
        """Returns a batch of the input's first rows, None if there are none."""
        if self.first_rows is None:
            return None
        most, most_bytes = self.functions[0].limits
        batches = rebatch(self.first_rows(), same_rows(min(most, TRIED_ROWS)), most_bytes)
        return next(islice(batches, 1), None)

    def _inferred(
        self, given: pa.RecordBatch | None, items: Sequence[Item], made: Sequence[pa.RecordBatch]
    ) -> pa.Schema:
        name = self.functions[-1].name
        if given is None:
            raise no_rows_to_look_at(name)
        if not made:
            reasons = [one.reasons[0] for one in items if isinstance(one, FailedRows)]
            raise ConfigError(
                f"fn={name} gives no row for the first {given.num_rows} of the input"
                + (f": {reasons[0]}; correct it" if reasons else "; give its columns as fn.schema")
            )
        return infer_schema(name, made, given)

    def _check_made(self, made: Sequence[pa.RecordBatch], columns: pa.Schema) -> None:
        for one in made:
            try:
                fit(one, columns)
            except UnfitBatchError as error:
                name = self.functions[-1].name
                raise ConfigError(f"fn={name} does not fit fn.schema: {error}") from error

    def _check_columns(self) -> None:
        added = (self.prefix + ERROR.name).lower() if self.keeps_failed else ""
        names = [] if self.columns is None else self.columns.names
        if added in [name.lower() for name in names]:
            raise ConfigError(
                f"fn returns a column {added!r}, which says why a row has no result; rename it "
                "there, or give --set output_prefix=run_"
            )


def no_rows_to_look_at(name: str) -> ConfigError:
    """Returns the error of a function whose result cannot be looked at."""
    return ConfigError(
        f"fn={name}: the input has no rows that show what it returns; give its columns as a "
        "schema, such as 'id bigint, label string'"
    )


def open_functions(
    functions: Sequence[UserFunction], keeps_failed: bool, slot: WorkerSlot
) -> OpenFunctions:
    """Returns functions that are ready in this process, which keeps them from task to task.

    Args:
        functions: in the order in which rows go through them.
        keeps_failed: see `FunctionStage`.
        slot: what this process has been given.
    """
    what = "".join(function.key for function in functions)
    key = ("functions", hashlib.sha256(what.encode()).hexdigest(), keeps_failed, slot.device)
    opened: list[OpenFunctions] = []

    def load() -> OpenFunctions:
        opened.append(OpenFunctions(functions, keeps_failed, slot))
        return opened[0]

    def release() -> None:
        opened.pop().close()
        release_memory(slot.device)

    kept: OpenFunctions = resident.get(key, load, release)
    return kept


class FunctionRows:
    """Has functions process rows; see `Processor`.

    Args:
        functions: ready.
        columns: of what they return.
        fields: the same, and the column for errors.
        slots: of this host.
        report: receives the statistics.
    """

    def __init__(
        self,
        functions: OpenFunctions,
        columns: pa.Schema,
        fields: pa.Schema,
        slots: HostSlots,
        report: Report,
    ) -> None:
        self._columns = columns
        self._fields = fields
        self._slots = slots
        self._report = report
        self._pipeline = functions.start(lambda rows: fit(rows, columns))
        self.statistics = ScoringStatistics()

    @property
    def suspects(self) -> Suspects:
        """Of the rows that come next; see `AvoidsSuspects`."""
        return self._pipeline.suspects

    @suspects.setter
    def suspects(self, suspects: Suspects) -> None:
        self._pipeline.suspects = suspects

    def activities(self) -> Sequence[Activity | None]:
        """Returns what each function is doing."""
        return self._pipeline.activities

    def process(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yields what the functions make of the rows, and the rows that they fail over."""
        with self._slots.taken():
            for item in self._pipeline.run(self._counted(batches)):
                yield self._finished(item)
                self._tell()
        self._tell()

    def _counted(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield batch
            self.statistics.rows += batch.num_rows

    def _finished(self, item: Item) -> pa.RecordBatch:
        if isinstance(item, FailedRows):
            self.statistics.errors += item.rows.num_rows
            rows, errors = in_common(item.rows, self._columns), pa.array(item.reasons, pa.string())
        else:
            rows, errors = item, pa.nulls(item.num_rows, pa.string())
        if self._fields == self._columns:
            return rows
        return pa.RecordBatch.from_arrays([*rows.columns, errors], schema=self._fields)

    def _tell(self) -> None:
        found = self._pipeline.statistics
        self.statistics.batches = found.batches
        self.statistics.errored_batches = found.errored_batches
        self.statistics.forward_s = found.seconds
        self._report(self.statistics)
