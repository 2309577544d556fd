"""What a run has to do: `manifest-NUMBER.json` in the output's work folder.

It holds the settings that determine the output, the input as it was, and the chunks. It is created
completely or not at all, never changed, and checked when it is read. A run that starts over, or
goes on with a larger input, creates the next one: the one with the highest number counts.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sparkinfer.exceptions import ResumeError
from sparkinfer.exclusive import create_exclusively
from sparkinfer.files.listing import InputFile
from sparkinfer.jobs.records import recorded
from sparkinfer.jobs.sealed import (
    DamagedError,
    OtherVersionError,
    UnfinishedError,
    seal,
    unseal,
)
from sparkinfer.metrics.base import LabelNames
from sparkinfer.plan.chunks import Chunk, placed_chunk
from sparkinfer.plan.table_state import TableState
from sparkinfer.rows.reading import Piece
from sparkinfer.storage import WORK_FOLDER, join, names_in, read_bytes, remove

MANIFEST_NAME = re.compile(r"manifest(?:-(\d{6,}))?\.json")
"""Its number; an older version's has none, which is 0."""

MOST_REPLACED = 50
"""Earlier runs that a manifest names."""


@dataclass(frozen=True)
class Manifest:
    """What a run has to do.

    Attributes:
        settings: by name, everything that changes the output: the model's fingerprint, the way it
            is run, the columns. Settings that affect only speed are not included.
        verdict: how the gate decided to run the model, and what it tried before.
        labels: of the model, in the order of the probabilities; of several, by the model's name.
        input_files: the input as it was; empty for a table. Files that are gone stay in it.
        read_files: names of the Parquet files that are read; see `InputFolders`. For an input
            that is not Parquet they are below the folder of its copies.
        chunks: the work, in the order of the chunks' numbers.
        created: when the run began, ISO 8601 in UTC.
        written_by: package and version.
        table: what a table was when it was copied; None for files.
        run: id in the names of files and records; empty if an older version began the run.
        replaced: ids of earlier runs of this output, of which a file may still turn up.
        overwrites: whether the run was asked to replace an earlier one.
        number: of manifests of this output before.
    """

    settings: Mapping[str, Any]
    verdict: Mapping[str, Any]
    labels: LabelNames
    input_files: tuple[InputFile, ...]
    read_files: tuple[str, ...]
    chunks: tuple[Chunk, ...]
    created: str
    written_by: str
    table: TableState | None = None
    run: str = ""
    replaced: tuple[str, ...] = ()
    overwrites: bool = False
    number: int = 0

    @property
    def rows(self) -> int:
        """Rows of all chunks."""
        return sum(chunk.rows for chunk in self.chunks)


