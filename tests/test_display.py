import io
import json
import os
import re
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

import pytest

from sparkinfer import display
from sparkinfer.display import (
    as_event,
    as_html,
    describe,
    describe_devices,
    live_display,
)
from sparkinfer.exceptions import ConfigError
from sparkinfer.plan import phases
from sparkinfer.plan.phases import CHECKS, GATE, LOAD, PHRASES, PREPARE, PUBLISH, SCORE, SESSION
from sparkinfer.plan.progress import Progress
from sparkinfer.plan.wording import format_rate, format_seconds
from sparkinfer.workers.channel import WorkerReport
from sparkinfer.workers.statistics import ScoringStatistics


class Clock:
    """A clock that moves when a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Stream(io.StringIO):
    """A stream that says when a text was written to it; as a terminal, a fake one."""

    def __init__(self, awaited: str, *, terminal: bool) -> None:
        super().__init__()
        self._awaited = awaited
        self._terminal = terminal
        self.seen = threading.Event()

    def write(self, text: str) -> int:
        written = super().write(text)
        if self._awaited in self.getvalue():
            self.seen.set()
        return written

    def isatty(self) -> bool:
        return self._terminal


class BrokenStream(io.StringIO):
    """A stream whose reader has gone, as that of a closed pipe or terminal."""

    def __init__(self, error: Exception, *, terminal: bool) -> None:
        super().__init__()
        self._error = error
        self._terminal = terminal
        self.tried = threading.Event()

    def write(self, text: str) -> int:
        self.tried.set()
        raise self._error

    def isatty(self) -> bool:
        return self._terminal


@pytest.fixture(autouse=True)
def _short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BAR", "NOTEBOOK", "LINES", "JSON"):
        monkeypatch.setattr(display, f"{name}_INTERVAL_S", 0.01)
    monkeypatch.setattr(display, "SHOWN_AFTER_S", 1.0)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")


def report(worker: str, rows: int, device: str = "cpu on here") -> WorkerReport:
    return WorkerReport(worker, 0, device, ScoringStatistics(rows=rows, errors=1))


def scoring(total_rows: int | None = 100, rows: int = 40) -> Progress:
    progress = Progress(total_rows=total_rows)
    progress.enter(SCORE)
    progress.update(report("chunk 0 task 0", rows))
    return progress


def test_a_line_says_all_that_is_known() -> None:
    progress = Progress(total_rows=10_000, total_chunks=10, clock=(clock := Clock()))
    progress.skip(2000, 2)
    for rows in range(100, 2100, 100):
        clock.now += 1
        statistics = ScoringStatistics(rows=rows, errors=3, tokens=96, padded_tokens=100)
        progress.update(WorkerReport("chunk 2 task 0", 0, "cpu", statistics))
    progress.commit(1000, 1)
    assert describe(progress.state()) == (
        "4,000 of 10,000 rows (2,000 by an earlier run), 3 of 10 chunks, "
        "100 rows/s (100 rows/s now), 1 min 0 s left, 3 with an error, 4.0% padding"
    )


def test_what_is_not_known_is_left_out_of_the_line() -> None:
    assert describe(scoring(None, 1234).state()) == "1,234 rows, 1 with an error"


@pytest.mark.parametrize(
    ("phase", "text"),
    [
        (SESSION, "starting Spark"),
        (GATE, "trying the model out"),
        (PREPARE, "tokenising the input"),
        (LOAD, "loading the model"),
    ],
)
def test_before_the_first_row_the_line_says_what_is_waited_for(phase: str, text: str) -> None:
    progress = Progress(total_rows=100, clock=(clock := Clock()))
    progress.skip(50, 1)
    progress.enter(phase)
    assert describe(progress.state()) == text
    clock.now += 75
    assert describe(progress.state()) == f"{text} (1 min 15 s)"


def test_devices_have_a_line_each_up_to_a_limit() -> None:
    progress = Progress()
    for number in range(20):
        progress.update(report(f"task {number}", 10, f"cuda:0 on node{number:02d}"))
    lines = describe_devices(progress.state())
    assert lines[0] == "cuda:0 on node00: 10 rows, 0 rows/s now"
    assert len(lines) == 17
    assert lines[-1] == "and 4 more devices"


def test_durations_are_written_for_people() -> None:
    assert [format_seconds(s) for s in (0.4, 59, 61, 3700)] == [
        "0 s", "59 s", "1 min 1 s", "1 h 1 min",
    ]  # fmt: skip


def test_elsewhere_than_in_a_terminal_plain_lines_are_printed() -> None:
    stream = Stream("40 of 100 rows", terminal=False)
    with live_display(scoring(), stream=stream):
        assert stream.seen.wait(5)
    assert stream.getvalue().startswith("sparkinfer: running on cpu on here\n")
    assert stream.getvalue().count("running on") == 1
    assert "\x1b" not in stream.getvalue()


def test_the_last_line_is_of_the_end() -> None:
    progress = scoring()
    stream = Stream("40 of 100 rows", terminal=False)
    with live_display(progress, "lines", stream):
        assert stream.seen.wait(5)
        progress.update(report("chunk 0 task 0", 100))
        progress.end()
    assert stream.getvalue().splitlines()[-1].startswith("sparkinfer: 100 of 100 rows")


def test_a_terminal_shows_a_bar_with_devices() -> None:
    stream = Stream("cpu on here: 40 rows", terminal=True)
    with live_display(scoring(), stream=stream):
        assert stream.seen.wait(5)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert "40%" in text
    assert "40 of 100 rows, " in text
    assert stream.getvalue().endswith("\x1b[?25h")  # the cursor is shown again


def test_a_terminal_shows_a_bar_without_a_total() -> None:
    stream = Stream("40 rows", terminal=True)
    with live_display(scoring(None), stream=stream):
        assert stream.seen.wait(5)
    assert "%" not in stream.getvalue()


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Stream("sparkinfer: 40 of 100 rows", terminal=True)
    with live_display(scoring(), stream=stream):
        assert stream.seen.wait(5)
    assert "\x1b" not in stream.getvalue()


def test_a_bar_does_not_keep_what_goes_to_standard_output(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stream = Stream("40%", terminal=True)
    with live_display(scoring(), stream=stream):
        assert stream.seen.wait(5)
        print("a row")
    assert capsys.readouterr().out == "a row\n"
    assert "a row" not in stream.getvalue()


def test_each_line_of_json_can_be_read_by_itself() -> None:
    progress = Progress(total_rows=100, total_chunks=4)
    progress.skip(25, 1)
    progress.enter(SCORE)
    progress.update(report("chunk 1 task 0", 10, 'cuda:0 on "a"\nb'))
    stream = Stream("\n", terminal=True)
    with live_display(progress, "json", stream):
        assert stream.seen.wait(5)
        progress.commit(25, 2)
        progress.end()
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [event["event"] for event in events[:-1]] == ["progress"] * (len(events) - 1)
    first, last = events[0], events[-1]
    assert first["phase"] == SCORE
    assert first["devices"] == [{"device": 'cuda:0 on "a"\nb', "rows": 10, "rows_per_s": 0.0}]
    assert first["eta_s"] is None
    assert (last["event"], last["phase"]) == ("end", "")
    assert (last["rows"], last["total_rows"], last["skipped_rows"]) == (50, 100, 25)
    assert (last["chunks"], last["total_chunks"], last["errors"]) == (2, 4, 2)
    assert set(last) == {
        "event", "phase", "phase_s", "elapsed_s", "rows", "total_rows", "skipped_rows", "chunks",
        "total_chunks", "rows_per_s", "rows_per_s_now", "eta_s", "errors", "padding_share",
        "devices", "bottleneck",
    }  # fmt: skip


def test_json_holds_all_devices() -> None:
    progress = Progress()
    for number in range(20):
        progress.update(report(f"task {number}", 10, f"cuda:0 on node{number:02d}"))
    assert len(as_event(progress.state(), "end")["devices"]) == 20


def test_the_end_is_told_also_where_the_run_fails() -> None:
    stream = Stream("", terminal=False)
    with pytest.raises(RuntimeError, match="boom"), live_display(scoring(), "json", stream):
        raise RuntimeError("boom")
    assert json.loads(stream.getvalue().splitlines()[-1])["event"] == "end"


def test_no_display_writes_nothing() -> None:
    stream = Stream("", terminal=True)
    with live_display(scoring(), "none", stream):
        pass
    assert stream.getvalue() == ""


def test_a_process_without_standard_error_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with live_display(scoring()):
        pass


def test_an_unknown_mode_is_refused() -> None:
    mode: Any = "loud"
    with (
        pytest.raises(ConfigError, match="'loud' is unknown; use one of auto, bar, lines"),
        live_display(scoring(), mode, Stream("", terminal=False)),
    ):
        pass


@pytest.mark.parametrize("mode", ["bar", "lines", "json"])
@pytest.mark.parametrize(
    "error",
    [BrokenPipeError(32, "Broken pipe"), OSError(5, "Input/output error"), ValueError("closed")],
)
def test_a_stream_that_breaks_does_not_stop_the_run(
    mode: Any, error: Exception, capfd: pytest.CaptureFixture[str]
) -> None:
    before = sys.stdout, sys.stderr
    stream = BrokenStream(error, terminal=mode == "bar")
    with live_display(scoring(), mode, stream):
        assert stream.tried.wait(5)
    assert (sys.stdout, sys.stderr) == before
    os.write(1, b"the summary\n")  # rich would have pointed this at /dev/null
    assert capfd.readouterr() == ("the summary\n", "")


@pytest.mark.parametrize("mode", ["auto", "lines", "json"])
def test_a_stream_that_is_closed_before_does_not_stop_the_run(mode: Any) -> None:
    stream = io.StringIO()
    stream.close()
    with live_display(scoring(), mode, stream):
        pass


def test_a_pipe_without_a_reader_does_not_stop_the_run() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ran = False
    stream = os.fdopen(writing, "w")
    with live_display(scoring(), "json", stream):
        ran = True
    assert ran
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_a_pipe_that_nobody_reads_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "CLOSE_TIMEOUT_S", 0.05)
    release, blocked = threading.Event(), threading.Event()

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            blocked.set()
            release.wait(5)
            return len(text)

    with live_display(scoring(), "lines", Full()):
        assert blocked.wait(5)
    assert not release.is_set()
    release.set()


class FakeHandle:
    """Stands in for IPython's `DisplayHandle`."""

    def __init__(self, shown: list[str], awaited: str) -> None:
        self._shown = shown
        self._awaited = awaited
        self.seen = threading.Event()

    def update(self, page: str) -> None:
        self._shown.append(page)
        if self._awaited in page:
            self.seen.set()


