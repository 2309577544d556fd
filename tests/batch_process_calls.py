"""Calls of `torch_batch_process` in processes of their own, and what must come of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import sparkinfer
from tests.made_up_processor import handed_in

ROWS, BATCH, RANKS, INTERVAL = 47, 4, 3, 2
STEPS = 4


def call(
    tmp_path: Path, at: dict[str, str], timeout_s: float = 120, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Calls it in a process of its own."""
    given = {
        "rows": ROWS,
        "batch_size": BATCH,
        "num_workers": RANKS,
        "checkpoint_interval": INTERVAL,
        "output": str(tmp_path / "out"),
        "journal": str(tmp_path / "journal"),
        "at": at,
        **options,
    }
    command = [sys.executable, "-m", "tests.batch_process_driver", json.dumps(given)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


def check_whole(tmp_path: Path) -> None:
    """Checks that what is handed in and reported is what an undisturbed run makes."""
    output = str(tmp_path / "out")
    assert handed_in(output) == list(range(ROWS))
    run = sparkinfer.read_batch_run(output)
    assert run.finished
    assert run.steps == (STEPS,) * RANKS
    validation = [one.metrics for one in run.metrics if one.group == "validation"]
    assert validation == [{"mean": sum(range(ROWS)) / ROWS, "count": ROWS, "distinct": ROWS}]
    progress = [one for one in run.metrics if one.group == "progress"]
    assert sum(one.metrics["rows"] for one in progress) == ROWS
    assert sorted(one.rank for one in run.metrics if one.group == "end") == [0, 1, 2]
