"""Two functions over one another against one that calls both: `python -m tests.benchmarks.stages`.

Both cost about the same: one works in Python, the other multiplies matrices with one thread of
torch. One Spark task (`local[1]`) runs them over the same rows, in turns; prints the seconds of the
two stages over those of the sequence.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

ROWS_OF_BATCH = 100


def clean(batch: dict[str, Any]) -> dict[str, Any]:
    """Works in Python for about 50 ms a batch."""
    until = time.thread_time() + 0.05
    words = 0
    while time.thread_time() < until:
        words += sum(len(word) for word in str(batch["id"][0]).split())
    return {"id": batch["id"], "words": [words] * len(batch["id"])}


class Predict:
    """Multiplies matrices for about 50 ms a batch."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)
        self._matrix = torch.ones(256, 256) / 256

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        until = time.thread_time() + 0.05
        result = self._matrix
        while time.thread_time() < until:
            result = result @ self._matrix
        return {"id": batch["id"], "found": [float(result[0, 0])] * len(batch["id"])}


class Both(Predict):
    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return super().__call__(clean(batch))


def main() -> None:
    made = argparse.ArgumentParser(prog="python -m tests.benchmarks.stages")
    made.add_argument("--batches", type=int, default=100)
    made.add_argument("--repetitions", type=int, default=5)
    options = made.parse_args()
    ratios = compare(options.batches, options.repetitions)
    print(f"two stages over the sequence: {statistics.median(ratios):.3f} (of {ratios})")


def compare(batches: int, repetitions: int) -> list[float]:
    """Returns the ratio of each turn; which goes first changes."""
    from sparkinfer import ScoringConfig, map_batches
    from sparkinfer.spark.session import start_session

    spark = start_session(ScoringConfig(fn=clean, master="local[1]"))
    df = spark.range(batches * ROWS_OF_BATCH).repartition(1)
    schema = "id long, found double"
    apart = map_batches(df, clean, batch_size=ROWS_OF_BATCH, schema="id long, words long")
    ways = {
        "stages": map_batches(apart, Predict, batch_size=ROWS_OF_BATCH, schema=schema),
        "sequence": map_batches(df, Both, batch_size=ROWS_OF_BATCH, schema=schema),
    }
    for way in ways.values():
        way.limit(1).collect()  # workers start, models load
    ratios = []
    for turn in range(repetitions):
        seconds = {}
        for name in list(ways)[:: 1 if turn % 2 else -1]:
            started = time.perf_counter()
            ways[name].selectExpr("sum(found)").collect()
            seconds[name] = time.perf_counter() - started
        ratios.append(round(seconds["stages"] / seconds["sequence"], 3))
        print(f"turn {turn}: {seconds}, {ratios[-1]}", flush=True)
    return ratios


if __name__ == "__main__":
    main()
