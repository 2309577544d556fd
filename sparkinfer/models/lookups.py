"""Watches a module's tables: where the index of a position grows with the text, the table ends it.

A model's configuration alone does not give the limit of its positions: in many kinds of model they
begin after the padding's. The tables themselves show it, whatever the model is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

Tables = Mapping[int, tuple[int, int]]
"""The largest index that was looked up in each table, and the table's rows."""

_PROBE_LENGTHS = (6, 9, 13)
"""Unevenly spaced, so that only the index of a position grows as these do."""


@contextmanager
def watched_lookups() -> Iterator[dict[int, tuple[int, int]]]:
    """Yields the tables in which something is looked up; an index outside of one raises IndexError.

    A GPU would not raise: such an index breaks its context for the whole process.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    seen: dict[int, tuple[int, int]] = {}

    class Watch(TorchFunctionMode):  # type: ignore[misc,unused-ignore]
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            for table, dimension, indices in _lookups(func, args, kwargs or {}):
                rows = table.shape[dimension]
                smallest, largest = int(indices.min()), int(indices.max())
                if smallest < -rows or largest >= rows:
                    wrong = smallest if smallest < 0 else largest
                    raise IndexError(f"index {wrong} in a table of {rows} rows")
                if func is torch.nn.functional.embedding:
                    seen[id(table)] = (max(largest, seen.get(id(table), (0, 0))[0]), rows)
            return func(*args, **(kwargs or {}))

    with Watch():
        yield seen


def _lookups(func: Any, args: Any, kwargs: Any) -> Iterator[tuple[Any, int, Any]]:
    """Yields each table, dimension and tensor of indices that a call of torch looks up."""
    import torch

    picking = (torch.gather, torch.Tensor.gather, torch.index_select, torch.Tensor.index_select)
    found: list[tuple[Any, int, Any]] = []
    if func is torch.nn.functional.embedding and len(args) > 1:
        found = [(args[1], 0, args[0])]
    elif func in picking:
        given = [*args, *(kwargs[name] for name in ("input", "dim", "index") if name in kwargs)]
        found = [(given[0], given[1], given[2])]
    elif func is torch.Tensor.__getitem__:
        places = args[1] if isinstance(args[1], tuple) else (args[1],)
        if all(isinstance(place, torch.Tensor | slice | int) for place in places):
            found = [(args[0], i, place) for i, place in enumerate(places)]
    for table, dimension, indices in found:
        is_index = isinstance(indices, torch.Tensor) and indices.dtype in (torch.int32, torch.int64)
        if is_index and indices.numel():
            yield table, dimension, indices


def positions_held(run: Callable[[int], None], claimed: int) -> int:
    """Returns the tokens of the longest text for which a model has positions; at most `claimed`.

    Cost: three short texts, and where a table looks too small for what is claimed, one that is just
    too long for it.

    Args:
        run: has the model score a text of so many tokens, the same token over and over.
        claimed: tokens that the model is said to take.
    """
    try:
        limits = _limits_of_tables([_tables(run, length) for length in _PROBE_LENGTHS])
    except Exception:  # whatever it raises, it raises again where it is reported
        return claimed
    # Buckets of distances grow likewise at first; only a table of positions ends the text.
    too_small = (limit for limit in sorted(limits) if limit < claimed)
    return next((limit for limit in too_small if not _fits(run, limit + 1)), claimed)


def _tables(run: Callable[[int], None], length: int) -> Tables:
    with watched_lookups() as tables:
        run(length)
    return tables


def _fits(run: Callable[[int], None], length: int) -> bool:
    try:
        _tables(run, length)
    except IndexError:
        return False
    except Exception:  # something else, for another to find
        return True
    return True


def _limits_of_tables(seen: Sequence[Tables]) -> list[int]:
    return [
        rows - (largest - (_PROBE_LENGTHS[0] - 1))
        for table, (largest, rows) in seen[0].items()
        if _grows_with_the_text([tables.get(table, (0, 0))[0] for tables in seen])
    ]


def _grows_with_the_text(largest: Sequence[int]) -> bool:
    growth = [found - largest[0] for found in largest]
    return growth == [length - _PROBE_LENGTHS[0] for length in _PROBE_LENGTHS]