def fake_ipython(
    monkeypatch: pytest.MonkeyPatch, display: Callable[..., Any], *, kernel: bool
) -> None:
    """Puts a fake IPython in place: what is tested is our part, not a notebook."""
    ipython: Any = types.ModuleType("IPython")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=object() if kernel else None)
    module: Any = types.ModuleType("IPython.display")
    module.HTML = str
    module.display = display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", module)


@pytest.mark.parametrize("mode", ["auto", "bar"])
def test_a_notebook_updates_one_output_of_its_cell(
    monkeypatch: pytest.MonkeyPatch, mode: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[str] = []
    threads: list[threading.Thread] = []
    handle = FakeHandle(shown, "40 of 100 rows")

    def display(page: str, *, display_id: bool) -> FakeHandle:
        assert display_id
        threads.append(threading.current_thread())
        return handle

    fake_ipython(monkeypatch, display, kernel=True)
    progress = scoring()
    with live_display(progress, mode):
        assert handle.seen.wait(5)
        progress.update(report("chunk 0 task 0", 100))
    assert threads == [threading.current_thread()]
    assert 'value="100" max="100"' in shown[-1]
    assert "cpu on here: 100 rows" in shown[-1]
    assert capsys.readouterr() == ("", "")


def test_a_notebook_gets_lines_and_json_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_ipython(monkeypatch, pytest.fail, kernel=True)
    stream = Stream('"rows": 40', terminal=False)
    with live_display(scoring(), "json", stream):
        assert stream.seen.wait(5)


def test_ipython_in_a_terminal_is_no_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_ipython(monkeypatch, pytest.fail, kernel=False)
    stream = Stream("40%", terminal=True)
    monkeypatch.setattr(sys, "stderr", stream)
    with live_display(scoring()):
        assert stream.seen.wait(5)


def test_a_notebook_that_cannot_display_does_not_stop_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def display(page: str, *, display_id: bool) -> None:
        raise RuntimeError("no comm")

    fake_ipython(monkeypatch, display, kernel=True)
    with live_display(scoring()):
        pass


def test_texts_in_html_are_escaped() -> None:
    progress = Progress(total_rows=10)
    progress.update(report("task 0", 5, "<script>alert('x')</script> & co"))
    page = as_html(progress.state())
    assert "<script>" not in page
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; co: 5 rows" in page


def test_html_without_a_total_has_a_bar_without_a_value() -> None:
    page = as_html(scoring(None).state())
    assert "<progress style" in page


def starting(phase: str = SESSION) -> Progress:
    progress = Progress()
    progress.enter(phase)
    return progress


def test_every_phase_of_a_run_has_a_phrase() -> None:
    named = {value for name, value in vars(phases).items() if name.isupper() and name != "PHRASES"}
    assert set(PHRASES) == named


def test_json_has_an_event_for_each_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "JSON_INTERVAL_S", 1000.0)
    monkeypatch.setattr(display, "LOOK_INTERVAL_S", 0.01)
    stream = Stream('"phase": "gate"', terminal=False)
    with live_display(progress := starting(), "json", stream):
        progress.enter(GATE)
        assert stream.seen.wait(5)
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [event["event"] for event in events[-2:]] == ["progress", "end"]
    assert events[-2]["rows"] == 0


