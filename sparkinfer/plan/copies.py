"""When a file is copied into small row groups before it is read.

A range within a row group is read by decoding the row group from its start, unless the process is
already in it. A range is a chunk's rows, or a worker's share of them.
"""

from __future__ import annotations

from sparkinfer.plan.chunks import ChunkLimits, RowGroups, count_ranges
from sparkinfer.plan.plan import Workers

DECODED_BYTES_PER_S = 250e6
"""Of encoded columns, on one core. Arrow 14 and 25 decoded 730 to 1,600 MB/s of short and long
texts, compressed with snappy or zstd, from the disk cache; an object store is slower."""

ROWS_PER_S = {"cpu": 300, "cuda": 5_000}
"""Scored by a worker, by what the model runs on: high for a model the size of BERT base, so that
decoding weighs heavily."""

DECODING_SHARE = 0.03
"""Of the scoring time; repeated decoding that takes more is too much."""

COPY_COST = 4
"""How often a file could be decoded in the time it takes to copy it; 2.6 to 4.3 times as measured
with the files above. Less repeated decoding than that is not worth a copy."""


def should_copy(file: RowGroups, limits: ChunkLimits, workers: Workers) -> bool:
    """Returns whether reading a file in shares would spend too much time on repeated decoding.

    Args:
        file: its row groups, with the sizes of the columns that are read.
        limits: of the chunks.
        workers: what scores them.
    """
    repeated = 0.0
    for rows, text_bytes, read_bytes in zip(
        file.rows, file.text_bytes, file.read_bytes, strict=True
    ):
        if ranges := count_ranges(rows, text_bytes, limits):
            shares = ranges * workers.spread(-(-rows // ranges))
            repeated += read_bytes * decoded_in_vain(shares, workers.tasks)
    scoring_s = sum(file.rows) / ROWS_PER_S[workers.device_type]
    return (
        repeated / DECODED_BYTES_PER_S > DECODING_SHARE * scoring_s
        and repeated > COPY_COST * sum(file.read_bytes)
    )


def decoded_in_vain(shares: int, processes: int) -> float:
    """Returns how often a row group is decoded, in part or whole, only to be skipped.

    Args:
        shares: of its rows, which processes take in turns; see `sparkinfer.rows.kept_file`.
        processes: that take some.
    """
    busy = min(shares, processes)
    return (busy - 1) * (1 - busy / (2 * shares))
