"""Ways to score the same rows, each a process of its own: `python -m tests.benchmarks.ways NAME`.

Each prints one JSON line with the seconds that count for it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

TOKEN_BUDGET = 2048
READ_TIMES = 20


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=sorted(WAYS))
    parser.add_argument("--model", required=True)
    parser.add_argument("--input", required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--dtype", required=True)
    options = parser.parse_args()
    print(json.dumps(WAYS[options.way](options)))


def read_rows(options: argparse.Namespace) -> pd.DataFrame:
    """Returns as many rows with distinct texts as asked for, in random order.

    Distinct, because the package scores equal texts once and the other ways do not.
    """
    frame = pd.read_parquet(options.input)
    frame = frame[frame["text"].notna()].drop_duplicates("text").sample(frac=1, random_state=0)
    if len(frame) < options.rows:
        raise SystemExit(f"{options.input} has {len(frame)} distinct texts, not {options.rows}")
    return frame.head(options.rows).reset_index(drop=True)


def sparkinfer_pandas_udf(options: argparse.Namespace) -> dict[str, Any]:
    """The package's Spark engine on two slots."""
    return _run_sparkinfer(options, engine="pandas_udf", master="local[2]")


def sparkinfer_horovod(options: argparse.Namespace) -> dict[str, Any]:
    """The package's ranks on two slots; what comes before them is reported apart."""
    return _run_sparkinfer(options, engine="horovod", master="local[2]")


def sparkinfer_local(options: argparse.Namespace) -> dict[str, Any]:
    """The package in one process on two threads."""
    return _run_sparkinfer(options, engine="local")


def _run_sparkinfer(options: argparse.Namespace, **more: Any) -> dict[str, Any]:
    import sparkinfer

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in.parquet"
        read_rows(options).to_parquet(source)
        config = sparkinfer.ScoringConfig(
            model=options.model,
            input=str(source),
            input_col="text",
            output=str(Path(folder) / "out"),
            dtype=options.dtype,
            **more,
        )
        started = time.perf_counter()
        result = sparkinfer.run(config)
        seconds = time.perf_counter() - started
    before = {name: result.phases.get(name, 0.0) for name in ("prepare", "start")}
    return {
        "seconds": seconds - sum(before.values()),
        **before,
        "padding": result.statistics.padding_share,
        "model": str(result.verdict.accepted),
        "wait_s": result.statistics.wait_s,
        "forward_s": result.statistics.forward_s,
    }


def read_petastorm(options: argparse.Namespace) -> dict[str, Any]:
    """A rank's reading alone, through Petastorm."""
    return {"seconds": _read_prepared(options, "petastorm")}


def read_pyarrow(options: argparse.Namespace) -> dict[str, Any]:
    """A rank's reading alone, by `pyarrow.dataset`."""
    return {"seconds": _read_prepared(options, "pyarrow")}


