from __future__ import annotations

import itertools

from sparkinfer.plan.progress import Progress
from sparkinfer.plan.timeline import FIRST_INTERVAL_S, MOST_POINTS, Timeline


def test_points_that_come_too_soon_are_passed_over_and_the_last_is_always_there() -> None:
    timeline = Timeline()
    timeline.add(0.0, 1)
    timeline.add(FIRST_INTERVAL_S / 2, 2)
    timeline.add(FIRST_INTERVAL_S, 3)
    assert timeline.until(0.3, 4) == ((0.0, 1), (FIRST_INTERVAL_S, 3), (0.3, 4))


def test_a_long_run_has_a_bounded_number_of_points_at_even_distances() -> None:
    timeline = Timeline()
    for second in range(20_000):
        timeline.add(float(second), second * 10)
        assert len(timeline.until(second, 0)) <= MOST_POINTS
    *points, last = timeline.until(20_000.0, 200_000)
    assert last == (20_000.0, 200_000)
    assert all(rows == at_s * 10 for at_s, rows in points)
    steps = {later - sooner for (sooner, _), (later, _) in itertools.pairwise(points)}
    assert len(steps) == 1
    assert len(points) > MOST_POINTS / 4


def test_a_progress_has_the_rows_by_time_those_before_the_run_included() -> None:
    now = [100.0]
    progress = Progress(50, 4, clock=lambda: now[0])
    progress.skip(10, 1)
    for _ in range(3):
        now[0] += 2.0
        progress.commit(10, 1)
    now[0] += 1.0
    progress.end()
    now[0] += 60.0
    assert progress.timeline == ((2.0, 20), (4.0, 30), (6.0, 40), (7.0, 40))
    assert progress.committed == (30, 3)
