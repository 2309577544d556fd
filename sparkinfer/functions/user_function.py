"""A user's function, generator or class over batches, and what it is called with."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import inspect
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

import cloudpickle
import pyarrow as pa

from sparkinfer.exceptions import ConfigError
from sparkinfer.functions.formats import BATCH_FORMATS, as_rows, in_format
from sparkinfer.messages import first_line, shown
from sparkinfer.option_groups import read_batch_size
from sparkinfer.user_code import load_named

EXAMPLE = "my_functions:Predictor"

BLOCK_BYTES = 128 << 20
"""Most bytes of a batch where no number of rows is asked for. Source: Ray Data's largest block."""

AUTO_BYTES = 16 << 20
"""The same for `auto`."""

DEFAULT_ROWS = 1024
"""Rows of a batch of `default` size. Source: Ray Data."""

NO_LIMIT = 1 << 40

CALLS_AT_ONCE = 8
"""Batches with which an asynchronous function is called before the first of them is awaited."""


@dataclass(frozen=True)
class Arguments:
    """What a function is called with beside the batch, and what its class is constructed with.

    Attributes:
        args: after the batch.
        kwargs: by name.
        constructor_args: of the class.
        constructor_kwargs: of the class, by name.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    constructor_args: tuple[Any, ...] = ()
    constructor_kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class UserFunction:
    """A function as it is sent to workers.

    Attributes:
        name: for people; of one that is importable, `package.module:name`.
        packed: it and its arguments, pickled; of an importable one, the arguments alone.
        is_named: whether workers import it by its name.
        batch_size: rows of a batch; None, "default" and "auto" as in `batch_limits`.
        batch_format: see `in_format`.
        zero_copy: whether it is given arrays that it cannot write into.
        one_to_one: whether each row of a batch gives one row; None: as it turns out.
        columns: that the next function is given of what it returns; None: all, as they are.
    """

    name: str
    packed: bytes
    is_named: bool
    batch_size: int | str | None = None
    batch_format: str = "default"
    zero_copy: bool = True
    one_to_one: bool | None = None
    columns: pa.Schema | None = None

    @classmethod
    def of(cls, fn: Any, arguments: Arguments, **options: Any) -> UserFunction:
        """Returns a function, checked as far as it can be without calling it.

        Args:
            fn: a function, a class, or `package.module:name` of one.
            arguments: for it.
            **options: the attributes from `batch_size` on.

        Raises:
            ConfigError: it is none, cannot be sent to workers, or an option has a wrong value.
        """
        _check_options(options)
        found = load_function(fn) if isinstance(fn, str) else fn
        name = fn if isinstance(fn, str) else _name_of(found)
        _check_callable(name, found, arguments)
        sent = (None if isinstance(fn, str) else found, arguments)
        try:
            packed = cloudpickle.dumps(sent)
        except Exception as error:  # of the user's objects, which may raise anything
            raise ConfigError(
                f"fn={name} cannot be sent to workers: {type(error).__name__}: "
                f"{first_line(error)}; create what it refers to in a class's __init__"
            ) from error
        return cls(name, packed, isinstance(fn, str), **options)

    @property
    def limits(self) -> tuple[int, int]:
        """Most rows, and most bytes, of a batch."""
        return batch_limits(self.batch_size)

    @property
    def key(self) -> str:
        """What tells it, with its arguments, from others."""
        return hashlib.sha256(self.packed + repr(self).encode()).hexdigest()

    def identity(self) -> str:
        """Returns what tells the function from others: its name, and a hash of its source."""
        fn, arguments = self._unpacked()
        digest = hashlib.sha256(
            f"{_source_of(fn)}{_shown_arguments(arguments)}".encode()
        ).hexdigest()
        return f"{self.name} {digest[:16]}"

    def open(self) -> OpenFunction:
        """Returns the function, ready in this process; constructs its class.

        Raises:
            ConfigError: it cannot be found here, or not be constructed.
        """
        fn, arguments = self._unpacked()
        if inspect.isclass(fn):
            try:
                fn = fn(*arguments.constructor_args, **arguments.constructor_kwargs)
            except (Exception, SystemExit) as error:  # the user's code, which may raise anything
                raise ConfigError(
                    f"fn={self.name} cannot be constructed: {type(error).__name__}: "
                    f"{first_line(error)}"
                ) from error
        return OpenFunction(self, fn, arguments)

    def _unpacked(self) -> tuple[Any, Arguments]:
        try:
            fn, arguments = cloudpickle.loads(self.packed)
        except ImportError as error:
            raise ConfigError(
                f"fn={self.name} is not found in a worker ({first_line(error)}); put the module "
                "where Python can find it on every node"
            ) from error
        return (load_function(self.name) if self.is_named else fn), arguments


class OpenFunction:
    """A function that can be called in this process.

    Args:
        spec: what it is.
        call: the function or the class's instance.
        arguments: for each call.
    """

    def __init__(self, spec: UserFunction, call: Callable[..., Any], arguments: Arguments) -> None:
        self.spec = spec
        self._function = call
        self._arguments = arguments
        self._loop = _EventLoop()
        called = call if inspect.isroutine(call) else getattr(call, "__call__", call)  # noqa: B004
        self.is_async = inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called)

    def call(self, rows: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Yields what the function makes of some rows.

        Raises:
            Exception: raised by the function.
            UnfitBatchError: it returned what is no batch.
        """
        for returned in self._returned(rows):
            yield as_rows(returned)

    def begin(self, rows: pa.RecordBatch) -> Future[list[pa.RecordBatch]]:
        """Calls an asynchronous function and returns what will hold its results."""
        return self._loop.submit(self._all_of(rows))

    def close(self) -> None:
        """Ends what it started."""
        self._loop.close()

    def _called(self, rows: pa.RecordBatch) -> Any:
        given = in_format(rows, self.spec.batch_format, self.spec.zero_copy)
        return self._function(given, *self._arguments.args, **self._arguments.kwargs)

    def _returned(self, rows: pa.RecordBatch) -> Iterable[Any]:
        returned = self._called(rows)
        if inspect.isawaitable(returned) or inspect.isasyncgen(returned):
            all_of_them: list[Any] = self._loop.submit(_collected(returned)).result()
            return all_of_them
        if not inspect.isgenerator(returned):
            return [returned]
        many: Iterable[Any] = returned
        return many

    async def _all_of(self, rows: pa.RecordBatch) -> list[pa.RecordBatch]:
        return [as_rows(one) for one in await _collected(self._called(rows))]


