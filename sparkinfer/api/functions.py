"""`score` for a lazy DataFrame, `run` for a whole job."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import ConfigError
from sparkinfer.jobs.runner import Display, RunResult, choose_model_run, run_job
from sparkinfer.models.acceleration import check_available
from sparkinfer.models.tasks import get_task
from sparkinfer.plan.inputs import looks_like_table
from sparkinfer.plan.ports import Engine

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


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
    if config.engine != "pandas_udf":
        raise ConfigError(
            f"engine={config.engine!r} with score: a lazy DataFrame is scored by the pandas_udf "
            "engine only; leave the option out, or use sparkinfer.run"
        )
    get_task(config.task)
    check_available(config)
    engine = PandasUdfEngine(config, df.sparkSession, df)
    engine.open_input()
    _, source, verdict = choose_model_run(config, engine)
    return engine.scored(source, verdict)


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
        JobError: the job had started and failed; the output has no `_SUCCESS`.
    """
    if config.engine == "local":
        from sparkinfer.engines.local import LocalEngine

        return run_job(config, LocalEngine, display)
    from sparkinfer.spark.session import start_session

    spark = spark or start_session(config)
    config = qualified(config, spark)
    return run_job(config, partial(spark_engine, spark=spark), display)


def qualified(config: ScoringConfig, spark: SparkSession) -> ScoringConfig:
    """Returns the configuration with its paths as this session's file systems have them."""
    from sparkinfer.spark.session import qualify

    paths: dict[str, str] = {}
    if config.output is not None:
        paths["output"] = qualify(spark, config.output)
    if config.input is not None and not looks_like_table(config.input):
        paths["input"] = qualify(spark, config.input)
    return config.replace(**paths)


def spark_engine(config: ScoringConfig, spark: SparkSession) -> Engine:
    """Returns the configured engine on a session."""
    if config.engine == "horovod":
        from sparkinfer.engines.horovod.engine import HorovodEngine

        return HorovodEngine(config, spark)
    from sparkinfer.engines.pandas_udf import PandasUdfEngine

    return PandasUdfEngine(config, spark)
