from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import sparkinfer.report.survey
from sparkinfer.api import functions
from sparkinfer.cli import main
from sparkinfer.config import ScoringConfig
from sparkinfer.report.status import describe_status, read_status
from tests.made_up_engine import job_of_eighty_rows, run_made_up
from tests.written import (
    edit_manifest,
    edit_record,
    manifest_path,
    manifest_values,
    records_of,
)

FINISHED = "rows       80 of 80 (100.0%), 4 of 4 chunks"


@pytest.fixture
def config(classifier: Path, tmp_path: Path) -> ScoringConfig:
    return job_of_eighty_rows(classifier, tmp_path)


@pytest.fixture
def output(config: ScoringConfig) -> Path:
    """The output of a finished run with metrics."""
    return Path(run_made_up(config).output)


def change_settings(output: Path, **settings: Any) -> None:
    edit_manifest(output, settings={**manifest_values(output)["settings"], **settings})


def test_a_metric_of_the_users_is_not_imported_and_the_others_are_shown(output: Path) -> None:
    change_settings(output, metrics=["absent_module:TopTwo"])
    status = read_status(str(output))
    assert status.metrics["labelled_rows"] > 0
    shown = describe_status(status)
    assert FINISHED in shown
    assert "metric 'absent_module:TopTwo': shown by the run itself" in shown


def test_metrics_of_a_task_that_is_not_here_are_shown_by_the_run_itself(output: Path) -> None:
    change_settings(output, task="absent-task", metrics=["absent_module:TopTwo"])
    status = read_status(str(output))
    assert status.metrics == {}
    assert status.metrics_of_run == (
        "metrics of task 'absent-task'",
        "metric 'absent_module:TopTwo'",
    )
    assert FINISHED in describe_status(status)


def test_one_error_is_one_row(output: Path) -> None:
    status = read_status(str(output))
    shown = [describe_status(replace(status, errors=errors)) for errors in (1, 2)]
    assert "\nerrors     1 row\n" in shown[0]
    assert "\nerrors     2 rows\n" in shown[1]


def test_a_run_without_labels_has_no_metrics_to_tell_of(output: Path) -> None:
    change_settings(output, task="absent-task", label_col=None)
    assert read_status(str(output)).metrics_of_run == ()


@pytest.mark.parametrize("state", [{}, {"groups": 3}, None, {"accuracy": 1, "labels": {}}])
def test_records_whose_metrics_make_no_sense_still_count(output: Path, state: Any) -> None:
    metrics = records_of(output)[1].metrics
    edit_record(output, 1, metrics={**metrics, "labels": state})
    status = read_status(str(output))
    assert (status.rows, status.chunks) == (80, 4)
    assert status.state == "finished"
    assert status.metrics == {} or status.metrics["labelled_rows"] > 0
    assert FINISHED in describe_status(status)


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has Ctrl-C end every run at its start."""

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(functions, "run_job", interrupt)


def score(config: ScoringConfig, *more: str) -> int:
    given = ["score", "--engine", "local", "--progress", "none", "--input", str(config.input)]
    given += ["--output", str(config.output), "--model", config.model, "--input-col", "text"]
    return main([*given, *more])


def test_a_stopped_run_says_what_is_done_though_the_output_names_what_is_not_here(
    output: Path, config: ScoringConfig, stopped: None, capsys: pytest.CaptureFixture[str]
) -> None:
    change_settings(output, task="absent-task", metrics=["absent_module:TopTwo"])
    assert score(config) == 130
    assert capsys.readouterr().err == (
        "sparkinfer: stopped; 4 of 4 chunks are done. Run the same command to resume\n"
    )


def test_a_stopped_run_says_that_nothing_is_done_only_where_no_run_has_written(
    config: ScoringConfig, stopped: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(config) == 130
    assert capsys.readouterr().err == "sparkinfer: stopped; nothing was done yet\n"


def test_a_stopped_run_whose_manifest_is_damaged_says_so_with_its_path(
    output: Path, config: ScoringConfig, stopped: None, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = manifest_path(output)
    manifest.write_text("{")
    assert score(config) == 130
    said = capsys.readouterr().err
    assert said.startswith(f"sparkinfer: stopped; {manifest} is damaged")


def test_a_stopped_run_whose_output_cannot_be_read_says_so_with_its_path(
    output: Path,
    config: ScoringConfig,
    stopped: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(path: str) -> None:
        raise OSError("the store does not answer")

    monkeypatch.setattr(sparkinfer.report.survey, "read_manifest", fail)
    assert score(config) == 130
    said = capsys.readouterr().err
    assert f"stopped; how much of output '{output}' is done cannot be read (" in said
    assert said.endswith("). Run the same command to resume\n")


def test_a_run_that_was_to_replace_another_says_that_it_has_not_yet(
    output: Path, config: ScoringConfig, stopped: None, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_manifest(output, created="2024-01-01T00:00:00+00:00")
    assert score(config, "--overwrite") == 130
    assert capsys.readouterr().err == "sparkinfer: stopped; nothing was replaced yet\n"


def test_a_writer_that_died_is_not_taken_for_alive(output: Path) -> None:
    hold_and_die = (
        "import os, sys; from sparkinfer.jobs.lease import Lease; Lease(sys.argv[1]).acquire(); "
        "os._exit(1)"
    )
    lease = str(output / "_sparkinfer" / "lease")
    assert subprocess.run([sys.executable, "-c", hold_and_die, lease], check=False).returncode == 1
    (output / "_SUCCESS").unlink()
    status = read_status(str(output))
    assert status.writer is not None
    assert status.writer.is_gone
    assert status.state == "ready to finish"