async def _collected(returned: Any) -> list[Any]:
    if inspect.isasyncgen(returned):
        return [one async for one in returned]
    return [await returned]


class _EventLoop:
    """An event loop in a thread of its own, started when it is first needed."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def submit(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            run, loop = _run_until_stopped, self._loop
            threading.Thread(
                target=run, args=(loop,), name="sparkinfer-function", daemon=True
            ).start()
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def close(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None


def _run_until_stopped(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


def batch_limits(batch_size: int | str | None) -> tuple[int, int]:
    """Returns the most rows, and the most bytes in Arrow memory, of a batch.

    Args:
        batch_size: so many rows, of any size; None: as many as there are, up to `BLOCK_BYTES`;
            "default": `DEFAULT_ROWS`; "auto": the same, up to `AUTO_BYTES`.
    """
    if batch_size is None:
        return NO_LIMIT, BLOCK_BYTES
    if batch_size == "auto":
        return DEFAULT_ROWS, AUTO_BYTES
    return (DEFAULT_ROWS if batch_size == "default" else int(batch_size)), NO_LIMIT


def load_function(path: str) -> Any:
    """Returns what `package.module:name` names; raises ConfigError if it cannot be imported."""
    expected = f"fn={shown(path)}: expected an importable `package.module:name`"
    return load_named(path, expected, EXAMPLE, "where Python can find it on every node")


def _check_callable(name: str, fn: Any, arguments: Arguments) -> None:
    if not callable(fn):
        raise ConfigError(
            f"fn={name}: expected a function, a class or `package.module:name` of one, such as "
            f"{EXAMPLE!r}; it is {shown(fn)}"
        )
    if not inspect.isclass(fn):
        if arguments.constructor_args or arguments.constructor_kwargs:
            raise ConfigError(
                f"fn={name} with arguments for a constructor: it is a function, which has none; "
                "give fn_args or fn_kwargs, or name a class"
            )
        _check_takes(f"fn={name} cannot be called", fn, None, *arguments.args, **arguments.kwargs)
        return
    if not callable(getattr(fn, "__call__", None)) or "__call__" not in dir(fn):  # noqa: B004
        raise ConfigError(f"fn={name}: the class has no __call__ that takes a batch; add it")
    _check_takes(
        f"fn={name} cannot be constructed",
        fn,
        *arguments.constructor_args,
        **arguments.constructor_kwargs,
    )


def _check_takes(problem: str, fn: Any, *args: Any, **kwargs: Any) -> None:
    try:
        inspect.signature(fn).bind(*args, **kwargs)
    except TypeError as error:
        raise ConfigError(f"{problem} with the arguments given: {error}; correct them") from error
    except ValueError:  # of what is compiled, nothing is known
        pass


def _check_options(options: Mapping[str, Any]) -> None:
    size = options.get("batch_size")
    try:
        read_batch_size(size)
    except ValueError as error:
        raise ConfigError(f"batch_size={shown(size)}: expected {error}") from None
    batch_format = options.get("batch_format", "default")
    if batch_format not in BATCH_FORMATS:
        raise ConfigError(
            f"batch_format={shown(batch_format)}: expected one of {', '.join(BATCH_FORMATS)}"
        )


def _name_of(fn: Any) -> str:
    module = getattr(fn, "__module__", None)
    name = getattr(fn, "__qualname__", None) or type(fn).__qualname__
    return f"{module}:{name}" if module and module != "__main__" else str(name)


def _source_of(fn: Any) -> str:
    """Returns what a function does, as text: its source, and the plain values that it holds."""
    if isinstance(fn, functools.partial):
        return _source_of(fn.func) + _shown((fn.args, sorted(fn.keywords.items())))
    if inspect.ismethod(fn):
        return _source_of(fn.__func__) + _state_of(fn.__self__)
    if not inspect.isclass(fn) and not inspect.isroutine(fn):
        return _source_of(type(fn)) + _state_of(fn)
    try:
        source = inspect.getsource(fn)
    except (OSError, TypeError):  # compiled, or typed at a prompt
        source = ""
    if not source or getattr(fn, "__name__", "") == "<lambda>":  # there may be two in a line
        source = _code_of(fn)
    held = _held_by(fn)
    inner = [one for one in held if inspect.isfunction(one)]
    return source + "".join(
        [*map(_shown, held), *map(_code_of, inner), *(_shown(_held_by(one)) for one in inner)]
    )


def _state_of(instance: Any) -> str:
    """Returns the plain values among an object's attributes."""
    held = sorted(getattr(instance, "__dict__", {}).items())
    return "".join(f"{name}={_shown(value)}" for name, value in held)


