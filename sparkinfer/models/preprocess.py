"""A user's function over texts, called before they are tokenised."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from sparkinfer.exceptions import ConfigError
from sparkinfer.messages import first_line
from sparkinfer.option_groups import PreprocessConfig
from sparkinfer.user_code import load_named


@dataclass(frozen=True)
class Failed:
    """What replaces a text that the function does not return.

    Attributes:
        reason: why, for the row's `error`.
    """

    reason: str


@dataclass(frozen=True)
class Preprocess:
    """A function as `package.module:function`.

    Attributes:
        function: its name.
        batch_format: whether it is given a pandas Series or an Arrow array.
        version: the user's.
    """

    function: str
    batch_format: str = "pandas"
    version: str | None = None

    @classmethod
    def of(cls, config: PreprocessConfig) -> Preprocess | None:
        """Returns the configured function, None if there is none."""
        if config.function is None:
            return None
        return cls(config.function, config.batch_format, config.version)

    def load(self) -> Callable[[Any], Any]:
        """Returns the function.

        Raises:
            ConfigError: it cannot be imported, or does not take texts alone.
        """
        expected = f"preprocess={self.function!r}: expected an importable `package.module:function`"
        where = "where Python can find it on every node,"
        found = load_named(self.function, expected, "my_texts:without_markup", where)
        if not callable(found):
            raise ConfigError(f"{expected}; it is {type(found).__name__}, name a function")
        if not _takes_one(found):
            raise ConfigError(
                f"{expected}; it cannot be called with texts alone, name one that can"
            )
        loaded: Callable[[Any], Any] = found
        return loaded

    def identity(self) -> str:
        """Returns what tells the function from others: its name, and a hash of its source."""
        try:
            source = inspect.getsource(self.load())
        except (OSError, TypeError):  # compiled, or typed at a prompt
            source = ""
        digest = hashlib.sha256(source.encode()).hexdigest()[:16]
        return f"{self.function} {digest}"

    def change(self, texts: Sequence[str]) -> list[str | Failed]:
        """Returns what the function makes of each text, or why it makes none."""
        return self._change(self.load(), texts)

    def _change(self, function: Callable[[Any], Any], texts: Sequence[str]) -> list[str | Failed]:
        if not texts:
            return []
        try:
            changed = self._call(function, texts)
            return [_text(one) for one in changed]
        except (Exception, SystemExit) as error:  # the user's code, which may raise anything
            if len(texts) == 1:
                return [Failed(f"preprocess: {type(error).__name__}: {first_line(error)}")]
        middle = len(texts) // 2
        return [
            *self._change(function, texts[:middle]),
            *self._change(function, texts[middle:]),
        ]

    def _call(self, function: Callable[[Any], Any], texts: Sequence[str]) -> list[Any]:
        given: Any = pa.array(texts, pa.string())
        if self.batch_format == "pandas":
            import pandas as pd

            given = pd.Series(texts, dtype=object)
        found = _in_order(function(given))
        if len(found) != len(texts):
            raise ValueError(f"it returned {len(found)} texts for {len(texts)}")
        return found


def _takes_one(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return False
    except ValueError:  # of what is compiled, nothing is known
        pass
    return True


def _in_order(returned: Any) -> list[Any]:
    """Returns what the function returned, in the order of the texts.

    A Series may have been put together of parts: its index tells whose each text is.

    Raises:
        TypeError: it has no order.
        ValueError: its index has a text twice, so that it is another one's that is there.
    """
    if hasattr(returned, "sort_index") and returned.ndim == 1:
        if not returned.index.is_unique:
            raise ValueError("it returned a Series whose index has a text twice")
        in_order = returned.sort_index()
        return list(in_order if list(in_order.index) == list(range(len(in_order))) else returned)
    if hasattr(returned, "to_pylist"):
        return list(returned.to_pylist())
    if isinstance(returned, str | bytes | Mapping | Set) or hasattr(returned, "columns"):
        raise TypeError(f"it returned a {type(returned).__name__}, expected a Series or a list")
    return list(returned)


def _text(one: Any) -> str | Failed:
    """Returns what replaces one text, if it is one."""
    if not isinstance(one, str):
        return Failed(f"preprocess: it returned {type(one).__name__}, expected a string")
    try:
        one.encode()
    except UnicodeEncodeError:
        return Failed("preprocess: it returned half a character (a surrogate without its partner)")
    return one
