"""Dicts of arrays: their rows become a padded batch, and a batch's outputs rows again."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sparkinfer.batching.dynamic.options import PaddingOptions
from sparkinfer.batching.dynamic.payloads import own
from sparkinfer.exceptions import BatchOutputError, ConfigError, InputError
from sparkinfer.messages import shown

Row = dict[str, Any]


def rows_of(features: Any, by_name: Mapping[str, Any]) -> list[Row]:
    """Returns the items of features: each one's part of every array.

    Args:
        features: by name, arrays or tensors whose first axis is the items, or lists of one for
            each item; None if they are given by name.
        by_name: the same as keyword arguments.

    Raises:
        InputError: they are given in both ways, there is no item, or not the same number in all
            features.
    """
    if features is None:
        features = by_name
    elif by_name:
        raise InputError(
            f"features are given as a dict and by name ({', '.join(by_name)}); give all in one way"
        )
    if not isinstance(features, Mapping):
        raise InputError(
            f"the features are {type(features).__name__}; expected a dict of arrays by name"
        )
    features = {name: _by_place(name, values) for name, values in features.items()}
    counts = {name: len(values) for name, values in features.items()}
    if len(set(counts.values())) != 1 or not next(iter(counts.values())):
        listed = ", ".join(f"{name}: {count}" for name, count in counts.items()) or "none"
        raise InputError(
            f"the features have these numbers of items: {listed}; give each the same, at least one"
        )
    count = next(iter(counts.values()))
    arrays = {name: _arrays(values) for name, values in features.items()}
    return [{name: values[row] for name, values in arrays.items()} for row in range(count)]


def joined(rows: Sequence[Any]) -> Any:
    """Returns the outputs of a call's items in one, of the kind that the function returned.

    Raises:
        BatchOutputError: the items' outputs have not the same shape.
    """
    first = rows[0]
    if isinstance(first, Mapping):
        return {name: joined([row[name] for row in rows]) for name in first}
    if isinstance(first, list | tuple):
        return type(first)(joined(parts) for parts in zip(*rows, strict=True))
    shapes = {tuple(row.shape) for row in rows}
    if len(shapes) > 1:
        raise BatchOutputError(
            f"the outputs of a call's items have the shapes {sorted(shapes)}, as they were in "
            "batches of other lengths; return what does not depend on the padding, or call with "
            "one item at a time"
        )
    return first[None] if len(rows) == 1 else _stacked(rows)


class Features:
    """A dict of arrays in, arrays with one row for each item out.

    Each feature is padded to its own longest, on each of its axes, and keeps its dtype.

    Args:
        options: what padding is made of, and how the function takes its features.
    """

    is_padded = True

    def __init__(self, options: PaddingOptions) -> None:
        self._options = options

    def kind(self, content: Row) -> Hashable:
        """Returns names, dtypes, ranks and devices: arrays of others are not stacked."""
        return frozenset(
            (name, type(row), _dtype(row), row.ndim, getattr(row, "device", None))
            for name, row in content.items()
        )

    def inputs(self, contents: list[Row]) -> dict[str, Any]:
        """Returns the padded arrays by name, in the order of the first item."""
        return {name: self._padded(name, [row[name] for row in contents]) for name in contents[0]}

    def call(self, function: Any, inputs: dict[str, Any]) -> Any:
        """Returns what the function returns."""
        return function(**inputs) if self._options.spread_kwargs else function(inputs)

    def results(self, outputs: Any, count: int) -> list[Any]:
        """Returns each item's part of the outputs, checked."""
        wrong = next((found for found in _counts(outputs) if found != count), None)
        if wrong is not None:
            raise BatchOutputError(
                f"the function returned an array with {wrong} rows for a batch of {count} items; "
                "each array must have one for each, in order"
            )
        return [_row(outputs, row) for row in range(count)]

    def _padded(self, name: str, rows: list[Any]) -> Any:
        shapes = [tuple(row.shape) for row in rows]
        if len(set(shapes)) == 1:
            return _stacked(rows)
        longest = tuple(map(max, zip(*shapes, strict=True)))
        padded = _full(rows, (len(rows), *longest), self._fill(name, rows))
        for place, (row, shape) in enumerate(zip(rows, shapes, strict=True)):
            where = (place, *self._within(shape, longest))
            padded[where] = row
        return padded

    def _fill(self, name: str, rows: list[Any]) -> Any:
        """Returns what the feature is padded with.

        Raises:
            ConfigError: its dtype cannot hold that.
        """
        fill = self._options.pad_tokens.get(name, 0)
        if name in self._options.pad_tokens and not _holds(rows, fill):
            raise ConfigError(
                f"pad_tokens={{{name!r}: {shown(fill)}}}: the feature has dtype {rows[0].dtype}, "
                "which does not hold it; name another value, or give the feature in another dtype"
            )
        return fill

    def _within(self, shape: tuple[int, ...], longest: tuple[int, ...]) -> tuple[slice, ...]:
        """Returns where the values of a row are."""
        if self._options.padding_side == "left":
            return tuple(
                slice(most - size, most) for size, most in zip(shape, longest, strict=True)
            )
        return tuple(slice(size) for size in shape)


