"""Which options a call was given that are not as they are by default, for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields
from typing import Any

from sparkinfer.config import ScoringConfig
from sparkinfer.messages import shortened, shown
from sparkinfer.option_groups import TaskConfig
from sparkinfer.redaction import HIDDEN, is_secret_name, without_secrets
from sparkinfer.validation import Options

MOST_OF_VALUE = 500
"""Characters of a text."""

MOST_ITEMS = 50
"""Of a list or a mapping; a longer one is shown by its beginning."""


def asked_options(config: ScoringConfig) -> dict[str, Any]:
    """Returns the options that are not as they are by default, as JSON values by dotted name.

    There are no secrets in them; of those that no message may show, there are the names.
    """
    return dict(_asked(config, ""))


def _asked(options: Options, prefix: str) -> Iterator[tuple[str, Any]]:
    for field in fields(options):  # type: ignore[arg-type]
        key, value = f"{prefix}{field.name}", getattr(options, field.name)
        if isinstance(value, Options):
            yield from _asked(value, f"{key}.")
        elif isinstance(value, TaskConfig):
            yield from _asked_task(key, value, _default(field))
        elif value != _default(field):
            yield from _given(key, value, is_hidden="hidden" in field.metadata)


def _asked_task(key: str, task: TaskConfig, default: TaskConfig) -> Iterator[tuple[str, Any]]:
    if task.name != default.name:
        yield key, _plain(key, task.name)
    for name, value in task.options.items():
        yield f"{key}.{name}", _plain(name, value)


def _given(key: str, value: Any, is_hidden: bool) -> Iterator[tuple[str, Any]]:
    """Yields a value, of a mapping each item, of a group in it each option."""
    if not isinstance(value, Mapping):
        yield key, HIDDEN if is_hidden else _plain(key, value)
        return
    for name, item in value.items():
        if isinstance(item, Options):
            yield from _asked(item, f"{key}.{name}.")
        else:
            yield f"{key}.{name}", HIDDEN if is_hidden else _plain(name, item)


def _default(field: Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _plain(name: str, value: Any) -> Any:
    """Returns a value of an option as JSON values."""
    if is_secret_name(name):
        return HIDDEN
    if isinstance(value, str):
        return shortened(without_secrets(value), MOST_OF_VALUE)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple) and len(value) <= MOST_ITEMS:
        return [_plain(name, item) for item in value]
    if isinstance(value, Mapping) and len(value) <= MOST_ITEMS:
        return {str(key): _plain(str(key), item) for key, item in value.items()}
    return without_secrets(shown(value))
