"""How long a job of ten rows takes: `python -m tests.benchmarks.start --model M --input T`.

Prints, in turns, the seconds of a bare Spark session with one job whose Python worker imports torch
and transformers; of the command, with nothing remembered on the node and with all of it; and of a
second `run` in a session that is warm.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path

import pandas as pd

ROWS = 10

BARE = """
from pyspark.sql import SparkSession

def load(batches):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    yield from batches

builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
spark = builder.getOrCreate()
rows = spark.range(10, numPartitions=1).mapInPandas(load, "id long")
assert len(rows.collect()) == 10
spark.stop()
"""

WARM = """
import sys, time
import sparkinfer

def run(name):
    started = time.perf_counter()
    sparkinfer.run(sparkinfer.ScoringConfig(
        model=sys.argv[1], input=sys.argv[2], input_col="text", output=sys.argv[3] + name,
        master="local[2]",
    ))
    return time.perf_counter() - started

run("first")
print(run("second"))
"""


def main() -> None:
    demo = resources.files("sparkinfer.demo")
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.start", description=__doc__)
    parser.add_argument("--model", default=str(demo / "model"))
    parser.add_argument("--input", default=str(demo / "reviews.parquet"))
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    turns = [turn(options) for _ in range(options.repetitions)]
    names = list(turns[0])
    medians = {name: statistics.median(one[name] for one in turns) for name in names}
    for name in names:
        all_of_it = ", ".join(f"{one[name]:.1f}" for one in turns)
        print(f"{name:<12} {medians[name]:5.1f} s ({all_of_it})")
    for name in ("first", "remembered"):
        more = statistics.median(one[name] - one["bare"] for one in turns)
        print(f"{name} - bare: {more:.1f} s")
    print(json.dumps(turns))


def turn(options: argparse.Namespace) -> dict[str, float]:
    """Returns the seconds of each, one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in.parquet"
        pd.read_parquet(options.input).head(ROWS).to_parquet(source)
        cache = {"SPARKINFER_CACHE": f"{folder}/cache"}
        score = [sys.executable, "-m", "sparkinfer", "score", "--master", "local[2]"]
        score += ["--model", options.model, "--input", str(source), "--input-col", "text"]
        found = {"bare": timed([sys.executable, "-c", BARE], cache)}
        for name in ("first", "remembered"):
            found[name] = timed([*score, "--output", f"{folder}/{name}"], cache)
        command = [sys.executable, "-c", WARM, options.model, str(source), f"{folder}/warm-"]
        found["warm"] = float(run(command, cache).splitlines()[-1])
        return found


def timed(command: list[str], environment: dict[str, str]) -> float:
    started = time.perf_counter()
    run(command, environment)
    return time.perf_counter() - started


def run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(
        command,
        check=True,
        env={**os.environ, "PYSPARK_PYTHON": sys.executable, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    return done.stdout


if __name__ == "__main__":
    main()