def _held_by(fn: Any) -> list[Any]:
    """Returns what a function holds of those around it."""
    held = []
    for cell in getattr(fn, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # not assigned yet
            held.append(cell.cell_contents)
    return held


def _code_of(fn: Any) -> str:
    """Returns the code of a function, or of a class's functions, in place of its source."""
    functions: Sequence[Any] = [fn]
    if inspect.isclass(fn):
        functions = [one for _, one in sorted(vars(fn).items()) if inspect.isfunction(one)]
    codes = [getattr(one, "__code__", None) for one in functions]
    return "".join(_shown_code(code) for code in codes if code is not None)


def _shown_code(code: CodeType) -> str:
    """Returns what is compiled, with what is in it, such as comprehensions."""
    inner = [one for one in code.co_consts if isinstance(one, CodeType)]
    consts = [one for one in code.co_consts if _is_plain(one)]
    own = f"{code.co_code.hex()}{code.co_names}{consts}"
    return own + "".join(map(_shown_code, inner))


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | bytes | int | float | tuple)


def _shown_arguments(arguments: Arguments) -> str:
    """Returns arguments as text if they are plain values; others have no text of their own."""
    given = (
        arguments.args,
        sorted(arguments.kwargs.items()),
        arguments.constructor_args,
        sorted(arguments.constructor_kwargs.items()),
    )
    return _shown(given)


def _shown(value: Any) -> str:
    """Returns a value as text that is the same in each process, empty where it has none."""
    if isinstance(value, Mapping):
        value = list(value.items())
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(_shown, value)))}}}"
    if type(value) in (list, tuple):
        return f"({', '.join(map(_shown, value))})"
    text = repr(value)
    return "" if " at 0x" in text else text
