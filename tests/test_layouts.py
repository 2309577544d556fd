"""Outputs that earlier versions have begun are gone on with, and read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pyarrow.dataset as pads
import pytest

import sparkinfer
from sparkinfer.demo import demo_config
from sparkinfer.jobs import lease
from sparkinfer.report.status import read_status

OUTPUTS = Path(__file__).parent / "outputs"


@pytest.fixture(params=["layout2"])
def layout(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of what a version has left, about an input of the test's own."""
    folder = shutil.copytree(OUTPUTS / request.param, tmp_path / request.param)
    os.utime(folder / "in" / "reviews.parquet", (1700000000, 1700000000))
    for manifest in folder.glob("*/_sparkinfer/manifest*.json"):
        text = manifest.read_text().replace("/tmp/fx/in", str(folder / "in"))
        manifest.write_text(text)
    return folder


def config_of(layout: Path, output: str) -> sparkinfer.ScoringConfig:
    return demo_config(str(layout / output), engine="local").replace(
        input=str(layout / "in" / "reviews.parquet"),
        chunks={"target_rows": 10},
        device="cpu",
        dtype="float32",
        acceleration="none",
    )


def ids_of(layout: Path, output: str) -> list[int]:
    rows = pads.dataset(layout / output, format="parquet").to_table(columns=["id"])
    return sorted(rows["id"].to_pylist())


def test_what_is_finished_has_nothing_to_do(layout: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in (layout / "finished").iterdir()}
    ids = ids_of(layout, "finished")
    assert len(ids) == 40
    result = sparkinfer.run(config_of(layout, "finished"))
    assert (result.rows, result.rows_before, result.error_rows) == (40, 40, 5)
    assert result.metrics["accuracy"] == pytest.approx(0.942857, abs=1e-6)
    assert ids_of(layout, "finished") == ids
    after = {path.name: path.stat().st_mtime_ns for path in (layout / "finished").iterdir()}
    assert {name: after[name] for name in before if name != "_sparkinfer"} == {
        name: before[name] for name in before if name != "_sparkinfer"
    }


def test_what_is_half_done_is_gone_on_with(layout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of four chunks are recorded, a third one's file is where readers look."""
    monkeypatch.setattr(lease, "LOST_AFTER_S", 0.5)
    result = sparkinfer.run(config_of(layout, "half-done"))
    assert (result.rows, result.rows_before, result.error_rows) == (40, 20, 5)
    assert ids_of(layout, "half-done") == ids_of(layout, "finished")
    assert (layout / "half-done" / "_SUCCESS").exists()
    assert sparkinfer.run(config_of(layout, "half-done")).rows_before == 40


def test_errors_in_it_are_retried(layout: Path) -> None:
    result = sparkinfer.run(config_of(layout, "finished").replace(retry_errors=True))
    assert (result.retried_rows, result.error_rows) == (0, 5)


def test_it_is_overwritten(layout: Path) -> None:
    result = sparkinfer.run(config_of(layout, "finished").replace(overwrite=True))
    assert (result.rows, result.rows_before) == (40, 0)
    assert len(ids_of(layout, "finished")) == 40


@pytest.mark.parametrize(("output", "state"), [("finished", "finished"), ("half-done", "broken")])
def test_status_reads_it(layout: Path, output: str, state: str) -> None:
    status = read_status(str(layout / output))
    done = 4 if output == "finished" else 2
    assert status.state.startswith(state)
    assert (status.chunks, status.total_chunks, status.rows) == (done, 4, 10 * done)
    assert status.metrics["labelled_rows"] == status.rows - status.errors
