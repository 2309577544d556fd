"""Spark Connect: a real server in a process of its own, and its client in this one.

The server is on this machine. That it could be on another is tried by a folder which only it sees.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

import sparkinfer
from sparkinfer.doctor.case import ExaminedConfig
from sparkinfer.doctor.examination import examine
from sparkinfer.doctor.findings import has_errors
from sparkinfer.exceptions import (
    ConfigError,
    EngineUnavailableError,
    InputError,
    JobError,
    ModelLoadError,
    OutputError,
)
from sparkinfer.jobs.committer import Committer
from sparkinfer.spark import slot_probe
from sparkinfer.spark.classic import is_classic
from sparkinfer.spark.each_file import on_each_file
from sparkinfer.spark.java import ensure_java
from sparkinfer.spark.remote import RETRIES, start_remote
from sparkinfer.spark.session import start_session
from tests.connect_server import ConnectServer, can_hide, why_not
from tests.made_up_holds import FUNCTION, held, let_go, write_held
from tests.made_up_processor import handed_in
from tests.tiny_models import sentences

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

pytestmark = [
    pytest.mark.spark,
    pytest.mark.skipif(why_not() is not None, reason=f"Spark Connect: {why_not()}"),
]

WAIT_S = 100.0
ROWS = 300


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the server has another one in place of, if a process can have that here."""
    return tmp_path_factory.mktemp("own")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, own: Path) -> Iterator[ConnectServer]:
    ensure_java()
    with ConnectServer(tmp_path_factory.mktemp("server"), own if can_hide() else None) as server:
        yield server


