"""What the input's files were when the run began, and the row groups to read.

A run that resumes later compares the files with these, so that an output never mixes rows of two
states of the input.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow.parquet as pq

from sparkinfer.files.listing import InputFile
from sparkinfer.files.parquet import at_once, open_parquet, readable
from sparkinfer.files.schema import match_names
from sparkinfer.plan.chunks import RowGroups
from sparkinfer.rows.reading import InputFolders, column_places, encoded_bytes


def read_row_groups(
    folders: InputFolders, names: Sequence[str], text_columns: Sequence[str], columns: Iterable[str]
) -> list[RowGroups]:
    """Returns the row groups of Parquet files, read from their footers.

    Args:
        folders: where the files are.
        names: of the files.
        text_columns: columns whose size counts as text.
        columns: columns that are read, including the texts; files may lack some.

    Raises:
        InputError: a file is not Parquet, or is damaged.
    """
    read = list(columns)
    return at_once(lambda name: _row_groups(folders, name, text_columns, read), names)


def differences(before: Iterable[InputFile], now: Iterable[InputFile]) -> list[str]:
    """Returns what changed between two states of an input, one line per file."""
    old, new = _by_name(before), _by_name(now)
    lines = [f"{name} is gone" for name in old if name not in new]
    lines += [f"{name} is new" for name in new if name not in old]
    for name in old.keys() & new.keys():
        if old[name] != new[name]:
            lines.append(
                f"{name} changed ({old[name].size} bytes of {old[name].version} then, "
                f"{new[name].size} bytes of {new[name].version} now)"
            )
    return sorted(lines)


def _by_name(files: Iterable[InputFile]) -> dict[str, InputFile]:
    return {file.name: file for file in files}


def _row_groups(
    folders: InputFolders, name: str, text_columns: Sequence[str], columns: Sequence[str]
) -> RowGroups:
    path = folders.find(name)
    with readable(path), open_parquet(path) as file:
        metadata = file.metadata
        text = column_places(file, _present(file, text_columns))
        read = column_places(file, _present(file, columns))
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    return RowGroups(
        name,
        rows=tuple(group.num_rows for group in groups),
        text_bytes=tuple(encoded_bytes(group, text) for group in groups),
        read_bytes=tuple(encoded_bytes(group, read) for group in groups),
    )


def _present(file: pq.ParquetFile, names: Iterable[str]) -> list[str]:
    return list(match_names(names, file.schema_arrow.names).values())
