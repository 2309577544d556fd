"""The `local` engine: one process, no Spark. The reference, and the way to try a model."""

from __future__ import annotations

import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset as pads

from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import EngineUnavailableError, InputError
from sparkinfer.models.acceleration import Verdict, run_gate
from sparkinfer.models.scorer import Scorer
from sparkinfer.models.sources import ModelSource, stage
from sparkinfer.models.tasks import column_metadata, get_task, scored_schema
from sparkinfer.plan.inputs import carried_columns, check_columns, input_format, type_name
from sparkinfer.plan.ports import ChunkTask, InputTable, ScoredChunk, ScoringRun, Workers
from sparkinfer.plan.progress import SCORE, Progress
from sparkinfer.rows.copying import FileCopier
from sparkinfer.rows.reading import ChunkReader
from sparkinfer.rows.writing import CarriedRows, write_tables
from sparkinfer.storage import file_system, join, make_folder
from sparkinfer.workers.channel import WorkerReport
from sparkinfer.workers.statistics import ScoringStatistics
from sparkinfer.workers.watchdog import StallReport, Watchdog


class LocalEngine:
    """Scores a file set in this process.

    Args:
        config: what to score.
    """

    def __init__(self, config: ScoringConfig) -> None:
        self._config = config

    def open_input(self) -> InputTable:
        """Returns what the input holds; see `Engine`."""
        kind, self._dataset = self._open()
        schema = self._dataset.schema
        check_columns(self._config, {field.name: type_name(field.type) for field in schema})
        self._carried = carried_columns(self._config, schema.names)
        carried = {name: type_name(schema.field(name).type) for name in self._carried}
        return InputTable(tuple(schema.names), kind, self._config.input, carried)

    def stage_input(self, folder: str, rows_per_file: int, paths: Sequence[str]) -> None:
        """Copies an input to a folder of Parquet files; see `Engine`."""
        fs, name = file_system(folder)
        kind = input_format(self._config)
        pads.write_dataset(
            self._read_files(kind, list(paths)),
            name,
            filesystem=fs,
            format="parquet",
            max_rows_per_file=rows_per_file,
            max_rows_per_group=rows_per_file,
        )

    def copy_files(self, copier: FileCopier, names: Sequence[str]) -> dict[str, list[str]]:
        """Copies Parquet files; see `Engine`."""
        return {name: copier.copy(name) for name in names}

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

    def score(self, run: ScoringRun, progress: Progress) -> None:
        """Scores one chunk after the other; see `Engine`.

        A scorer that hangs is named on stderr, and that is all: nobody would start this process
        again.
        """
        progress.enter(SCORE)
        schema = self._output_schema(column_metadata(run.source.fingerprint, run.verdict.labels))
        fields = {field.name: field for field in self._dataset.schema}
        names = dict.fromkeys([*self._carried, self._config.input_col])
        reader = ChunkReader(run.read_from, pa.schema([fields[name] for name in names]))
        report = self._reporter(progress)
        scorer = Scorer(self._model, self._config.batching, report)
        scorer.statistics.load_s = self._load_s
        watchdog = Watchdog(scorer.activities, self._config.stall_timeout_s, _tell_stall)
        with watchdog:
            for task in run.tasks:
                started = time.perf_counter()
                watchdog.where = f"chunk {task.chunk.number}"
                name = self._score_chunk(task, reader, scorer, schema)
                report(scorer.statistics)
                seconds = time.perf_counter() - started
                run.commit(ScoredChunk(task.chunk, task.staging, (name,), seconds))

    def _reporter(self, progress: Progress) -> Callable[[ScoringStatistics], None]:
        device = f"{self._device} on {socket.gethostname()}"

        def report(statistics: ScoringStatistics) -> None:
            copied = ScoringStatistics(**statistics.as_dict())
            progress.update(WorkerReport("worker 0", 0, device, copied))

        return report

    def _score_chunk(
        self, task: ChunkTask, reader: ChunkReader, scorer: Scorer, schema: pa.Schema
    ) -> str:
        """Returns the name of the chunk's file."""
        carried = CarriedRows(self._config.output_prefix)

        def texts() -> Iterator[list[str | None]]:
            for batch in reader.read(task.chunk.pieces):
                carried.put(pa.Table.from_batches([batch.select(self._carried)]))
                yield batch.column(self._config.input_col).to_pylist()

        make_folder(task.staging)
        name = f"{uuid.uuid4().hex}.parquet"
        write_tables(join(task.staging, name), schema, carried.complete(scorer.score(texts())))
        return name

    def _output_schema(self, metadata: dict[str, str]) -> pa.Schema:
        kept = [self._dataset.schema.field(name) for name in self._carried]
        scored = scored_schema(get_task(self._config.task), self._config.output_prefix)
        return pa.schema([*kept, *(field.with_metadata(metadata) for field in scored)])

    def _open(self) -> tuple[str, pads.Dataset]:
        """Returns the kind of the input, and the input."""
        path = str(self._config.input)
        kind = input_format(self._config)
        if kind == "table":
            raise InputError(
                f"input {path!r} is a table, which only Spark can read; use --engine pandas_udf"
            )
        try:
            return kind, self._read_files(kind, path)
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(f"input {path!r} cannot be read as {kind}: {error}") from None

    def _read_files(self, kind: str, source: str | list[str]) -> pads.Dataset:
        """Returns a dataset of a file, a folder or a list of files of the input."""
        path = str(self._config.input)
        fs, root = file_system(path)
        names = [file_system(name)[1] for name in source] if isinstance(source, list) else root
        form = _csv_format(fs, names) if kind == "csv" else kind
        # As Spark has it, a folder's `key=value` parts are columns and a single file's are not.
        if fs.isfile(root):
            return pads.dataset(names, filesystem=fs, format=form)
        return pads.dataset(
            names, filesystem=fs, format=form, partitioning="hive", partition_base_dir=root
        )


def _tell_stall(report: StallReport) -> None:
    print(report, file=sys.stderr, flush=True)


def _csv_format(fs: Any, name: str | list[str]) -> pads.CsvFileFormat:
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
