"""Kills workers, executors, ranks and drivers at random moments, run after run.

`python -m tests.chaos --kills 200`. After each end of the command it is given again, until the
output is done; each output has to be that of an undisturbed run, and a reader looks at it all the
time.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

from sparkinfer.spark.java import ensure_java
from tests.chaos.kills import LOCAL, RANKS, Chaos, Kill, Launch, Setup, marking, on_cluster
from tests.standalone_cluster import StandaloneCluster
from tests.tiny_models import make_classifier

MOST_KILLS_AT_ONCE = 12
"""Of one output."""


class Teller:
    """Prints a line for each kill and for each launch."""

    def __init__(self, kills: int) -> None:
        self._kills = kills
        self.counts: Counter[str] = Counter()
        self.exit_codes: Counter[int] = Counter()

    def __call__(self, event: Kill | Launch) -> None:
        if isinstance(event, Launch):
            self.exit_codes[event.exit_code] += 1
            print(f"  exit {event.exit_code} after {event.seconds:.1f} s: {event.message[:150]}")
            return
        self.counts[event.kind] += 1
        print(
            f"{self.counts.total()}/{self._kills} {event.setup}: {event.kind} {event.pid} after "
            f"{event.after_s:.1f} s, {event.rows} rows visible",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    parser.add_argument("--setup", type=int, choices=(0, 1, 2), help="only this one")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    ensure_java()
    started = time.monotonic()
    tell = Teller(options.kills)
    with tempfile.TemporaryDirectory() as name, marking() as mark:
        folder = Path(name)
        chaos = Chaos(make_classifier(folder / "model"), folder, mark, tell)
        (folder / "cluster").mkdir()
        with StandaloneCluster(folder / "cluster") as cluster:
            setups = [LOCAL, on_cluster(cluster), RANKS]
            if options.setup is not None:
                setups = [setups[options.setup]]
            kill_until(options.kills, chaos, setups, random.Random(options.seed))
    by_kind = ", ".join(f"{count} {kind}s" for kind, count in sorted(tell.counts.items()))
    ends = ", ".join(f"{count} with {code}" for code, count in sorted(tell.exit_codes.items()))
    print(
        f"{tell.counts.total()} kills ({by_kind}) in {(time.monotonic() - started) / 60:.0f} min; "
        f"the command ended {ends}; no row lost or doubled in any output"
    )


def kill_until(kills: int, chaos: Chaos, setups: list[Setup], draw: random.Random) -> None:
    while kills > 0:
        setup = draw.choice(setups)
        count = min(kills, draw.randint(1, MOST_KILLS_AT_ONCE))
        kinds = draw.choices(list(setup.kinds), list(setup.kinds.values()), k=count)
        chaos.run(setup, kinds, draw)
        kills -= count


if __name__ == "__main__":
    main()