def verdicts_of(verdict: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Returns how each model is run, by its name; a model alone, by an empty name.

    A way is words where there is only one: that of functions, and of any other pipeline.

    Args:
        verdict: as a manifest keeps it.
    """
    of_each = verdict.get("models", {"": verdict})
    return {name: one for name, one in of_each.items() if one and "accepted" in one}


def new_run() -> str:
    """Returns an id for a run."""
    return uuid.uuid4().hex[:8]


def manifest_numbers(output: str) -> list[int]:
    """Returns the numbers of an output's manifests, the highest first."""
    names = names_in(join(output, WORK_FOLDER))
    matches = (MANIFEST_NAME.fullmatch(name) for name in names)
    return sorted((int(match[1] or 0) for match in matches if match), reverse=True)


def read_manifest(output: str) -> Manifest | None:
    """Returns the manifest of an output that counts, None if there is none.

    One that is not whole, because its writer died, is passed over if nothing was done by it.

    Raises:
        ResumeError: it is damaged or of a version that is not read.
    """
    unfinished: ResumeError | None = None
    for number in manifest_numbers(output):
        path = manifest_path(output, number)
        try:
            manifest = _manifest(unseal(read_bytes(path) or b""), number)
        except OtherVersionError as error:
            raise ResumeError(
                f"{path} {error}; resume with the version of sparkinfer that wrote it, or give "
                "--overwrite to score everything again"
            ) from None
        except UnfinishedError as error:
            unfinished = unfinished or _damaged(path, str(error))
            continue
        except DamagedError as error:
            raise _damaged(path, str(error)) from None
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise _damaged(path, f"{type(error).__name__}: {error}") from None
        if unfinished is not None and any(not _knows(manifest, *one) for one in recorded(output)):
            raise unfinished
        return manifest
    if unfinished is not None and recorded(output):
        raise unfinished
    return None


def _damaged(path: str, what: str) -> ResumeError:
    return ResumeError(
        f"{path} is damaged ({what}); restore it from a copy, or give --overwrite to score "
        "everything again"
    )


def _knows(manifest: Manifest, run: str, number: int) -> bool:
    """Returns whether a chunk of a run that has a record is of this manifest or of earlier ones."""
    return number < len(manifest.chunks) if run == manifest.run else run in manifest.replaced


def create_manifest(output: str, manifest: Manifest) -> bool:
    """Creates the manifest of its number; returns False if another writer's is there by now."""
    path, text = manifest_path(output, manifest.number), _sealed(manifest)
    create_exclusively(path, text, durable=True)
    return read_bytes(path) == text.encode("utf-8")


def remove_manifests(output: str, below: int) -> None:
    """Removes the manifests that no longer count."""
    for number in manifest_numbers(output):
        if number < below:
            remove(manifest_path(output, number))


def manifest_path(output: str, number: int) -> str:
    """Returns where the manifest of a number is."""
    name = f"manifest-{number:06d}.json" if number else "manifest.json"
    return join(output, WORK_FOLDER, name)


def _sealed(manifest: Manifest) -> str:
    indices = {path: index for index, path in enumerate(manifest.read_files)}
    chunks = [
        [[indices[piece.path], *_numbers(piece)] for piece in chunk.pieces]
        for chunk in manifest.chunks
    ]
    values = {
        **vars(manifest),
        "input_files": [vars(file) for file in manifest.input_files],
        "table": None if manifest.table is None else vars(manifest.table),
        "chunks": chunks,
    }
    return seal(values)


def _numbers(piece: Piece) -> list[int]:
    """Returns a piece without its path; short for a piece of whole row groups, as most are."""
    numbers = [piece.first, piece.count, piece.rows]
    return [*numbers, piece.before, piece.after] if piece.before or piece.after else numbers


def _table_state(values: dict[str, Any] | None) -> TableState | None:
    if values is None:
        return None
    digest = values["digest"] and tuple(values["digest"])
    return TableState(**{**values, "digest": digest})


def _manifest(values: dict[str, Any], number: int) -> Manifest:
    if values.get("number", 0) != number:
        raise DamagedError(f"it says that its number is {values.get('number', 0)}")
    labels = _labels(values["labels"])
    if not _are_texts([*values.get("replaced", ()), values.get("run", "")]):
        raise DamagedError("its runs have something else than a text")
    paths = [_inside(name) for name in values["read_files"]]
    if not values["settings"]:
        raise DamagedError("it has no settings")
    chunks = tuple(
        placed_chunk(index, [_piece(paths, *numbers) for numbers in pieces])
        for index, pieces in enumerate(values["chunks"])
    )
    return Manifest(
        **{
            **values,
            "labels": labels,
            "input_files": tuple(InputFile(**file) for file in values["input_files"]),
            "read_files": tuple(paths),
            "table": _table_state(values["table"]),
            "chunks": chunks,
            "replaced": tuple(values.get("replaced", ())),
        }
    )


def _piece(paths: list[str], index: int, *numbers: int) -> Piece:
    if any(type(number) is not int or number < 0 for number in (index, *numbers)):
        raise DamagedError(f"a chunk has {[index, *numbers]}, expected whole numbers from 0")
    return Piece(paths[index], *numbers)


def _labels(found: Any) -> LabelNames:
    of_each = found if isinstance(found, dict) else {"": found}
    if not _are_texts(label for labels in of_each.values() for label in labels):
        raise DamagedError("its labels have something else than a text")
    by_model = {name: tuple(labels) for name, labels in of_each.items()}
    return by_model if isinstance(found, dict) else by_model[""]


def _are_texts(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _inside(name: str) -> str:
    """Returns the name of a file if it is below the folder that it is relative to."""
    if name.startswith("/") or ".." in name.split("/"):
        raise DamagedError(f"the name {name!r} leads out of its folder")
    return name
