"""What carried columns cost: `python -m tests.benchmarks.carried`.

Scores texts with 100 columns of strings beside them, about 5 KB a row, and the same texts alone,
with the `pandas_udf` engine on two slots. Each call is a process of its own, at two sizes; the rate
is the difference of rows over the difference of seconds, so that what a call costs at any size does
not count. Prints the medians of all turns and the ratio of the two, as JSON: of rates by the clock,
and by the seconds of the processors, which count on a machine that does other work, too.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from sparkinfer.models.gate import native_dtypes
from tests.tiny_models import sentences

COLUMNS, DIGITS = 100, 50
"""Carried columns, and characters of a value."""

ROW_GROUP = 10_000

KINDS = ("text", "carried")

CLOCKS = ("wall", "cpu")

Rates = dict[str, float]


def main() -> None:
    options = parser().parse_args()
    if options.one:
        print(json.dumps(score(options, *options.one)))
        return
    turns: list[dict[str, Rates]] = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            for rows in options.sizes:
                write_rows(Path(folder) / f"{kind}-{rows}.parquet", kind, rows)
        for turn in range(options.repetitions):
            order = KINDS[:: 1 if turn % 2 else -1]
            turns.append({kind: rates_of(kind, folder, options) for kind in order})
            print(json.dumps(turns[-1]), file=sys.stderr, flush=True)
    print(json.dumps({"engine": options.engine, "sizes": options.sizes, **medians(turns)}))


def medians(turns: list[dict[str, Rates]]) -> dict[str, dict[str, float]]:
    """Returns the rates of both kinds by each clock, and their ratio."""
    found: dict[str, dict[str, float]] = {}
    for clock in CLOCKS:
        of_kind = {kind: statistics.median(turn[kind][clock] for turn in turns) for kind in KINDS}
        found[f"rows per second, {clock}"] = {
            **{kind: round(rate) for kind, rate in of_kind.items()},
            "ratio": round(of_kind["carried"] / of_kind["text"], 3),
        }
    return found


def parser() -> argparse.ArgumentParser:
    demo = resources.files("sparkinfer.demo")
    made = argparse.ArgumentParser(prog="python -m tests.benchmarks.carried", description=__doc__)
    made.add_argument("--engine", choices=("pandas_udf", "local"), default="pandas_udf")
    made.add_argument("--model", default=str(demo / "model"))
    made.add_argument("--sizes", type=int, nargs=2, default=(20_000, 80_000))
    made.add_argument("--repetitions", type=int, default=3)
    made.add_argument("--dtype", default=native_dtypes("cpu")[0])
    made.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    return made


def write_rows(path: Path, kind: str, rows: int) -> None:
    """Writes distinct texts, for equal ones are scored once, and what is carried beside them."""
    texts = [f"{text} {number}" for number, text in enumerate(sentences(rows))]
    columns: dict[str, object] = {"text": texts}
    if kind == "carried":
        columns |= {f"c{number:03d}": strings(rows, number) for number in range(COLUMNS)}
    pq.write_table(pa.table(columns), path, row_group_size=ROW_GROUP)


def strings(rows: int, seed: int) -> pa.Array:
    """Returns strings of hexadecimal digits, all of them distinct."""
    digits = random.Random(seed).randbytes(rows * DIGITS // 2).hex().encode("ascii")
    offsets = np.arange(rows + 1, dtype=np.int32) * DIGITS
    return pa.StringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(digits))


def rates_of(kind: str, folder: str, options: argparse.Namespace) -> Rates:
    """Returns the rows a second between two sizes, by each clock."""
    seconds: list[Rates] = []
    for rows in options.sizes:
        source, output = f"{folder}/{kind}-{rows}.parquet", f"{folder}/out"
        command = [sys.executable, "-m", "tests.benchmarks.carried", "--engine", options.engine]
        command += ["--model", options.model, "--dtype", options.dtype]
        command += ["--one", source, output]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        seconds.append(json.loads(done.stdout.splitlines()[-1]))
        shutil.rmtree(output)
    rows = options.sizes[1] - options.sizes[0]
    return {clock: rows / (seconds[1][clock] - seconds[0][clock]) for clock in CLOCKS}


def score(options: argparse.Namespace, source: str, output: str) -> Rates:
    """Returns the seconds of a call, and those of all its processes."""
    import sparkinfer

    more = {"master": "local[2]"} if options.engine == "pandas_udf" else {}
    config = sparkinfer.ScoringConfig(
        model=options.model,
        input=source,
        input_col="text",
        output=output,
        engine=options.engine,
        dtype=options.dtype,
        **more,
    )
    started = time.perf_counter()
    result = sparkinfer.run(config)
    if result.error_rows:
        raise SystemExit(f"{result.error_rows} rows have an error: {result.error_reasons}")
    seconds = time.perf_counter() - started
    here = psutil.Process()
    times = [one.cpu_times() for one in (here, *here.children(recursive=True))]
    return {"wall": seconds, "cpu": sum(sum(one[:4]) for one in times)}


if __name__ == "__main__":
    main()
