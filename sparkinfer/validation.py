"""Frozen groups of options, checked against their type hints.

    @dataclass(frozen=True, init=False)
    class BatchingConfig(Options):
        max_batch_rows: int = field(default=1024, metadata=at_least(1))

A hint is one of bool, int, float, str, `Literal`, `tuple[X, ...]`, `dict[str, X]`, another group,
a `dict` of groups, `X | Y` or `X | None`. Nothing is converted except what YAML and Python write
differently: a list for a tuple, an integer for a float, a mapping for a group and, with `PATH`, a
Path for a string.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from sparkinfer.exceptions import ConfigError
from sparkinfer.messages import shown
from sparkinfer.redaction import HIDDEN, without_secrets

_NAMES = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    object: "a value",
}
_TOO_LARGE = 2**63
"""Neither Arrow nor Spark counts as far, and Python does not write what is much larger."""

_PLURALS = {int: "integers", float: "numbers", str: "strings", object: "values"}


@dataclass(frozen=True)
class Limit:
    """What a value must satisfy beyond its type.

    Attributes:
        text: follows the name of the type, as in "an integer of at least 1".
        holds: whether a value of the type is within the limit.
    """

    text: str
    holds: Callable[[Any], bool]


def at_least(least: int) -> dict[str, Any]:
    """Returns the metadata of a field with a minimum."""
    return {"limit": Limit(f"of at least {least}", lambda value: value >= least)}


def above(bound: float) -> dict[str, Any]:
    """Returns the metadata of a field whose values are greater than a bound."""
    return {"limit": Limit(f"greater than {bound}", lambda value: value > bound)}


def between(least: float, most: float) -> dict[str, Any]:
    """Returns the metadata of a field with values greater than one bound and up to another."""
    return {
        "limit": Limit(f"above {least} and up to {most}", lambda value: least < value <= most),
    }


def read_by(read: Callable[[Any], Any]) -> dict[str, Any]:
    """Returns the metadata of a field whose values are changed before they are checked.

    Args:
        read: returns the value to check; raises ValueError with what was expected.
    """
    return {"read": read}


NOT_SHOWN = {"hidden": True}
"""Metadata of a field with values that no message may show; those of a mapping, not its keys."""

NOT_EMPTY = {"limit": Limit("that is not empty", bool)}
PATH = read_by(lambda value: os.fspath(value) if isinstance(value, Path) else value)


class Options:
    """Base class of the groups; unknown options and wrong values are errors.

    Attributes:
        given: names of the options that were given; ignored in comparisons.

    Raises:
        ConfigError: one line with all problems.
    """

    given: frozenset[str]
    SHORTHAND: ClassVar[str] = ""
    """Name of the option that a value in place of a group sets; empty: there is none."""

    def __init_subclass__(cls) -> None:
        # In each class, where `dataclass` would put one that shows every value.
        cls.__repr__ = _as_text  # type: ignore[method-assign, assignment]

    def __init__(self, **values: Any) -> None:
        check = _Check(type(self))
        state = check.values_of(type(self), values)
        if check.problems:
            raise ConfigError("; ".join(check.problems))
        for name, value in {**state, "given": frozenset(values)}.items():
            object.__setattr__(self, name, value)  # frozen for all others

    def as_dict(self) -> dict[str, Any]:
        """Returns the options by name, groups unchanged."""
        return {name: getattr(self, name) for name in _fields(type(self))}

    def given_values(self) -> dict[str, Any]:
        """Returns the options that were given, by name, groups unchanged."""
        return {name: value for name, value in self.as_dict().items() if name in self.given}


G = TypeVar("G", bound=Options)


def read_group(group: type[G], values: Mapping[str, Any], prefix: str) -> G:
    """Returns a group of options that is not part of another.

    Args:
        group: its class.
        values: what was given, by name.
        prefix: put before the names in messages, such as `task.`.

    Raises:
        ConfigError: one line with all problems.
    """
    check = _Check(group, prefix)
    check.values_of(group, values, prefix)
    if check.problems:
        raise ConfigError("; ".join(check.problems))
    return group(**values)


def _as_text(options: Options) -> str:
    """Returns the options by name without secrets; of those that no message may show, the names."""
    listed = []
    for name, field in _fields(type(options)).items():
        value = getattr(options, name)
        if "hidden" in field.metadata:
            value = dict.fromkeys(value, HIDDEN)
        listed.append(f"{name}={value!r}")
    return without_secrets(f"{type(options).__name__}({', '.join(listed)})")


class _MisfitError(ValueError):
    """A value does not match its hint; the message is what was expected."""


class _Check:
    """Checks one call and collects what is wrong with it.

    Attributes:
        problems: one line per problem.
    """

    def __init__(self, root: type[Options], prefix: str = "") -> None:
        self._known = [prefix + name for name in _dotted_names(root)]
        self.problems: list[str] = []

    def values_of(
        self, group: type[Options], values: Mapping[Any, Any], prefix: str = ""
    ) -> dict[str, Any]:
        """Returns the value of each option, defaults included; complete if there is no problem.

        Args:
            group: that the options belong to.
            values: what was given, by name.
            prefix: put before the names in messages, such as `batching.`.
        """
        known, hints = _fields(group), get_type_hints(group)
        for name in values:
            if name not in known:
                self._refuse_name(prefix, name)
        found = {}
        for name, field in known.items():
            try:
                found[name] = self._value_of(field, hints[name], values, prefix)
            except _MisfitError as misfit:
                self.problems.append(str(misfit))
        return found

    def _value_of(
        self, field: Field[Any], hint: Any, values: Mapping[Any, Any], prefix: str
    ) -> Any:
        if field.name not in values:
            return _default(field)
        key, value = f"{prefix}{field.name}", values[field.name]
        if _is_group(hint):
            return self._group(key, value, hint, field.metadata)
        of_groups = _named_group(hint)
        if of_groups is not None and isinstance(value, Mapping):
            return {name: self._named(key, name, one, of_groups) for name, one in value.items()}
        return _checked(key, value, hint, field.metadata)

    def _group(self, key: str, value: Any, hint: type[Options], metadata: Mapping[str, Any]) -> Any:
        if hint.SHORTHAND and not isinstance(value, Mapping | hint):
            value = {hint.SHORTHAND: value}
        if not isinstance(value, Mapping):
            return _checked(key, value, hint, metadata)
        before = len(self.problems)
        self.values_of(hint, value, f"{key}.")
        return None if len(self.problems) > before else hint(**value)

    def _named(self, key: str, name: Any, value: Any, hint: type[Options]) -> Any:
        """Returns a group that is one of several with names; its options are known by both."""
        if not isinstance(name, str):
            self.problems.append(
                f"{key}: the name {shown(name)} is {_kind(name)}; write it in quotes"
            )
            return None
        check = _Check(hint, f"{key}.{name}.")
        group = check._group(f"{key}.{name}", value, hint, {})
        self.problems += check.problems
        return group

    def _refuse_name(self, prefix: str, given: Any) -> None:
        """Adds that an option is unknown; its value may be the secret of a mistyped one."""
        known = self._known
        name = prefix + (given if isinstance(given, str) else shown(given))
        leaf = name.rsplit(".", 1)[-1]
        near = [key for key in known if key.rsplit(".", 1)[-1] == leaf]
        near += difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        others = f"known options: {', '.join(known)}" if known else "there are none"
        hint = f"did you mean {near[0]!r}?" if near else others
        self.problems.append(f"unknown option {shown(name)}; {hint}")


def _fields(group: type[Options]) -> dict[str, Field[Any]]:
    return {field.name: field for field in fields(group)}  # type: ignore[arg-type]


def option_names(group: type[Options]) -> list[str]:
    """Returns the names of a group's options."""
    return [*_fields(group)]


