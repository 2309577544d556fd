"""Does a row of a long table cost more? `python -m tests.benchmarks.lengths`.

Scores tables of 10,000, 100,000 and 1,000,000 rows with a tiny model and prints the rate between
the first two and between the last two, fixed costs excluded, and their ratio.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import sparkinfer
from tests.tiny_models import make_classifier, sentences

SIZES = (10_000, 100_000, 1_000_000)
DIFFERENT = 10_000
"""Texts, each with a number behind it, so that no two are equal."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.lengths", description=__doc__)
    parser.add_argument("--engine", default="pandas_udf", choices=("pandas_udf", "local"))
    parser.add_argument("--sizes", type=int, nargs=3, default=SIZES)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(score(options.engine, Path(options.one[0]), int(options.one[1]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_classifier(Path(folder) / "model")
        for rows in options.sizes:
            write_rows(Path(folder) / f"{rows}.parquet", rows)
        ratios = [turn(options, folder) for _ in range(options.repetitions)]
    print(f"rate at the longest over the rate before: median {statistics.median(ratios):.3f}")


def write_rows(path: Path, rows: int) -> None:
    texts = sentences(DIFFERENT)
    numbers = range(rows)
    table = pa.table(
        {"id": numbers, "text": [f"{texts[one % DIFFERENT]} {one}" for one in numbers]}
    )
    pq.write_table(table, path, row_group_size=50_000)


def turn(options: argparse.Namespace, folder: str) -> float:
    """Returns the later rate over the earlier one."""
    seconds = []
    for rows in options.sizes:
        command = [sys.executable, "-m", "tests.benchmarks.lengths", "--engine", options.engine]
        done = subprocess.run(
            [*command, "--one", folder, str(rows)],
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        seconds.append(float(done.stdout.splitlines()[-1]))
    few, more, most = options.sizes
    early = (more - few) / (seconds[1] - seconds[0])
    late = (most - more) / (seconds[2] - seconds[1])
    print(f"{early:,.0f} rows/s up to {more:,} rows, {late:,.0f} up to {most:,}", flush=True)
    return late / early


def score(engine: str, folder: Path, rows: int) -> float:
    """Returns the seconds of a job."""
    with tempfile.TemporaryDirectory() as output:
        started = time.perf_counter()
        sparkinfer.run(
            sparkinfer.ScoringConfig(
                model=str(folder / "model"),
                input=str(folder / f"{rows}.parquet"),
                input_col="text",
                output=f"{output}/out",
                engine=engine,
                master="local[2]" if engine == "pandas_udf" else None,
            )
        )
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
