"""The columns by which rows of two outputs are known to be the same row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from sparkinfer.comparing.outputs import FUNCTION, ScoredModel, ScoredOutput
from sparkinfer.exceptions import InputError
from sparkinfer.files.types import (
    NotCarriedError,
    carried_type,
    common_type,
    without_nulls_type,
)


@dataclass(frozen=True)
class RowKey:
    """What tells rows apart.

    Attributes:
        columns: in both outputs, with types that hold the values of both.
        is_asked: whether the user named them: then each row has values of its own.
        left_out: why each other column that both have does not count, as a phrase that follows
            its name.
    """

    columns: pa.Schema
    is_asked: bool
    left_out: tuple[tuple[str, str], ...] = ()


def asked_key(a: ScoredOutput, b: ScoredOutput, names: Sequence[str]) -> RowKey:
    """Returns the key that the user named.

    Raises:
        InputError: an output lacks a column, or it is a model's result, or of types in which
            values cannot be equal.
    """
    for name in names:
        for output in (a, b):
            _refuse_column(name, output)
    fields = []
    for name in names:
        try:
            fields.append(_in_common(name, a, b))
        except NotCarriedError as error:
            raise InputError(
                f"on={name!r}: its types, {error}, have no values in common; name another column"
            ) from None
    return RowKey(pa.schema(fields), is_asked=True)


def shared_key(a: ScoredOutput, b: ScoredOutput) -> RowKey:
    """Returns all columns that both outputs have from their inputs.

    Raises:
        InputError: there are none.
    """
    shared = [name for name in a.carried if name in b.carried]
    fields, left_out = [], []
    for name in shared:
        try:
            fields.append(_in_common(name, a, b))
        except NotCarriedError as error:
            left_out.append((name, f"has types without values in common: {error}"))
    if not fields:
        raise InputError(
            f"{a.path!r} has {_listed(a.carried)} of its input, {b.path!r} has "
            f"{_listed(b.carried)}: nothing by which rows can be found again. Score one again with "
            "a column of the other's in --carry-cols, or give --on COLUMN if both have one"
        )
    return RowKey(pa.schema(fields), is_asked=False, left_out=tuple(left_out))


def unseen_inputs(key: RowKey, models: Sequence[ScoredModel]) -> tuple[str, ...]:
    """Returns the columns that models read and that are not among those of a key.

    If there are none, rows that are equal by the key are equal to the models, too.
    """
    read = dict.fromkeys(name for model in models for name in model.inputs)
    return tuple(name for name in read if name not in key.columns.names)


def _refuse_column(name: str, output: ScoredOutput) -> None:
    if name not in output.schema.names:
        raise InputError(
            f"on={name!r}: {output.path!r} has no such column, but {_listed(output.schema.names)}"
        )
    of_function = any(model.task == FUNCTION for model in output.models.values())
    if name not in output.carried and not of_function:
        raise InputError(
            f"on={name!r}: it is a result in {output.path!r}; name a column of the input, which "
            f"are there {_listed(output.carried)}"
        )


def _in_common(name: str, a: ScoredOutput, b: ScoredOutput) -> pa.Field:
    """Returns a column with the type that holds the values of both outputs.

    Raises:
        NotCarriedError: there is none.
    """
    one, other = (carried_type(output.schema.field(name).type) for output in (a, b))
    kind = without_nulls_type(common_type(one, other))
    # So that a part may hold more than 2 GiB of one value.
    return pa.field(
        name, {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}.get(kind, kind)
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "nothing"