def _is_group(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Options)


def _named_group(hint: Any) -> type[Options] | None:
    """Returns the group of a hint that is a mapping of names to groups, None for other hints."""
    if get_origin(hint) is not dict or not _is_group(get_args(hint)[1]):
        return None
    group: type[Options] = get_args(hint)[1]
    return group


def _dotted_names(group: type[Options]) -> Iterator[str]:
    """Yields the names of all options, those of inner groups as `group.option`."""
    hints = get_type_hints(group)
    for name in _fields(group):
        hint = hints[name]
        if _is_group(hint):
            yield from (f"{name}.{inner}" for inner in _dotted_names(hint))
        else:
            yield name


def _default(field: Field[Any]) -> Any:
    if field.default is not MISSING:
        return field.default
    if field.default_factory is not MISSING:
        return field.default_factory()
    name = field.name
    raise _MisfitError(
        f"option {name!r} is required; give --{name.replace('_', '-')} or {name}=..."
    )


def _checked(key: str, value: Any, hint: Any, metadata: Mapping[str, Any]) -> Any:
    """Returns a value of the hint's type and within its limit."""
    limit: Limit | None = metadata.get("limit")
    expected = f"{_describe(hint)} {limit.text}" if limit else _describe(hint)
    given = _kinds(key, value, hint) if "hidden" in metadata else f"{key}={shown(value)}"
    try:
        fit = _fit(metadata["read"](value) if "read" in metadata else value, hint)
    except _MisfitError:
        raise _MisfitError(f"{given}: expected {expected}") from None
    except ValueError as error:
        raise _MisfitError(f"{given}: expected {error}") from None
    if limit is not None and fit is not None and not limit.holds(fit):
        raise _MisfitError(f"{given}: expected {expected}")
    return fit


