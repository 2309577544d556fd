"""Thousands of tiny chunks: `python -m tests.benchmarks.many_chunks --engine local`.

Runs a job of few chunks and one of many, each in a process of its own, and prints by how much the
driver's memory is larger with many, and the time of the last tenth of the chunks over that of the
first tenth after the start. With `pandas_udf` the driver's heap is looked at, too.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from sparkinfer.config import ScoringConfig
from sparkinfer.jobs.committer import Committer
from tests.tiny_models import make_classifier

MIB = 2**20
ROWS = 2
"""Of a chunk."""
GROUPS_PER_FILE = 100
FEW = 10
MANY = {"made_up": 5000, "local": 5000, "pandas_udf": 300}
SAMPLE_S = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.many_chunks", description=__doc__
    )
    parser.add_argument("--engine", choices=sorted(MANY), default="local")
    parser.add_argument("--chunks", type=int)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.engine, options.chunks, Path(options.one))))
        return
    chunks = options.chunks or MANY[options.engine]
    with tempfile.TemporaryDirectory() as folder:
        make_classifier(Path(folder) / "model")
        few, many = (run_alone(options.engine, count, folder) for count in (FEW, chunks))
    grown = (many["peak"] - few["peak"]) / MIB
    print(f"{options.engine}: {chunks} chunks against {FEW}: driver {grown:+.1f} MiB at its peak")
    if "heap" in many:
        print(f"heap {(many['heap'] - few['heap']) / MIB:+.1f} MiB")
    print(
        f"a chunk took {many['first_s'] * 1e3:.1f} ms in the first tenth and "
        f"{many['last_s'] * 1e3:.1f} ms in the last: {many['last_s'] / many['first_s']:.3f}"
    )


def write_input(folder: Path, chunks: int) -> None:
    """Writes files of `GROUPS_PER_FILE` row groups, each of which becomes a chunk."""
    folder.mkdir()
    for first in range(0, chunks, GROUPS_PER_FILE):
        rows = min(GROUPS_PER_FILE, chunks - first) * ROWS
        ids = range(first * ROWS, first * ROWS + rows)
        table = pa.table({"id": ids, "text": ["good film"] * rows, "label": [0] * rows})
        pq.write_table(table, folder / f"in-{first:06d}.parquet", row_group_size=ROWS)


def run_alone(engine: str, chunks: int, folder: str) -> dict[str, float]:
    """Returns what a process that does nothing else measures."""
    write_input(Path(folder) / f"in-{chunks}", chunks)
    command = [sys.executable, "-m", "tests.benchmarks.many_chunks", "--engine", engine]
    command += ["--chunks", str(chunks), "--one", folder]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(engine: str, chunks: int, folder: Path) -> dict[str, float]:
    """Returns the driver's peak memory in bytes and seconds of a chunk, early and late."""
    config = ScoringConfig(
        model=str(folder / "model"),
        input=str(folder / f"in-{chunks}"),
        input_col="text",
        label_col="label",
        output=str(folder / f"out-{engine}-{chunks}"),
        engine="local" if engine == "made_up" else engine,
        master="local[2]" if engine == "pandas_udf" else None,
        dtype="float32",
        acceleration="none",
        chunks={"target_rows": ROWS},
    )
    ends = note_commits()
    done, peak = threading.Event(), [0]
    sampler = threading.Thread(target=sample, args=(done, peak))
    sampler.start()
    try:
        found = run(engine, config)
    finally:
        done.set()
        sampler.join()
    tenth = max(1, chunks // 10)
    gaps = [later - earlier for earlier, later in itertools.pairwise(ends)]
    early, late = gaps[tenth : 2 * tenth], gaps[-tenth:]
    return {
        **found,
        "peak": peak[0],
        "first_s": statistics.median(early),
        "last_s": statistics.median(late),
    }


def run(engine: str, config: ScoringConfig) -> dict[str, float]:
    """Runs the job; returns the heap of the driver's JVM, if there is one."""
    if engine == "made_up":
        from tests.made_up_engine import run_made_up

        run_made_up(config)
        return {}
    import sparkinfer

    if engine == "local":
        sparkinfer.run(config)
        return {}
    from sparkinfer.spark.session import start_session
    from tests.benchmarks.memory import used_heap

    spark = start_session(config)
    sparkinfer.run(config, spark)
    heap = used_heap(spark)
    spark.stop()
    return {"heap": heap}


def note_commits() -> list[float]:
    """Returns the list that receives the time of each commit's end."""
    ends: list[float] = []
    commit = Committer.commit

    def noting(self: Committer, scored: Any) -> None:
        commit(self, scored)
        ends.append(time.perf_counter())

    Committer.commit = noting  # type: ignore[method-assign]
    return ends


def sample(done: threading.Event, peak: list[int]) -> None:
    """Notes the memory that is this process's own, at its largest."""
    here = psutil.Process()
    while not done.wait(SAMPLE_S):
        peak[0] = max(peak[0], here.memory_full_info().uss)
    gc.collect()


if __name__ == "__main__":
    main()
