"""Finds what a user names as `package.module:NAME`."""

from __future__ import annotations

import importlib
from typing import Any

from sparkinfer.exceptions import ConfigError


def load_named(path: str, expected: str, example: str, where: str) -> Any:
    """Returns what a path names.

    Args:
        path: `package.module:NAME`.
        expected: how messages begin: what was given, and what was expected.
        example: of a path.
        where: the module must be, for messages.

    Raises:
        ConfigError: it is no such path, or cannot be imported.
    """
    module, separator, name = path.partition(":")
    if not (module and separator and name):
        raise ConfigError(f"{expected}, such as {example!r}")
    try:
        return getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # importing runs the user's code
        raise ConfigError(
            f"{expected}, but got {type(error).__name__}: {error}; put the module {where} or "
            "correct the name"
        ) from error
