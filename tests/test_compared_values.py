"""Which values count as the same, and which rows are paired by them."""

from __future__ import annotations

import datetime
import decimal
import math
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkinfer.comparing.pairing import pair, pair_alike_first, repeated, unpaired
from sparkinfer.comparing.values import codes_of, hashes_of

SMALL = st.integers(-2, 2)
FLOATS = st.sampled_from([0.0, -0.0, 1.5, math.nan, math.inf, -math.inf, 1e-300])
TEXTS = st.text("ab\0é", max_size=3)
MAPS = st.dictionaries(TEXTS, SMALL, max_size=2).map(lambda d: list(d.items()))

KINDS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "boolean": (pa.bool_(), st.booleans()),
    "integer": (pa.int64(), st.sampled_from([0, 1, -1, 2**62, -(2**63)])),
    "float": (pa.float64(), FLOATS),
    "float32": (pa.float32(), st.sampled_from([0.0, -0.0, 1.5, math.nan])),
    "text": (pa.string(), TEXTS),
    "long text": (pa.large_string(), TEXTS),
    "bytes": (pa.binary(), st.binary(max_size=2)),
    "day": (pa.date32(), st.dates(datetime.date(1, 1, 1), datetime.date(1, 1, 4))),
    "time": (pa.timestamp("us"), st.datetimes(max_value=datetime.datetime(1, 1, 1, 0, 0, 1))),
    "decimal": (pa.decimal128(20, 2), st.integers(-2, 2).map(lambda n: decimal.Decimal(n) / 4)),
    "list": (pa.list_(pa.string()), st.lists(TEXTS | st.none(), max_size=3)),
    "list of floats": (pa.list_(pa.float32()), st.lists(st.sampled_from([0.0, 1.0]), max_size=2)),
    "list of lists": (pa.list_(pa.list_(pa.int8())), st.lists(st.lists(SMALL, max_size=2))),
    "map": (pa.map_(pa.string(), pa.int64()), MAPS),
    "struct": (
        pa.struct([("x", pa.int64()), ("y", pa.string())]),
        st.fixed_dictionaries({"x": SMALL | st.none(), "y": TEXTS}),
    ),
}


def plain(value: Any) -> Any:
    """Returns what is equal and hashable exactly where values are to be equal."""
    if isinstance(value, float):
        return "NaN" if math.isnan(value) else value + 0.0
    if isinstance(value, dict):
        return tuple((key, plain(one)) for key, one in sorted(value.items()))
    if isinstance(value, list):
        is_map = bool(value) and isinstance(value[0], tuple)
        return tuple(sorted(value)) if is_map else tuple(map(plain, value))
    return value


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_codes_are_equal_exactly_where_values_are(kind: str, data: st.DataObject) -> None:
    type_, values = KINDS[kind]
    drawn = data.draw(st.lists(values | st.none(), max_size=8))
    column = pa.array([None, *drawn], type_).slice(1)
    codes = codes_of([column]).tolist()
    assert min(codes, default=0) >= 0
    keys = [plain(value) for value in drawn]
    for one, code in zip(keys, codes, strict=True):
        for other, second in zip(keys, codes, strict=True):
            assert (one == other) == (code == second)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_hashes_of_equal_values_are_equal_in_any_batch(kind: str, data: st.DataObject) -> None:
    type_, values = KINDS[kind]
    drawn = data.draw(st.lists(values | st.none(), min_size=1, max_size=8))
    together = hashes_of([pa.array(drawn, type_)]).tolist()
    alone = [int(hashes_of([pa.array([value], type_)])[0]) for value in drawn]
    assert together == alone
    found: dict[Any, int] = {}
    for value, number in zip(drawn, together, strict=True):
        assert found.setdefault(plain(value), number) == number


@given(st.lists(st.tuples(st.none() | TEXTS, SMALL | st.none()), max_size=8))
def test_rows_are_equal_where_all_their_columns_are(rows: list[tuple[Any, Any]]) -> None:
    columns = [
        pa.array([row[0] for row in rows], pa.string()),
        pa.array([row[1] for row in rows], pa.int8()),
    ]
    codes = codes_of(columns).tolist()
    assert len(set(codes)) == len(set(rows))
    assert len(set(zip(codes, rows, strict=True))) == len(set(rows))


def test_what_is_no_number_is_equal_whatever_its_bits() -> None:
    bits = np.array([0x7FF8000000000000, 0xFFF8000000000001], np.uint64)
    column = pa.array(bits.view(np.float64))
    assert len(set(codes_of([column]).tolist())) == len(set(hashes_of([column]).tolist())) == 1


def test_maps_are_equal_whatever_the_order_of_their_entries() -> None:
    entries = [[("a", 1), ("b", 2)], [("b", 2), ("a", 1)], [("a", 2), ("b", 1)]]
    column = pa.array(entries, pa.map_(pa.string(), pa.int64()))
    for numbers in (codes_of([column]).tolist(), hashes_of([column]).tolist()):
        assert numbers[0] == numbers[1] != numbers[2]


def test_hashes_spread_over_parts() -> None:
    numbers = np.bincount(hashes_of([pa.array(range(10_000))]) % 16, minlength=16)
    texts = np.bincount(hashes_of([pa.array(list(map(str, range(10_000))))]) % 16, minlength=16)
    assert numbers.min() > 500
    assert texts.min() > 500


NUMBERS = st.lists(st.integers(0, 4), max_size=20).map(lambda rows: np.array(rows, np.int64))


@given(NUMBERS, NUMBERS)
def test_of_equal_rows_as_many_are_paired_as_both_have(a: Any, b: Any) -> None:
    pairs = pair(a, b)
    assert a[pairs.a].tolist() == b[pairs.b].tolist()
    assert len(set(pairs.a.tolist())) == len(set(pairs.b.tolist())) == len(pairs.a)
    both = Counter(a.tolist()) & Counter(b.tolist())
    assert Counter(a[pairs.a].tolist()) == both
    assert pairs.a.tolist() == sorted(pairs.a.tolist())
    assert sorted([*pairs.b.tolist(), *unpaired(pairs.b, len(b)).tolist()]) == list(range(len(b)))


@given(st.data())
def test_rows_that_are_equal_throughout_meet_first(data: st.DataObject) -> None:
    rows = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=15)
    a, b = data.draw(rows), data.draw(rows)
    keys = [np.array([row[0] for row in side], np.int64) for side in (a, b)]
    full = [np.array([row[0] * 3 + row[1] for row in side], np.int64) for side in (a, b)]
    pairs = pair_alike_first(*keys, *full)
    assert len(pairs.a) == len(pair(*keys).a)
    assert keys[0][pairs.a].tolist() == keys[1][pairs.b].tolist()
    alike = sum(full[0][pairs.a] == full[1][pairs.b])
    assert alike == sum((Counter(full[0].tolist()) & Counter(full[1].tolist())).values())


@given(NUMBERS, NUMBERS)
def test_a_number_is_repeated_if_two_rows_of_one_side_have_it(a: Any, b: Any) -> None:
    found = repeated(a, b)
    times = [Counter(side.tolist()) for side in (a, b)]
    for number in {*a.tolist(), *b.tolist()}:
        assert found[number] == (max(one[number] for one in times) > 1)
