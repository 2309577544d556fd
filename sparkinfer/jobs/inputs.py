"""How an input is stored, told by its name, and what its columns must be."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import ConfigError, InputError
from sparkinfer.models.tasks import get_task, scored_schema
from sparkinfer.storage import exists, is_file, names_in

SUFFIXES = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".csv.gz": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json.gz": "json",
    ".jsonl.gz": "json",
}

_TABLE_NAME = re.compile(r"\w+(\.\w+){0,2}")


def input_format(config: ScoringConfig) -> str:
    """Returns `parquet`, `csv`, `json` or `table` for the configured input.

    Raises:
        InputError: there is nothing at the path, or its name does not tell its format.
    """
    path = config.input
    if path is None:
        raise ConfigError("option 'input' is required; give --input PATH|TABLE or input=...")
    if config.input_format != "auto":
        return config.input_format
    if not exists(path):
        if _TABLE_NAME.fullmatch(path) and config.engine != "local":
            return "table"
        raise InputError(f"input {path!r} does not exist; give a file, a folder or a table name")
    names = [path] if is_file(path) else _data_names(path)
    found = {kind for name in names for kind in [_format_of(name)] if kind}
    if len(found) != 1:
        what = "no known kind of file" if not found else f"files of kinds {sorted(found)}"
        raise InputError(
            f"input {path!r} holds {what}; expected Parquet, CSV or JSON lines, or say which with "
            "--input-format"
        )
    return found.pop()


def check_columns(config: ScoringConfig, columns: Sequence[str], text_type: str) -> None:
    """Raises InputError or ConfigError unless the configured columns are there and fit.

    Args:
        config: names the columns.
        columns: names of the input's columns.
        text_type: type of the input column, `string` if it holds text.
    """
    wanted: dict[str, list[str]] = {
        "input_col": [config.input_col],
        "label_col": [config.label_col] if config.label_col else [],
        "carry_cols": list(config.carry_cols or ()),
    }
    for option, names in wanted.items():
        for name in names:
            if name not in columns:
                raise InputError(
                    f"{option}={name!r}: no such column; the input has {', '.join(columns)}"
                    f"{_nearest(name, columns)}"
                )
    if text_type != "string":
        raise InputError(
            f"input_col={config.input_col!r} has type {text_type}, expected string; cast it before "
            "or name another column"
        )
    refuse_clash(config, columns)


def carried_columns(config: ScoringConfig, columns: Sequence[str]) -> list[str]:
    """Returns the input columns that the output keeps, in order."""
    return list(columns) if config.carry_cols is None else list(config.carry_cols)


def refuse_clash(config: ScoringConfig, columns: Sequence[str]) -> None:
    """Raises ConfigError if a carried column has the name of a scored one."""
    scored = scored_schema(get_task(config.task), config.output_prefix).names
    lowered = {name.lower() for name in scored}  # Spark does not tell names apart by case
    clash = [name for name in carried_columns(config, columns) if name.lower() in lowered]
    if clash:
        raise ConfigError(
            f"input column(s) {', '.join(clash)} would be overwritten by the scored columns; give "
            "--set output_prefix=scored_ or leave them out of carry_cols"
        )


def _data_names(path: str) -> list[str]:
    """Returns names of files in a folder, one level of `key=value` folders looked into."""
    names = [name for name in names_in(path) if not name.startswith(("_", "."))]
    partitioned = next((name for name in names if "=" in name), None)
    while partitioned is not None and not any(_format_of(name) for name in names):
        path = f"{path.rstrip('/')}/{partitioned}"
        names = [name for name in names_in(path) if not name.startswith(("_", "."))]
        partitioned = next((name for name in names if "=" in name), None)
    return names


def _format_of(name: str) -> str | None:
    lowered = name.lower()
    return next((kind for suffix, kind in SUFFIXES.items() if lowered.endswith(suffix)), None)


def _nearest(name: str, columns: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, columns, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
