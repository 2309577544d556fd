"""Batches of rows in the forms in which users' functions take and return them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sparkinfer.files.types import EXACT_IN_DOUBLE, is_list

BatchFormat = Literal["default", "numpy", "pandas", "pyarrow"]
"""`default` is `numpy`: a dict of arrays."""

BATCH_FORMATS: tuple[str, ...] = get_args(BatchFormat)


_NO_ORDER_OF_ROWS = (str, bytes, Mapping, set, frozenset)
"""Of the kinds that have a length, those that hold no value for each row."""


class UnfitBatchError(ValueError):
    """A batch has no such form, or what a function returned is none; the message is a phrase."""


def in_format(rows: pa.RecordBatch, batch_format: str, read_only: bool = True) -> Any:
    """Returns rows in the form that a function takes.

    As arrays of numpy and as pandas, whole numbers beside nulls are floats with NaN, as are nulls
    beside floats. Lists of equal lengths are an array with a dimension more, others an array of
    arrays.

    Args:
        rows: a batch.
        batch_format: one of `BATCH_FORMATS`.
        read_only: whether writing into arrays raises a ValueError; if not, they are the function's
            own.

    Raises:
        UnfitBatchError: numbers would lose digits.
    """
    if batch_format == "pyarrow":
        return pa.Table.from_batches([rows])
    names = rows.schema.names
    for name, column in zip(names, rows.columns, strict=True):
        _refuse_inexact(name, column)
    if batch_format == "pandas":
        frame = rows.to_pandas()
        return frame if read_only else frame.copy()
    return {
        name: _owned(_as_array(column), read_only)
        for name, column in zip(names, rows.columns, strict=True)
    }


def as_rows(returned: Any) -> pa.RecordBatch:
    """Returns what a function returned as rows.

    Raises:
        UnfitBatchError: it is no dict of arrays, no pandas or Arrow table, or not one of rows.
    """
    columns = _columns(returned)
    names = list(columns)
    unnamed = [name for name in names if not isinstance(name, str) or not name]
    if unnamed:
        raise UnfitBatchError(f"it returned a column named {unnamed[0]!r}, expected a string")
    lowered = [name.lower() for name in names]
    for name in names:
        if lowered.count(name.lower()) > 1:
            raise UnfitBatchError(f"it returned two columns named {name!r}, which Spark confuses")
    arrays = {name: _as_column(name, values) for name, values in columns.items()}
    lengths = {name: len(array) for name, array in arrays.items()}
    if not lengths:
        raise UnfitBatchError("it returned no columns")
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {rows}" for name, rows in lengths.items())
        raise UnfitBatchError(f"it returned columns of unlike lengths: {listed}")
    return pa.RecordBatch.from_arrays(list(arrays.values()), names=names)


def _columns(returned: Any) -> Mapping[Any, Any]:
    """Returns what was returned as columns by name; of a pandas or Arrow table, in Arrow."""
    if isinstance(returned, pa.Table | pa.RecordBatch):
        _refuse_repeated(returned.schema.names)
        pairs = zip(returned.schema.names, returned.columns, strict=True)
        return {name: _whole(column) for name, column in pairs}
    if hasattr(returned, "columns") and hasattr(returned, "iloc"):
        _refuse_repeated(list(returned.columns))
        # As pyspark and pyarrow do it: pandas has no other mark of a missing value than NaN.
        return {name: _from_pandas(name, returned[name]) for name in returned.columns}
    if isinstance(returned, Mapping):
        return returned
    raise UnfitBatchError(
        f"it returned {_called(returned)}, expected a dict of arrays, a pandas DataFrame or an "
        "Arrow table"
    )


def _refuse_repeated(names: list[Any]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UnfitBatchError(f"it returned two columns named {name!r}")


def _from_pandas(name: Any, values: Any) -> pa.Array:
    try:
        return _whole(pa.Array.from_pandas(values))
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise _no_column(name, error) from error


def _as_column(name: str, values: Any) -> pa.Array:
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return _whole(values)
    if isinstance(values, _NO_ORDER_OF_ROWS) or not hasattr(values, "__len__"):
        raise UnfitBatchError(
            f"it returned {_called(values)} for column {name!r}, expected an array or a list"
        )
    try:
        return _array_of(values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise _no_column(name, error) from error


def _array_of(values: Any) -> pa.Array:
    if hasattr(values, "iloc") or hasattr(values, "__arrow_array__"):
        return _whole(pa.Array.from_pandas(values))  # a Series, whose nulls numpy does not have
    if hasattr(values, "__array__") and not isinstance(values, np.ndarray):
        values = np.asarray(values)  # a tensor
    if not isinstance(values, np.ndarray):
        return pa.array([_plain(one) for one in values])
    if values.ndim == 0:
        raise ValueError("an array without a dimension")
    if values.ndim > 1:
        return _lists(values)
    if values.dtype == object:
        return pa.array([_plain(one) for one in values])
    return pa.array(values)


def _plain(value: Any) -> Any:
    """Returns a value of a list in a form that Arrow takes."""
    if hasattr(value, "__array__") and not isinstance(value, np.ndarray | np.generic):
        value = np.asarray(value)
    is_nested = isinstance(value, np.ndarray) and (value.ndim != 1 or value.dtype == object)
    return value.tolist() if is_nested else value


def _lists(values: npt.NDArray[Any]) -> pa.Array:
    """Returns an array of several dimensions as lists of fixed size, one in the other."""
    is_masked = isinstance(values, np.ma.MaskedArray)
    if values.dtype == object or is_masked or 0 in values.shape[1:]:
        return pa.array(values.tolist())
    column = pa.array(np.ascontiguousarray(values).reshape(-1))
    for size in reversed(values.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return column


def _no_column(name: Any, error: Exception) -> UnfitBatchError:
    reason = str(error).strip().split("\n", 1)[0]
    return UnfitBatchError(f"it returned values for column {name!r} that give none: {reason}")


def _called(value: Any) -> str:
    if value is None:
        return "nothing"
    return f"a value of type {type(value).__name__}"


def _whole(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    if not isinstance(column, pa.ChunkedArray):
        return column
    if column.num_chunks == 0:
        return pa.array([], column.type)
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def _refuse_inexact(name: str, column: pa.Array) -> None:
    """Raises UnfitBatchError for whole numbers beside nulls that are no doubles, at any depth."""
    for values in _leaves(column):
        if not pa.types.is_integer(values.type) or not values.null_count:
            continue
        least, most = pc.min_max(values).as_py().values()
        if least is not None and max(abs(least), abs(most)) > EXACT_IN_DOUBLE:
            raise UnfitBatchError(
                f"column {name!r} holds nulls and whole numbers beyond 2**53, which are no floats; "
                "use batch_format='pyarrow'"
            )


def _leaves(column: pa.Array) -> Iterator[pa.Array]:
    """Yields the values in a column, those of nested ones apart."""
    if is_list(column.type):
        yield from _leaves(pc.list_flatten(column))
    elif pa.types.is_map(column.type):
        start, end = column.offsets[0].as_py(), column.offsets[-1].as_py()
        for values in (column.keys, column.items):
            yield from _leaves(values.slice(start, end - start))
    elif pa.types.is_struct(column.type):
        for values in column.flatten():
            yield from _leaves(values)
    else:
        yield column


def _owned(values: npt.NDArray[Any], read_only: bool) -> npt.NDArray[Any]:
    if read_only:
        values = values.view()
        values.flags.writeable = False
        return values
    return values if values.flags.writeable else values.copy()


def _as_array(column: pa.Array) -> npt.NDArray[Any]:
    if pa.types.is_fixed_size_list(column.type) and not column.null_count:
        return _of_equal_lengths(column)
    if is_list(column.type) and not column.null_count and len(column):
        lengths = np.unique(pc.list_value_length(column).to_numpy(zero_copy_only=False))
        inner = column.flatten()
        is_plain = pa.types.is_primitive(inner.type) and not inner.null_count
        if len(lengths) == 1 and is_plain:
            return _as_array(inner).reshape(len(column), int(lengths[0]))
    values: npt.NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return values


def _of_equal_lengths(column: pa.FixedSizeListArray) -> npt.NDArray[Any]:
    inner = _as_array(column.flatten())
    return inner.reshape(len(column), column.type.list_size, *inner.shape[1:])
