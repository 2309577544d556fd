"""The loop of a worker, before it has rows and after the last."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sparkinfer.config import ScoringConfig
from sparkinfer.engines.local import LocalEngine
from sparkinfer.exceptions import RowConservationError
from sparkinfer.metrics.measure import Measure
from sparkinfer.rows.columns import Columns
from sparkinfer.rows.scoring_loop import ScoringLoop, Watch
from sparkinfer.rows.writing import ScoredWriter
from sparkinfer.workers.slot import WorkerSlot
from sparkinfer.workers.statistics import ScoringStatistics
from sparkinfer.workers.steps import step
from sparkinfer.workers.watchdog import StallReport

WAIT_S = 60.0


class Reporter:
    def __init__(self) -> None:
        self.closed = 0

    def runs_on(self, host: Any) -> None:
        self.host = host

    def send(self, statistics: ScoringStatistics) -> None:
        pass

    def finish(self, statistics: ScoringStatistics) -> None:
        pass

    def close(self) -> None:
        self.closed += 1


class SlowSpec:
    """Opens once it has been told to hang, in the thread that asked for it."""

    def __init__(self, stalled: threading.Event) -> None:
        self._stalled = stalled

    def open(self, slot: WorkerSlot, report: Any) -> Any:
        with step("loading the model"):
            assert self._stalled.wait(WAIT_S)
        raise RuntimeError(threading.current_thread().name)


def test_a_model_whose_loading_hangs_is_reported_with_its_step_and_stacks() -> None:
    stalled = threading.Event()
    reports: list[StallReport] = []

    def on_stall(report: StallReport) -> None:
        reports.append(report)
        stalled.set()

    spec: Any = SlowSpec(stalled)
    reporter = Reporter()
    loop = ScoringLoop(spec, WorkerSlot("cpu", 1), reporter, Watch(None, on_stall, 0.3))
    with pytest.raises(RuntimeError, match="MainThread"), loop:
        raise AssertionError("there is no processor")
    [report] = reports
    assert report.line.startswith(
        "nothing has moved for 0.3 s in the start of this worker (loading the model); "
    )
    assert "Thread MainThread:\n" in report.stacks
    assert reporter.closed == 1


def test_a_trial_that_hangs_under_local_is_told_on_stderr(
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = ScoringConfig(model="m", input_col="text", device="cpu", step_timeout_s=1)
    said: list[str] = []

    def try_out(slot: WorkerSlot) -> str:
        deadline = time.monotonic() + WAIT_S
        with step("scoring probe texts"):
            while "nothing has moved" not in "".join(said):
                assert time.monotonic() < deadline
                time.sleep(0.05)
                said.append(capsys.readouterr().err)
        return slot.device

    assert LocalEngine(config).on_one_worker(try_out, lambda: None) == "cpu"
    assert "for 1 s in the model's trial (scoring probe texts); " in "".join(said)


class LosesTheLast:
    """Makes something of all rows but the last; a `ProcessorSpec` and its `Processor`."""

    fields = pa.schema(
        [("n_tokens", pa.int32()), ("truncated", pa.bool_()), ("error", pa.string())]
    )

    def __init__(self, replaces_rows: bool) -> None:
        self.replaces_rows = replaces_rows
        self.statistics = ScoringStatistics()

    def open(self, slot: WorkerSlot, report: Any) -> LosesTheLast:
        return self

    def activities(self) -> tuple[None]:
        return (None,)

    def process(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            rows = [{"n_tokens": 1}] * (batch.num_rows - 1)
            yield pa.RecordBatch.from_pylist(rows, schema=self.fields)


@pytest.mark.parametrize("carried", [[], ["text"]])
def test_a_row_that_is_not_scored_is_an_error(tmp_path: Path, carried: list[str]) -> None:
    with pytest.raises(RowConservationError, match="3 rows were read, but 2 were scored"):
        write_three_rows(LosesTheLast(replaces_rows=False), tmp_path, carried)


def test_functions_may_make_fewer_rows(tmp_path: Path) -> None:
    assert write_three_rows(LosesTheLast(replaces_rows=True), tmp_path, []) == (3, 2)


def write_three_rows(spec: Any, folder: Path, carried: list[str]) -> tuple[int, int]:
    """Returns how many rows were read, and how many written."""
    batch = pa.RecordBatch.from_pydict({"text": ["a", "b", "c"]})
    kept = pa.schema([batch.schema.field(name) for name in carried])
    columns = Columns(kept, batch.schema, spec.fields)
    writer = ScoredWriter(str(folder), columns, Measure(None, None, "", (), ("error",)))
    watch = Watch(None, lambda stall: None)
    with ScoringLoop(spec, WorkerSlot("cpu", 1), Reporter(), watch) as loop:
        tally = loop.write("a.parquet", writer, [batch]).tally
    return tally.read, tally.rows


class Counts:
    """Adds columns, and counts rows and seconds as a processor does; see `LosesTheLast`."""

    fields = LosesTheLast.fields
    replaces_rows = False

    def open(self, slot: WorkerSlot, report: Any) -> Counts:
        self.statistics = ScoringStatistics()
        return self

    def activities(self) -> tuple[None]:
        return (None,)

    def process(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            self.statistics.rows += batch.num_rows
            self.statistics.forward_s += 0.25
            rows = [{"n_tokens": 1}] * batch.num_rows
            yield pa.RecordBatch.from_pylist(rows, schema=self.fields)


def test_each_file_is_told_its_share_of_what_the_worker_took(tmp_path: Path) -> None:
    spec: Any = Counts()
    batch = pa.RecordBatch.from_pydict({"text": ["a", "b", "c"]})
    columns = Columns(pa.schema([]), batch.schema, spec.fields)
    writer = ScoredWriter(str(tmp_path), columns, Measure())
    slot, reporter = WorkerSlot("cpu", 1), Reporter()
    with ScoringLoop(spec, slot, reporter, Watch(None, lambda stall: None)) as loop:
        files = [loop.write(f"{n}.parquet", writer, [batch] * n) for n in (2, 0, 1)]
    shares = [file.tally.statistics for file in files]
    assert [(share.rows, share.forward_s) for share in shares] == [(6, 0.5), (0, 0), (3, 0.25)]
    assert shares[0].load_s > 0 == shares[1].load_s == shares[2].load_s
    total = ScoringStatistics()
    for share in shares:
        total.add(share)
    assert total.as_dict() == pytest.approx(spec.statistics.as_dict())
    assert [file.tally.devices for file in files] == [{slot.device_name: n} for n in (6, 0, 3)]
    assert [sum(file.tally.distributions[""].lengths) for file in files] == [6, 0, 3]
    assert slot.device_name == f"cpu on {reporter.host['name']}"
