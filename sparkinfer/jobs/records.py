"""The records of an output's chunks: `chunks/NUMBER.GENERATION-RUN.json` in its work folder.

A record is created before anything of its chunk moves, and never changed. It says what readers are
to see of the chunk, so that whoever comes later can finish what it began. Of a chunk that is
scored again, the next generation gets a record of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from sparkinfer.exclusive import create_exclusively
from sparkinfer.jobs.sealed import DamagedError, OtherVersionError, seal, unseal
from sparkinfer.logs import get_logger
from sparkinfer.plan.ports import Publication
from sparkinfer.storage import WORK_FOLDER, join, make_folder, names_in, read_bytes

logger = get_logger(__name__)

RECORDS_FOLDER = "chunks"

RECORD_NAME = re.compile(r"(\d{8})(?:\.(\d{3,}))?(?:-([0-9a-f]{8}))?\.json")
"""Number of the chunk, generation (none: 0), id of the run (none: an older version began it)."""


@dataclass(frozen=True)
class ChunkRecord:
    """The result of a chunk.

    Attributes:
        number: of the chunk.
        rows: rows in its files.
        errors: rows among them that have an error.
        reasons: the most frequent error reasons, shortened, and how often each occurs.
        truncated: rows among them whose text was truncated.
        tokens: tokens of all rows.
        seconds: from the chunk's start until its files are complete, including waiting.
        device: what the model ran on.
        files: names for readers, with their sizes in bytes.
        epoch: of the writer that made it.
        finished: when, ISO 8601 in UTC.
        metrics: state of each metric, by its name.
        generation: how often the chunk was recorded before.
        sources: where the files were staged; see `Publication`.
        digests: of the files; see `Publication`.
        chunk: digest of the chunk, which tells it from another of this number; empty if an older
            version made it.
        read: rows of the input that its rows were made of; None: as many.
        statistics: what scoring its rows took, over all who did, by the names of
            `ScoringStatistics` without zeros; empty if an older version made it.
        distributions: of its rows, by the model's name; see `Distributions.state`.
        devices: rows that were scored by what the model ran on, with the host's name. One that was
            scored again counts for each time.
    """

    number: int
    rows: int
    errors: int
    reasons: Mapping[str, int]
    truncated: int
    tokens: int
    seconds: float
    device: str
    files: Mapping[str, int]
    epoch: int
    finished: str
    metrics: Mapping[str, Any] = field(default_factory=dict)
    generation: int = 0
    sources: Mapping[str, str] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    chunk: str = ""
    read: int | None = None
    statistics: Mapping[str, float] = field(default_factory=dict)
    distributions: Mapping[str, Any] = field(default_factory=dict)
    devices: Mapping[str, int] = field(default_factory=dict)

    @property
    def rows_read(self) -> int:
        """Rows of the input that its rows were made of."""
        return self.rows if self.read is None else self.read

    @property
    def publication(self) -> Publication:
        """What readers are to see of it."""
        return Publication(self.files, self.sources, self.digests, self.rows, self.generation)


class Records:
    """The records of one run of an output.

    Args:
        output: the output folder.
        run: id of the run.
    """

    def __init__(self, output: str, run: str) -> None:
        self._folder = join(output, WORK_FOLDER, RECORDS_FOLDER)
        self._run = run

    def make_folder(self) -> None:
        """Creates the folder of the records."""
        make_folder(self._folder)

    def generations(self) -> dict[int, list[int]]:
        """Returns the generations of each chunk that has any, the newest first, by its number."""
        found: dict[int, list[int]] = {}
        for name in names_in(self._folder):
            match = RECORD_NAME.fullmatch(name)
            if match and (match[3] or "") == self._run:
                found.setdefault(int(match[1]), []).append(int(match[2] or 0))
        return {number: sorted(found[number], reverse=True) for number in sorted(found)}

    def read(self, number: int, generation: int) -> ChunkRecord | None:
        """Returns a record, None if it is missing or damaged; the latter is logged."""
        path = self._path(number, generation)
        content = read_bytes(path)
        if content is None and generation == 0:
            path = join(self._folder, f"{number:08d}.json")
            content = read_bytes(path)
        if content is None:
            return None
        try:
            record = ChunkRecord(**unseal(content))
            _check(record, number, generation)
        except (DamagedError, OtherVersionError, TypeError, AttributeError, ValueError) as error:
            logger.warning("%s is damaged (%s); it counts as absent", path, error)
            return None
        return record

    def create(self, record: ChunkRecord) -> ChunkRecord | None:
        """Creates a record unless it exists; returns the one that is there then, None if damaged.

        Where creating is not exclusive, the caller sees to it that nobody else does.
        """
        path = self._path(record.number, record.generation)
        create_exclusively(path, seal(asdict(record)), durable=True)
        return self.read(record.number, record.generation)

    def _path(self, number: int, generation: int) -> str:
        suffix = f"-{self._run}" if self._run else ""
        return join(self._folder, f"{number:08d}.{generation:03d}{suffix}.json")


def recorded(output: str) -> set[tuple[str, int]]:
    """Returns ids of runs and numbers of their chunks, of all records of an output."""
    folder = join(output, WORK_FOLDER, RECORDS_FOLDER)
    matches = (RECORD_NAME.fullmatch(name) for name in names_in(folder))
    return {(match[3] or "", int(match[1])) for match in matches if match}


def records_of_others(output: str, run: str) -> list[str]:
    """Returns the paths of the records of all runs but one."""
    folder = join(output, WORK_FOLDER, RECORDS_FOLDER)
    matches = ((name, RECORD_NAME.fullmatch(name)) for name in names_in(folder))
    return [join(folder, name) for name, match in matches if match and (match[3] or "") != run]


def _check(record: ChunkRecord, number: int, generation: int) -> None:
    """Raises DamagedError unless a record fits its name and can be what a commit wrote."""
    if (record.number, record.generation) != (number, generation):
        raise DamagedError(
            f"it says that it is generation {record.generation} of chunk {record.number}"
        )
    _check_types(record)
    if not record.files:
        raise DamagedError("it names no files")
    for name in [*record.files, *record.sources, *record.sources.values()]:
        if name.startswith("/") or ".." in name.split("/"):
            raise DamagedError(f"the name {name!r} leads out of its folder")
    if any("/" in name for name in record.files) or not set(record.sources) <= set(record.files):
        raise DamagedError(f"its files are {list(record.files)}")


COUNTS = ("number", "rows", "errors", "truncated", "tokens", "epoch", "generation")


def _check_types(record: ChunkRecord) -> None:
    """Raises DamagedError if a value is not of its kind."""
    for name in COUNTS:
        if not _is_count(getattr(record, name)):
            raise DamagedError(f"{name} is {getattr(record, name)!r}, expected a whole number")
    if record.read is not None and not _is_count(record.read):
        raise DamagedError(f"read is {record.read!r}, expected a whole number")
    counted = (record.files, record.reasons, record.devices)
    named = (record.sources, record.digests)
    if not all(_is_count(value) for counts in counted for value in counts.values()):
        raise DamagedError("its files, reasons or devices have something else than a number")
    if not all(type(value) in (int, float) and value >= 0 for value in record.statistics.values()):
        raise DamagedError("its statistics have something else than a number")
    if not all(isinstance(value, str) for names in named for value in names.values()):
        raise DamagedError("its sources or digests have something else than a text")
    if not max(record.errors, record.truncated) <= record.rows:
        raise DamagedError(f"{record.errors} errors, {record.truncated} truncated in {record.rows}")
    states = (record.metrics, record.distributions)
    if not isinstance(record.seconds, (int, float)) or not all(
        isinstance(state, Mapping) for state in states
    ):
        raise DamagedError("its seconds, metrics or distributions are of another kind")
    datetime.fromisoformat(record.finished)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0
