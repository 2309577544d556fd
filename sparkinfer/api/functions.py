"""`score` for a lazy DataFrame, `run` for a whole job."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from sparkinfer.config import ScoringConfig
from sparkinfer.jobs.runner import Display, RunResult, run_job
from sparkinfer.models.acceleration import check_available
from sparkinfer.models.sources import resolve
from sparkinfer.models.tasks import get_task

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from sparkinfer.engines.base import Engine


def score(df: DataFrame, model: str, input_col: str, **options: Any) -> DataFrame:
    """Returns the DataFrame with the scored columns added; rows are scored when it is evaluated.

    The model is checked, and the way to run it chosen, during this call (one small Spark job).
    Row order is kept only where the DataFrame's plan keeps it: rows are spread over the workers.

    Args:
        df: any DataFrame with a string column to score.
        model: hub id, folder, `models:/` or `runs:/` URI.
        input_col: the column that holds the text.
        **options: further options of `ScoringConfig`.

    Raises:
        UsageError: the call cannot work.
    """
    from sparkinfer.engines.pandas_udf import PandasUdfEngine

    config = ScoringConfig(model=model, input_col=input_col, **options)
    get_task(config.task)
    check_available(config)
    engine = PandasUdfEngine(config, df.sparkSession, df)
    engine.open_input()
    engine.find_workers()
    source = resolve(config.model, revision=config.revision, loading=config.loading)
    return engine.scored(source, engine.run_gate(source))


def run(
    config: ScoringConfig,
    spark: SparkSession | None = None,
    display: Display = nullcontext,
) -> RunResult:
    """Scores `config.input` into `config.output` and returns what was done.

    Args:
        config: what to do.
        spark: session for an engine on Spark; None: the active one, or a new one.
        display: shows the progress; `sparkinfer.report.live.live_display` prints it.

    Raises:
        UsageError: the call cannot work; nothing was written.
        JobError: the job had started and failed; nothing of it is visible in the output.
    """
    return run_job(config, _make_engine(config, spark), display)


def _make_engine(config: ScoringConfig, spark: SparkSession | None) -> Engine:
    if config.engine == "local":
        from sparkinfer.engines.local import LocalEngine

        return LocalEngine(config)
    from sparkinfer.engines.pandas_udf import PandasUdfEngine
    from sparkinfer.spark.session import start_session

    return PandasUdfEngine(config, spark or start_session(config))
