"""What a scorer did, where its time went, and the sum over workers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sparkinfer.models.backends import PLAIN
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.running import RunningModel, load_way
from sparkinfer.models.scorer import Scorer
from sparkinfer.workers.statistics import ScoringStatistics, read_statistics
from tests.model_options import options_of


@pytest.mark.parametrize(
    ("seconds", "slowest", "share"),
    [
        ({"forward_s": 9.0, "wait_s": 1.0, "tokenize_s": 4.0}, "forward", 0.9),
        ({"forward_s": 2.0, "wait_s": 8.0, "tokenize_s": 9.5, "read_s": 0.5}, "tokenising", 0.95),
        ({"forward_s": 2.0, "wait_s": 8.0, "tokenize_s": 1.0, "read_s": 9.0}, "reading", 0.9),
        ({"forward_s": 2.0, "write_s": 9.0, "write_wait_s": 8.0}, "writing", 0.9),
        ({"forward_s": 1.0, "decode_s": 3.0}, "decoding", 0.75),
        ({"forward_s": 1.0, "read_s": 5.0}, "reading", 1.0),
    ],
)
def test_the_bottleneck_is_the_step_that_takes_most_of_the_time(
    seconds: dict[str, float], slowest: str, share: float
) -> None:
    assert ScoringStatistics(**seconds).bottleneck == (slowest, pytest.approx(share))


def test_nothing_has_no_bottleneck() -> None:
    assert ScoringStatistics().bottleneck is None


def test_the_bottleneck_of_workers_is_that_of_their_sum() -> None:
    total = ScoringStatistics(forward_s=1.0, wait_s=0.5)
    total.add(ScoringStatistics(decode_s=2.5))
    assert total.bottleneck == ("decoding", pytest.approx(2.5 / 4))


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.mark.parametrize("step", ["reading", "tokenising", "forward", "decoding"])
def test_each_step_of_a_scorer_is_timed(
    classifier: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    clock = Clock()
    for module in ("sparkinfer.models.scorer", "sparkinfer.models.window_loop"):
        monkeypatch.setattr(f"{module}.time", clock)
    model = load_way(Checkpoint(classifier, options_of(), "cpu"), PLAIN)
    scorer = Scorer(model, options_of())

    def slow(name: str, act: Any) -> Any:
        def acting(*args: Any, **more: Any) -> Any:
            clock.now += 1.0 * (name == step)
            return act(*args, **more)

        return acting

    def rows() -> Iterator[pa.RecordBatch]:
        clock.now += 1.0 * (step == "reading")
        yield pa.RecordBatch.from_pydict({"text": ["good", "bad"]})

    monkeypatch.setattr(scorer.encoder, "encode", slow("tokenising", scorer.encoder.encode))
    monkeypatch.setattr(RunningModel, "run", slow("forward", RunningModel.run))
    monkeypatch.setattr(RunningModel, "decode", slow("decoding", RunningModel.decode))
    assert sum(batch.num_rows for batch in scorer.process(rows())) == 2
    taken = {
        "reading": scorer.statistics.read_s,
        "tokenising": scorer.statistics.tokenize_s,
        "forward": scorer.statistics.forward_s,
        "decoding": scorer.statistics.decode_s,
    }
    assert taken.pop(step) == 1.0
    assert not any(taken.values())


def test_statistics_come_back_from_their_state_and_unknown_figures_are_left_out() -> None:
    found = ScoringStatistics(rows=3, forward_s=0.1234567)
    assert found.state() == {"rows": 3, "forward_s": 0.123457}
    assert read_statistics({**found.state(), "of_a_later_version": 1}) == ScoringStatistics(
        rows=3, forward_s=0.123457
    )
    assert read_statistics({}) == ScoringStatistics()


def test_what_was_added_since_a_moment_is_the_difference() -> None:
    before = ScoringStatistics(rows=3, wait_s=0.5)
    assert ScoringStatistics(rows=5, wait_s=0.75, batches=1).since(before) == ScoringStatistics(
        rows=2, wait_s=0.25, batches=1
    )
