"""The report that a run leaves, with no model: what a run does is that of a made-up engine."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import fsspec
import pytest

import sparkinfer.api.functions
import sparkinfer.report.page
from sparkinfer.api.functions import run
from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import ResumeError
from sparkinfer.jobs.error_limit import TooManyErrorsError
from sparkinfer.jobs.summary import summarize
from sparkinfer.report.page import report_at_end, write_report
from tests.made_up_engine import MadeUpEngine, job_of_eighty_rows
from tests.made_up_facts import facts
from tests.parsed_page import Page


@pytest.fixture(autouse=True)
def _reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has runs write reports, which they do not in other tests, and score without a model."""
    monkeypatch.setattr(sparkinfer.api.functions, "report_at_end", report_at_end)
    monkeypatch.setattr(sparkinfer.api.functions, "make_engine", lambda c, spark: MadeUpEngine(c))


@pytest.fixture
def config(classifier: Path, tmp_path: Path) -> ScoringConfig:
    return job_of_eighty_rows(classifier, tmp_path)


def page_in(config: ScoringConfig) -> Path:
    return Path(str(config.output)) / "_sparkinfer" / "report.html"


def text_of(config: ScoringConfig) -> str:
    return Page(page_in(config).read_text(encoding="utf-8")).text


def broken_off(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Has the engine raise before the third chunk."""

    def stop(task: Any) -> None:
        if task.chunk.number == 2:
            raise error

    def make(config: ScoringConfig, spark: Any) -> MadeUpEngine:
        return MadeUpEngine(config, before_chunk=stop)

    monkeypatch.setattr(sparkinfer.api.functions, "make_engine", make)


def test_a_run_ends_with_its_report(config: ScoringConfig) -> None:
    result = run(config)
    assert result.report == str(page_in(config))
    assert str(page_in(config)) in summarize(result)
    said = text_of(config)
    assert "All 80 rows are done, 12 of them with an error." in said
    for part in ("Calibration", "ROC", "Predicted labels", "text is null", "Call"):
        assert part in said


def test_a_run_that_is_told_to_leaves_none(config: ScoringConfig) -> None:
    result = run(config.replace(report=False))
    assert result.report is None
    assert not page_in(config).exists()
    assert "report.html" not in summarize(result)


def test_a_run_that_goes_on_tells_of_both_calls(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken_off(monkeypatch, KeyboardInterrupt())
    with caplog.at_level(logging.INFO), pytest.raises(KeyboardInterrupt):
        run(config)
    assert str(page_in(config)) in caplog.text
    said = text_of(config)
    assert "40 of 80 rows (50.0 %) are done" in said
    assert "Go on where it was" in said
    monkeypatch.undo()
    monkeypatch.setattr(sparkinfer.api.functions, "report_at_end", report_at_end)
    monkeypatch.setattr(sparkinfer.api.functions, "make_engine", lambda c, spark: MadeUpEngine(c))
    run(config)
    said = text_of(config)
    assert "stopped" in said
    assert "All 80 rows are done" in said


def test_a_run_that_fails_leaves_a_report_of_what_was_done(config: ScoringConfig) -> None:
    with pytest.raises(TooManyErrorsError):
        run(config.replace(max_error_rows="3"))
    said = text_of(config)
    assert "The last call failed" in said
    assert "--retry-errors" in said


def test_a_call_that_is_refused_writes_nothing(config: ScoringConfig) -> None:
    run(config)
    before = page_in(config).stat().st_mtime_ns
    with pytest.raises(ResumeError):
        run(config.replace(output_prefix="other_"))
    assert page_in(config).stat().st_mtime_ns == before


def failing(*args: Any) -> str:
    raise RuntimeError("no picture today")


def test_a_report_that_fails_is_a_warning_and_the_run_is_done(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sparkinfer.report.page, "page_of", failing)
    with caplog.at_level(logging.WARNING):
        result = run(config)
    assert (result.rows, result.report) == (80, None)
    assert "no picture today" in caplog.text
    assert (Path(result.output) / "_SUCCESS").exists()


def test_a_run_before_its_manifest_has_no_report(tmp_path: Path) -> None:
    assert report_at_end(ScoringConfig(model="m", input_col="t", output=str(tmp_path))) is None


def test_a_report_goes_where_the_output_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparkinfer.report.page, "read_facts", lambda output: facts())
    report = write_report("memory://bucket/scored")
    assert report.path == "memory://bucket/scored/_sparkinfer/report.html"
    with fsspec.open(report.path, encoding="utf-8", mode="rt") as file:
        assert file.read() == report.page
