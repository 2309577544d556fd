"""The `local` engine: one process, no Spark. The reference, and the way to try a model."""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset as pads

from sparkinfer.config import ScoringConfig
from sparkinfer.engines.base import InputTable, UnitResult, Workers, WorkUnit
from sparkinfer.engines.writing import CarriedRows, write_tables
from sparkinfer.exceptions import EngineUnavailableError, InputError
from sparkinfer.jobs.inputs import carried_columns, check_columns, input_format
from sparkinfer.jobs.progress import SCORE, Progress, WorkerReport
from sparkinfer.models.acceleration import LoadedModel, Verdict, run_gate
from sparkinfer.models.scorer import Scorer
from sparkinfer.models.sources import ModelSource, stage
from sparkinfer.models.statistics import ScoringStatistics
from sparkinfer.models.tasks import column_metadata, get_task, scored_schema
from sparkinfer.storage import file_system, join, make_folder

READ_ROWS = 4096
"""Rows in a batch read from the input."""


class LocalEngine:
    """Scores a file set in this process.

    Args:
        config: what to score.
    """

    def __init__(self, config: ScoringConfig) -> None:
        self._config = config

    def open_input(self) -> InputTable:
        """Returns what the input holds; see `Engine`."""
        self._dataset = self._open()
        schema = self._dataset.schema
        check_columns(self._config, {field.name: _type_name(field.type) for field in schema})
        self._carried = carried_columns(self._config, schema.names)
        is_parquet = isinstance(self._dataset.format, pads.ParquetFileFormat)
        total = self._dataset.count_rows() if is_parquet else None
        return InputTable(tuple(schema.names), total, self._config.input)

    def find_workers(self) -> Workers:
        """Returns one replica on this machine's GPU, else on its CPU."""
        import torch

        if self._config.device == "cuda" and not torch.cuda.is_available():
            raise EngineUnavailableError(
                f"device='cuda': {socket.gethostname()} has no GPU that torch can use; use "
                "--device cpu, or check the driver and the torch build"
            )
        uses_gpu = self._config.device != "cpu" and torch.cuda.is_available()
        return Workers("cuda" if uses_gpu else "cpu", 1)

    def run_gate(self, source: ModelSource) -> Verdict:
        """Returns how the model is run; it stays loaded for `score`."""
        self._device = "cuda:0" if self.find_workers().kind == "cuda" else "cpu"
        path = stage(source, self._config.loading)
        started = time.perf_counter()
        self._model, verdict = run_gate(path, self._config, self._device)
        self._load_s = time.perf_counter() - started
        return verdict

    def score(
        self,
        units: Iterable[WorkUnit],
        source: ModelSource,
        verdict: Verdict,
        progress: Progress,
    ) -> Iterator[UnitResult]:
        """Yields each unit once its file is written; see `Engine`."""
        metadata = column_metadata(source.fingerprint, verdict.labels)
        progress.enter(SCORE)
        for unit in units:
            yield self._score_unit(unit, self._model, metadata, progress)

    def _score_unit(
        self, unit: WorkUnit, model: LoadedModel, metadata: dict[str, str], progress: Progress
    ) -> UnitResult:
        def report(statistics: ScoringStatistics) -> None:
            copied = ScoringStatistics(**statistics.as_dict())
            device = f"{self._device} on {socket.gethostname()}"
            progress.update(WorkerReport("worker 0", 0, device, copied))

        scorer = Scorer(model, self._config.batching, report)
        scorer.statistics.load_s = self._load_s
        carried = CarriedRows(self._config.output_prefix)
        rows_read = 0

        def texts() -> Iterator[list[str | None]]:
            nonlocal rows_read
            for batch in self._dataset.to_batches(batch_size=READ_ROWS):
                carried.put(pa.Table.from_batches([batch.select(self._carried)]))
                rows_read += batch.num_rows
                yield batch.column(self._config.input_col).to_pylist()

        make_folder(unit.staging)
        name = f"part-00000-{uuid.uuid4()}.parquet"
        scored = carried.complete(scorer.score(texts()))
        write_tables(join(unit.staging, name), self._output_schema(metadata), scored)
        report(scorer.statistics)
        return UnitResult(unit.unit_id, (name,), rows_read)

    def _output_schema(self, metadata: dict[str, str]) -> pa.Schema:
        kept = [self._dataset.schema.field(name) for name in self._carried]
        scored = scored_schema(get_task(self._config.task), self._config.output_prefix)
        return pa.schema([*kept, *(field.with_metadata(metadata) for field in scored)])

    def _open(self) -> pads.Dataset:
        path = str(self._config.input)
        kind = input_format(self._config)
        if kind == "table":
            raise InputError(
                f"input {path!r} is a table, which only Spark can read; use --engine pandas_udf"
            )
        fs, name = file_system(path)
        # As Spark has it, a folder's `key=value` parts are columns and a single file's are not.
        partitioning = None if fs.isfile(name) else "hive"
        try:
            form = _csv_format(fs, name) if kind == "csv" else kind
            return pads.dataset(name, filesystem=fs, format=form, partitioning=partitioning)
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(f"input {path!r} cannot be read as {kind}: {error}") from None


def _csv_format(fs: Any, name: str) -> pads.CsvFileFormat:
    """Returns the format that reads CSV as Spark does with our options: all columns are texts."""
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
    header = pads.dataset(name, filesystem=fs, format=pads.CsvFileFormat(parse)).schema.names
    return pads.CsvFileFormat(
        parse_options=parse,
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(header, pa.string()),
            strings_can_be_null=True,
            null_values=[""],
            quoted_strings_can_be_null=False,
        ),
    )


def _type_name(kind: pa.DataType) -> str:
    """Returns what a column's values are; a dictionary is only how they are stored."""
    return str(kind.value_type if pa.types.is_dictionary(kind) else kind)