def _read_prepared(options: argparse.Namespace, reader: str) -> float:
    """Returns the seconds of reading the prepared rows once, a mean of several times."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from sparkinfer.engines.horovod.prepare import Encoding, PrepareJob, prepare_part
    from sparkinfer.engines.horovod.readers import READERS, read_row_groups
    from sparkinfer.metrics.measure import Measure
    from sparkinfer.models.processor import ModelScoring
    from sparkinfer.option_groups import BatchingConfig
    from sparkinfer.plan.chunks import ChunkLimits, cut_chunks
    from sparkinfer.plan.plan import Plan, Workers
    from sparkinfer.plan.snapshot import read_row_groups as row_groups_of
    from sparkinfer.rows.columns import Columns
    from sparkinfer.rows.reading import InputFolders
    from sparkinfer.workers.suspects import Suspects
    from tests.model_options import options_of

    asked = ModelScoring(options.model, None, options_of())
    processor = asked.resolved()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("tokens", "carried"):
            (Path(folder) / name).mkdir()
        table = pa.Table.from_pandas(read_rows(options), preserve_index=False)
        pq.write_table(table, Path(folder) / "in.parquet")
        limits = ChunkLimits(table.num_rows, table.nbytes)
        schema = table.schema.remove_metadata()
        folders = InputFolders(folder)
        [chunk] = cut_chunks(row_groups_of(folders, ["in.parquet"], ["text"], schema.names), limits)
        columns = Columns(schema, pa.schema([schema.field("text")]), processor.fields)
        plan = Plan(processor, columns, Measure(), folders, folder, Workers("cpu", 1))
        job = PrepareJob(plan, BatchingConfig(), 1, folder)
        files = list(prepare_part(job, 0, chunk, Encoding(job, Suspects())))
        started = time.perf_counter()
        for _ in range(READ_TIMES):
            for _ in read_row_groups(READERS[reader], folder, files):
                pass
        return (time.perf_counter() - started) / READ_TIMES


def notebook(options: argparse.Namespace) -> dict[str, Any]:
    """What a notebook usually does: a Pandas UDF around `pipeline(texts.to_list())`."""
    import os
    import sys

    from pyspark.sql import SparkSession
    from pyspark.sql.functions import pandas_udf

    os.environ["PYSPARK_PYTHON"] = sys.executable
    session = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    spark = session.getOrCreate()
    model, dtype = options.model, options.dtype

    def label(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        import torch
        from transformers import AutoModelForSequenceClassification, pipeline

        loaded = AutoModelForSequenceClassification.from_pretrained(model)
        pipe = pipeline(
            "text-classification", model=loaded.to(getattr(torch, dtype)), tokenizer=model
        )
        for texts in batches:
            yield pd.Series([item["label"] for item in pipe(texts.to_list(), truncation=True)])

    with tempfile.TemporaryDirectory() as folder:
        source = f"{folder}/in.parquet"
        read_rows(options).to_parquet(source)
        started = time.perf_counter()
        df = spark.read.parquet(source).repartition(2)
        scored = df.withColumn("prediction", pandas_udf(label, "string")("text"))
        scored.write.parquet(f"{folder}/out")
        return {"seconds": time.perf_counter() - started}


def tight_one_process(options: argparse.Namespace) -> dict[str, Any]:
    """A bare torch loop over sorted, tokenised batches: one process, two threads."""
    return {"seconds": max(_run_loops(options, processes=1, threads=2))}


def tight_two_processes(options: argparse.Namespace) -> dict[str, Any]:
    """The same loop in two processes of one thread, half the rows each."""
    return {"seconds": max(_run_loops(options, processes=2, threads=1))}


def _run_loops(options: argparse.Namespace, processes: int, threads: int) -> list[float]:
    texts = read_rows(options)["text"].tolist()
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    queue = context.Queue()
    workers = [
        context.Process(
            target=_loop,
            args=(options.model, options.dtype, texts[i::processes], threads, barrier, queue),
        )
        for i in range(processes)
    ]
    for worker in workers:
        worker.start()
    seconds = [queue.get() for _ in workers]
    for worker in workers:
        worker.join()
    return seconds


def _loop(
    model_path: str, dtype: str, texts: list[str], threads: int, barrier: Any, queue: Any
) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    model = AutoModelForSequenceClassification.from_pretrained(model_path).eval()
    model.to(getattr(torch, dtype))
    batches = _sorted_batches(tokenizer, texts)
    with torch.inference_mode():
        model(**batches[-1])
        barrier.wait()
        started = time.perf_counter()
        for batch in batches:
            model(**batch).logits.float().softmax(-1).numpy()
        queue.put(time.perf_counter() - started)


def _sorted_batches(tokenizer: Any, texts: list[str]) -> list[Any]:
    ids = tokenizer(texts, truncation=True)["input_ids"]
    order = np.argsort([-len(row) for row in ids], kind="stable")
    batches, start = [], 0
    while start < len(order):
        rows = max(1, TOKEN_BUDGET // len(ids[order[start]]))
        chosen = [texts[i] for i in order[start : start + rows]]
        batches.append(tokenizer(chosen, truncation=True, padding=True, return_tensors="pt"))
        start += rows
    return batches


WAYS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    way.__name__: way
    for way in (
        sparkinfer_pandas_udf,
        sparkinfer_horovod,
        sparkinfer_local,
        read_petastorm,
        read_pyarrow,
        notebook,
        tight_one_process,
        tight_two_processes,
    )
}

if __name__ == "__main__":
    main()
