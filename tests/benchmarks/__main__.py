"""Compares the ways to score the same rows and prints one table: `python -m tests.benchmarks`.

Every way runs at two sizes; the rate is the difference of rows over the difference of seconds, so
that starting Spark and loading a model do not count. The ways take turns, and the medians over the
repetitions are printed. Only ratios taken in one run mean anything.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sparkinfer.workers.devices import native_dtypes
from tests.benchmarks.ways import WAYS

HEADINGS = (
    *("way", "rows/s", "min-max", "of the tight loop", "of the notebook", "of pandas_udf"),
    *("padding", "prepare s", "start s"),
)
USUAL = [
    way
    for way in WAYS
    if not way.startswith("read_") and not way.endswith(("_1x1", "_one_slot")) and way != "ray_data"
]

PEERS = {"ray_data": Path(".venv-peers/bin/python")}
"""Ways that run in an environment of their own, which `make peers` makes."""


def main() -> None:
    options = _parse()
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in options.ways}
    for repetition in range(options.repetitions):
        for way in options.ways:
            runs[way].append(_measure(way, options))
            rate = runs[way][-1]["rate"]
            print(f"{repetition + 1}/{options.repetitions} {way}: {rate:.0f} rows/s", flush=True)
    _print_table(runs, options)
    if options.save:
        options.save.write_text(json.dumps(vars(options) | {"runs": runs}, default=str, indent=1))
    if options.fixed_cost:
        _print_fixed_cost(options)


def _parse() -> argparse.Namespace:
    demo = resources.files("sparkinfer.demo")
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--model", default=str(demo / "model"))
    parser.add_argument("--input", default=str(demo / "reviews.parquet"))
    parser.add_argument("--sizes", type=int, nargs=2, default=(400, 1900))
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--dtype", default=native_dtypes("cpu")[0])
    parser.add_argument("--ways", nargs="+", choices=sorted(WAYS), default=USUAL)
    parser.add_argument("--save", type=Path, help="a JSON file for all that was measured")
    parser.add_argument("--fixed-cost", action="store_true", help="time a job of 10 rows too")
    return parser.parse_args()


def _measure(way: str, options: argparse.Namespace) -> dict[str, Any]:
    small, large = (_run(way, options, rows) for rows in options.sizes)
    rows = options.sizes[1] - options.sizes[0]
    return {**large, "rate": rows / (large["seconds"] - small["seconds"])}


def _run(way: str, options: argparse.Namespace, rows: int) -> dict[str, Any]:
    python = PEERS.get(way, sys.executable)
    command = [str(python), "-m", "tests.benchmarks.ways", way, "--rows", str(rows)]
    command += ["--model", options.model, "--input", options.input, "--dtype", options.dtype]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _print_table(runs: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> None:
    table = Table(title=f"{options.dtype}, rows {options.sizes[0]} to {options.sizes[1]}")
    for heading in HEADINGS:
        table.add_column(heading)
    tight = [_best_tight(runs, i) for i in range(options.repetitions)]
    for way, measured in runs.items():
        rates = [run["rate"] for run in measured]
        padding = measured[-1].get("padding")
        before = [[run.get(name) for run in measured] for name in ("prepare", "start")]
        table.add_row(
            way,
            f"{statistics.median(rates):.0f}",
            f"{min(rates):.0f}-{max(rates):.0f}",
            _ratio(rates, tight),
            _ratio(rates, [run["rate"] for run in runs.get("notebook", [])]),
            _ratio(rates, [run["rate"] for run in runs.get("sparkinfer_pandas_udf", [])]),
            "" if padding is None else f"{padding:.1%}",
            *(
                "" if not any(seconds) else f"{statistics.median(seconds):.1f}"
                for seconds in before
            ),
        )
    Console(width=150).print(table)


def _best_tight(runs: dict[str, list[dict[str, Any]]], repetition: int) -> float:
    rates = [runs[way][repetition]["rate"] for way in runs if way.startswith("tight_")]
    return max(rates, default=float("nan"))


def _ratio(rates: list[float], against: list[float]) -> str:
    """Returns the median of the ratios within each repetition."""
    if not against:
        return ""
    return f"{statistics.median(a / b for a, b in zip(rates, against, strict=True)):.2f}"


def _print_fixed_cost(options: argparse.Namespace) -> None:
    seconds = []
    for _ in range(options.repetitions):
        started = time.perf_counter()
        _run("sparkinfer_pandas_udf", options, 10)
        seconds.append(time.perf_counter() - started)
    low, high = min(seconds), max(seconds)
    print(
        f"a job of 10 rows, from command to exit: {statistics.median(seconds):.1f} s "
        f"({low:.1f}-{high:.1f})"
    )


if __name__ == "__main__":
    main()
