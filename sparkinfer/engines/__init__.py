"""Engines move rows, nothing else. To add one, add a module and a line in `ENGINES`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import ConfigError
from sparkinfer.plan.inputs import spark_kind
from sparkinfer.plan.ports import Engine, InputSource

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


@dataclass(frozen=True)
class EngineEntry:
    """Where an engine is, and what it needs.

    Attributes:
        home: its class, as `package.module:Class`; imported on use.
        on_spark: whether it needs a Spark session.
    """

    home: str
    on_spark: bool


ENGINES = {
    "pandas_udf": EngineEntry("sparkinfer.engines.pandas_udf:PandasUdfEngine", on_spark=True),
    "horovod": EngineEntry("sparkinfer.engines.horovod.engine:HorovodEngine", on_spark=True),
    "local": EngineEntry("sparkinfer.engines.local:LocalEngine", on_spark=False),
}


def find_engine(name: str) -> EngineEntry:
    """Returns the entry of an engine.

    Raises:
        ConfigError: there is no engine of this name.
    """
    if name not in ENGINES:
        raise ConfigError(f"engine={name!r}: expected one of {', '.join(ENGINES)}")
    return ENGINES[name]


def make_engine(config: ScoringConfig, spark: SparkSession | None) -> Engine:
    """Returns the configured engine, on the session if it needs one."""
    entry = find_engine(config.engine)
    module, _, name = entry.home.partition(":")
    kind: Any = getattr(import_module(module), name)
    engine: Engine = kind(config, spark) if entry.on_spark else kind(config)
    return engine


def make_source(
    config: ScoringConfig, spark: SparkSession | None, df: DataFrame | None = None
) -> InputSource:
    """Returns what reads the configured input, or a DataFrame, for the configured engine."""
    from sparkinfer.engines.file_input import FileInput

    if spark is None:
        return FileInput(config)
    if df is None and config.input and spark_kind(config) is None:
        from sparkinfer.engines.client_files import ClientFiles
        from sparkinfer.spark.classic import is_classic
        from sparkinfer.spark.each_file import on_each_file

        files = FileInput(config, partial(on_each_file, spark))
        return files if is_classic(spark) else ClientFiles(files)
    from sparkinfer.engines.spark_input import SparkInput

    return SparkInput(config, spark, df)