def _kinds(key: str, value: Any, hint: Any) -> str:
    """Returns which types a hidden value has: of a mapping, the first item of a wrong one."""
    if not isinstance(value, Mapping):
        return f"{key} is {_kind(value)}"
    of_name, of_value = get_args(hint)
    for name, item in value.items():
        if not isinstance(name, of_name) or not isinstance(item, of_value):
            return f"{key}: {shown(name)} is {_kind(item)}"
    return key


def _kind(value: Any) -> str:
    return _NAMES.get(type(value), f"of type {type(value).__name__}")


def _fit(value: Any, hint: Any) -> Any:
    """Returns a value of the hint's type; raises _MisfitError for a value of another type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return None if value is None else _fit_one(value, _not_none(arguments))
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_fit(item, arguments[0]) for item in value)
    if origin is dict and isinstance(value, Mapping):
        return {_fit(key, arguments[0]): _fit(item, arguments[1]) for key, item in value.items()}
    if origin is Literal and isinstance(value, str) and value in arguments:
        return value
    if type(value) is int and abs(value) >= _TOO_LARGE:
        raise ValueError("a number below 2**63")
    if hint is float and type(value) is int:
        return float(value)
    if hint is float and type(value) is float and not math.isfinite(value):
        raise ValueError("a finite number")
    if hint is object:
        return value
    if origin is None and isinstance(value, hint) and (hint is bool or type(value) is not bool):
        return value
    raise _MisfitError(_describe(hint))


def _fit_one(value: Any, hints: Sequence[Any]) -> Any:
    """Returns a value of the first of several types that it fits."""
    for hint in hints:
        with suppress(_MisfitError):
            return _fit(value, hint)
    raise _MisfitError(" or ".join(map(_describe, hints)))


def _describe(hint: Any) -> str:
    """Returns what a value of a type hint is called in a message."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(map(_describe, _not_none(arguments)))
    if origin is Literal:
        *names, last = map(repr, arguments)
        return f"{', '.join(names)} or {last}" if names else last
    if origin is tuple:
        return f"a list of {_PLURALS[arguments[0]]}"
    if origin is dict and _is_group(arguments[1]):
        return "a mapping of names to groups of options"
    if origin is dict:
        return f"a mapping of names to {_PLURALS[arguments[1]]}, such as {{name: 'value'}}"
    return "a group of options" if _is_group(hint) else _NAMES.get(hint, hint.__name__)


def _not_none(arguments: tuple[Any, ...]) -> list[Any]:
    return [argument for argument in arguments if argument is not NoneType]
