"""Whether an input is files or something that Spark reads, and what its columns must be."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import pyarrow as pa

from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import ConfigError, InputError
from sparkinfer.files.columns import refuse_unknown, wrong_type
from sparkinfer.files.formats import format_of
from sparkinfer.metrics.base import Evaluation
from sparkinfer.plan.ports import InputTable
from sparkinfer.rows.columns import Columns
from sparkinfer.rows.processor import PlannedProcessor
from sparkinfer.rows.reading import ROW_ID
from sparkinfer.rows.several import members_of
from sparkinfer.storage import exists

_PART = r"(`([^`]|``)+`|[\w-]+)"
_TABLE_NAME = re.compile(rf"{_PART}(\.{_PART}){{0,2}}")
_QUERY = re.compile(r"\s*(select|with)\s", re.IGNORECASE)

TABLE, QUERY = "table", "query"


def spark_kind(config: ScoringConfig) -> str | None:
    """Returns `table` or `query` if the configured input is one, None if it is files.

    Raises:
        ConfigError: no input is configured.
    """
    given = given_input(config)
    if config.input_format in (TABLE, QUERY):
        return config.input_format
    if config.input_format != "auto" or not isinstance(given, str) or config.engine == "local":
        return None
    if _QUERY.match(given):
        return QUERY
    return TABLE if looks_like_table(given) and not exists(given) else None


def given_input(config: ScoringConfig) -> str | tuple[str, ...]:
    """Returns the configured input; raises ConfigError if there is none."""
    if not config.input:
        raise ConfigError("option 'input' is required; give --input PATH|TABLE or input=...")
    return config.input


def looks_like_table(name: str) -> bool:
    """Returns whether this may be a table name: `table`, `schema.table` or three parts."""
    return _TABLE_NAME.fullmatch(name) is not None and format_of(name) is None


def qualified_input(config: ScoringConfig, qualify: Callable[[str], str]) -> ScoringConfig:
    """Returns the configuration with the paths of its input as all processes understand them.

    Args:
        config: whose input may be a table, too.
        qualify: returns a path as the job's file systems name it.
    """
    if not config.input or spark_kind(config) is not None:
        return config
    if isinstance(config.input, str):
        return config.replace(input=qualify(config.input))
    return config.replace(input=tuple(map(qualify, config.input)))


def choose_columns(
    config: ScoringConfig, table: InputTable, processor: PlannedProcessor
) -> Columns:
    """Returns the columns of a run.

    Args:
        config: names them.
        table: the input.
        processor: what reads and adds columns.

    Raises:
        InputError: a column is missing or has an unsuitable type.
        ConfigError: a scored column would overwrite an input column.
    """
    if processor.replaces_rows:
        return _given_to_functions(table, processor)
    carried = table.columns if config.carry_cols is None else config.carry_cols
    members = members_of(processor)
    for name, one in config.by_model.items():
        if one.label_col is not None:
            refuse_unknown(_of_model("label_col", name), one.label_col, table.columns)
    for column in config.carry_cols or ():
        refuse_unknown("carry_cols", column, table.columns)
    processor.check_names(table.columns)
    for name in dict.fromkeys([*carried, *processor.inputs]):
        if name in table.refused:
            raise InputError(
                f"column {name!r} {table.refused[name]}; leave it out with --carry-cols, or cast "
                "it before"
            )
    inputs = pa.schema([table.schema.field(name) for name in processor.inputs])
    processor.check_types(inputs)
    for name, one in config.by_model.items():
        _check_label(name, one, table.schema, members[name].evaluation)
    refuse_clash(carried, processor)
    vectors = config.vectors
    ids = [ROW_ID] if vectors.store and vectors.key is None else []
    if ids:
        _refuse_ids(table.columns)
    return Columns(
        carried=pa.schema([*(table.schema.field(name) for name in carried), *ids]),
        inputs=inputs,
        scored=processor.fields,
    )


def _refuse_ids(columns: Sequence[str]) -> None:
    """Raises ConfigError if the input has a column of the name of the ids that rows get."""
    taken = next((name for name in columns if name.lower() == ROW_ID.name), None)
    if taken is not None:
        raise ConfigError(
            "vectors.store without vectors.key: rows would get ids in a column "
            f"{ROW_ID.name!r}, and the input has {taken!r}; give --set vectors.key={taken} if each "
            "of its values is there once, or rename it"
        )


def _given_to_functions(table: InputTable, processor: PlannedProcessor) -> Columns:
    """Returns the columns of a run whose output is what functions return."""
    processor.check_names(table.columns)
    names = processor.inputs or table.columns
    for name in names:
        if name in table.refused:
            raise InputError(
                f"column {name!r} {table.refused[name]}; name the columns that the function needs "
                "as fn.input_cols, or cast it before"
            )
    inputs = pa.schema([table.schema.field(name) for name in names])
    return Columns(carried=pa.schema([]), inputs=inputs, scored=processor.fields)


def _of_model(option: str, name: str) -> str:
    """Returns an option of a model as it is given; the name of a single model is empty."""
    return f"models.{name}.{option}" if name else option


def _check_label(
    name: str, config: ScoringConfig, inputs: pa.Schema, evaluation: Evaluation | None
) -> None:
    if config.label_col is None:
        return
    option = _of_model("label_col", name)
    if evaluation is None:
        raise ConfigError(
            f"{option}={config.label_col!r} with task={config.task.name!r}: what the task gives "
            "is not compared with labels; drop the option, the column is carried as it is"
        )
    label = inputs.field(config.label_col)
    if not evaluation.reads(label.type):
        raise wrong_type(option, label, evaluation.label_types)


def refuse_clash(carried: Sequence[str], processor: PlannedProcessor) -> None:
    """Raises ConfigError for scored columns that would overwrite some of the input."""
    for model, one in members_of(processor).items():
        lowered = {name.lower() for name in one.fields.names}  # Spark's names are case-insensitive
        clash = [name for name in carried if name.lower() in lowered]
        if clash:
            prefix = f"scored_{model}_" if model else "scored_"
            raise ConfigError(
                f"input column(s) {', '.join(clash)} would be overwritten by the scored columns; "
                f"give --set {_of_model('output_prefix', model)}={prefix} or leave them out of "
                "carry_cols"
            )
