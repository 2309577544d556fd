from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkinfer.engines.isolation import MOST_DEADLY_ROWS, Isolation, deaths_in
from sparkinfer.exceptions import JobError

DIED = "SparkException: Python worker exited unexpectedly (crashed)"


class Scored:
    """Rows that score, but for deadly ones."""

    def __init__(self, deadly: set[int]) -> None:
        self.deadly = deadly
        self.rows: list[int] = []
        self.given_up: list[int] = []
        self.deaths = 0

    def score(self, first: int, rows: int) -> None:
        if self.deadly & set(range(first, first + rows)):
            self.deaths += 1
            raise JobError(DIED)
        self.rows += range(first, first + rows)

    def give_up(self, row: int, reason: str) -> None:
        assert reason == DIED
        self.given_up.append(row)


@given(st.integers(0, 50), st.integers(1, 400), st.sets(st.integers(0, 449), max_size=5))
def test_every_row_is_scored_once_but_for_the_deadly_ones(
    first: int, rows: int, deadly: set[int]
) -> None:
    scored = Scored(deadly)
    Isolation(scored.score, scored.give_up).run(first, rows)
    expected = set(range(first, first + rows))
    assert sorted(scored.rows) == sorted(expected - deadly)
    assert sorted(scored.given_up) == sorted(expected & deadly)


def test_one_deadly_row_among_many_costs_few_deaths() -> None:
    scored = Scored({40_000})
    Isolation(scored.score, scored.give_up).run(0, 1 << 16)
    assert scored.given_up == [40_000]
    assert scored.deaths <= 7


def test_an_error_that_is_no_death_is_raised() -> None:
    def score(first: int, rows: int) -> None:
        raise JobError("the disk is full")

    with pytest.raises(JobError, match="disk is full"):
        Isolation(score, lambda row, reason: None).run(0, 10)


def test_a_row_that_dies_once_is_tried_again() -> None:
    deaths = [3]
    scored: list[int] = []

    def score(first: int, rows: int) -> None:
        if deaths and first <= 3 < first + rows and rows == 1:
            deaths.pop()
            raise JobError(DIED)
        if first <= 3 < first + rows and rows > 1:
            raise JobError(DIED)
        scored.extend(range(first, first + rows))

    Isolation(score, lambda row, reason: pytest.fail("given up")).run(0, 16)
    assert sorted(scored) == list(range(16))


def test_it_is_not_the_rows_fault_if_all_of_them_die() -> None:
    given_up: list[int] = []

    def score(first: int, rows: int) -> None:
        raise JobError(DIED)

    with pytest.raises(JobError, match="die over every row .*not the rows' fault.*memory"):
        Isolation(score, lambda row, reason: given_up.append(row)).run(0, 1 << 20)
    assert len(given_up) == MOST_DEADLY_ROWS


@pytest.mark.parametrize(
    ("text", "deaths"),
    [
        (f"Job aborted: Task 0 in stage 3.0 failed 4 times, most recent failure: {DIED}", 4),
        (f"Job aborted: Task 1 in stage 12.1 failed 1 times, most recent failure: {DIED}", 1),
        (DIED, 1),
        ("Task 0 in stage 3.0 failed 4 times: ExecutorLostFailure (executor 1 exited)", 4),
        ("Task 0 in stage 3.0 failed 4 times: ValueError: no", 0),
        ("failed 1 times: sparkinfer.exceptions.DeviceError: device cuda:0 is broken", 1),
        ("java.net.SocketException: Connection reset\n\tat a.PythonRunner.read", 1),
        ("java.net.SocketException: Connection reset\n\tat org.apache.hadoop.fs.s3a", 0),
    ],
)
def test_deaths_are_told_from_other_failures(text: str, deaths: int) -> None:
    assert deaths_in(JobError(text)) == deaths
    wrapped = JobError("in one line")
    wrapped.__cause__ = RuntimeError(text)
    assert deaths_in(wrapped) == deaths
