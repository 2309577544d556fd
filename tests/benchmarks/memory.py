"""Peak memory of ranks at two table lengths: `python -m tests.benchmarks.memory`.

A tiny model, so that the rows and not the weights fill the memory. Prints the peak resident memory
of any rank at each length, and their ratio: it says whether memory grows with the table.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import threading
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

import sparkinfer
from tests.tiny_models import make_classifier, sentences

SAMPLE_S = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.memory", description=__doc__)
    parser.add_argument("--rows", type=int, nargs=2, default=(10_000, 200_000))
    parser.add_argument("--reader", default="auto")
    parser.add_argument("--launcher", default="auto")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = make_classifier(Path(folder) / "model")
        peaks = [measure(Path(folder), model, rows, options) for rows in options.rows]
    for rows, peak in zip(options.rows, peaks, strict=True):
        print(f"{rows:>9,} rows: {peak / 2**20:,.0f} MiB in the largest rank")
    print(f"ratio {peaks[1] / peaks[0]:.3f}")


def measure(folder: Path, model: Path, rows: int, options: argparse.Namespace) -> int:
    """Returns the peak resident memory of any rank, in bytes."""
    source, output = folder / f"in-{rows}.parquet", folder / f"out-{rows}"
    texts = [f"{text} {number}" for number, text in enumerate(sentences(rows))]
    pq.write_table(pa.table({"id": range(rows), "text": texts}), source)
    config = sparkinfer.ScoringConfig(
        model=str(model),
        input=str(source),
        input_col="text",
        output=str(output),
        engine="horovod",
        master="local[2]",
        dtype="float32",
        acceleration="none",
        horovod={"reader": options.reader, "launcher": options.launcher},
    )
    done, peak = threading.Event(), [0]
    sampler = threading.Thread(target=sample, args=(output, done, peak))
    sampler.start()
    try:
        assert sparkinfer.run(config).rows == rows
    finally:
        done.set()
        sampler.join()
    return peak[0]


def sample(output: Path, done: threading.Event, peak: list[int]) -> None:
    while not done.wait(SAMPLE_S):
        for file in output.glob("_sparkinfer/staging/*/ranks/rank-*.json"):
            with contextlib.suppress(OSError, ValueError, psutil.Error):
                pid = json.loads(file.read_text())["pid"]
                peak[0] = max(peak[0], psutil.Process(pid).memory_info().rss)


if __name__ == "__main__":
    main()
