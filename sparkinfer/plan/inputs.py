"""How an input is stored, judged by its name, and what its columns must be."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

import pyarrow as pa

from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import ConfigError, InputError
from sparkinfer.plan.ports import InputTable
from sparkinfer.rows.columns import Columns
from sparkinfer.rows.processor import ProcessorSpec
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
        InputError: there is nothing at the path, or the format cannot be told from file names.
    """
    path = config.input
    if path is None:
        raise ConfigError("option 'input' is required; give --input PATH|TABLE or input=...")
    if config.input_format != "auto":
        return config.input_format
    if not exists(path):
        if looks_like_table(path) and config.engine != "local":
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


def looks_like_table(name: str) -> bool:
    """Returns whether this may be a table name: `table`, `schema.table` or three parts."""
    return _TABLE_NAME.fullmatch(name) is not None and _format_of(name) is None


def choose_columns(config: ScoringConfig, table: InputTable, processor: ProcessorSpec) -> Columns:
    """Returns the columns of a run.

    Args:
        config: names them.
        table: the input.
        processor: what reads and adds columns.

    Raises:
        InputError: a column is missing or has an unsuitable type.
        ConfigError: a scored column would overwrite an input column.
    """
    carried = table.columns if config.carry_cols is None else config.carry_cols
    wanted = {
        "input_col": processor.inputs,
        "label_col": (config.label_col,) if config.label_col else (),
        "carry_cols": config.carry_cols or (),
    }
    for option, names in wanted.items():
        for name in names:
            _refuse_unknown(option, name, table.columns)
    for name in dict.fromkeys([*carried, *processor.inputs]):
        if name in table.foreign:
            raise InputError(
                f"column {name!r} has type {table.foreign[name]}, which cannot be carried; leave "
                "it out with --carry-cols, or cast it"
            )
    for name in processor.inputs:
        _check_type("input_col", table.schema.field(name), _TEXT, "string")
    if config.label_col is not None:
        label = table.schema.field(config.label_col)
        _check_type("label_col", label, _LABEL, "a number, a boolean or string")
    _refuse_clash(carried, processor.fields.names)
    return Columns(
        carried=pa.schema([table.schema.field(name) for name in carried]),
        inputs=pa.schema([table.schema.field(name) for name in processor.inputs]),
        scored=processor.fields,
    )


def _refuse_unknown(option: str, name: str, columns: Sequence[str]) -> None:
    if name not in columns:
        raise InputError(
            f"{option}={name!r}: no such column; the input has {', '.join(columns)}"
            f"{_nearest(name, columns)}"
        )


_TEXT = re.compile(r"string(_view)?")
_LABEL = re.compile(_TEXT.pattern + r"|u?int\d+|float|double|halffloat|bool")


def _check_type(option: str, column: pa.Field, allowed: re.Pattern[str], expected: str) -> None:
    if not allowed.fullmatch(type_name(column.type)):
        raise InputError(
            f"{option}={column.name!r} has type {column.type}, expected {expected}; cast it before "
            "or name another column"
        )


def type_name(kind: pa.DataType) -> str:
    """Returns an Arrow type's name, the same for types that are the same in a Parquet file."""
    if pa.types.is_dictionary(kind):
        return type_name(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"list<{type_name(kind.value_type)}>"
    if pa.types.is_map(kind):
        return f"map<{type_name(kind.key_type)}, {type_name(kind.item_type)}>"
    if pa.types.is_struct(kind):
        fields = (kind.field(index) for index in range(kind.num_fields))
        return f"struct<{', '.join(f'{field.name}: {type_name(field.type)}' for field in fields)}>"
    return str(kind).removeprefix("large_")


def _refuse_clash(carried: Sequence[str], scored: Sequence[str]) -> None:
    lowered = {name.lower() for name in scored}  # Spark's names are case-insensitive
    clash = [name for name in carried if name.lower() in lowered]
    if clash:
        raise ConfigError(
            f"input column(s) {', '.join(clash)} would be overwritten by the scored columns; give "
            "--set output_prefix=scored_ or leave them out of carry_cols"
        )


def _data_names(path: str) -> list[str]:
    """Returns names of files in a folder, or in the first of its `key=value` folders."""
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
