"""Metrics over the batches of all ranks, and their state, which each checkpoint keeps."""

from __future__ import annotations

import copy
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import cloudpickle

from sparkinfer.exceptions import ConfigError, JobError
from sparkinfer.messages import first_line, shown

_NOTHING = object()


class MetricReducer(ABC):
    """A metric that each rank collects and that is reduced over all of them.

    Its attributes, or what its `__getstate__` returns, are pickled at each checkpoint.
    """

    @abstractmethod
    def reset(self) -> None:
        """Forgets what was collected."""

    @abstractmethod
    def per_slot_reduce(self) -> Any:
        """Returns what one rank contributes."""

    @abstractmethod
    def cross_slot_reduce(self, per_slot_metrics: list[Any]) -> Any:
        """Returns the metric.

        Args:
            per_slot_metrics: what the ranks contribute, in their order.
        """


class FunctionReducer(MetricReducer):
    """A reducer made of a function over all values that were given to `update`.

    Args:
        function: gets the values as a list, in the order of the batches if `update` is called once
            for each.
    """

    def __init__(self, function: Callable[[list[Any]], Any]) -> None:
        self.function = function
        self.values: list[Any] = []

    def __getstate__(self) -> list[Any]:
        return self.values

    def __setstate__(self, values: list[Any]) -> None:
        self.values = values

    def reset(self) -> None:
        """Forgets the values."""
        self.values = []

    def update(self, value: Any) -> None:
        """Takes a value."""
        self.values.append(value)

    def per_slot_reduce(self) -> list[Any]:
        """Returns this rank's values."""
        return self.values

    def cross_slot_reduce(self, per_slot_metrics: list[Any]) -> Any:
        """Returns what the function makes of all values; ranks take turns, as batches do."""
        in_turn = zip_longest(*per_slot_metrics, fillvalue=_NOTHING)
        return self.function([value for turn in in_turn for value in turn if value is not _NOTHING])


@dataclass(frozen=True)
class SavedReducer:
    """A reducer's state.

    Attributes:
        name: under which it was wrapped.
        kind: its class, or its function.
        state: what it has collected, pickled.
    """

    name: str | None
    kind: str
    state: bytes


@dataclass(frozen=True)
class _Wrapped:
    reducer: Any
    name: str | None
    for_training: bool
    for_validation: bool

    @property
    def kind(self) -> str:
        of = self.reducer
        if isinstance(of, FunctionReducer):
            of = of.function
        return str(getattr(of, "__qualname__", type(of).__qualname__))

    def __str__(self) -> str:
        return f"reducer {self.kind}" + (f" ({self.name!r})" if self.name is not None else "")

    def is_for(self, training: bool | None) -> bool:
        """Returns whether it takes part; see `Reducers.reduce`."""
        return training is None or (self.for_training if training else self.for_validation)

    def call(self, method: str, *given: Any) -> Any:
        """Returns what a method of the reducer returns; an error names the reducer."""
        try:
            return getattr(self.reducer, method)(*given)
        except Exception as error:
            raise JobError(
                f"{self}: {method} raised {type(error).__name__}: {first_line(error)}; correct it "
                "and run the same call again"
            ) from error

    def with_state(self, state: bytes) -> _Wrapped:
        """Returns the same for a copy of the reducer that has collected something else."""
        if hasattr(self.reducer, "__setstate__"):
            other = copy.copy(self.reducer)
        else:  # a copy would lack what the state leaves out
            other = object.__new__(type(self.reducer))
            vars(other).update(vars(self.reducer))
        _restore(other, state)
        return _Wrapped(other, self.name, self.for_training, self.for_validation)


