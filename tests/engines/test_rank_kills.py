from __future__ import annotations

import random
from pathlib import Path

import pytest

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

LAUNCHERS = ["horovod", "torch"] if has_horovod() else ["torch"]


@pytest.mark.spark
@pytest.mark.slow
def test_a_killed_rank_fails_the_command_and_the_next_run_has_every_row(
    classifier: Path, tmp_path: Path
) -> None:
    source, output = write_input(tmp_path / "in.parquet"), tmp_path / "out"
    assert run(command(classifier, source, tmp_path / "expected", "local")).returncode == 0

    def with_launcher(launcher: str) -> list[str]:
        more = ("--master", f"local[{RANKS}]", "--set", f"horovod.launcher={launcher}")
        return command(classifier, source, output, "horovod", *more)

    draw = random.Random(0)
    for launcher in LAUNCHERS:
        rank, moment_s = draw.randrange(RANKS), draw.uniform(0, 0.5)
        outcome = run_and_kill(with_launcher(launcher), output, rank, moment_s, ("scoring",))
        assert outcome.rank == rank
        check_killed(outcome, output)
    done = run(with_launcher(LAUNCHERS[0]))
    assert done.returncode == 0, done.stderr
    assert read_rows(output) == read_rows(tmp_path / "expected")
