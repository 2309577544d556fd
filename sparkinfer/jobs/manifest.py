"""What a run has to do and what of it is done, kept in the output's work folder.

`manifest.json` describes the work: the settings that determine the output, the input as it was, the
chunks. `chunks/NUMBER.json` is a chunk's record: it exists if and only if the chunk's files are
where readers look. `deaths/NUMBER` counts the workers that died over a chunk. Each is written
completely or not at all.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, NoReturn

from sparkinfer.exceptions import ResumeError
from sparkinfer.files.listing import InputFile
from sparkinfer.logs import get_logger
from sparkinfer.plan.chunks import Chunk
from sparkinfer.plan.snapshot import differences
from sparkinfer.plan.table_state import Mark, TableState
from sparkinfer.rows.reading import Piece
from sparkinfer.storage import WORK_FOLDER, join, make_folder, names_in, read_text, replace_text

logger = get_logger(__name__)

SCHEMA_VERSION = 2
"""Of manifests and records; other versions are not read."""

MANIFEST_FILE = "manifest.json"
RECORDS_FOLDER, DEATHS_FOLDER = "chunks", "deaths"

RECORDS_AT_ONCE = 32
"""Records that are read concurrently: on an object store each takes a round trip."""


@dataclass(frozen=True)
class Manifest:
    """What a run has to do.

    Attributes:
        settings: by name, everything that changes the output: the model's fingerprint, the way it
            is run, the columns. Settings that affect only speed are not included.
        verdict: how the gate decided to run the model, and what it tried before.
        labels: of the model, in the order of the probabilities.
        input_files: the input as it was; empty for a table.
        read_files: names of the Parquet files that are read; see `InputFolders`. For an input
            that is not Parquet they are below the folder of its copies.
        chunks: the work, in the order of the chunks' numbers.
        created: when the run began, ISO 8601 in UTC.
        written_by: package and version.
        table: what a table was when it was copied; None for files.
    """

    settings: Mapping[str, Any]
    verdict: Mapping[str, Any]
    labels: tuple[str, ...]
    input_files: tuple[InputFile, ...]
    read_files: tuple[str, ...]
    chunks: tuple[Chunk, ...]
    created: str
    written_by: str
    table: TableState | None = None

    @property
    def rows(self) -> int:
        """Rows of all chunks."""
        return sum(chunk.rows for chunk in self.chunks)


@dataclass(frozen=True)
class ChunkRecord:
    """The result of a chunk whose files are published.

    Attributes:
        number: of the chunk.
        rows: rows in its files.
        errors: rows among them that have an error.
        reasons: the most frequent error reasons, shortened, and how often each occurs.
        truncated: rows among them whose text was truncated.
        tokens: tokens of all rows.
        seconds: from the chunk's start until its files are complete, including waiting.
        device: what the model ran on.
        files: names in the output, with their sizes in bytes.
        epoch: of the writer that published it.
        finished: when, ISO 8601 in UTC.
        metrics: state of each metric, by its name.
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