class Reducers:
    """The reducers of one rank, in the order in which they were wrapped.

    Args:
        rank: this rank.
        saved: what the last checkpoint kept of each rank, empty before the first.
    """

    def __init__(self, rank: int, saved: Callable[[], Sequence[Sequence[SavedReducer]]]) -> None:
        self._rank = rank
        self._saved = saved
        self._wrapped: list[_Wrapped] = []
        of_all = saved()
        self._own = dict(enumerate(of_all[rank])) if of_all else {}
        self._begun = False

    def __len__(self) -> int:
        return len(self._wrapped)

    def wrap(self, reducer: Any, name: str | None, for_training: bool, for_validation: bool) -> Any:
        """Returns a reducer, or one made of a function, which takes part from now on.

        Raises:
            ConfigError: it is neither, or takes part already.
        """
        if any(reducer is one.reducer for one in self._wrapped):
            raise ConfigError(
                f"wrap_reducer: this {type(reducer).__name__} was wrapped before; wrap each "
                "reducer once"
            )
        if not _is_reducer(reducer):
            if not callable(reducer):
                raise ConfigError(
                    f"wrap_reducer({shown(reducer)}): expected a function or a MetricReducer with "
                    "reset, per_slot_reduce and cross_slot_reduce"
                )
            reducer = FunctionReducer(reducer)
        self._wrapped.append(_Wrapped(reducer, name, for_training, for_validation))
        index = len(self._wrapped) - 1
        self._restore(index)
        if self._begun:
            self._own.pop(index, None)
        return reducer

    def begin(self) -> None:
        """Gives reducers their state back once the processor is made, which may have reset them."""
        for index in range(len(self._wrapped)):
            self._restore(index)
            self._own.pop(index, None)
        self._begun = True

    def _restore(self, index: int) -> None:
        saved, wrapped = self._own.get(index), self._wrapped[index]
        if saved is None:
            return
        if (saved.name, saved.kind) != (wrapped.name, wrapped.kind):
            raise JobError(
                f"the checkpoint has reducer {saved.kind} ({saved.name!r}) where the processor now "
                f"wraps {wrapped}; wrap the same reducers in the same order, or name another output"
            )
        _restore(wrapped.reducer, saved.state)

    def states(self) -> list[SavedReducer]:
        """Returns what each has collected; of those that are not wrapped yet, what they had.

        Raises:
            JobError: a state cannot be pickled.
        """
        now = [_saved(one) for one in self._wrapped]
        return [*now, *(self._own[index] for index in sorted(self._own))]

    def reduce(self, for_training: bool | None = None) -> dict[str, Any]:
        """Returns the metrics over all ranks: this one's now, the others' of the last checkpoint.

        Args:
            for_training: of the reducers for training, or of those for validation; None: of all.

        Raises:
            JobError: a reducer fails, or returns a dict with a name or something else without one.
        """
        chosen = [
            (index, one) for index, one in enumerate(self._wrapped) if one.is_for(for_training)
        ]
        saved = self._saved() if chosen else ()
        metrics: dict[str, Any] = {}
        for index, wrapped in chosen:
            slots = [one.call("per_slot_reduce") for one in self._slots(index, wrapped, saved)]
            metrics |= _named(wrapped, wrapped.call("cross_slot_reduce", slots))
        return metrics

    def _slots(
        self, index: int, wrapped: _Wrapped, saved: Sequence[Sequence[SavedReducer]]
    ) -> Iterator[_Wrapped]:
        if not saved:
            yield wrapped
        for rank, states in enumerate(saved):
            if rank == self._rank:
                yield wrapped
            elif index < len(states):
                yield wrapped.with_state(states[index].state)


def _is_reducer(reducer: Any) -> bool:
    names = ("reset", "per_slot_reduce", "cross_slot_reduce")
    return all(callable(getattr(reducer, name, None)) for name in names)


def _named(wrapped: _Wrapped, reduced: Any) -> Mapping[str, Any]:
    if wrapped.name is not None and isinstance(reduced, dict):
        raise JobError(
            f"{wrapped} returned a dict, expected one metric, since it has a name; leave name= out "
            "for several metrics"
        )
    if wrapped.name is not None:
        return {wrapped.name: reduced}
    if not isinstance(reduced, dict):
        raise JobError(
            f"{wrapped} returned {shown(reduced)}, expected a dict of names to metrics, since it "
            "has no name; give name= for a single metric"
        )
    return reduced


def _saved(wrapped: _Wrapped) -> SavedReducer:
    """Returns a reducer's state.

    Raises:
        JobError: it cannot be pickled.
    """
    try:
        state = cloudpickle.dumps(_state_of(wrapped.reducer))
    except Exception as error:
        raise JobError(
            f"{wrapped} cannot be kept in a checkpoint ({type(error).__name__}: "
            f"{first_line(error)}); give it a __getstate__ that returns what can be pickled"
        ) from error
    return SavedReducer(wrapped.name, wrapped.kind, state)


def _state_of(reducer: Any) -> Any:
    own = getattr(type(reducer), "__getstate__", None)
    if own is None or own is getattr(object, "__getstate__", None):
        return vars(reducer)
    return reducer.__getstate__()


def _restore(reducer: Any, pickled: bytes) -> None:
    state = pickle.loads(pickled)  # of the user's own run, below the output
    if hasattr(reducer, "__setstate__"):
        reducer.__setstate__(state)
    else:
        vars(reducer).update(state)  # the rest is as its __init__ has made it
