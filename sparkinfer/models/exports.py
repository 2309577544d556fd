"""Models in the form of another library, made once per node and kept in the cache folder."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from sparkinfer.models.digests import FileDigests
from sparkinfer.models.sources import cache_folder
from sparkinfer.option_groups import LoadingConfig
from sparkinfer.workers.steps import step

FOLDER = "exported"
"""Of the cache folder."""

_NOTES = "notes.json"


@dataclass(frozen=True)
class Notes:
    """What is known of an exported model beside its files.

    Attributes:
        inputs: names of its inputs, in order.
        vocabulary: tokens that it has, None if unknown.
        digests: sha256 (hex) of each of its files, by name.
    """

    inputs: tuple[str, ...]
    vocabulary: int | None
    digests: Mapping[str, str]


@dataclass(frozen=True)
class Export:
    """An exported model.

    Attributes:
        folder: with its files.
        notes: on them.
    """

    folder: Path
    notes: Notes


Make = Callable[[Path], tuple[tuple[str, ...], int | None]]
"""Writes a model's files to a folder; returns the names of its inputs, and its tokens."""


def kept_export(key: Mapping[str, Any], loading: LoadingConfig, make: Make) -> Export:
    """Returns a model's exported form, which is made if no process of this node has made it.

    Args:
        key: all that determines it, as JSON values.
        loading: names the cache folder.
        make: exports it.

    Raises:
        OSError: the cache folder cannot be written.
    """
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    home = cache_folder(loading) / FOLDER
    home.mkdir(parents=True, exist_ok=True)
    folder, lock = home / name, home / f"{name}.lock"
    with step(f"exporting the model, or waiting for a process that has {lock}"), FileLock(lock):
        found = _read(folder)
        if found is None:
            _make(folder, key, make)
            found = _read(folder)
    if found is None:
        raise OSError(f"{str(folder)!r} does not hold what was written there a moment ago")
    return found


def _make(folder: Path, key: Mapping[str, Any], make: Make) -> None:
    """Makes a folder with a model's files, which is there as a whole or not at all."""
    work = folder.with_name(f"{folder.name}.part")
    for leftover in (work, folder):  # of a process that was killed, or damaged since
        shutil.rmtree(leftover, ignore_errors=True)
    work.mkdir()
    try:
        inputs, vocabulary = make(work)
        digests = {file.name: FileDigests().read(file) for file in sorted(work.iterdir())}
        notes = asdict(Notes(inputs, vocabulary, digests)) | {"of": key}
        (work / _NOTES).write_text(json.dumps(notes, indent=1), encoding="utf-8")
        work.replace(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _read(folder: Path) -> Export | None:
    """Returns what a folder holds, None if that is not what was written."""
    try:
        found = json.loads((folder / _NOTES).read_text(encoding="utf-8"))
        notes = Notes(tuple(found["inputs"]), found["vocabulary"], found["digests"])
        if any(FileDigests().read(folder / name) != was for name, was in notes.digests.items()):
            return None
    except (OSError, ValueError, KeyError):
        return None
    return Export(folder, notes)