@pytest.fixture(scope="module")
def remote(server: ConnectServer) -> Iterator[SparkSession]:
    """A session of the server, with pyspark's functions made for Spark Connect meanwhile."""
    from pyspark.sql.connect.session import SparkSession as RemoteSession

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("SPARK_CONNECT_MODE_ENABLED", "1")
        # So that no pause of a busy machine decides how many tasks run at the same time.
        patched.setattr(slot_probe, "HOLD_S", 3.0)
        session: Any = RemoteSession.builder.remote(server.address).create()
        yield session
        session.stop()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts with labels, most of them in one row group of three."""
    file = tmp_path_factory.mktemp("in") / "in.parquet"
    labels = ["NEGATIVE" if number % 3 else "POSITIVE" for number in range(ROWS)]
    table = pa.table({"id": range(ROWS), "text": sentences(ROWS), "label": labels})
    pq.write_table(table, file, row_group_size=100)
    return file


@pytest.fixture
def df(remote: SparkSession, source: Path) -> DataFrame:
    return remote.read.parquet(str(source))


def config_of(model: Path, output: Path, **more: Any) -> sparkinfer.ScoringConfig:
    plain = {"dtype": "float32", "acceleration": "none"}
    given = {"model": str(model), "input_col": "text", "output": str(output), **plain}
    return sparkinfer.ScoringConfig(**{**given, **more})


def rows_in(output: Path | str) -> pa.Table:
    return pads.dataset(output, format="parquet").to_table().sort_by("id")


def say_nothing(*_: Any) -> Any:
    raise AssertionError("the cluster must not be asked")


def test_a_run_gives_the_rows_and_metrics_of_local(
    remote: SparkSession, source: Path, classifier: Path, tmp_path: Path
) -> None:
    assert not is_classic(remote)
    more: dict[str, Any] = {"input": str(source), "label_col": "label"}
    here = sparkinfer.run(config_of(classifier, tmp_path / "local", engine="local", **more))
    there = sparkinfer.run(config_of(classifier, tmp_path / "out", **more), remote)
    assert there.workers is not None
    assert there.workers.count == 2
    assert there.metrics == pytest.approx(here.metrics)
    expected, found = rows_in(tmp_path / "local"), rows_in(tmp_path / "out")
    exact = ["id", "text", "label", "prediction", "n_tokens", "truncated", "error"]
    assert found.select(exact).to_pydict() == expected.select(exact).to_pydict()
    pairs = zip(*(one["probabilities"].to_pylist() for one in (found, expected)), strict=True)
    for probabilities, of_local in pairs:
        assert probabilities == pytest.approx(of_local, abs=1e-5)


def test_the_workers_that_are_asked_for_are_not_counted(
    df: DataFrame, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot_probe, "_answers", {})
    monkeypatch.setattr(slot_probe, "_spans", say_nothing)
    result = sparkinfer.run(config_of(classifier, tmp_path / "out", num_workers=3), df=df)
    assert result.workers is not None
    assert (result.rows, result.workers.count) == (ROWS, 3)


def test_score_is_lazy_and_scores_each_row(df: DataFrame, classifier: Path) -> None:
    plain = {"dtype": "float32", "acceleration": "none"}
    scored = sparkinfer.score(df, str(classifier), "text", **plain)
    frame = scored.select("id", "prediction", "error").toPandas()
    assert sorted(frame["id"]) == list(range(ROWS))
    assert frame["prediction"].notna().all()
    assert frame["error"].isna().all()


def test_a_query_is_a_job_that_goes_on_where_it_was_broken_off(
    remote: SparkSession,
    source: Path,
    classifier: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    query = f"SELECT id, text FROM parquet.`{source}`"
    config = config_of(classifier, tmp_path / "out", input=query, chunks={"target_rows": 100})
    commit = Committer.commit

    def fail_at_2(self: Committer, scored: Any) -> None:
        if scored.chunk.number == 2:
            raise JobError("broken off")
        commit(self, scored)

    with monkeypatch.context() as patched:
        patched.setattr(Committer, "commit", fail_at_2)
        with pytest.raises(JobError, match="broken off"):
            sparkinfer.run(config, remote)
    result = sparkinfer.run(config, remote)
    assert result.rows == ROWS
    assert result.rows_before in (0, 100, 200)  # of three that are committed at once
    assert rows_in(config.output or "")["id"].to_pylist() == list(range(ROWS))


class Longer:
    """Adds to ids, by what it is constructed with."""

    def __init__(self, by: int) -> None:
        self.by = by

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"id": batch["id"] + self.by, "words": [len(t.split()) for t in batch["text"]]}


def test_functions_over_batches_run_on_the_server(df: DataFrame) -> None:
    made = sparkinfer.map_batches(df, Longer, fn_constructor_args=(7,), concurrency=2)
    made = sparkinfer.map_batches(made, lambda b: {"id": b["id"]}, schema="id bigint")
    assert sorted(row.id for row in made.collect()) == list(range(7, ROWS + 7))


def test_a_module_that_the_server_lacks_is_said(
    remote: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "at_the_client.py").write_text("def same(name):\n    return name\n")
    monkeypatch.syspath_prepend(tmp_path)
    from at_the_client import same  # type: ignore[import-not-found]

    with pytest.raises(JobError, match="no module 'at_the_client'; install .* Connect server's"):
        on_each_file(remote, same, ["a"])


def test_an_error_in_a_worker_is_one_line(
    df: DataFrame, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparkinfer.engines import spark_chunks

    def broken(*args: Any) -> Any:
        raise ValueError("the disk of this node is gone")

    monkeypatch.setattr(spark_chunks, "write_share", broken)
    with pytest.raises(JobError) as raised:
        sparkinfer.run(config_of(classifier, tmp_path / "out", num_workers=2), df=df)
    assert raised.value.message == "ValueError: the disk of this node is gone"


class Notes(sparkinfer.TorchBatchProcessor):
    """Hands in the ids of each batch."""

    def __init__(self, context: Any) -> None:
        self.context = context

    def process_batch(self, batch: Any, batch_idx: int) -> None:
        with self.context.upload_path() as folder:
            rows = "\n".join(map(str, batch["id"].tolist()))
            (folder / f"rows-{batch_idx}.txt").write_text(rows)


def test_ranks_are_tasks_of_the_server(df: DataFrame, tmp_path: Path) -> None:
    more: dict[str, Any] = {"engine": "spark", "output": str(tmp_path / "out")}
    run = sparkinfer.torch_batch_process(Notes, df.select("id"), 50, **more)
    assert (run.finished, run.steps) == (True, (3, 3))
    assert handed_in(run.output) == list(range(ROWS))
    with pytest.raises(ConfigError, match="num_workers=3: the executors run 2 tasks at a time"):
        sparkinfer.torch_batch_process(Notes, df.select("id"), 50, num_workers=3, **more)


def test_doctor_finds_nothing_wrong(
    remote: SparkSession, source: Path, classifier: Path, tmp_path: Path
) -> None:
    config = ExaminedConfig(
        model=str(classifier),
        input=str(source),
        input_col="text",
        output=str(tmp_path / "out"),
        acceleration="none",
    )
    findings = list(examine(config))
    assert not has_errors(findings), findings
    found = {one.check: one.found for one in findings}
    assert "on sc://127.0.0.1:" in found["spark"]
    assert found["executors"].startswith("2 task slots on ")
    assert found["workers"] == "2 x cpu"


def test_the_horovod_engine_is_refused(
    remote: SparkSession, source: Path, classifier: Path, tmp_path: Path
) -> None:
    config = config_of(classifier, tmp_path / "out", input=str(source), engine="horovod")
    with pytest.raises(EngineUnavailableError, match="Spark Connect.*lacks.*--engine pandas_udf"):
        sparkinfer.run(config, remote)
    with pytest.raises(EngineUnavailableError, match="Spark Connect.*lacks.*engine='spark'"):
        sparkinfer.torch_batch_process(
            Notes, remote.range(3), 1, engine="horovod", output=str(tmp_path / "ranks")
        )


def test_the_session_that_is_there_is_used_and_no_other(
    remote: SparkSession, server: ConnectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(**given: Any) -> SparkSession:
        return start_session(sparkinfer.ScoringConfig(model="m", input_col="t", **given))

    assert start() is remote
    assert start(master=server.address) is remote
    for other in ("local[2]", "sc://127.0.0.1:1/;token=abc"):
        with pytest.raises(ConfigError, match="session on 'sc://127.0.0.1:.* is active") as raised:
            start(master=other)
        assert "abc" not in str(raised.value)


def test_what_no_server_can_do_is_said_at_once(
    server: ConnectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyspark.sql import SparkSession

    monkeypatch.setattr(SparkSession, "getActiveSession", lambda: None)
    monkeypatch.setattr(SparkSession, "active", say_nothing)

    def start(**given: Any) -> None:
        start_session(sparkinfer.ScoringConfig(model="m", input_col="t", **given))

    with pytest.raises(EngineUnavailableError, match="no Spark Connect server at sc://127.0.0.1:1"):
        start(master="sc://127.0.0.1:1")
    with pytest.raises(ConfigError, match="expected sc://HOST:PORT"):
        start(master="sc://")
    monkeypatch.setenv("SPARK_REMOTE", server.address)
    with pytest.raises(ConfigError, match="SPARK_REMOTE names another, sc://127.0.0.1:"):
        start(master="local[2]")


def test_what_takes_a_connection_and_speaks_no_grpc_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sparkinfer.spark.remote.HANDSHAKE_TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"sc://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(EngineUnavailableError, match="has not spoken gRPC .*check the port"):
            start_remote(address, {}, 10)


def test_a_session_whose_first_answer_is_not_waited_for_does_not_try_for_long_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pyspark calls the server once more as the process ends, by the same policies."""
    given: list[Any] = []
    made = SimpleNamespace(client=SimpleNamespace(set_retry_policies=given.extend))
    builder = SimpleNamespace(remote=lambda _: SimpleNamespace(getOrCreate=lambda: made))

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pyspark.sql.SparkSession", SimpleNamespace(builder=builder))
    for step in ("_knock", "_shake_hands"):
        monkeypatch.setattr(f"sparkinfer.spark.remote.{step}", lambda _: None)
    monkeypatch.setattr("sparkinfer.spark.remote.watched", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start_remote("sc://h", {}, 10)
    [policy] = given
    assert policy.max_retries == RETRIES


def test_a_stop_ends_the_tasks_on_the_server_and_the_same_command_resumes(
    server: ConnectServer, remote: SparkSession, tmp_path: Path
) -> None:
    marks, out, source = tmp_path / "marks", tmp_path / "out", tmp_path / "in.parquet"
    write_held(source, marks, stages=[0, 1], rows=300)
    command = [sys.executable, "-m", "sparkinfer", "score", "--input", str(source)]
    command += ["--fn", FUNCTION, "--set", "fn.batch_format=pandas", "--output", str(out)]
    command += ["--set", "chunks.target_rows=300", "--master", server.address]
    command += ["--progress", "none", "--num-workers", "2"]
    environment = {k: v for k, v in os.environ.items() if k != "SPARK_CONNECT_MODE_ENABLED"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        deadline = time.monotonic() + WAIT_S
        while len(held(marks, 1)) < 2:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=WAIT_S)
    finally:
        if process.poll() is None:
            let_go(marks, 1)
            process.kill()
            process.communicate()
    assert process.returncode == 130, said
    assert re.search(r"stopped; [01] of 2 chunks are done\. Run the same command to resume", said)
    # On both slots, which were held.
    both = remote.range(0, 2, 1, 2).mapInArrow(lambda batches: batches, "id bigint")
    assert len(both.collect()) == 2
    let_go(marks, 1)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=WAIT_S)
    assert done.returncode == 0, done.stderr
    assert rows_in(out)["id"].to_pylist() == list(range(600))


