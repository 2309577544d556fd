"""Puts a batcher in the place of a function or method."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial, update_wrapper
from types import MethodType
from typing import Any

from sparkinfer.exceptions import ConfigError
from sparkinfer.messages import shown

_HELD = "__batchers__"


def batched(make: Callable[[Callable[..., Any]], Any], func: Any) -> Any:
    """Returns what takes the place of a function, or a decorator if there is none.

    Args:
        make: returns the batcher of a function.
        func: a function, a method as it is defined in a class, a static or class method, or None.
    """
    if func is None:
        return partial(batched, make)
    if isinstance(func, staticmethod):
        return staticmethod(batched(make, func.__func__))
    if isinstance(func, classmethod):
        return BatchedMethod(make, func.__func__, is_of_class=True)
    if _is_method(func):
        return BatchedMethod(make, func)
    return update_wrapper(make(func), func)


def _is_method(func: Any) -> bool:
    """Returns whether a function's first parameter is an instance or a class."""
    if not inspect.isfunction(func):
        return False
    names = list(inspect.signature(func).parameters)
    return len(names) > 1 and names[0] in ("self", "cls")


class BatchedMethod:
    """A method with one batcher for each instance, or each class.

    Args:
        make: returns the batcher of a function.
        func: the method's function.
        is_of_class: whether it is a class method.
    """

    def __init__(
        self, make: Callable[[Callable[..., Any]], Any], func: Any, *, is_of_class: bool = False
    ) -> None:
        self._make = make
        self._func = func
        self._is_of_class = is_of_class
        update_wrapper(self, func)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        target = owner if self._is_of_class else instance
        if target is None:
            return self
        batchers = _batchers_of(target)
        if self not in batchers:
            made = self._make(MethodType(self._func, target))
            # No lock, which a forked child could find held: of two threads one made it in vain.
            batchers.setdefault(self, update_wrapper(made, self._func))
        return batchers[self]

    def __call__(self, instance: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls the method of an instance, for `Class.method(instance, …)`."""
        return self.__get__(instance, type(instance))(*args, **kwargs)


class _Held:
    """The batchers of an instance or class; in a copy of it, or a pickled one, there are none."""

    def __init__(self, owner: Any = None) -> None:
        self.owner = owner
        self.batchers: dict[BatchedMethod, Any] = {}

    def __reduce__(self) -> tuple[type[_Held], tuple[()]]:
        return _Held, ()


def _batchers_of(target: Any) -> dict[BatchedMethod, Any]:
    """Returns the batchers of an instance or class; a copied instance has none yet."""
    try:
        held = vars(target).get(_HELD)
    except TypeError:
        raise ConfigError(
            f"{shown(target)} has no __dict__ to keep its batcher in; leave __slots__ out of its "
            "class, or add '__dict__' to them"
        ) from None
    if not isinstance(held, _Held) or held.owner is not target:
        held = _Held(target)
        if isinstance(target, type):
            setattr(target, _HELD, held)
        else:
            vars(target)[_HELD] = held
    return held.batchers
