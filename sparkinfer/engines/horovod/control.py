"""How the driver and the ranks communicate: small files in a folder that all can reach.

A rank writes its state and a count that grows every second; the driver reads them. The driver
writes its own count and, when a rank has failed or fallen silent, that the run is aborted; the
ranks check for that between batches. Nothing waits for anything else: there are no collectives.
The count is written by a separate thread, so that a rank with a slow batch is not taken for dead.
Counts are compared with earlier ones, never with another machine's clock.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from sparkinfer.exceptions import JobError, SparkInferError
from sparkinfer.logs import get_logger
from sparkinfer.storage import is_on_disk, read_text

logger = get_logger(__name__)

T = TypeVar("T")

BEAT_S = 1.0
"""Time between two beats, and between two looks at the beats of others."""

BEAT_ON_OBJECT_STORE_S = 5.0
"""Longer: there, each beat is a billed request, and an object allows few writes per second."""

ATTEMPTS, ATTEMPT_PAUSE_S = 10, 1.0
"""For reads and writes that must succeed, on a store with occasional failures."""

RESULTS = "results"
"""Folder with one file per `RankResult`."""

DRIVER_FILE = "driver.json"
RESTARTED_FILE = "restarted"

STARTING, SCORING, DONE, FAILED = "starting", "scoring", "done", "failed"


class RunAbortedError(JobError):
    """Ends a rank of an aborted run; the side that aborted it reports the reason."""


class ControlFolderError(JobError):
    """The folder through which driver and ranks communicate is permanently unusable."""


class RankTracebackError(SparkInferError):
    """The traceback of a rank, as the cause of the error raised on the driver."""

    most_characters = 20_000


@dataclass(frozen=True)
class RankResult:
    """What a rank wrote of one chunk.

    Attributes:
        chunk: number of the chunk.
        rank: the rank.
        file: name of the Parquet file in the chunk's staging folder.
        tally: what it holds, a `Tally` as a dict.
        seconds: time that the rank spent on it.
    """

    chunk: int
    rank: int
    file: str
    tally: Mapping[str, Any]
    seconds: float


@dataclass
class RankState:
    """What a rank reports about itself."""

    state: str
    host: str
    pid: int
    beat: int
    chunk: int | None = None
    deadly: bool = False
    error: str = ""
    trace: str = ""


def beat_interval_s(folder: str) -> float:
    """Returns the time between two beats in a folder."""
    return BEAT_S if is_on_disk(folder) else BEAT_ON_OBJECT_STORE_S


def insist(act: Callable[[], T]) -> T:
    """Does what must succeed, retrying if the store fails; raises if it keeps failing."""
    attempts = 0
    while True:
        try:
            return act()
        except FileNotFoundError:
            raise
        except Exception as error:
            attempts += 1
            if attempts == ATTEMPTS:
                raise ControlFolderError(f"the ranks' folder: {error}") from error
            logger.warning("will retry: %s", error)
            time.sleep(ATTEMPT_PAUSE_S)


def rank_file(rank: int) -> str:
    """Returns the name of the file for a rank's state."""
    return f"rank-{rank:05d}.json"


def read_state(path: str) -> dict[str, Any] | None:
    """Returns what a state file holds, None if it is missing or incomplete."""
    text = read_text(path)
    try:
        values: dict[str, Any] | None = json.loads(text) if text else None
    except ValueError:  # on a file system without atomic renames, read while it is written
        return None
    return values
