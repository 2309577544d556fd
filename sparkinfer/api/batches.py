"""`map_batches`: a user's function or class over the batches of a DataFrame.

The arguments are those of Ray Data's `Dataset.map_batches`, so that what was written for it runs
here. Source: its reference, docs.ray.io.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sparkinfer.exceptions import ConfigError, causes_without_secrets
from sparkinfer.functions.processor import FunctionScoring
from sparkinfer.functions.user_function import Arguments, UserFunction
from sparkinfer.messages import shown
from sparkinfer.models.ddl import parse_columns
from sparkinfer.plan.plan import Workers
from sparkinfer.workers.host_slots import HostSlots

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from sparkinfer.engines.spark_batches import Stages


@dataclass(frozen=True)
class ActorPoolStrategy:
    """How many workers a class is constructed in.

    Attributes:
        size: so many.
        min_size: at least; there are always as many as there may be.
        max_size: at most.
        initial_size: at first; likewise.
    """

    size: int | None = None
    min_size: int | None = None
    max_size: int | None = None
    initial_size: int | None = None


@dataclass(frozen=True)
class TaskPoolStrategy:
    """How many tasks call a function at the same time.

    Attributes:
        size: so many; None: as many as there are slots.
    """

    size: int | None = None


@causes_without_secrets()
def map_batches(
    df: DataFrame,
    fn: Any,
    *,
    batch_size: int | str | None = None,
    compute: Any = None,
    batch_format: str | None = "default",
    zero_copy_batch: bool = True,
    fn_args: Iterable[Any] | None = None,
    fn_kwargs: Mapping[str, Any] | None = None,
    fn_constructor_args: Iterable[Any] | None = None,
    fn_constructor_kwargs: Mapping[str, Any] | None = None,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    concurrency: int | tuple[int, ...] | None = None,
    schema: str | None = None,
) -> DataFrame:
    """Returns a DataFrame of what a function makes of the batches of another, lazily.

    Called over the result of another call, both functions run at the same time: the first in a
    process of its own, on the batches that come next.

    Args:
        df: the rows.
        fn: a function, a generator, or a class, of which each worker constructs one; also
            `package.module:name` of one. It is called with a batch and returns or yields batches,
            with any number of rows: dicts of arrays, DataFrames of pandas or Arrow tables. Its
            calls may be asynchronous.
        batch_size: rows of a batch, of which the last of a partition may have fewer; None: a
            partition, up to 128 MiB; "default": 1024 rows; "auto": the same, up to 16 MiB.
        compute: an `ActorPoolStrategy` or `TaskPoolStrategy`; counts more than `concurrency`.
        batch_format: what the function is given: a dict of numpy arrays ("default", "numpy"), a
            DataFrame ("pandas") or an Arrow table ("pyarrow").
        zero_copy_batch: whether it is given arrays that it cannot write into; if not, copies.
        fn_args: further arguments of each call.
        fn_kwargs: the same, by name.
        fn_constructor_args: arguments of the class.
        fn_constructor_kwargs: the same, by name.
        num_cpus: cores that each worker needs: so many fewer work at once on a host.
        num_gpus: GPUs of each worker, 0 or 1.
        concurrency: workers, or a tuple of which the largest counts; the rows are repartitioned
            to so many. None: as the rows are partitioned, with `num_gpus` one for each GPU.
        schema: the columns of the result, such as `id bigint, label string`; None: inferred from
            a batch of the first rows, in a small Spark job, and logged.

    Raises:
        ConfigError: an argument has a wrong value, or the function returns no batch.
        JobError: the function failed over the first rows. Later failures end the Spark job.
    """
    from sparkinfer.engines.spark_batches import Stages, stages_of
    from sparkinfer.spark.accelerators import cores_per_task

    _check_given(df, fn_args, fn_kwargs, fn_constructor_args, fn_constructor_kwargs, schema)
    function = UserFunction.of(
        fn,
        Arguments(
            tuple(fn_args or ()),
            dict(fn_kwargs or {}),
            tuple(fn_constructor_args or ()),
            dict(fn_constructor_kwargs or {}),
        ),
        batch_size=batch_size,
        batch_format=batch_format or "default",
        zero_copy=zero_copy_batch,
    )
    before = stages_of(df)
    if before is None:
        workers = Workers("cpu", 1, cores_per_task(df.sparkSession))
        stages = Stages(df, FunctionScoring((function,), keeps_failed=False), workers)
    else:
        stages = before.then(function)
    stages = _with_workers(stages, workers_of(compute, concurrency), num_cpus, num_gpus)
    if schema is None:
        return stages.infer().processed()
    columns = parse_columns(schema, "schema")
    return replace(stages, scoring=replace(stages.scoring, columns=columns)).processed()


def _check_given(
    df: Any, args: Any, kwargs: Any, constructor_args: Any, constructor_kwargs: Any, schema: Any
) -> None:
    """Raises ConfigError for what is of another type than an argument must have."""
    if not hasattr(df, "mapInArrow"):
        raise ConfigError(
            f"df is a {type(df).__name__}, expected a Spark DataFrame; make one with "
            "spark.createDataFrame"
        )
    for name, given in (("fn_args", args), ("fn_constructor_args", constructor_args)):
        if given is not None and (isinstance(given, str) or not isinstance(given, Iterable)):
            raise ConfigError(f"{name}={shown(given)}: expected a list of arguments")
    for name, given in (("fn_kwargs", kwargs), ("fn_constructor_kwargs", constructor_kwargs)):
        if given is not None and not isinstance(given, Mapping):
            raise ConfigError(f"{name}={shown(given)}: expected a dict of arguments by name")
    if not isinstance(schema, str | None):
        raise ConfigError(
            f"schema is a {type(schema).__name__}, expected a text such as 'id bigint, label "
            "string'"
        )


def workers_of(compute: Any, concurrency: Any) -> int | None:
    """Returns how many workers are asked for, None for any number.

    Raises:
        ConfigError: it is no number from 1.
    """
    asked = concurrency
    if compute is not None:
        sizes = [getattr(compute, name, None) for name in ("size", "max_size", "min_size")]
        if not any(hasattr(compute, name) for name in ("size", "max_size")):
            raise ConfigError(
                f"compute={shown(compute)}: expected an ActorPoolStrategy or a TaskPoolStrategy"
            )
        asked = next((size for size in sizes if size is not None), None)
    sizes = list(asked) if isinstance(asked, tuple | list) else [asked]
    numbers = [
        one for one in sizes if isinstance(one, int | np.integer) and not isinstance(one, bool)
    ]
    if asked is None:
        return None
    if len(numbers) < len(sizes) or not numbers or min(numbers) < 1:
        raise ConfigError(
            f"concurrency={shown(asked)}: expected a number of workers from 1, or a tuple of the "
            "fewest and the most"
        )
    return int(max(numbers))


def _with_workers(
    stages: Stages, workers: int | None, num_cpus: float | None, num_gpus: float | None
) -> Stages:
    """Returns stages that run in so many workers, each with what it needs."""
    from sparkinfer.spark.accelerators import count_accelerators
    from sparkinfer.spark.hosts import hosts_of
    from sparkinfer.spark.profiles import profile_of
    from sparkinfer.spark.tables import count_functions

    for name, amount in (("num_cpus", num_cpus), ("num_gpus", num_gpus)):
        if amount is not None and not (_is_number(amount) and 0 <= amount < math.inf):
            raise ConfigError(f"{name}={shown(amount)}: expected a number from 0")
    if num_gpus not in (None, 0, 1):
        raise ConfigError(
            f"num_gpus={num_gpus!r}: expected 0 or 1; each worker holds one GPU, which it shares "
            "with no other"
        )
    spark = stages.df.sparkSession
    if num_gpus:
        found = count_accelerators(spark, "cuda", workers)
        on_gpus = Workers("cuda", found.count, found.cores_per_task)
        stages = replace(stages, workers=on_gpus, partitions=found.most)
    elif workers is not None:
        stages = replace(stages, partitions=workers)
    if not num_cpus or num_cpus <= 1:
        return stages
    cores = math.ceil(num_cpus)
    stages = replace(stages, workers=replace(stages.workers, cores=cores))
    profile = profile_of(spark, cores, num_gpus or 0)
    if profile is not None:
        return replace(stages, profile=profile)
    application, cores_of_hosts = hosts_of(spark)
    # A task may run functions below these, whose workers must not wait for the same slots.
    name = f"{application}-{count_functions(stages.df)}"
    slots = HostSlots(num_cpus, name, cores_of_hosts)
    return replace(stages, scoring=replace(stages.scoring, slots=slots))


def _is_number(amount: Any) -> bool:
    return isinstance(amount, int | float) and not isinstance(amount, bool)