needs_own = pytest.mark.skipif(
    not can_hide(), reason="no process can have a folder of its own here: it needs root"
)


@needs_own
def test_folders_that_client_and_cluster_do_not_share_are_refused(
    remote: SparkSession, source: Path, own: Path, classifier: Path, tmp_path: Path
) -> None:
    more: dict[str, Any] = {"num_workers": 1, "input": str(source)}
    with pytest.raises(OutputError, match="own0/out/.* not for its worker on .*a place that all"):
        sparkinfer.run(config_of(classifier, own / "out", **more), remote)
    assert not (own / "out").exists()
    (own / "in.parquet").write_bytes(source.read_bytes())
    more["input"] = str(own / "in.parquet")
    with pytest.raises(InputError, match="own0/in.parquet' is there .* not for its worker"):
        sparkinfer.run(config_of(classifier, tmp_path / "out", **more), remote)
    model = own / "model"
    shutil.copytree(classifier, model)
    more["input"] = str(source)
    with pytest.raises(ModelLoadError, match="own0/model"):
        sparkinfer.run(config_of(model, tmp_path / "out", **more), remote)


@needs_own
def test_what_only_the_cluster_sees_is_read_by_spark(
    remote: SparkSession, df: DataFrame, own: Path, classifier: Path, tmp_path: Path
) -> None:
    table = own / "table"
    df.write.parquet(str(table))
    assert not table.exists()
    more: dict[str, Any] = {"num_workers": 1}
    with pytest.raises(InputError, match="does not exist.*have Spark read what only the cluster"):
        sparkinfer.run(config_of(classifier, tmp_path / "out", input=str(table), **more), remote)
    query = f"SELECT id, text FROM parquet.`{table}`"
    result = sparkinfer.run(config_of(classifier, tmp_path / "out", input=query, **more), remote)
    assert result.rows == ROWS
