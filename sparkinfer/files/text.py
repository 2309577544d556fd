"""Text files: their lines, decoded, or an error that names file and line."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, TypeVar

from sparkinfer.exceptions import InputError
from sparkinfer.storage import file_system

BATCH_ROWS, BATCH_CHARACTERS = 4096, 2 << 20
"""Maximum of a batch of rows; a larger row is a batch of its own."""

T = TypeVar("T")

_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Encodings by byte order mark; UTF-32 comes first, since its mark begins with UTF-16's."""


@contextmanager
def open_text(path: str, encoding: str | None = None) -> Iterator[IO[str]]:
    """Opens a text file, decompressed as its name says; line ends are left as they are.

    Args:
        path: of the file.
        encoding: None: by a byte order mark, else UTF-8.

    Raises:
        InputError: on leaving, if what was read is not valid in the encoding, or the file cannot
            be read or decompressed.
    """
    try:
        with _open(path) as raw:
            found = encoding or _marked(path)
            if encoding is not None:
                _skip_mark(raw, encoding)
            yield io.TextIOWrapper(raw, encoding=found, errors="strict", newline="")
    except UnicodeError:
        raise InputError(_where_not_valid(path, encoding or _marked(path))) from None
    except (OSError, EOFError) as error:
        raise InputError(
            f"input file {path!r} cannot be read ({type(error).__name__}: {error}); repair or "
            "remove it"
        ) from None


def _open(path: str) -> IO[bytes]:
    fs, name = file_system(path)
    handle: IO[bytes] = fs.open(name, "rb", compression="infer")
    return handle


def _skip_mark(raw: IO[bytes], encoding: str) -> None:
    """Skips a byte order mark that the encoding, such as `utf-8`, takes for a character."""
    try:
        mark = "\ufeff".encode(encoding)
    except UnicodeError:
        return
    if raw.read(len(mark)) != mark:
        raw.seek(0)


def _marked(path: str) -> str:
    with _open(path) as raw:
        start = raw.read(4)
    return next((name for mark, name in _MARKS.items() if start.startswith(mark)), "utf-8")


def _where_not_valid(path: str, encoding: str) -> str:
    """Returns a message that names the first line that is not valid in the encoding."""
    decoder = codecs.getincrementaldecoder(encoding)()
    number, reason = 0, "it ends within a character"
    with _open(path) as raw:
        for line in raw:
            number += 1
            try:
                decoder.decode(line)
            except UnicodeError as error:
                reason = str(error)
                break
    return (
        f"input file {path!r}, line {number}, is not valid {encoding.upper()} ({reason}); give its "
        "encoding, such as --set csv.encoding=latin-1, or convert it to UTF-8"
    )


def batched(rows: Iterable[tuple[T, int]]) -> Iterator[list[T]]:
    """Yields rows in batches of bounded size.

    Args:
        rows: each with its characters in the file.
    """
    batch: list[T] = []
    held = 0
    for row, characters in rows:
        if batch and (len(batch) == BATCH_ROWS or held + characters > BATCH_CHARACTERS):
            yield batch
            batch, held = [], 0
        batch.append(row)
        held += characters
    if batch:
        yield batch
