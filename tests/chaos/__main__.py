"""Kills ranks at random moments, run after run: `python -m tests.chaos --kills 10`.

After each kill the same command is given again and has to end with the rows of an undisturbed run.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path

from sparkinfer.engines.launchers import has_horovod
from tests.chaos.kills import (
    RANKS,
    check_killed,
    command,
    read_rows,
    run,
    run_and_kill,
    write_input,
)
from tests.tiny_models import make_classifier


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    options = parser.parse_args()
    print(f"seed {options.seed}")
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        kill_until(options.kills, draw, Path(folder))
    print(f"{options.kills} kills: no row lost or doubled in any rerun")


def kill_until(kills: int, draw: random.Random, folder: Path) -> None:
    model = make_classifier(folder / "model")
    source = write_input(folder / "in.parquet")
    done = run(command(model, source, folder / "expected", "local"))
    if done.returncode:
        raise SystemExit(done.stderr)
    expected = read_rows(folder / "expected")
    longest_s, attempts, killed = 10.0, 0, 0
    while killed < kills:
        attempts += 1
        output = folder / f"out-{attempts}"
        launcher = draw.choice(["horovod", "torch"] if has_horovod() else ["torch"])
        arguments = command(
            *(model, source, output, "horovod", "--master", f"local[{RANKS}]"),
            *("--set", f"horovod.launcher={launcher}"),
        )
        rank, moment_s = draw.randrange(RANKS), draw.uniform(0, longest_s)
        outcome = run_and_kill(arguments, output, rank, moment_s, ("starting", "scoring"))
        if outcome.rank is None:  # the run was over before: aim earlier
            longest_s = max(1.0, longest_s * 0.8)
        else:
            check_killed(outcome, output)
            killed += 1
            done = run(arguments)
            assert done.returncode == 0, done.stderr
        assert read_rows(output) == expected
        print(
            f"{killed}/{kills} {launcher}: rank {outcome.rank} after {moment_s:.1f} s, "
            f"ended in {outcome.seconds:.1f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
