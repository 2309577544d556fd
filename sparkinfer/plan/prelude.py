"""The steps before the first row, the same for a run, a lazy DataFrame and an examination.

Each step is taken once, when its result is first needed, and triggers the steps that it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import pyarrow as pa

from sparkinfer.config import ScoringConfig
from sparkinfer.files.parquet import TextSizes
from sparkinfer.metrics.base import LabelNames
from sparkinfer.metrics.measure import ERROR, N_TOKENS, TRUNCATED, Measure, check_metrics
from sparkinfer.metrics.several import Measures, SeveralMeasures
from sparkinfer.models.ahead import RowsAhead
from sparkinfer.plan.inputs import choose_columns, refuse_clash
from sparkinfer.plan.phases import GATE, MODEL, WORKERS
from sparkinfer.plan.places import Places
from sparkinfer.plan.plan import Plan, Workers
from sparkinfer.plan.ports import Engine, FileAccess, InputSource, InputTable, TableTarget
from sparkinfer.plan.processors import make_processor
from sparkinfer.plan.progress import Progress
from sparkinfer.rows.columns import Columns
from sparkinfer.rows.first_rows import ROWS_OF_TABLE, FirstOfFiles, FirstOfTable
from sparkinfer.rows.processor import LooksAtRows, PlannedProcessor, RowsOfInput, SharesHosts
from sparkinfer.rows.reading import InputFolders
from sparkinfer.rows.several import members_of
from sparkinfer.storage import join
from sparkinfer.workers.slot import WorkerSlot
from sparkinfer.workers.steps import watched

MOST_DIGITS = 20
"""Characters of a 64-bit integer with its sign."""


class Prelude:
    """The steps before scoring.

    Args:
        config: what the user asked for.
        source: where the rows come from.
        engine: what will score them.
        tables: to which the result can be written; None: to none.
        progress: receives the phases; None: nobody looks at them.

    Attributes:
        hosts: returns the name of the application, and the cores that it has on each host.
        output: folder that this process has made, which workers must see as well; None: none yet.
    """

    def __init__(
        self,
        config: ScoringConfig,
        source: InputSource,
        engine: Engine,
        tables: TableTarget | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.config = config
        self.source = source
        self.engine = engine
        self.tables = tables
        self.progress = progress or Progress()
        self.hosts: Callable[[], tuple[str, Mapping[str, int]]] = lambda: ("sparkinfer", {})
        self.output: str | None = None
        self._followed: Mapping[str, Any] | None = None

    def check(self) -> None:
        """Raises UsageError for mistakes that show without input, workers or model."""
        self.asked.check()
        for metrics, processor in self._measured(self.asked):
            check_metrics(metrics, processor.evaluation)

    @cached_property
    def asked(self) -> PlannedProcessor:
        """The processor as configured."""
        asked = make_processor(self.config)
        return asked.on_hosts(*self.hosts()) if isinstance(asked, SharesHosts) else asked

    @cached_property
    def table(self) -> InputTable:
        """What the input holds.

        Raises:
            InputError: it is missing or unreadable.
        """
        return self.source.open()

    @cached_property
    def asked_columns(self) -> Columns:
        """What is read, kept and added, as far as it is known without a model.

        Raises:
            InputError: a column is not there or does not fit.
            ConfigError: a scored column would overwrite one of the input.
        """
        return choose_columns(self.config, self.table, self.asked)

    @cached_property
    def workers(self) -> Workers:
        """What will score; see `Engine.workers`."""
        with self.progress.during(WORKERS):
            return self.engine.workers()

    @cached_property
    def resolved(self) -> PlannedProcessor:
        """The processor, pinned to exact files.

        Raises:
            ModelLoadError: the model is missing, incomplete or not allowed.
            JobError: fetching it hangs.
        """
        with self.progress.during(MODEL):
            return watched(self.asked.resolved, "the model's files", self.config.step_timeout_s)

    def follow(self, verdict: Mapping[str, Any] | None) -> None:
        """Has the processor tried out only as an earlier trial decided; None: in every way."""
        self._followed = verdict

    @cached_property
    def processor(self) -> PlannedProcessor:
        """The processor, tried out in one worker.

        Raises:
            ModelLoadError: it does not work.
            ConfigError: workers do not find a metric of the user's, or a scored column that is
                known only now would overwrite one of the input.
            EngineUnavailableError: what an earlier trial decided for is not installed.
            JobError: it does not work as an earlier trial decided.
            InputError: workers do not see the input's files.
            OutputError: or not the output's folder.
        """
        resolved = self.resolved.pinned(self._followed) if self._followed else self.resolved
        if isinstance(resolved, LooksAtRows) and "table" in self.__dict__:
            resolved = resolved.looking_at(lambda: self.first_rows)
        act = partial(_try_out, resolved, self._measured(resolved), self.ahead, self.places)
        with self.progress.during(GATE):
            decided = resolved.decided(self.engine.on_one_worker(act, resolved.warm_up))
        if "table" in self.__dict__:
            refuse_clash(self.asked_columns.carried.names, decided)
        return decided

    @property
    def tried(self) -> PlannedProcessor | None:
        """The processor if it has been tried out, else None."""
        return self.__dict__.get("processor")

    @cached_property
    def first_rows(self) -> RowsOfInput:
        """Rows from the input's start; of a table, fetching them takes a job."""
        files, columns = self.table.files, self.asked_columns.inputs
        if files is not None:
            return self._first_of(files)
        if self.table.table is None:
            raise AssertionError("an input is of files or is a table")
        return FirstOfTable(self.table.table.first_rows(columns, ROWS_OF_TABLE))

    def _first_of(self, files: FileAccess) -> FirstOfFiles:
        paths = tuple(join(files.found.root, one.name) for one in files.found.files)
        return FirstOfFiles(paths, files.rows, self.asked_columns.inputs)

    @property
    def ahead(self) -> RowsAhead:
        """What is known of the rows; of a table, nothing that would take a job."""
        replicas = self.workers.count
        # An examination may have no input; a run has opened its own before it needs a model.
        files = self.table.files if "table" in self.__dict__ else None
        if files is None:
            return RowsAhead(replicas=replicas)
        sizes = {name: self._sizes_in(files, name) for name in self.asked.inputs}
        totals = [one.total for one in sizes.values() if one.total is not None]
        return RowsAhead(
            self.asked.longest_text(lambda name: sizes[name].longest),
            sum(totals) if totals else None,
            self._first_of(files),
            replicas,
        )

    def _sizes_in(self, files: FileAccess, name: str) -> TextSizes:
        kind = self.table.schema.field(name).type
        if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
            return TextSizes(MOST_DIGITS)
        return TextSizes() if pa.types.is_nested(kind) else files.text_sizes(name)

    @property
    def places(self) -> Places:
        """Where this process and all workers must see the same."""
        files = self.table.files if "table" in self.__dict__ else None
        found = files.found if files is not None else None
        first = [join(found.root, one.name) for one in found.files[:1]] if found else []
        return Places(first[0] if first else None, self.output)

    @cached_property
    def columns(self) -> Columns:
        """What is read, kept and added; asks for everything before."""
        return replace(self.asked_columns, scored=self.processor.fields)

    def plan(self, read_from: InputFolders, staging: str, notes: str = "") -> Plan:
        """Returns how chunks are scored.

        Args:
            read_from: folders of the chunks' files.
            staging: folder for the engine's own temporary files.
            notes: folder for what workers note of their chunks; empty: they note nothing.
        """
        return Plan(
            processor=self.processor,
            columns=self.columns,
            measure=self.measure(self.processor.labels),
            read_from=read_from,
            staging=staging,
            notes=notes,
            workers=self.workers,
            stall_timeout_s=self.config.stall_timeout_s,
            step_timeout_s=self.config.step_timeout_s,
        )

    def measure(self, labels: LabelNames) -> Measures:
        """Returns which metrics are computed, for models with these labels."""
        of_each = labels if isinstance(labels, Mapping) else {"": labels}
        measures = {
            name: Measure(
                self._asked_of[name].evaluation,
                config.label_col,
                config.output_prefix,
                tuple(of_each.get(name, ())),
                config.metrics,
                (ERROR,) if self._asked_of[name].replaces_rows else (N_TOKENS, TRUNCATED, ERROR),
            )
            for name, config in self.config.by_model.items()
        }
        return SeveralMeasures(measures) if self.config.models else measures[""]

    @property
    def _asked_of(self) -> Mapping[str, PlannedProcessor]:
        return members_of(self.asked)

    def _measured(self, processor: PlannedProcessor) -> _Measured:
        """Returns each processor with the metrics of the user's that are computed of it."""
        members, configs = members_of(processor), self.config.by_model
        return [(config.metrics, members[name]) for name, config in configs.items()]


_Measured = Sequence[tuple[Sequence[str], PlannedProcessor]]


def _try_out(
    processor: PlannedProcessor,
    measured: _Measured,
    ahead: RowsAhead,
    places: Places,
    slot: WorkerSlot,
) -> Any:
    """Returns what one worker finds out; workers take the metrics, so they must find them too."""
    places.look()
    for metrics, one in measured:
        check_metrics(metrics, one.evaluation)
    return processor.try_out(slot, ahead)