class ManifestFolder:
    """The manifest and the records of one output.

    Args:
        output: the output folder.
    """

    def __init__(self, output: str) -> None:
        self._path = join(output, WORK_FOLDER, MANIFEST_FILE)
        self._records = join(output, WORK_FOLDER, RECORDS_FOLDER)
        self._deaths = join(output, WORK_FOLDER, DEATHS_FOLDER)

    def read(self) -> Manifest | None:
        """Returns the manifest, None if there is none.

        Raises:
            ResumeError: it is damaged or has another schema version.
        """
        text = read_text(self._path)
        if text is None:
            return None
        try:
            values = json.loads(text)
            version = values.pop("schema_version")
            if version == SCHEMA_VERSION:
                return _manifest(values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ResumeError(
                f"{self._path} is damaged ({type(error).__name__}: {error}); restore it from a "
                "copy, or give --overwrite to score everything again"
            ) from None
        raise ResumeError(
            f"{self._path} has schema version {version}, expected {SCHEMA_VERSION}; resume with "
            f"the version of sparkinfer that wrote it ({values.get('written_by')}), or give "
            "--overwrite to score everything again"
        )

    def write(self, manifest: Manifest) -> None:
        """Writes the manifest, replacing an earlier one."""
        indices = {path: index for index, path in enumerate(manifest.read_files)}
        chunks = [
            [[indices[piece.path], *_numbers(piece)] for piece in chunk.pieces]
            for chunk in manifest.chunks
        ]
        values = {
            "schema_version": SCHEMA_VERSION,
            **vars(manifest),
            "input_files": [vars(file) for file in manifest.input_files],
            "table": None if manifest.table is None else vars(manifest.table),
            "chunks": chunks,
        }
        make_folder(self._records)
        replace_text(self._path, json.dumps(values), durable=True)

    def records(self, sizes: Callable[[], Mapping[str, int]]) -> Iterator[ChunkRecord]:
        """Yields the records in the order of their chunks, holding only a few at a time.

        A record that is damaged, or whose files are missing or have changed, counts as absent.

        Args:
            sizes: returns the sizes of the output's files; called once the names of the records are
                known, since a file is there before its record.
        """
        names = [name for name in names_in(self._records) if name.endswith(".json")]
        there = sizes() if names else {}
        with ThreadPoolExecutor(RECORDS_AT_ONCE) as pool:
            for start in range(0, len(names), RECORDS_AT_ONCE):
                found = pool.map(self._read_record, names[start : start + RECORDS_AT_ONCE])
                for record in found:
                    if record is not None and _has_its_files(record, there):
                        yield record

    def add(self, record: ChunkRecord) -> None:
        """Writes the record of a chunk, whose files are already published."""
        values = {"schema_version": SCHEMA_VERSION, **asdict(record)}
        path = join(self._records, f"{record.number:08d}.json")
        replace_text(path, json.dumps(values), durable=True)

    def deaths(self) -> dict[int, int]:
        """Returns how often workers died over a chunk, by its number, for chunks with deaths.

        A count that cannot be read is left out: a deadly row then costs two more deaths.
        """
        found = {}
        for name in names_in(self._deaths):
            with contextlib.suppress(ValueError):
                found[int(name)] = int(read_text(join(self._deaths, name)) or "")
        return found

    def add_deaths(self, number: int, deaths: int) -> None:
        """Adds to the number of workers that died over a chunk."""
        make_folder(self._deaths)
        total = self.deaths().get(number, 0) + deaths
        replace_text(join(self._deaths, f"{number:08d}"), str(total))

    def _read_record(self, name: str) -> ChunkRecord | None:
        path = join(self._records, name)
        try:
            values = json.loads(read_text(path) or "")
            if values.pop("schema_version") != SCHEMA_VERSION:
                raise ValueError("of another schema version")
            record = ChunkRecord(**values)
            if name != f"{record.number:08d}.json":
                raise ValueError(f"says that it is of chunk {record.number}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("%s is damaged (%s); its chunk is scored again", path, error)
            return None
        return record


def _has_its_files(record: ChunkRecord, sizes: Mapping[str, int]) -> bool:
    wrong = [name for name, size in record.files.items() if sizes.get(name) != size]
    if wrong:
        logger.warning(
            "%s is missing or has changed; chunk %d is scored again", wrong[0], record.number
        )
    return not wrong


MOST_DIFFERENCES = 10
"""Number that an error lists."""


def refuse_other_settings(output: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises ResumeError, listing differences, unless the settings in both are equal."""
    lines = [
        f"{name} was {before[name]!r}, is {now[name]!r}"
        for name in before
        if name in now and before[name] != now[name]
    ]
    _refuse(output, "was started with different settings", lines)


def refuse_other_input(
    output: str, before: Sequence[InputFile], now: Sequence[InputFile], may_grow: bool
) -> None:
    """Raises ResumeError, listing differences, unless the input is unchanged.

    Args:
        output: the output folder.
        before: the input's files as they were.
        now: the input's files.
        may_grow: whether there may be new files.
    """
    known = {file.name for file in before}
    compared = [file for file in now if file.name in known] if may_grow else now
    _refuse(output, "is from an input that has changed", differences(before, compared))


def refuse_changed_table(
    output: str, table: str, before: TableState, now: TableState, mark: Mark | None = None
) -> NoReturn:
    """Raises ResumeError, saying what a table was and what it is.

    Args:
        output: the output folder.
        table: its name.
        before: what it was when it was copied.
        now: what it is.
        mark: of the rows compared, if new ones may be added; None: all are.
    """
    counts = f"{before.rows} rows then, {now.rows} now"
    what = counts if before.rows != now.rows else f"{now.rows} rows, of which some have changed"
    up_to = f" up to {mark.column} {mark.value}" if mark is not None else ""
    advice = "" if mark is not None else "--incremental with --incremental-col to score new rows, "
    raise ResumeError(
        f"output {output!r} is from {table} as it was copied at {before.taken}, and it is another "
        f"now{up_to}: {what}. Give {advice}another output, or --overwrite to score everything again"
    )


def _refuse(output: str, what: str, lines: list[str]) -> None:
    if not lines:
        return
    shown = lines[:MOST_DIFFERENCES] + (["..."] if len(lines) > MOST_DIFFERENCES else [])
    raise ResumeError(
        f"output {output!r} {what}: {'; '.join(shown)}. Undo the changes to resume it, name "
        "another folder, or give --overwrite to score everything again"
    )


def _numbers(piece: Piece) -> list[int]:
    """Returns a piece without its path; short for a piece of whole row groups, as most are."""
    numbers = [piece.first, piece.count, piece.rows]
    return [*numbers, piece.before, piece.after] if piece.before or piece.after else numbers


def _table_state(values: dict[str, Any] | None) -> TableState | None:
    if values is None:
        return None
    digest = values["digest"] and tuple(values["digest"])
    return TableState(**{**values, "digest": digest})


def _manifest(values: dict[str, Any]) -> Manifest:
    paths = values["read_files"]
    chunks = tuple(
        Chunk(number, tuple(Piece(paths[index], *numbers) for index, *numbers in pieces))
        for number, pieces in enumerate(values["chunks"])
    )
    return Manifest(
        **{
            **values,
            "labels": tuple(values["labels"]),
            "input_files": tuple(InputFile(**file) for file in values["input_files"]),
            "read_files": tuple(paths),
            "table": _table_state(values["table"]),
            "chunks": chunks,
        }
    )