def _by_place(name: str, values: Any) -> Any:
    """Returns what the items of a feature are taken from by their place.

    Raises:
        InputError: that cannot be done, or would lose something.
    """
    if hasattr(values, "iloc"):  # of pandas, where items are taken by label
        values = values.to_numpy()
    is_array = _is_array(values) and len(values.shape) > 0
    if not (is_array or isinstance(values, list | tuple)):
        raise InputError(
            f"the feature {name!r} is {shown(values)}; expected an array or tensor whose first "
            "axis is the items, or a list of one for each item"
        )
    if isinstance(values, np.ma.MaskedArray):
        raise InputError(
            f"the feature {name!r} is a masked array, and padding would lose its mask; fill it, "
            "and give the mask as a feature of its own"
        )
    return values


def _arrays(values: Any) -> list[Any]:
    """Returns the items of a feature; an empty list, which tells no dtype, has that of others."""
    rows = [row if _is_array(row) else np.asarray(row) for row in values]
    if _is_array(values):
        return rows
    known = next((row.dtype for row in rows if _is_numpy(row) and row.size), None)
    return [
        row.astype(known)
        if isinstance(value, list | tuple) and not row.size and known is not None
        else row
        for value, row in zip(values, rows, strict=True)
    ]


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _is_numpy(array: Any) -> bool:
    return isinstance(array, np.ndarray | np.generic)


def _dtype(array: Any) -> Hashable:
    """Returns the dtype; of strings, which are as wide as the longest, their kind."""
    kind = getattr(array.dtype, "kind", "")
    return kind if kind in ("U", "S") and kind else array.dtype


def _stacked(rows: Sequence[Any]) -> Any:
    if _is_numpy(rows[0]):
        return np.stack(rows)
    import torch

    return torch.stack(list(rows))


def _full(rows: Sequence[Any], shape: tuple[int, ...], fill: Any) -> Any:
    if _is_numpy(rows[0]):
        return np.full(shape, fill, dtype=np.result_type(*rows))
    return rows[0].new_full(shape, fill)


def _holds(rows: Sequence[Any], fill: Any) -> bool:
    """Returns whether arrays of the rows' dtype hold a value; what is rounded, they do."""
    try:
        with np.errstate(all="ignore"):
            held = _full(rows, (1,), fill).item()
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return False
    if isinstance(held, float):
        return math.isfinite(held) or not math.isfinite(fill)
    return not isinstance(held, int) or held == fill


def _counts(outputs: Any) -> Iterator[int]:
    """Yields the rows of each array."""
    if isinstance(outputs, Mapping):
        for part in outputs.values():
            yield from _counts(part)
    elif isinstance(outputs, list | tuple) and outputs:
        for part in outputs:
            yield from _counts(part)
    elif not getattr(outputs, "shape", ()) or hasattr(outputs, "iloc"):
        raise BatchOutputError(
            f"the function returned {type(outputs).__name__}, which has no rows; it must return "
            "arrays with one row for each item, or a dict or list of such"
        )
    else:
        yield int(outputs.shape[0])


def _row(outputs: Any, row: int) -> Any:
    if isinstance(outputs, Mapping):
        return {name: _row(part, row) for name, part in outputs.items()}
    if isinstance(outputs, list | tuple):
        return [_row(part, row) for part in outputs]
    return own(outputs[row])
