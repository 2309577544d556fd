"""`score` for a lazy DataFrame, `run` for a whole job."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from sparkinfer.config import DisplayMode, ScoringConfig
from sparkinfer.disk_errors import disk_errors_reported
from sparkinfer.display import live_display
from sparkinfer.engines import find_engine, make_engine, make_source
from sparkinfer.exceptions import ConfigError, causes_without_secrets
from sparkinfer.jobs.result import RunResult
from sparkinfer.jobs.runner import run_job
from sparkinfer.messages import shown
from sparkinfer.plan.inputs import qualified_input
from sparkinfer.plan.phases import CHECKS, SESSION
from sparkinfer.plan.prelude import Prelude
from sparkinfer.plan.progress import Progress
from sparkinfer.report.page import report_at_end
from sparkinfer.rows.reading import InputFolders
from sparkinfer.spark.jvm import death_reported
from sparkinfer.storage import absolute, mounted
from sparkinfer.validation import Options

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

Display = Callable[[Progress], AbstractContextManager[object]]
"""Shows a progress for as long as its context is open."""

NOT_OF_SCORE = (
    *(
        "input",
        "input_format",
        "input_version",
        "output",
        "overwrite",
        "label_col",
        "metrics",
        "max_error_rows",
    ),
    *(
        "incremental",
        "incremental_col",
        "retry_errors",
        "dedupe",
        "chunks",
        "csv",
        "horovod",
        "master",
    ),
    *("spark_conf", "vectors", "delta", "table", "price_per_hour", "report", "mlflow"),
)
"""Options of a job that have no effect on a lazy DataFrame."""

_TEXT = "__sparkinfer_text"
"""Column that holds what an expression makes, until it is scored."""


@causes_without_secrets()
def score(
    df: DataFrame,
    model: str | None = None,
    input_col: str | Column | None = None,
    *,
    models: Mapping[str, Any] | None = None,
    **options: Any,
) -> DataFrame:
    """Returns the DataFrame with the scored columns added; rows are scored when it is evaluated.

    The model is checked, and the way to run it chosen, during this call (one small Spark job). Row
    order is not kept: rows are repartitioned over the workers.

    Args:
        df: any DataFrame with a string column to score.
        model: hub id, folder, `models:/` or `runs:/` URI.
        input_col: the column that holds the text, or an expression of Spark's that makes it, such
            as `F.concat_ws(": ", "title", "body")`; None with `input_template`.
        models: several models by their names, in place of one; each a path or a mapping of what
            concerns it alone.
        **options: further options of `ScoringConfig`, except those of a job.

    Raises:
        UsageError: the call cannot work.
    """
    from sparkinfer.engines.pandas_udf import PandasUdfEngine

    given = [*options, *_given_of_models(models or {})]
    refused = [name for name in given if name.rpartition(".")[2] in NOT_OF_SCORE]
    if "fn" in given:
        raise ConfigError(
            f"fn={shown(options['fn'])} with score: use sparkinfer.map_batches(df, fn), or "
            "sparkinfer.run(config, df=df)"
        )
    if refused:
        raise ConfigError(
            f"{refused[0]} with score: the option has no effect on a lazy DataFrame; leave it out, "
            "or use sparkinfer.run(config, df=df)"
        )
    if input_col is not None and not isinstance(input_col, str):
        options.setdefault("carry_cols", tuple(df.columns))
        df, input_col = df.withColumn(_TEXT, input_col), _TEXT
    config = ScoringConfig(
        **{"model": model, "input_col": input_col, "models": dict(models or {}), **options}
    )
    if config.engine != "pandas_udf":
        raise ConfigError(
            f"engine={config.engine!r} with score: only the pandas_udf engine scores a lazy "
            "DataFrame; leave the option out, or use sparkinfer.run(config, df=df)"
        )
    spark = df.sparkSession
    engine = PandasUdfEngine(config, spark)
    prelude = Prelude(config, make_source(config, spark, df), engine)
    prelude.check()
    _ = prelude.asked_columns  # those that do not fit are found before the model is fetched
    return engine.scored(df, prelude.plan(InputFolders(""), staging=""))


def _given_of_models(models: Mapping[str, Any]) -> Iterator[str]:
    """Yields the options that are given for each of several models, as `models.NAME.OPTION`."""
    for name, section in models.items():
        given = section.given if isinstance(section, Options) else section
        if isinstance(given, Collection) and not isinstance(given, str):
            yield from (f"models.{name}.{option}" for option in given)


@causes_without_secrets()
def run(
    config: ScoringConfig,
    spark: SparkSession | None = None,
    *,
    progress: DisplayMode | Display = "auto",
    df: DataFrame | None = None,
) -> RunResult:
    """Scores `config.input`, or a DataFrame, into `config.output` and returns what was done.

    A DataFrame, like a table, is evaluated once and copied as Parquet below the output; a run that
    resumes reads that copy.

    Args:
        config: what to do.
        spark: session for an engine on Spark; None: that of the DataFrame, the active one, or a
            new one.
        progress: how it is shown what the run is at, from the call to the end: `auto` below the
            cell of a notebook (Jupyter, Databricks), as a bar in a terminal, as lines on standard
            error elsewhere; `bar`, `lines`, `json`, `none`; or a function that shows a `Progress`
            while its context is open.
        df: the rows, in place of `config.input`.

    Raises:
        UsageError: the call cannot work; nothing was written.
        JobError: the job had started and failed; the output has no `_SUCCESS`.
    """
    with death_reported(), disk_errors_reported(config.output), displayed(progress) as started:
        prelude = open_prelude(config, spark, df, started)
        try:
            return run_job(prelude, partial(report_at_end, prelude.config))
        finally:
            prelude.engine.close()


@contextmanager
def displayed(progress: DisplayMode | Display) -> Iterator[Progress]:
    """Yields a progress that is shown while the context is open; it is at the checks.

    Args:
        progress: how; see `run`.
    """
    display = progress if callable(progress) else partial(live_display, mode=progress)
    started = Progress()
    started.enter(CHECKS)
    with display(started):
        yield started


def open_prelude(
    config: ScoringConfig,
    spark: SparkSession | None = None,
    df: DataFrame | None = None,
    progress: Progress | None = None,
) -> Prelude:
    """Returns the steps before the first row, with the configured engine on a session.

    Args:
        config: what to do.
        spark: see `run`.
        df: see `run`.
        progress: see `Prelude`.

    Raises:
        ConfigError: a DataFrame is given along with an input, or with an engine that cannot use it.
        EngineUnavailableError: something that the engine needs is missing.
    """
    if df is not None and config.input is not None:
        raise ConfigError(
            f"input={config.input!r} with df: the DataFrame replaces the input; give only one of "
            "them"
        )
    if not find_engine(config.engine).on_spark:
        if df is not None:
            raise ConfigError(
                f"engine={config.engine!r} with df: a DataFrame is read by Spark; use "
                "engine='pandas_udf' or 'horovod'"
            )
        config = qualified(config, None)
        engine = make_engine(config, None)
        return Prelude(config, make_source(config, None), engine, progress=progress)
    from sparkinfer.spark.hosts import hosts_of
    from sparkinfer.spark.publishing import CatalogTables
    from sparkinfer.spark.session import start_session

    progress = progress or Progress()
    if spark is None and df is not None:
        spark = df.sparkSession
    if spark is None:
        with progress.during(SESSION):
            spark = start_session(config)
    config = qualified(config, spark)
    source, engine = make_source(config, spark, df), make_engine(config, spark)
    prelude = Prelude(config, source, engine, CatalogTables(spark), progress)
    prelude.hosts = partial(hosts_of, spark)
    return prelude


def qualified(config: ScoringConfig, spark: SparkSession | None) -> ScoringConfig:
    """Returns the configuration with its paths as all processes of the job understand them."""

    def qualify(path: str) -> str:
        if spark is None or path.startswith("~"):
            return absolute(path)
        from sparkinfer.spark.session import qualify as as_spark_resolves

        return absolute(as_spark_resolves(spark, path))

    if config.output is not None:
        config = config.replace(output=qualify(config.output))
    if config.delta.table is not None:
        config = config.replace(delta={"table": mounted(absolute(config.delta.table))})
    return qualified_input(config, qualify)
