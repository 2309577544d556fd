"""Finds what a run has written in its output, whose names hold the run's id."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from sparkinfer.jobs.ledger import Ledger
from sparkinfer.jobs.manifest import read_manifest
from sparkinfer.jobs.records import ChunkRecord, Records
from sparkinfer.jobs.sealed import seal
from sparkinfer.sinks.parquet import ParquetFolder


def ledger_of(output: str | Path | None) -> Ledger:
    """Returns the ledger of an output."""
    manifest = read_manifest(str(output))
    assert manifest is not None
    records = Records(str(output), manifest.run)
    return Ledger(records, ParquetFolder(str(output), manifest.run), manifest.chunks)


def records_of(output: str | Path | None) -> dict[int, ChunkRecord]:
    """Returns the records that stand, by number."""
    return {record.number: record for record in ledger_of(output).standing()}


def part_of(output: str | Path | None, chunk: int, index: int = 0) -> Path:
    """Returns the path of a visible file, which need not exist."""
    manifest = read_manifest(str(output))
    assert manifest is not None
    found = Path(str(output)).glob(f"part-{chunk:08d}-{index:03d}*-{manifest.run}.parquet")
    absent = Path(str(output)) / f"part-{chunk:08d}-{index:03d}-{manifest.run}.parquet"
    return next(found, absent)


def record_file(output: str | Path | None, chunk: int, generation: int = 0) -> Path:
    """Returns the path of a record."""
    manifest = read_manifest(str(output))
    assert manifest is not None
    name = f"{chunk:08d}.{generation:03d}-{manifest.run}.json"
    return Path(str(output)) / "_sparkinfer" / "chunks" / name


def manifest_values(output: str | Path | None) -> dict[str, Any]:
    """Returns what the manifest of an output holds, as JSON values."""
    values: dict[str, Any] = json.loads(manifest_path(output).read_text())
    return values


def edit_manifest(output: str | Path | None, **changes: Any) -> None:
    """Changes the manifest of an output, and its checksum with it."""
    values = {**manifest_values(output), **changes}
    del values["checksum"], values["schema_version"]
    manifest_path(output).write_text(seal(values))


def edit_record(output: str | Path | None, chunk: int, **changes: Any) -> None:
    """Changes the record of a chunk, and its checksum with it."""
    path = record_file(output, chunk)
    values = {**json.loads(path.read_text()), **changes}
    del values["checksum"], values["schema_version"]
    path.write_text(seal(values))


def manifest_path(output: str | Path | None) -> Path:
    """Returns the path of the manifest that counts."""
    return max((Path(str(output)) / "_sparkinfer").glob("manifest*.json"))


def without_run(name: str) -> str:
    """Returns the name of a file or a record with `RUN` for the id of the run."""
    return re.sub(r"(0\d\d)-[0-9a-f]{8}\.(json|parquet)$", r"\1-RUN.\2", name)
