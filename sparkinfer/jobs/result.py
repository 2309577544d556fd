"""What a run returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, overload

import pyarrow.dataset as pads

from sparkinfer.exceptions import OutputError
from sparkinfer.jobs.summary import summarize, summary_html
from sparkinfer.plan.phases import LOAD, SCORE
from sparkinfer.plan.plan import Workers
from sparkinfer.plan.progress import DeviceProgress
from sparkinfer.sinks.parquet import ParquetFolder
from sparkinfer.storage import file_system, join, literal_path
from sparkinfer.workers.statistics import ScoringStatistics

if TYPE_CHECKING:
    from pandas import DataFrame as PandasFrame
    from pyspark.sql import DataFrame, SparkSession


@dataclass(frozen=True)
class RunResult:
    """What the output holds, and what this run contributed; printed, a summary.

    Attributes:
        run: id of the run whose files the output holds.
        output: folder with the scored Parquet files.
        rows: rows in them, those with an error included.
        rows_read: rows of the input that they were made of: as many, unless a function made others.
        error_rows: rows among them that could not be scored.
        error_reasons: why not, the most frequent reasons, and how often each occurs.
        metrics: by name, over all rows with a known label; empty without a label column, or if no
            label is one of the model's.
        metrics_problem: why there are none in the latter case, else None.
        rows_before: rows of the input whose results an earlier run had committed.
        seconds: from the call to the end.
        phases: of these, the seconds of each part by name, in the order of their start; see
            `sparkinfer.plan.phases`.
        workers: replicas that scored, and on what; None if there was nothing to do.
        verdict: how the model was run, and what was tried before; None if there was nothing to do.
        model_fingerprint: hash of the model's files.
        statistics: counts and seconds, summed over the workers that could report.
        devices: what the model ran on, with the rows of each.
        retried_rows: rows with an error that this run rescored; None if it was not asked to.
        recovered_rows: rows among these that no longer have an error.
        notes: what there is to know of how the input was read.
        labels: rows by predicted label, the most frequent labels, for each model by its name.
        vector_store: store that holds the vectors as well; None: none.
        vectors: how many it holds.
        report: path of the page that shows what was done; None: there is none.
    """

    run: str
    output: str
    rows: int
    rows_read: int
    error_rows: int
    error_reasons: Mapping[str, int]
    metrics: Mapping[str, float]
    metrics_problem: str | None
    rows_before: int
    seconds: float
    phases: dict[str, float]
    workers: Workers | None
    verdict: Any
    model_fingerprint: str
    statistics: ScoringStatistics
    devices: Sequence[DeviceProgress]
    retried_rows: int | None = None
    recovered_rows: int = 0
    notes: tuple[str, ...] = ()
    labels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    vector_store: str | None = None
    vectors: int | None = None
    report: str | None = None

    @property
    def rows_scored(self) -> int:
        """Rows of the input that this run scored, for the first time or again."""
        return self.rows_read - self.rows_before + (self.retried_rows or 0)

    @property
    def scoring_s(self) -> float:
        """Seconds in which workers loaded the model and scored rows."""
        return self.phases.get(LOAD, 0.0) + self.phases.get(SCORE, 0.0)

    @property
    def rows_per_s(self) -> float:
        """Rows that this run scored, per second of `scoring_s`."""
        return self.rows_scored / self.scoring_s if self.scoring_s else 0.0

    def __str__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        return summary_html(self)

    def summary(self) -> str:
        """Returns what the run did: a sentence, then one fact per line."""
        return summarize(self)

    @overload
    def read(self, spark: None = None) -> PandasFrame: ...

    @overload
    def read(self, spark: SparkSession) -> DataFrame: ...

    def read(self, spark: SparkSession | None = None) -> PandasFrame | DataFrame:
        """Returns the output's rows: of Spark with a session, else all of them, with pandas.

        Only the files of this run are read.

        Raises:
            OutputError: the output has none, as where rows go only to a vector store, or another
                run has replaced them.
        """
        names = ParquetFolder(self.output).of_runs({self.run})
        if not names:
            raise OutputError(
                f"output {self.output!r} holds no files of run {self.run!r}: they were replaced or "
                "removed, or its rows are only in the vector store; run again, or read them there"
            )
        if spark is not None:
            paths = [literal_path(join(self.output, name)) for name in names]
            return spark.read.parquet(*paths)
        fs, folder = file_system(self.output)
        paths = [join(folder, name) for name in names]
        table = pads.dataset(paths, filesystem=fs, format="parquet").to_table()
        frame: PandasFrame = table.to_pandas()
        return frame

    def as_dict(self) -> dict[str, Any]:
        """Returns the result as plain values, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Retried:
    """What a retry of the rows with an error did.

    Attributes:
        rows: rows that were rescored.
        recovered_rows: rows among them that no longer have an error.
        workers: what rescored them; None if there was nothing to rescore.
        verdict: how the model was run; None likewise.
    """

    rows: int = 0
    recovered_rows: int = 0
    workers: Workers | None = None
    verdict: Any = None


def with_retried(result: RunResult, retried: Retried | None) -> RunResult:
    """Returns the result of a run with its retry's contribution added."""
    if retried is None:
        return result
    result = replace(result, retried_rows=retried.rows, recovered_rows=retried.recovered_rows)
    return replace(
        result,
        workers=result.workers or retried.workers,
        verdict=result.verdict or retried.verdict,
    )
