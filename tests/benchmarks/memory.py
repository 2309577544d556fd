"""Memory at two table lengths: `python -m tests.benchmarks.memory --engine pandas_udf`.

A tiny model, so that the rows and not the weights fill the memory. Prints at each length the peak
resident memory of any worker (rank or Python worker) and the driver's JVM heap after a collection,
and their ratios: they say whether memory grows with the table.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import SparkSession

import sparkinfer
from sparkinfer.spark.session import start_session
from tests.tiny_models import make_classifier, sentences

SAMPLE_S = 0.1
COLLECTIONS, CLEANER_S = 5, 1.0
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.memory", description=__doc__)
    parser.add_argument("--engine", choices=("pandas_udf", "horovod"), default="pandas_udf")
    parser.add_argument("--rows", type=int, nargs="+", default=(20_000, 1_000_000))
    parser.add_argument("--reader", default="auto")
    parser.add_argument("--launcher", default="auto")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = make_classifier(Path(folder) / "model")
        figures = [measure(Path(folder), model, rows, options) for rows in options.rows]
    for rows, (worker, heap) in zip(options.rows, figures, strict=True):
        print(
            f"{rows:>9,} rows: {worker / MIB:,.0f} MiB in the largest worker, "
            f"{heap / MIB:,.1f} MiB of heap in the driver"
        )
    worker_ratio, heap_ratio = (figures[-1][i] / figures[0][i] for i in range(2))
    print(f"ratio of workers {worker_ratio:.3f}, of the driver's heap {heap_ratio:.3f}")


def measure(folder: Path, model: Path, rows: int, options: argparse.Namespace) -> tuple[int, int]:
    """Returns the peak resident memory of any worker and the driver's heap, in bytes."""
    source, output = folder / f"in-{rows}.parquet", folder / f"out-{rows}"
    texts = [f"{text} {number}" for number, text in enumerate(sentences(rows))]
    table = pa.table({"id": range(rows), "text": texts})
    pq.write_table(table, source, row_group_size=10_000)
    config = sparkinfer.ScoringConfig(
        model=str(model),
        input=str(source),
        input_col="text",
        output=str(output),
        engine=options.engine,
        master="local[2]",
        dtype="float32",
        acceleration="none",
        horovod={"reader": options.reader, "launcher": options.launcher},
        chunks={"target_rows": 20_000},
    )
    spark = start_session(config)
    done, peak = threading.Event(), [0]
    sampler = threading.Thread(target=sample, args=(done, peak))
    sampler.start()
    try:
        assert sparkinfer.run(config, spark).rows == rows
    finally:
        done.set()
        sampler.join()
    heap = used_heap(spark)
    spark.stop()
    return peak[0], heap


def sample(done: threading.Event, peak: list[int]) -> None:
    """Notes the largest of this process's descendants that are Python."""
    here = psutil.Process()
    while not done.wait(SAMPLE_S):
        for process in here.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "python" in process.name():
                    peak[0] = max(peak[0], process.memory_info().rss)


def used_heap(spark: SparkSession) -> int:
    """Returns the bytes in use of the driver's heap after collections.

    After each, Spark's cleaner lets go of what belongs to plans that are gone.
    """
    jvm = spark._jvm
    runtime = jvm.java.lang.Runtime.getRuntime()
    used = []
    for _ in range(COLLECTIONS):
        gc.collect()  # this process holds JVM objects, too
        jvm.java.lang.System.gc()
        time.sleep(CLEANER_S)
        used.append(int(runtime.totalMemory() - runtime.freeMemory()))
    return min(used)


if __name__ == "__main__":
    main()
