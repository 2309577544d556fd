"""What chunks cost: `python -m tests.benchmarks.overhead`.

Scores the same short rows as one chunk and as many, in turns, and prints the ratio of the seconds
of scoring for each turn and their median.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from importlib import resources
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import sparkinfer
from sparkinfer.spark.session import start_session
from sparkinfer.workers.devices import native_dtypes
from tests.tiny_models import sentences


def main() -> None:
    demo = resources.files("sparkinfer.demo")
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.overhead", description=__doc__
    )
    parser.add_argument("--engine", choices=("pandas_udf", "horovod"), default="pandas_udf")
    parser.add_argument("--model", default=str(demo / "model"))
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--chunks", type=int, default=10)
    parser.add_argument("--row-groups", type=int, help="of the input; one for each chunk if absent")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--dtype", default=native_dtypes("cpu")[0])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = write_rows(Path(folder) / "in.parquet", options)
        ratios = [
            compare(Path(folder), source, options, turn) for turn in range(options.repetitions)
        ]
    print(f"{options.chunks} chunks against one: median ratio {statistics.median(ratios):.3f}")


def write_rows(path: Path, options: argparse.Namespace) -> Path:
    texts = [f"{text} {number}" for number, text in enumerate(sentences(options.rows))]
    table = pa.table({"id": range(options.rows), "text": texts})
    pq.write_table(
        table, path, row_group_size=-(-options.rows // (options.row_groups or options.chunks))
    )
    return path


def compare(folder: Path, source: Path, options: argparse.Namespace, turn: int) -> float:
    """Returns the seconds of many chunks over those of one; which goes first changes."""
    many = -(-options.rows // options.chunks)
    seconds = {}
    for target_rows in (options.rows, many)[:: 1 if turn % 2 else -1]:
        seconds[target_rows] = score(
            folder / f"out-{turn}-{target_rows}", source, options, target_rows
        )
    ratio = seconds[many] / seconds[options.rows]
    print(
        f"one chunk {seconds[options.rows]:.1f} s, {options.chunks} chunks {seconds[many]:.1f} s: "
        f"{ratio:.3f}",
        flush=True,
    )
    return ratio


def score(output: Path, source: Path, options: argparse.Namespace, target_rows: int) -> float:
    """Returns the seconds of scoring."""
    config = sparkinfer.ScoringConfig(
        model=options.model,
        input=str(source),
        input_col="text",
        output=str(output),
        engine=options.engine,
        master="local[2]",
        dtype=options.dtype,
        chunks={"target_rows": target_rows},
    )
    spark = start_session(config)
    try:
        result = sparkinfer.run(config, spark)
    finally:
        spark.stop()
    return result.scoring_s


if __name__ == "__main__":
    main()
