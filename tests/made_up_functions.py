"""Functions over batches such as users write, for tests; found by workers as `tests.…:NAME`."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Batch = dict[str, Any]


def shout(batch: Batch) -> Batch:
    return {"id": batch["id"], "loud": [text.upper() for text in batch["text"]]}


def twice(batch: Batch) -> Iterator[Batch]:
    for copy in range(2):
        yield {"id": batch["id"], "copy": np.full(len(batch["id"]), copy)}


def even(batch: Batch) -> Batch:
    kept = batch["id"] % 2 == 0
    return {"id": batch["id"][kept]}


def picky(batch: Batch) -> Batch:
    """Fails over a batch with a text that is `bad`."""
    if "bad" in list(batch["text"]):
        raise ValueError("a bad text")
    return shout(batch)


def picky_twice(batch: Batch) -> Iterator[Batch]:
    """Makes two rows of each, and then fails over a bad text."""
    yield from twice(batch)
    if "bad" in list(batch["text"]):
        raise ValueError("a bad text")


async def later(batch: Batch) -> Batch:
    await asyncio.sleep(0.001)
    return shout(batch)


class Adds:
    """Adds a number that it is constructed with, and one that each call is given."""

    made = 0

    def __init__(self, number: int, *, sign: int = 1) -> None:
        Adds.made += 1
        self._number = number * sign

    def __call__(self, batch: Batch, more: int = 0) -> Batch:
        return {"id": batch["id"], "sum": batch["id"] + self._number + more}


class Overlaps:
    """Takes the less time the later a batch, and says how many are under way."""

    def __init__(self) -> None:
        self._under_way = 0

    async def __call__(self, batch: Batch) -> Batch:
        self._under_way += 1
        await asyncio.sleep(0.05 / (1 + int(batch["id"][0])))
        at_once, self._under_way = self._under_way, self._under_way - 1
        return {"id": batch["id"], "at_once": [at_once]}


class Streams:
    async def __call__(self, batch: Batch) -> AsyncIterator[Batch]:
        for one in twice(batch):
            await asyncio.sleep(0)
            yield one


def same(batch: Batch) -> Batch:
    return batch


def fails(batch: Batch) -> Batch:
    raise RuntimeError("always")


def none(batch: Batch) -> None:
    pass


def only_nulls(batch: Batch) -> Batch:
    return {"id": batch["id"], "none": [None] * len(batch["id"])}


def named_error(batch: Batch) -> Batch:
    return {"id": batch["id"], "error": batch["text"]}


class FailsUnlessAllowed:
    """Fails over bad texts unless a file is there."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __call__(self, batch: Batch) -> Batch:
        return shout(batch) if Path(self._path).exists() else picky(batch)


class Touches:
    """Leaves a file when it is constructed."""

    def __init__(self, path: str) -> None:
        Path(path).touch()

    def __call__(self, batch: Batch) -> Batch:
        return {"id": batch["id"]}


class CountsConstructions:
    made = 0

    def __init__(self, number: int) -> None:
        CountsConstructions.made += 1
        self._number = number

    def __call__(self, batch: Batch, more: int) -> Batch:
        made = np.full(len(batch["id"]), CountsConstructions.made)
        return {"id": batch["id"], "sum": batch["id"] + self._number + more, "constructions": made}


def says_format(batch: Any) -> Batch:
    ids = batch.column("id").to_pylist() if hasattr(batch, "column_names") else list(batch["id"])
    return {"id": ids, "given": [type(batch).__name__] * len(ids)}


def counts_rows(batch: Batch) -> Batch:
    return {"rows": [len(batch["id"])]}


def writes(batch: Batch) -> Batch:
    batch["id"][:] = -1
    return batch


class Broken:
    def __init__(self) -> None:
        raise OSError("no such weights")

    def __call__(self, batch: Batch) -> Batch:
        return batch


def says_process(batch: Batch) -> Batch:
    return {**batch, "process": np.full(len(batch["id"]), os.getpid())}


def says_last_process(batch: Batch) -> Batch:
    return {**batch, "last_process": np.full(len(batch["id"]), os.getpid())}


def dies_over_bad(batch: Batch) -> Batch:
    if "bad" in list(batch["text"]):
        os.kill(os.getpid(), signal.SIGKILL)
    return batch


class WaitsForFile:
    """Processes rows up to one, and then waits until a file is there."""

    def __init__(self, path: str, last: int) -> None:
        self._path, self._last = Path(path), last

    def __call__(self, batch: Batch) -> Batch:
        if batch["id"].max() > self._last:
            Path(f"{self._path}.waiting").touch()
            while not self._path.exists():
                time.sleep(0.02)
        return shout(batch)


class CountsAtOnce:
    """Notes in files how many of it are at work at the same time.

    Args:
        folder: for the files.
        expected: how many are waited for, once.
    """

    def __init__(self, folder: str, expected: int) -> None:
        self._folder = Path(folder)
        self._expected = expected

    def __call__(self, batch: Batch) -> Batch:
        mine = self._folder / f"{os.getpid()}-{threading.get_ident()}.at-work"
        reached = self._folder / f"{self._expected}.reached"
        mine.touch()
        deadline = time.monotonic() + 60
        while (seen := len(list(self._folder.glob("*.at-work")))) < self._expected:
            if reached.exists() or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        else:
            time.sleep(1.0)  # in which more would come if they could
            seen = len(list(self._folder.glob("*.at-work")))
            reached.touch()
        mine.unlink()
        return {"id": batch["id"], "seen": np.full(len(batch["id"]), seen)}


class Once:
    """Leaves out ids that it has been given before."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def __call__(self, batch: Batch) -> Batch:
        ids = [one for one in batch["id"].tolist() if one not in self._seen]
        self._seen.update(ids)
        return {"id": ids}


class MarksItself:
    """Says which of its instances, in whatever process, it is."""

    def __init__(self) -> None:
        self._mark = uuid.uuid4().hex

    def __call__(self, batch: Batch) -> Batch:
        return {"id": batch["id"], "instance": [self._mark] * len(batch["id"])}


async def same_later(batch: Batch) -> Batch:
    return batch


def draws(batch: Batch) -> Batch:
    return {"id": batch["id"], "drawn": np.random.default_rng().random(len(batch["id"]))}


def tenths(batch: Batch) -> Batch:
    return {"tenth": batch["id"] * 0.1, "id": batch["id"]}


def says_types(batch: Batch) -> Batch:
    kinds = " ".join(f"{name} {values.dtype}" for name, values in batch.items())
    return {"kinds": [kinds] * len(batch["id"])}


class HangsForever:
    """Notes its process in a file, says on stdout that it is at work, and never returns."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def __call__(self, batch: Batch) -> Batch:
        self._path.write_text(str(os.getpid()))
        print("at work", flush=True)
        threading.Event().wait()
        return batch
