"""A DataFrame that a user's functions process when it is evaluated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyspark.sql.types import StructField, StructType

from sparkinfer.engines.spark_worker import call_in_worker, read_result, task_slot
from sparkinfer.exceptions import ConfigError, JobError
from sparkinfer.functions.processor import TRIED_ROWS, FunctionScoring, no_rows_to_look_at
from sparkinfer.functions.user_function import UserFunction
from sparkinfer.logs import get_logger
from sparkinfer.plan.plan import Workers
from sparkinfer.rows.first_rows import FirstOfTable
from sparkinfer.spark.classic import is_classic
from sparkinfer.spark.errors import explain
from sparkinfer.spark.job_threads import watched_job
from sparkinfer.spark.tables import arrow_schema, in_types, spark_schema, with_plain_names
from sparkinfer.workers.statistics import ScoringStatistics

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

logger = get_logger(__name__)

STAGES = "_sparkinfer_stages"
"""Attribute of a DataFrame that functions process: what it is made of, for one more of them."""


@dataclass(frozen=True)
class Stages:
    """Functions over a DataFrame, one after the other.

    Attributes:
        df: the rows.
        scoring: the functions.
        workers: what each of them has.
        partitions: workers, each of which gets a partition; None: as the rows are partitioned.
        profile: Spark's resource profile for the workers; None: as the session has it.
    """

    df: DataFrame
    scoring: FunctionScoring
    workers: Workers
    partitions: int | None = None
    profile: Any = None

    def then(self, function: UserFunction) -> Stages:
        """Returns these with a function after them, which is given what they return as of now."""
        *before, last = self.scoring.functions
        functions = (*before, replace(last, columns=self.scoring.columns), function)
        return replace(self, scoring=replace(self.scoring, functions=functions, columns=None))

    def infer(self) -> Stages:
        """Returns these with the columns of the result, found out by a small Spark job.

        Raises:
            ConfigError: there are no rows to look at, or nothing that could be kept comes of them.
            JobError: the job failed.
        """
        inputs, size = self.inputs, self.scoring.functions[0].limits[0]
        workers, scoring = self.workers, self.scoring

        def ask(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            for batch in batches:
                looking = replace(scoring, first_rows=FirstOfTable(in_types(batch, inputs)))
                outcome = call_in_worker(looking.try_out, workers, scores_later=True)
                yield pa.RecordBatch.from_arrays([pa.array([outcome])], ["outcome"])
                return

        first = with_plain_names(self.df).limit(min(size, TRIED_ROWS))
        asked = self._mapped(first, ask, "outcome binary")
        try:
            rows = watched_job(
                self.df.sparkSession, asked.collect, "one worker that tries the function out"
            )
        except JobError:
            raise
        except Exception as error:  # py4j's and Spark's errors have no common root
            raise JobError(f"trying the function out failed: {explain(error)}") from error
        if not rows:
            raise no_rows_to_look_at(self.scoring.functions[-1].name)
        found = read_result(bytes(rows[0].outcome))
        decided = replace(self, scoring=self.scoring.decided(found))
        logger.warning(
            "map_batches: the result has columns %s; give them as schema= to avoid this extra pass",
            found.schema,
        )
        return decided

    @property
    def inputs(self) -> pa.Schema:
        """The columns of the rows.

        Raises:
            ConfigError: there is one that Arrow has no type for.
        """
        schema, refused = arrow_schema(self.df.schema)
        for name, why in refused.items():
            raise ConfigError(
                f"column {name!r} {why}; leave it out with df.drop, or cast it before"
            )
        return schema

    def processed(self) -> DataFrame:
        """Returns the result, which is made when it is evaluated."""
        columns = self.scoring.columns
        if columns is None:
            raise AssertionError("the columns of the result must be known")
        df = self.df if self.partitions is None else self.df.repartition(self.partitions)
        run = partial(_run, self.scoring, self.inputs, self.workers)
        kinds = [field.dataType for field in spark_schema(columns)]
        named = StructType([StructField(f"c{i}", kind) for i, kind in enumerate(kinds)])
        result = self._mapped(with_plain_names(df), run, named).toDF(*columns.names)
        setattr(result, STAGES, self)
        return result

    def _mapped(self, df: DataFrame, act: Any, schema: Any) -> DataFrame:
        if self.profile is None:
            return df.mapInArrow(act, schema)
        map_in_arrow: Any = df.mapInArrow  # its stubs in Spark 3.5 know no profile
        mapped: DataFrame = map_in_arrow(act, schema, False, self.profile)
        return mapped


def stages_of(df: DataFrame) -> Stages | None:
    """Returns the functions that a DataFrame is made by, None if it is made otherwise.

    One that is cached replaces its rows: they are not made again.
    """
    found: Stages | None = vars(df).get(STAGES)
    return None if found is None or _is_cached(df) else found


def _is_cached(df: DataFrame) -> bool:
    try:
        level = df.storageLevel
    except Exception:  # a serverless session caches nothing; Spark's errors have no common root
        if is_classic(df.sparkSession):
            raise
        return False
    return level.useMemory or level.useDisk


def _run(
    scoring: FunctionScoring,
    inputs: pa.Schema,
    workers: Workers,
    batches: Iterable[pa.RecordBatch],
) -> Iterator[pa.RecordBatch]:
    """Yields what the functions make of a partition, in a Spark task."""
    rows = (in_types(batch, inputs) for batch in batches)
    with task_slot(workers, uses_torch=workers.device_type != "cpu") as slot:
        for made in scoring.open(slot, _unreported).process(rows):
            yield pa.RecordBatch.from_arrays(
                made.columns, names=[f"c{index}" for index in range(made.num_columns)]
            )


def _unreported(statistics: ScoringStatistics) -> None:
    """Takes what was done: nobody asks."""
