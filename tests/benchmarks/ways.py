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


def sparkinfer_one_slot(options: argparse.Namespace) -> dict[str, Any]:
    """The same engine on one slot."""
    return _run_sparkinfer(options, engine="pandas_udf", master="local[1]")


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
    return _notebook(options, {})


def notebook_batches(options: argparse.Namespace) -> dict[str, Any]:
    """The same with `batch_size=32`."""
    return _notebook(options, {"batch_size": 32})


def _notebook(options: argparse.Namespace, how: dict[str, Any]) -> dict[str, Any]:
    from pyspark.sql.functions import pandas_udf

    model, dtype = options.model, options.dtype

    def label(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        pipe = _pipeline(model, dtype)
        for texts in batches:
            found = pipe(texts.to_list(), truncation=True, **how)
            yield pd.Series([item["label"] for item in found])

    return _spark_job(options, lambda: pandas_udf(label, "string"))


def predict_batch(options: argparse.Namespace) -> dict[str, Any]:
    """Spark's `predict_batch_udf`, 64 texts at a time, each batch padded to its longest."""
    from pyspark.ml.functions import predict_batch_udf
    from pyspark.sql.types import StringType

    model, dtype = options.model, options.dtype

    def make() -> Callable[[Any], Any]:
        import torch

        pipe = _pipeline(model, dtype)
        names = pipe.model.config.id2label

        def predict(texts: Any) -> Any:
            batch = pipe.tokenizer(
                [str(text) for text in texts], truncation=True, padding=True, return_tensors="pt"
            )
            with torch.inference_mode():
                ids = pipe.model(**batch).logits.argmax(-1).tolist()
            return np.array([names[one] for one in ids])

        return predict

    return _spark_job(
        options, lambda: predict_batch_udf(make, return_type=StringType(), batch_size=64)
    )


def _pipeline(model: str, dtype: str) -> Any:
    import torch
    from transformers import AutoModelForSequenceClassification, pipeline

    loaded = AutoModelForSequenceClassification.from_pretrained(model)
    half = loaded.to(getattr(torch, dtype))
    return pipeline("text-classification", model=half, tokenizer=model)


def _spark_job(options: argparse.Namespace, make_udf: Callable[[], Any]) -> dict[str, Any]:
    """Returns the seconds of a job on two slots that adds a UDF's column and writes Parquet."""
    import os
    import sys

    from pyspark.sql import SparkSession

    os.environ["PYSPARK_PYTHON"] = sys.executable
    session = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    spark = session.config("spark.executorEnv.OMP_NUM_THREADS", "1").getOrCreate()
    with tempfile.TemporaryDirectory() as folder:
        source = f"{folder}/in.parquet"
        read_rows(options).to_parquet(source)
        started = time.perf_counter()
        df = spark.read.parquet(source).repartition(2)
        df.withColumn("prediction", make_udf()("text")).write.parquet(f"{folder}/out")
        return {"seconds": time.perf_counter() - started}


def ray_data(options: argparse.Namespace) -> dict[str, Any]:
    """Ray Data's `map_batches`, two actors of one thread, each `pipeline(batch_size=32)`.

    Runs in the environment of the peers.
    """
    import ray

    model, dtype = options.model, options.dtype

    class Predict:
        def __init__(self) -> None:
            import torch

            torch.set_num_threads(1)
            self.pipe = _pipeline(model, dtype)

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            found = self.pipe([str(text) for text in batch["text"]], truncation=True, batch_size=32)
            batch["prediction"] = np.array([item["label"] for item in found])
            return batch

    # One core more than actors, or the tasks that read find none.
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        read_rows(options).to_parquet(f"{folder}/in.parquet")
        started = time.perf_counter()
        rows = ray.data.read_parquet(f"{folder}/in.parquet").repartition(8)
        rows.map_batches(Predict, concurrency=2, batch_size=256).write_parquet(f"{folder}/out")
        return {"seconds": time.perf_counter() - started}


def tight_torch_1x1(options: argparse.Namespace) -> dict[str, Any]:
    """A bare torch loop over sorted, tokenised batches: one process, one thread."""
    return _tight("torch", options, processes=1, threads=1)


def tight_openvino_1x1(options: argparse.Namespace) -> dict[str, Any]:
    """The loop with OpenVINO: one process, one thread."""
    return _tight("openvino", options, processes=1, threads=1)


def tight_torch_1x2(options: argparse.Namespace) -> dict[str, Any]:
    """The same loop: one process, two threads."""
    return _tight("torch", options, processes=1, threads=2)


def tight_torch_2x1(options: argparse.Namespace) -> dict[str, Any]:
    """The same loop in two processes of one thread, half the rows each."""
    return _tight("torch", options, processes=2, threads=1)


def tight_openvino_1x2(options: argparse.Namespace) -> dict[str, Any]:
    """The loop with OpenVINO: one process, two threads."""
    return _tight("openvino", options, processes=1, threads=2)


def tight_openvino_2x1(options: argparse.Namespace) -> dict[str, Any]:
    """The loop with OpenVINO in two processes of one thread."""
    return _tight("openvino", options, processes=2, threads=1)


def tight_onnxruntime_2x1(options: argparse.Namespace) -> dict[str, Any]:
    """The loop with ONNX Runtime, which is always in float32, in two processes of one thread."""
    return _tight("onnxruntime", options, processes=2, threads=1)


def _tight(
    backend: str, options: argparse.Namespace, processes: int, threads: int
) -> dict[str, Any]:
    """Returns the seconds of a loop for the slowest of its processes."""
    texts = read_rows(options)["text"].tolist()
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    queue = context.Queue()
    shared = (options.model, options.dtype)
    workers = [
        context.Process(
            target=_loop,
            args=(backend, *shared, texts[i::processes], threads, barrier, queue),
        )
        for i in range(processes)
    ]
    for worker in workers:
        worker.start()
    seconds = [queue.get() for _ in workers]
    for worker in workers:
        worker.join()
    return {"seconds": max(seconds)}


def _loop(
    backend: str,
    model_path: str,
    dtype: str,
    texts: list[str],
    threads: int,
    barrier: Any,
    queue: Any,
) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(model_path)
    model = loaded.float().eval()
    batches = _sorted_batches(tokenizer, texts)
    run = _RUNS[backend](model, dtype, threads, batches[-1])
    with torch.inference_mode():
        run(batches[-1])
        barrier.wait()
        started = time.perf_counter()
        for batch in batches:
            run(batch).float().softmax(-1).numpy()
        queue.put(time.perf_counter() - started)


def _torch_run(model: Any, dtype: str, threads: int, example: Any) -> Callable[[Any], Any]:
    import torch

    half = model.to(getattr(torch, dtype))
    return lambda batch: half(**batch).logits


def _openvino_run(model: Any, dtype: str, threads: int, example: Any) -> Callable[[Any], Any]:
    import openvino
    import torch

    inputs = dict(example)
    graph = openvino.convert_model(_by_place(model, list(inputs)), example_input=[*inputs.values()])
    how = {
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[dtype],
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }
    request = openvino.Core().compile_model(graph, "CPU", how).create_infer_request()

    def run(batch: Any) -> Any:
        given = [batch[name].numpy() for name in inputs]
        return torch.from_numpy(request.infer(given, share_inputs=True)[0])

    return run


def _onnxruntime_run(model: Any, dtype: str, threads: int, example: Any) -> Callable[[Any], Any]:
    import onnxruntime
    import torch

    inputs = dict(example)
    axes = {name: {0: "sequences", 1: "tokens"} for name in inputs}
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.onnx"
        torch.onnx.export(
            _by_place(model, list(inputs)),
            tuple(inputs.values()),
            path,
            input_names=list(inputs),
            dynamic_axes=axes,
            dynamo=False,
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(batch: Any) -> Any:
        return torch.from_numpy(
            session.run(None, {name: batch[name].numpy() for name in inputs})[0]
        )

    return run


def _by_place(model: Any, names: list[str]) -> Any:
    """Returns a module that takes its inputs by place and returns logits."""
    import torch

    class Logits(torch.nn.Module):  # type: ignore[misc,unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: Any) -> Any:
            return self.model(**dict(zip(names, inputs, strict=True))).logits

    return Logits().eval()


_RUNS = {"torch": _torch_run, "openvino": _openvino_run, "onnxruntime": _onnxruntime_run}


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
        sparkinfer_one_slot,
        read_petastorm,
        read_pyarrow,
        notebook,
        notebook_batches,
        predict_batch,
        ray_data,
        tight_torch_1x1,
        tight_torch_1x2,
        tight_torch_2x1,
        tight_openvino_1x1,
        tight_openvino_1x2,
        tight_openvino_2x1,
        tight_onnxruntime_2x1,
    )
}

if __name__ == "__main__":
    main()
