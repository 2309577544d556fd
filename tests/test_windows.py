import sys

from hypothesis import given
from hypothesis import strategies as st

from sparkinfer.batching.windows import FIRST_WINDOW_ROWS, cut_windows

texts = st.one_of(st.none(), st.text(max_size=50))


@given(st.lists(st.lists(texts, max_size=20)), st.integers(1, 30), st.integers(1, 3000))
def test_windows_hold_all_rows_in_order_within_both_bounds(
    batches: list[list[str | None]], max_rows: int, max_bytes: int
) -> None:
    windows = list(cut_windows(batches, max_rows=max_rows, max_bytes=max_bytes))
    assert [text for window in windows for text in window] == [t for b in batches for t in b]
    for window in windows:
        assert 1 <= len(window) <= max_rows
        assert len(window) == 1 or sum(map(sys.getsizeof, window)) <= max_bytes


def test_windows_grow_from_a_small_one() -> None:
    sizes = [len(w) for w in cut_windows([["x"] * 20_000], max_rows=8192, max_bytes=2**30)]
    assert sizes[0] == FIRST_WINDOW_ROWS
    assert sizes[:4] == [256, 2048, 8192, 8192]


def test_a_batch_is_pulled_only_when_its_rows_are_needed() -> None:
    pulled = []

    def source() -> object:
        for number in range(100):
            pulled.append(number)
            yield ["x"] * 256

    next(cut_windows(source(), max_rows=256, max_bytes=2**30))  # type: ignore[arg-type]
    assert len(pulled) <= 2
