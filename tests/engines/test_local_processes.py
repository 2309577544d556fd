"""The local engine with several processes: equal rows to one, and what their deaths cost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.dataset as pads
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sparkinfer
from sparkinfer.config import ScoringConfig
from sparkinfer.engines import local
from sparkinfer.engines.local import LocalEngine
from sparkinfer.engines.local_processes import LocalProcesses
from sparkinfer.engines.this_process import slot_of
from sparkinfer.exceptions import ConfigError, DeviceError, InputError, JobError
from sparkinfer.plan.plan import Workers
from sparkinfer.rows.reading import Piece, share_out
from sparkinfer.workers.slot import WorkerSlot
from tests.engines.test_suite import write
from tests.made_up_functions import MarksItself
from tests.tiny_models import sentences

TWO = Workers("cpu", 2, 1)


@pytest.fixture
def config(classifier: Path, tmp_path: Path) -> ScoringConfig:
    texts = [*sentences(700), None]
    return ScoringConfig(
        model=str(classifier),
        input=str(write(tmp_path / "in.parquet", texts)),
        input_col="text",
        output=str(tmp_path / "out"),
        engine="local",
        num_workers=2,
        dtype="float32",
        chunks={"target_rows": 300},
    )


def rows(config: ScoringConfig) -> pa.Table:
    return pads.dataset(config.output, format="parquet").to_table().sort_by("id")


def test_rows_are_those_of_one_process(config: ScoringConfig, tmp_path: Path) -> None:
    found = sparkinfer.run(config)
    one = config.replace(num_workers=1, output=str(tmp_path / "one"))
    expected = sparkinfer.run(one)
    assert (found.rows, found.error_rows) == (expected.rows, expected.error_rows) == (701, 1)
    mine, theirs = rows(config), rows(one)
    for name in ("id", "prediction", "n_tokens", "error"):
        assert mine[name].equals(theirs[name])
    assert mine["probability"].to_pylist()[:-1] == pytest.approx(
        theirs["probability"].to_pylist()[:-1], abs=1e-5
    )


def test_an_input_without_rows_has_columns(config: ScoringConfig, tmp_path: Path) -> None:
    empty = write(tmp_path / "empty.parquet", [])
    assert sparkinfer.run(config.replace(input=str(empty))).rows == 0
    assert "prediction" in rows(config).column_names


def test_no_process_is_left_and_each_has_a_share(config: ScoringConfig) -> None:
    before = set(psutil.Process().children())
    engine = LocalProcesses(TWO, None)
    first = engine.on_one_worker(_pid, lambda: None)
    assert first in {child.pid for child in psutil.Process().children()}
    engine.close()
    assert set(psutil.Process().children()) <= before


def _pid(slot: WorkerSlot) -> int:
    return os.getpid()


def _die(slot: WorkerSlot) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _refuse(slot: WorkerSlot) -> None:
    raise InputError("it is refused")


def _fail(slot: WorkerSlot) -> None:
    raise KeyError("missing")


def _break(slot: WorkerSlot) -> None:
    raise DeviceError("its accelerator is broken")


@pytest.mark.parametrize(
    ("act", "kind", "said"),
    [
        (_refuse, InputError, "it is refused"),
        (_fail, JobError, "KeyError: 'missing'"),
        (_die, JobError, "the model's trial: its process was ended by SIGKILL"),
        (_break, JobError, "the model's trial: its accelerator is broken"),
    ],
)
def test_what_a_trial_raises_is_raised_here_and_the_next_one_works(
    act: Any, kind: type[Exception], said: str
) -> None:
    engine = LocalProcesses(TWO, None)
    try:
        with pytest.raises(kind, match=said):
            engine.on_one_worker(act, lambda: None)
        assert engine.on_one_worker(_pid, lambda: None) != os.getpid()
    finally:
        engine.close()


_DRIVER = """
import time
from sparkinfer.engines.local_processes import LocalProcesses
from sparkinfer.plan.plan import Workers
engine = LocalProcesses(Workers("cpu", 2, 1), None)
def busy(slot):
    print("started", flush=True)
    time.sleep(3600)
