"""The order of work where one batch is on the device while the one before is decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

B = TypeVar("B")
L = TypeVar("L")
R = TypeVar("R")


def one_in_flight(
    batches: Iterable[B],
    launch: Callable[[B], L | None],
    land: Callable[[B, L | None, bool], R],
) -> Iterator[R]:
    """Yields what comes of each batch, in order; the next one is launched before a batch lands.

    Args:
        batches: what is run.
        launch: begins with a batch; None if that failed. Such a batch lands when nothing else is
            in flight.
        land: returns what comes of a batch, given what `launch` returned and whether the next one
            is in flight meanwhile.
    """
    in_flight: tuple[B, L] | None = None
    for batch in batches:
        launched = launch(batch)
        if in_flight is not None:
            yield land(*in_flight, launched is not None)
        in_flight = None if launched is None else (batch, launched)
        if launched is None:
            yield land(batch, None, False)
    if in_flight is not None:
        yield land(*in_flight, False)
