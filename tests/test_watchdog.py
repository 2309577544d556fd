from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pytest

from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import ConfigError
from sparkinfer.models.running import RunningModel
from sparkinfer.models.scorer import Scorer
from sparkinfer.workers import watchdog
from sparkinfer.workers.watchdog import Activity, ForwardPass, StallReport, Tokenising, Watchdog
from tests.test_scorer import as_rows, scorer_of

TIMEOUT_S = 0.5
WAIT_S = 20.0


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "watchdog" in thread.name]


def watch(scorer: Scorer, told: list[StallReport]) -> Watchdog:
    return Watchdog(scorer.activities, TIMEOUT_S, told.append, "chunk 12 task 1")


def test_a_stall_is_told_once_with_what_hangs_for_how_long_and_where() -> None:
    now: list[Activity | None] = [ForwardPass(32, 512)]
    told: list[StallReport] = []
    with Watchdog(lambda: now, TIMEOUT_S, told.append, "chunk 12 task 1"):
        wait_until(lambda: bool(told))
        time.sleep(3 * TIMEOUT_S)
        assert len(told) == 1
        now[0] = ForwardPass(32, 512)  # alike, yet another batch
        wait_until(lambda: len(told) == 2)
    assert threads() == []
    assert told[0].line.startswith(
        "no progress for 0.5 s in the forward pass of 32 rows of up to 512 tokens "
        "(chunk 12 task 1, process "
    )
    assert "\n" not in told[0].line
    assert str(told[0]).startswith(told[0].line + "\n\nThread ")
    assert "Thread MainThread:\n" in told[0].stacks
    assert "time.sleep(0.01)" in told[0].stacks


def test_work_that_goes_on_or_waits_is_no_stall() -> None:
    told: list[StallReport] = []
    now: list[Activity | None] = [None, None]
    with Watchdog(lambda: now, TIMEOUT_S, told.append):
        time.sleep(2 * TIMEOUT_S)
        for _ in range(60):
            now[0] = ForwardPass(1, 8)
            time.sleep(TIMEOUT_S / 30)
            now[0] = None
    assert told == []


def test_time_in_which_the_whole_process_stood_still_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter(range(0, 10**9, 1000))
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: float(next(clock)))
    looks: list[None] = []
    told = threading.Event()
    activity = ForwardPass(1, 8)

    def activities() -> list[Activity | None]:
        looks.append(None)
        return [activity]

    monkeypatch.setattr(watchdog, "POLL_S", 0.01)
    with Watchdog(activities, 0.2, lambda report: told.set()):
        told.wait(WAIT_S)
    assert len(looks) > 0.2 / (2 * 0.01)


def test_without_a_timeout_no_thread_is_started() -> None:
    with Watchdog(lambda: [ForwardPass(1, 8)], None, lambda report: None):
        assert threads() == []


def test_a_hanging_forward_pass_is_told(
    model: RunningModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[StallReport] = []
    run = model.run

    def hang(inputs: Any, *_: Any) -> Any:
        wait_until(lambda: bool(told))
        return run(inputs)

    monkeypatch.setattr(model, "run", hang)
    scorer = scorer_of(model)
    with watch(scorer, told):
        [batch] = scorer.process([as_rows(["good", "an awful film"])])
    assert batch.num_rows == 2
    report = told[0]
    assert "in the forward pass of 2 rows of up to 5 tokens (" in report.line
    assert "in hang\n" in report.stacks
    assert scorer.activities() == (None, None)


def test_a_hanging_tokenizer_is_told(model: RunningModel, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[StallReport] = []
    encode = model.encode

    def hang(texts: Any) -> Any:
        wait_until(lambda: bool(told))
        return encode(texts)

    monkeypatch.setattr(model, "encode", hang)
    scorer = scorer_of(model)
    with watch(scorer, told):
        list(scorer.process([as_rows(["good", None, "film" * 10])]))
    report = told[0]
    assert "in the tokenising of 3 rows of up to 40 characters (" in report.line
    assert "Thread sparkinfer-lookahead:\n" in report.stacks
    assert scorer.activities() == (None, None)


def test_input_that_does_not_come_and_a_consumer_that_does_not_take_are_no_stalls(
    model: RunningModel,
) -> None:
    def source() -> Iterator[pa.RecordBatch]:
        for _ in range(3):
            time.sleep(2 * TIMEOUT_S)
            yield as_rows(["good"])

    told: list[StallReport] = []
    scorer = scorer_of(model, window_rows=1)
    list(scorer.process([as_rows(["good"])]))  # the first forward pass may take long
    with watch(scorer, told):
        for _ in scorer.process(source()):
            time.sleep(2 * TIMEOUT_S)
    assert told == []


def test_no_activity_is_left_behind_by_an_error(
    model: RunningModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(texts: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "encode", fail)
    scorer = scorer_of(model)
    with pytest.raises(KeyboardInterrupt):
        list(scorer.process([as_rows(["good"])]))
    assert scorer.activities() == (None, None)


def test_an_activity_says_one_row() -> None:
    assert str(ForwardPass(1, 7)) == "the forward pass of 1 row of up to 7 tokens"
    assert (
        str(Tokenising(pa.array([None], pa.string())))
        == "the tokenising of 1 row of up to 0 characters"
    )


@pytest.mark.parametrize(
    "column",
    [
        pa.array([7, 8]),
        pa.array([True, None]),
        pa.array(["a", "b"]).dictionary_encode(),
        pa.array([[{"role": "user", "content": "a"}], None]),
    ],
    ids=["number", "boolean", "dictionary", "messages"],
)
def test_a_stall_over_what_is_no_text_by_itself_is_reported(column: pa.Array) -> None:
    assert str(Tokenising(column)) == "the tokenising of 2 rows"


@pytest.mark.parametrize(
    "tell", ["lambda: print('why')", "lambda: 1 / 0", "lambda: time.sleep(60)"]
)
def test_the_process_ends_whatever_its_threads_and_its_last_word_do(tell: str) -> None:
    code = (
        "import threading, time\n"
        "from sparkinfer.workers import watchdog\n"
        "watchdog.LAST_WORD_S = 0.3\n"
        "threading.Thread(target=time.sleep, args=[60]).start()\n"
        f"threading.Thread(target=watchdog.end_process, args=[{tell}]).start()\n"
        "time.sleep(60)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30)
    assert ended.returncode == 1


@pytest.mark.parametrize("value", [0, -1, 1.5])
def test_a_timeout_below_a_second_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=f"stall_timeout_s={value}: expected"):
        ScoringConfig(model="m", input_col="text", stall_timeout_s=value)


def test_no_timeout_can_be_asked_for() -> None:
    override = ["stall_timeout_s=null"]
    config = ScoringConfig.load(None, override, model="m", input_col="text")
    assert config.stall_timeout_s is None
