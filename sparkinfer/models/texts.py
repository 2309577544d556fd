"""Text columns as Python strings; what is not valid UTF-8 costs its own row alone."""

from __future__ import annotations

import pyarrow as pa


def read_texts(column: pa.Array) -> tuple[list[str | None], dict[int, str]]:
    """Returns the texts of a string column, and why some rows have none by their position.

    Parquet files and Spark let any bytes pass as text; Arrow finds out when it makes strings.
    """
    try:
        return column.to_pylist(), {}
    except UnicodeDecodeError:
        return _one_by_one(column.cast(pa.string()).view(pa.binary()))


def _one_by_one(column: pa.BinaryArray) -> tuple[list[str | None], dict[int, str]]:
    texts: list[str | None] = []
    reasons = {}
    for row, content in enumerate(column.to_pylist()):
        try:
            texts.append(None if content is None else content.decode("utf-8"))
        except UnicodeDecodeError as error:
            texts.append(None)
            reasons[row] = (
                f"text is not valid UTF-8 (byte 0x{content[error.start]:02x} at {error.start})"
            )
    return texts, reasons