def test_a_line_says_what_the_run_is_at_before_there_are_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(display, "SHOWN_AFTER_S", 0.0)
    stream = Stream("trying the model out", terminal=False)
    with live_display(progress := starting(), "lines", stream):
        progress.enter(GATE)
        assert stream.seen.wait(5)
    assert re.fullmatch(
        r"sparkinfer: trying the model out \(\d+ s\)", stream.getvalue().split("\n")[-2]
    )


def test_a_phase_gets_its_line_once_it_is_long_and_not_only_at_the_next_interval(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(display, "LINES_INTERVAL_S", 1000.0)
    monkeypatch.setattr(display, "LOOK_INTERVAL_S", 0.01)
    monkeypatch.setattr(display, "SHOWN_AFTER_S", 0.05)
    stream = Stream("starting Spark", terminal=False)
    with live_display(starting(), "lines", stream):
        assert stream.seen.wait(5)


def test_short_phases_get_no_line() -> None:
    progress = Progress(clock=Clock())
    progress.enter(CHECKS)
    stream = Stream("", terminal=False)
    with live_display(progress, "lines", stream):
        progress.enter(SESSION)
    assert stream.getvalue() == ""


def test_a_terminal_shows_what_the_run_is_at_and_nothing_of_it_in_the_end_without_rows() -> None:
    stream = Stream("starting Spark", terminal=True)
    with live_display(starting(), "bar", stream):
        assert stream.seen.wait(5)
    assert "%" not in stream.getvalue()
    assert stream.getvalue().endswith("\x1b[2K")


def test_a_notebook_shows_what_the_run_is_at_and_nothing_of_it_in_the_end_without_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[str] = []
    handle = FakeHandle(shown, "starting Spark")
    fake_ipython(monkeypatch, lambda page, *, display_id: handle, kernel=True)
    with live_display(starting()):
        assert handle.seen.wait(5)
    assert "<progress style" in shown[0]
    assert shown[-1] == ""


def test_rows_stay_while_the_output_is_completed() -> None:
    progress = scoring()
    progress.enter(PUBLISH)
    assert describe(progress.state()) == "40 of 100 rows, 1 with an error, completing the output"


def test_the_bottleneck_is_named() -> None:
    progress = Progress()
    statistics = ScoringStatistics(rows=1, forward_s=9.0, wait_s=1.0)
    progress.update(WorkerReport("task 0", 0, "cpu", statistics))
    assert describe(progress.state()) == "1 rows, bottleneck: the model, 90% of the time"


def test_rates_are_written_for_people() -> None:
    assert [format_rate(rate) for rate in (1020.4, 0.25, 0.0)] == [
        "1,020 rows/s", "0.25 rows/s", "0 rows/s",
    ]  # fmt: skip
