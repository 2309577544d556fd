"""Processors that write down what is asked of them, and die, stop or fail where they are told to.

Each event is a line of `JOURNAL/rank-R`, appended at once, so that it survives the process.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset

from sparkinfer import MetricReducer, TorchBatchProcessor, TorchBatchProcessorContext


class Numbers(Dataset):
    """The numbers from 0."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return index


class Stream(IterableDataset):
    def __iter__(self):
        yield from range(3)


class Mean(MetricReducer):
    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.sum = self.count = 0

    def update(self, values: torch.Tensor) -> None:
        self.sum += int(values.sum())
        self.count += len(values)

    def per_slot_reduce(self) -> tuple[int, int]:
        return self.sum, self.count

    def cross_slot_reduce(self, per_slot_metrics: list[tuple[int, int]]) -> float:
        sums, counts = zip(*per_slot_metrics, strict=True)
        return sum(sums) / sum(counts)


class Journal:
    """What happened in each rank of a run, over all its processes."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(exist_ok=True)

    def write(self, rank: int, *event: Any) -> None:
        with (self.folder / f"rank-{rank}").open("a") as file:
            file.write(" ".join(map(str, event)) + "\n")

    def once(self, name: str) -> bool:
        """Returns whether this is the first time that it is asked."""
        try:
            (self.folder / f"once-{name}").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def events(self, rank: int, kind: str = "") -> list[list[str]]:
        file = self.folder / f"rank-{rank}"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line.split() for line in lines if line.startswith(kind)]

    def batches(self, rank: int) -> list[tuple[int, list[int]]]:
        """Returns the step and the rows of each batch."""
        return [
            (int(step), [int(row) for row in rows.split(",")])
            for _, step, rows in self.events(rank, "batch")
        ]


class Recorder(TorchBatchProcessor):
    """Hands in its rows at each checkpoint.

    hparams: `journal`; `at`, a mapping of `PLACE:RANK[:STEP]` to what happens there once: `kill`,
    `kill driver`, `stop driver`, `fail`. Places: `init`, `batch` (before the step), `done` (after
    it), `checkpoint`, `finish`.
    """

    def __init__(self, context: TorchBatchProcessorContext) -> None:
        self.context = context
        self.rank = context.get_distributed_rank()
        self.hparams = context.get_hparams()
        self.journal = Journal(self.hparams["journal"])
        self.kept: list[int] = []
        self.step = 0
        self.mean = context.wrap_reducer(Mean(), name="mean")
        self.seen = context.wrap_reducer(counts)
        self.mean.reset()
        self._note("init", context.device, context.get_distributed_size())

    def process_batch(self, batch: Any, batch_idx: int) -> None:
        rows = batch["id"] if isinstance(batch, dict) else batch
        self._happens(f"batch:{self.rank}:{batch_idx}")
        self._note("batch", batch_idx, ",".join(str(int(row)) for row in rows))
        self.kept += [int(row) for row in rows]
        self.step = batch_idx
        self.mean.update(rows)
        for row in rows:
            self.seen.update(int(row))
        self._happens(f"done:{self.rank}:{batch_idx}")

    def on_checkpoint_start(self) -> None:
        self._note("checkpoint", self.step)
        with self.context.upload_path() as folder:
            (folder / f"rows-{self.step}.txt").write_text("\n".join(map(str, self.kept)))
        self.context.report_metrics("progress", self.step, {"rows": len(self.kept)})
        self.kept = []
        self._happens(f"checkpoint:{self.rank}:{self.step}")

    def on_finish(self) -> None:
        self._note("finish", self.context.reduce_metrics())
        self.context.report_metrics("end", 0, {"rank": self.rank})
        self._happens(f"finish:{self.rank}")

    def _note(self, *event: Any) -> None:
        self.journal.write(self.rank, *event)

    def _happens(self, place: str) -> None:
        what = self.hparams.get("at", {}).get(place)
        if what is None or not self.journal.once(place):
            return
        self._note("told", what)
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "fail":
            raise ValueError("told to fail")
        elif what == "kill driver":
            os.kill(self.hparams["driver"], signal.SIGKILL)
        elif what == "stop driver":
            os.kill(self.hparams["driver"], signal.SIGTERM)
            wait_for_pause(self.hparams["output"])


class Quiet(TorchBatchProcessor):
    """Does nothing."""

    def __init__(self, context: TorchBatchProcessorContext) -> None:
        pass

    def process_batch(self, batch: Any, batch_idx: int) -> None:
        pass


class Unfinished(TorchBatchProcessor):
    """Lacks what it must have."""


def wait_for_pause(output: str | Path) -> None:
    """Returns once the ranks of an output can see that they are to pause."""
    deadline = time.monotonic() + 60
    while not [*Path(output).glob("_sparkinfer/processor/launches/*/pause")]:
        assert time.monotonic() < deadline, "nobody was told to pause"
        time.sleep(0.01)


def counts(values: list[int]) -> dict[str, int]:
    return {"count": len(values), "distinct": len(set(values))}


def handed_in(output: str | Path) -> list[int]:
    """Returns the rows in all files that ranks have handed in, the double ones twice."""
    files = Path(output).glob("rank_*/rows-*.txt")
    return sorted(int(row) for file in files for row in file.read_text().split())
