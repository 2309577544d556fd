"""What the footers of Parquet files say: how many rows, and whether a file is the one it was."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from sparkinfer.storage import read_range

TAIL_BYTES = 1 << 16
"""Read at first: most footers are shorter. Larger ones take a second request."""

END_BYTES = 8
"""After the footer: its length, little-endian, and `PAR1`. Source: the Parquet format."""


class BrokenFileError(ValueError):
    """A file is not a complete Parquet file."""


@dataclass(frozen=True)
class Footer:
    """The footer of a Parquet file.

    Attributes:
        rows: of the file.
        digest: of the footer, 16 hexadecimal digits. It tells files apart whose rows differ, as
            a footer holds the size of each column and its least and greatest value.
    """

    rows: int
    digest: str


def read_footer(path: str, size: int) -> Footer:
    """Returns the footer of a file of some bytes.

    Raises:
        OSError: it is not there, or cannot be read.
        BrokenFileError: it is not a complete Parquet file.
    """
    tail = read_range(path, max(0, size - TAIL_BYTES), size)
    length = int.from_bytes(tail[-END_BYTES:-4], "little") + END_BYTES
    if len(tail) < length <= size:
        tail = read_range(path, size - length, size)
    try:
        rows = pq.read_metadata(pa.BufferReader(tail)).num_rows
    except (pa.ArrowException, OSError) as error:  # OSError: of what is in memory
        raise BrokenFileError(f"{path!r} is not a complete Parquet file: {error}") from error
    return Footer(int(rows), hashlib.sha256(tail[-length:]).hexdigest()[:16])