engine.on_one_worker(busy, lambda: None)
"""


def test_processes_end_with_a_driver_that_is_killed_whatever_they_are_at() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == b"started\n"
        started = psutil.Process(driver.pid).children(recursive=True)
        driver.kill()
    assert started
    assert psutil.wait_procs(started, 10)[1] == []


def test_a_class_is_constructed_once_in_each_process(tmp_path: Path) -> None:
    config = ScoringConfig(
        fn=MarksItself,
        input=str(write(tmp_path / "in.parquet", sentences(600))),
        output=str(tmp_path / "out"),
        engine="local",
        num_workers=2,
        chunks={"target_rows": 200},
    )
    assert sparkinfer.run(config).rows == 600
    assert len(set(rows(config)["instance"].to_pylist())) == 2


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 5), st.integers(0, 5)), max_size=6),
    st.integers(1, 9),
)
def test_each_row_is_in_one_share(sizes: list[tuple[int, int, int]], count: int) -> None:
    pieces = [
        Piece(f"file-{number}", 0, 1, rows, before, after)
        for number, (rows, before, after) in enumerate(sizes)
    ]
    shares = share_out(pieces, count)
    assert 1 <= len(shares) <= count
    places = [
        (piece.path, piece.before + place)
        for share in shares
        for piece in share
        for place in range(piece.rows)
    ]
    assert places == [
        (piece.path, piece.before + place) for piece in pieces for place in range(piece.rows)
    ]
    whole = {piece.path: piece.before + piece.rows + piece.after for piece in pieces}
    for piece in (piece for share in shares for piece in share):
        assert piece.before + piece.rows + piece.after == whole[piece.path]
    fullest = max(sum(piece.rows for piece in share) for share in shares)
    assert fullest <= max(1, -(-sum(rows for rows, *_ in sizes) // count))


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes up GPUs: there are none here."""

    def make_up(count: int) -> None:
        cuda = SimpleNamespace(is_available=lambda: count > 0, device_count=lambda: count)
        monkeypatch.setattr(torch, "cuda", cuda)

    return make_up


@pytest.mark.parametrize(
    ("found", "options", "expected"),
    [
        (8, {}, (8, 1)),
        (8, {"num_workers": 3}, (3, 1)),
        (8, {"parallel": {"tensor": 4}}, (2, 4)),
        (1, {}, (1, 1)),
    ],
)
def test_there_is_a_process_for_each_gpu(
    config: ScoringConfig, gpus: Any, found: int, options: Any, expected: tuple[int, int]
) -> None:
    gpus(found)
    workers = LocalEngine(config.replace(**{"num_workers": None, **options})).workers()
    assert (workers.device_type, workers.count, workers.gpus_each) == ("cuda", *expected)
    devices = [slot_of(workers, index) for index in range(workers.count)]
    used = [name for slot in devices for name in (slot.device, *slot.others)]
    assert used == [f"cuda:{number}" for number in range(workers.count * workers.gpus_each)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_workers": 3}, r"num_workers=3 with engine='local': .* has 2 GPU\(s\); use num_work"),
        ({"num_workers": 2, "parallel": {"tensor": 2}}, "2 of which a copy of the model takes"),
        ({"num_workers": None, "parallel": {"tensor": 4}}, "parallel.tensor=4: .* has 2 GPU"),
    ],
)
def test_more_replicas_than_gpus_are_refused(
    config: ScoringConfig, gpus: Any, options: Any, said: str
) -> None:
    gpus(2)
    with pytest.raises(ConfigError, match=said):
        LocalEngine(config.replace(**options)).workers()


def test_more_processes_than_the_memory_holds_are_refused_before_any_starts(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 3 * local.PROCESS_BYTES
    monkeypatch.setattr(local, "free_host_memory", lambda: free)
    assert LocalEngine(config.replace(num_workers=3)).workers().count == 3
    with pytest.raises(ConfigError, match=r"num_workers=100000 .* GB free; use num_workers=3 or"):
        sparkinfer.run(config.replace(num_workers=100_000))
    free = 1
    assert LocalEngine(config.replace(num_workers=1)).workers().count == 1
