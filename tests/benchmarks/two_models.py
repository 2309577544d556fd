"""Two models in one read against two runs: `python -m tests.benchmarks.two_models --other PATH …`.

Each call is a process of its own, on the `local` engine. Prints, for each turn and as medians, the
seconds of scoring of the one call over those of the two, and the same for the whole calls with all
their fixed costs over fewer rows. The seconds of the processor are those that count on a machine
that does other work, too.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

Seconds = dict[str, float]


def main() -> None:
    options = parser().parse_args()
    if options.one:
        print(json.dumps(score(json.loads(options.one))))
        return
    steady: list[Seconds] = []
    whole: list[Seconds] = []
    with tempfile.TemporaryDirectory() as folder:
        rows = write_rows(Path(folder) / "all.parquet", options.input, options.rows)
        few = write_rows(Path(folder) / "few.parquet", options.input, options.few)
        for turn in range(options.repetitions):
            if rows:
                steady.append(compare(folder, "all", turn, options, ("scoring", "scoring cpu")))
            whole.append(compare(folder, "few", turn, options, ("call", "call cpu")))
    print(f"scoring of {rows} rows, one read over two runs: {medians(steady)}")
    print(f"whole call over {few} rows, one over two: {medians(whole)}")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m tests.benchmarks.two_models")
    demo = resources.files("sparkinfer.demo")
    made.add_argument("--model", default=str(demo / "model"))
    made.add_argument("--other", help="the second model")
    made.add_argument("--input", help="Parquet with a column `text`")
    made.add_argument("--rows", type=int, help="of the steady comparison; all if absent")
    made.add_argument("--few", type=int, default=4000)
    made.add_argument("--dtype", default="auto")
    made.add_argument("--repetitions", type=int, default=3)
    made.add_argument("--one", help=argparse.SUPPRESS)
    return made


def write_rows(path: Path, source: str, rows: int | None) -> int:
    table = pq.read_table(source, columns=["text"])
    table = table if rows is None else table.slice(0, rows)
    pq.write_table(table, path)
    return int(table.num_rows)


def compare(
    folder: str, name: str, turn: int, options: argparse.Namespace, wanted: tuple[str, ...]
) -> Seconds:
    """Returns the seconds of one call over those of two; which goes first changes."""
    one = [{"models": {"first": options.model, "second": options.other}}]
    two = [{"model": options.model}, {"model": options.other}]
    seconds: dict[str, Seconds] = {}
    for kind, runs in (("one", one), ("two", two))[:: 1 if turn % 2 else -1]:
        found = [
            run_alone(
                {
                    **given,
                    "input": f"{folder}/{name}.parquet",
                    "output": f"{folder}/out-{name}-{turn}-{kind}-{number}",
                    "dtype": options.dtype,
                }
            )
            for number, given in enumerate(runs)
        ]
        seconds[kind] = {key: sum(each[key] for each in found) for key in wanted}
    ratios = {key: seconds["one"][key] / seconds["two"][key] for key in wanted}
    listed = ", ".join(
        f"{key} {seconds['one'][key]:.1f} s against {seconds['two'][key]:.1f} s: {ratios[key]:.3f}"
        for key in wanted
    )
    print(f"{name}: {listed}", flush=True)
    return ratios


def run_alone(given: dict[str, Any]) -> Seconds:
    """Returns the seconds of a run in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.two_models", "--one", json.dumps(given)]
    started = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found: Seconds = json.loads(done.stdout.splitlines()[-1])
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**found, "call": time.perf_counter() - started, "call cpu": used}


def score(given: dict[str, Any]) -> Seconds:
    """Returns the seconds of scoring, and what the processor worked meanwhile."""
    import sparkinfer
    from sparkinfer.engines.this_process import ThisProcess

    used: list[float] = []
    whole = ThisProcess.score

    def timed(self: Any, *arguments: Any) -> None:
        before = time.process_time()
        whole(self, *arguments)
        used.append(time.process_time() - before)

    ThisProcess.score = timed  # type: ignore[method-assign]
    config = sparkinfer.ScoringConfig(input_col="text", engine="local", **given)
    result = sparkinfer.run(config)
    return {"scoring": result.scoring_s, "scoring cpu": sum(used)}


def medians(ratios: list[Seconds]) -> str:
    """Returns the median of each ratio as text."""
    names = ratios[0] if ratios else {}
    return ", ".join(
        f"{name} {statistics.median(one[name] for one in ratios):.3f}" for name in names
    )


if __name__ == "__main__":
    main()
