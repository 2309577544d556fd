from collections.abc import Iterator

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkinfer.batching.rebatch import FIRST_WINDOW_ROWS, growing_rows, rebatch, same_rows
from sparkinfer.exceptions import JobError

texts = st.one_of(st.none(), st.text(max_size=50))


def as_batch(column: list[str | None]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array(column, pa.string())], names=["text"])


def texts_of(batch: pa.RecordBatch) -> list[str | None]:
    column: list[str | None] = batch.column(0).to_pylist()
    return column


@given(st.lists(st.lists(texts, max_size=20)), st.integers(1, 30), st.integers(1, 3000))
def test_batches_hold_all_rows_in_order_within_both_bounds(
    columns: list[list[str | None]], max_rows: int, max_bytes: int
) -> None:
    batches = list(rebatch(map(as_batch, columns), same_rows(max_rows), max_bytes))
    assert [t for batch in batches for t in texts_of(batch)] == [t for c in columns for t in c]
    for batch in batches:
        assert 1 <= batch.num_rows <= max_rows
        assert (
            batch.num_rows == 1 or batch.nbytes <= max_bytes + 8
        )  # joined: an offset more or less


def test_rows_that_fit_share_a_batch() -> None:
    batches = rebatch([as_batch(["x" * 1000] * 20)], same_rows(100), 5100)
    assert [batch.num_rows for batch in batches] == [5, 5, 5, 5]


def test_windows_grow_from_a_small_one() -> None:
    rows = as_batch(["x"] * 20_000)
    sizes = [batch.num_rows for batch in rebatch([rows], growing_rows(8192), 2**30)]
    assert sizes[0] == FIRST_WINDOW_ROWS
    assert sizes == [256, 2048, 8192, 8192, 1312]


def test_a_batch_is_pulled_only_when_its_rows_are_needed() -> None:
    pulled = []

    def source() -> Iterator[pa.RecordBatch]:
        for number in range(100):
            pulled.append(number)
            yield as_batch(["x"] * 256)

    next(rebatch(source(), same_rows(256), 2**30))
    assert len(pulled) == 1


def test_a_batch_whose_texts_no_column_holds_is_an_error() -> None:
    large = as_batch(["x" * (1 << 29)])
    with pytest.raises(JobError, match="a batch of 5 rows holds .* more than 2 GiB in one column"):
        list(rebatch([large] * 5, same_rows(5), 1 << 40))
