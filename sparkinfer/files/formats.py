"""How a file is stored: by its name, else by its first bytes where these leave no doubt."""

from __future__ import annotations

import json

from sparkinfer.storage import file_system

PARQUET, CSV, JSON = "parquet", "csv", "json"

_SUFFIXES = {
    ".parquet": PARQUET,
    ".pq": PARQUET,
    ".csv": CSV,
    ".tsv": CSV,
    ".json": JSON,
    ".jsonl": JSON,
    ".ndjson": JSON,
}
_COMPRESSED = (".gz", ".bz2", ".xz")
"""Of CSV and JSON files; Parquet files are compressed within."""

_FIRST_BYTES = 1 << 16


def format_of(name: str) -> str | None:
    """Returns the format that a file's name tells, None if it tells none."""
    lowered = _without_compression(name)
    for suffix, kind in _SUFFIXES.items():
        if lowered.endswith(suffix) and (kind != PARQUET or lowered == name.lower()):
            return kind
    return None


def is_tab_separated(name: str) -> bool:
    """Returns whether a file's name says that tabs separate its fields."""
    return _without_compression(name).endswith(".tsv")


def is_compressed(name: str) -> bool:
    """Returns whether a CSV or JSON file's name says that it is compressed."""
    return _without_compression(name) != name.lower()


def sniff(path: str) -> str | None:
    """Returns the format of a file by its first bytes, None if they leave a doubt.

    Any text may be CSV, so that is never sure.
    """
    fs, name = file_system(path)
    with fs.open(name, "rb") as handle:
        start = handle.read(_FIRST_BYTES)
    if start.startswith(b"PAR1"):
        return PARQUET
    line, ended, _ = start.removeprefix(b"\xef\xbb\xbf").lstrip().partition(b"\n")
    try:
        is_object = isinstance(json.loads(line), dict)
    except ValueError:  # also UnicodeDecodeError
        return None
    return JSON if is_object and (ended or len(start) < _FIRST_BYTES) else None


def _without_compression(name: str) -> str:
    lowered = name.lower()
    return next(
        (lowered[: -len(suffix)] for suffix in _COMPRESSED if lowered.endswith(suffix)), lowered
    )
