"""Runs on a store without folders, renames and fresh listings, and what readers see of outputs.

The store is moto's server, a process of its own, and s3fs is told of it as a user would do it.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import s3fs
from fsspec.implementations.memory import MemoryFileSystem

import sparkinfer.jobs.runner
from sparkinfer import exclusive, storage
from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import JobError, OutputError, ResumeError
from sparkinfer.files.listing import find_files
from sparkinfer.jobs.claims import read_holder
from sparkinfer.jobs.lease import Lease
from sparkinfer.jobs.output import Output
from sparkinfer.jobs.result import RunResult
from tests.disk import Disk, Killed, ids_of
from tests.made_up_engine import MadeUpEngine, run_made_up, write_input
from tests.tiny_models import sentences
from tests.written import without_run

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

BUCKET = "bucket"
PARTS_BEFORE_AND_AFTER_A_KILL = [(3, 2), (2, 3)]


SERVER = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel("ERROR")
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of an S3-compatible server, which ends when its input does."""
    command = [sys.executable, "-c", SERVER]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.kill()


@pytest.fixture(scope="module")
def s3(server: str) -> Iterator[s3fs.S3FileSystem]:
    """The store as another client sees it; s3fs finds it, here and in processes started here."""
    with pytest.MonkeyPatch.context() as patched:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "someone",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "FSSPEC_S3_ENDPOINT_URL": server,
        }.items():
            patched.setenv(name, value)
        # fsspec reads its variables when it is imported.
        patched.setitem(fsspec.config.conf, "s3", {"endpoint_url": server})
        other = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
        other.mkdir(BUCKET)
        yield other
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def folder(s3: s3fs.S3FileSystem, request: pytest.FixtureRequest) -> str:
    """A place in the store of this test's own."""
    return f"s3://{BUCKET}/{re.sub(r'[^a-z0-9]+', '-', request.node.name)}"


@pytest.fixture
def memory() -> Iterator[str]:
    """A place in memory, where each change of a file is a step of its own."""
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    yield "memory://bucket"
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def upload(local: Path, folder: str) -> str:
    for path in local.iterdir():
        fs, name = fsspec.core.url_to_fs(f"{folder}/{path.name}")
        fs.pipe_file(name, path.read_bytes())
    return folder


def config_of(folder: str, classifier: Path, tmp_path: Path, rows: int = 40) -> ScoringConfig:
    """Returns a run over 80 rows in `folder/in`, to be cut in chunks."""
    return ScoringConfig(
        model=str(classifier),
        input=upload(write_input(tmp_path / "in"), f"{folder}/in"),
        input_col="text",
        label_col="label",
        output=f"{folder}/out",
        engine="local",
        chunks={"target_rows": rows},
    )


@pytest.fixture
def config(folder: str, classifier: Path, tmp_path: Path) -> ScoringConfig:
    return config_of(folder, classifier, tmp_path)


def run(config: ScoringConfig, **options: Any) -> tuple[RunResult, MadeUpEngine]:
    engine = MadeUpEngine(config, **options)
    return run_made_up(config, engine), engine


def ids_by_duckdb(output: str | None) -> list[int]:
    with duckdb.connect() as connection:
        if "://" in str(output):
            connection.register_filesystem(storage.file_system(str(output))[0])
        rows = connection.execute(f"select id from read_parquet('{output}/*.parquet') order by id")
        return [row[0] for row in rows.fetchall()]


def all_names(s3: s3fs.S3FileSystem, config: ScoringConfig) -> list[str]:
    """Returns the objects of an output, with `RUN` for the id of the run."""
    root = str(config.output).removeprefix("s3://")
    return [without_run(name[len(root) + 1 :]) for name in s3.find(root)]


def test_a_run_leaves_its_files_records_and_lease_and_nothing_else(
    config: ScoringConfig, s3: s3fs.S3FileSystem
) -> None:
    result, _ = run(config)
    assert (result.rows, result.error_rows) == (80, 12)
    assert ids_of(config.output) == ids_by_duckdb(config.output) == list(range(80))
    assert all_names(s3, config) == [
        "_SUCCESS",
        "_sparkinfer/chunks/00000000.000-RUN.json",
        "_sparkinfer/chunks/00000001.000-RUN.json",
        "_sparkinfer/lease/epoch-00000001.json",
        "_sparkinfer/manifest-000001.json",
        "_sparkinfer/runs/000000-RUN.json",
        "part-00000000-000-RUN.parquet",
        "part-00000001-000-RUN.parquet",
    ]
    holder = read_holder(f"{config.output}/_sparkinfer/lease")
    assert holder is not None
    assert (holder.pid, holder.epoch, holder.released) == (os.getpid(), 1, True)


def test_a_record_comes_before_its_files_and_the_mark_comes_last(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    fs = storage.file_system(str(config.output))[0]
    for name in ("pipe_file", "cp_file", "copy"):
        whole = getattr(fs, name)

        def logged(*arguments: Any, whole: Any = whole, name: str = name, **options: Any) -> Any:
            target = arguments[0] if name == "pipe_file" else arguments[1]
            log.append(target.split("/out/")[1])
            return whole(*arguments, **options)

        monkeypatch.setattr(fs, name, logged)
    run(config)
    assert [without_run(name) for name in log if "lease" not in name] == [
        "_sparkinfer/manifest-000001.json",
        "_sparkinfer/chunks/00000000.000-RUN.json",
        "part-00000000-000-RUN.parquet",
        "_sparkinfer/chunks/00000001.000-RUN.json",
        "part-00000001-000-RUN.parquet",
        "_SUCCESS",
        "_sparkinfer/runs/000000-RUN.json",
    ]


def test_a_run_is_refused_while_another_writes(config: ScoringConfig) -> None:
    refused: list[str] = []

    class Held(Lease):
        """Looks so often that the test need not wait for the other's heartbeat."""

        def __init__(self, folder: str) -> None:
            super().__init__(folder, beat_s=0.1)

    def second(task: Any) -> None:
        if task.chunk.number == 0:
            with pytest.raises(OutputError) as raised:
                run(config)
            refused.append(raised.value.message)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sparkinfer.jobs.runner, "Lease", Held)
        run(config, before_chunk=second)
    assert f"is being written by process {os.getpid()}" in refused[0]
    assert ids_of(config.output) == list(range(80))


@pytest.mark.parametrize("parts", PARTS_BEFORE_AND_AFTER_A_KILL)
def test_a_kill_before_any_change_of_a_store_loses_and_doubles_nothing(
    memory: str,
    classifier: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    parts: tuple[int, int],
) -> None:
    config = config_of(memory, classifier, tmp_path, rows=20)
    monkeypatch.setattr(sparkinfer.jobs.runner, "Lease", partial(Lease, settle_s=0.0))
    disk = Disk(config.output, monkeypatch)
    disk.watch(MemoryFileSystem, "cp_file", "rm_file", "pipe_file", "_open")
    run(config, parts=parts[0])
    changes = disk.changes
    assert changes > 20
    for fatal in range(changes):
        fresh = config.replace(output=f"{config.output}-{fatal}")
        disk.kill_at(fatal, fresh.output)
        with pytest.raises(Killed):
            run(fresh, parts=parts[0])
        disk.fatal = None
        result, _ = run(fresh, parts=parts[1])
        assert ids_of(fresh.output) == list(range(80)), fatal
        assert (result.rows, result.error_rows) == (80, 12)
        assert storage.exists(f"{fresh.output}/_SUCCESS")


@pytest.mark.parametrize("is_conditional", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_kill_before_a_request_of_s3_loses_and_doubles_nothing(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch, is_conditional: bool
) -> None:
    """Every eighth request, of the two kinds of store others; of a store in memory it is each."""
    if not is_conditional:
        monkeypatch.setattr(exclusive, "STORES_THAT_CREATE_EXCLUSIVELY", frozenset())
        monkeypatch.setattr(sparkinfer.jobs.runner, "Lease", partial(Lease, settle_s=0.0))
    disk = Disk(config.output, monkeypatch)
    fs = storage.file_system(str(config.output))[0]
    disk.watch(fs, "copy", "cp_file", "rm", "rm_file", "pipe_file", "open")
    run(config, parts=3)
    assert disk.changes > 20
    for fatal in range(4 * is_conditional, disk.changes, 8):
        fresh = config.replace(output=f"{config.output}-{fatal}")
        disk.kill_at(fatal, fresh.output)
        with pytest.raises(Killed):
            run(fresh, parts=3)
        disk.fatal = None
        assert run(fresh, parts=2)[0].rows == 80
        assert ids_of(fresh.output) == ids_by_duckdb(fresh.output) == list(range(80)), fatal


def test_a_process_that_is_killed_is_followed_by_one_that_sees_what_it_did(
    config: ScoringConfig,
) -> None:
    assert storage.names_in(str(config.output)) == []  # a client may remember that
    code = f"""
        import os, signal
        from sparkinfer.config import ScoringConfig
        from tests.made_up_engine import MadeUpEngine, run_made_up

        def die(task):
            if task.chunk.number == 1:
                os.kill(os.getpid(), signal.SIGKILL)

        config = ScoringConfig(
            model={config.model!r}, input={config.input!r}, output={config.output!r},
            input_col="text", label_col="label", engine="local", chunks={{"target_rows": 40}},
        )
        run_made_up(config, MadeUpEngine(config, before_chunk=die))
    """
    died = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert died.returncode == -signal.SIGKILL
    assert ids_of(config.output) == list(range(40))
    result, engine = run(config)
    assert (engine.scored, result.rows, result.rows_before) == ([1], 80, 40)
    assert ids_of(config.output) == list(range(80))


def test_requests_that_are_sent_twice_change_nothing(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    whole = s3fs.S3FileSystem._call_s3

    async def twice(self: Any, method: str, *arguments: Any, **options: Any) -> Any:
        if method in ("put_object", "copy_object", "delete_object", "delete_objects"):
            await whole(self, method, *arguments, **options)
            sent.append(method)
        return await whole(self, method, *arguments, **options)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", twice)
    result, engine = run(config)
    assert {"put_object", "copy_object"} < set(sent)
    assert (engine.scored, result.rows) == ([0, 1], 80)
    assert ids_of(config.output) == list(range(80))


def test_what_another_client_wrote_or_removed_is_seen_at_once(
    folder: str, s3: s3fs.S3FileSystem
) -> None:
    def seen() -> tuple[Any, ...]:
        return (
            storage.names_in(folder),
            storage.sizes_in(folder),
            storage.exists(f"{folder}/b"),
            storage.is_file(f"{folder}/b"),
            storage.exists(f"{folder}/c=1/d"),
            [(file.name, file.size) for file in find_files([folder], "csv").files],
        )

    s3.pipe_file(f"{folder}/a", b"1")
    before = (["a"], {"a": 1}, False, False, False, [("a", 1)])
    assert seen() == before
    s3.pipe_file(f"{folder}/b", b"22")
    s3.pipe_file(f"{folder}/c=1/d", b"333")
    files = [("a", 1), ("b", 2), ("c=1/d", 3)]
    assert seen() == (["a", "b", "c=1"], {"a": 1, "b": 2}, True, True, True, files)
    s3.rm([f"{folder}/b", f"{folder}/c=1/d"])
    assert seen() == before


def test_objects_that_stand_for_folders_are_no_files(
    config: ScoringConfig, s3: s3fs.S3FileSystem
) -> None:
    for name in ("in", "in/day=1", "out", "out/_sparkinfer", "out/_sparkinfer/staging"):
        key = f"{config.output}".replace(f"s3://{BUCKET}/", "").replace("/out", f"/{name}/")
        s3.call_s3("put_object", Bucket=BUCKET, Key=key)
    assert [file.name for file in find_files([str(config.input)]).files] == [
        "in-0.parquet",
        "in-1.parquet",
    ]
    assert storage.names_in(str(config.output)) == ["_sparkinfer"]
    assert run(config)[0].rows == 80
    assert ids_of(config.output) == list(range(80))
    assert run(config)[1].scored == []


def test_an_input_object_that_was_replaced_is_refused(
    config: ScoringConfig, tmp_path: Path, s3: s3fs.S3FileSystem
) -> None:
    def die(task: Any) -> None:
        if task.chunk.number == 1:
            raise Killed

    with pytest.raises(Killed):
        run(config, before_chunk=die)
    content = (tmp_path / "in" / "in-1.parquet").read_bytes()
    other = (tmp_path / "in" / "in-0.parquet").read_bytes()
    s3.pipe_file(f"{config.input}/in-1.parquet", other)
    with pytest.raises(ResumeError, match="in-1.parquet changed"):
        run(config)
    s3.pipe_file(f"{config.input}/in-1.parquet", content)  # the same content has the same tag
    assert run(config)[1].scored == [1]


def test_an_input_object_that_goes_away_while_it_is_read_is_named(
    config: ScoringConfig, tmp_path: Path, s3: s3fs.S3FileSystem
) -> None:
    def remove_second(task: Any) -> None:
        if task.chunk.number == 1:
            s3.rm_file(f"{config.input}/in-1.parquet")

    with pytest.raises(JobError, match=r"in-1.parquet' cannot be read.*repair it and run"):
        run(config, before_chunk=remove_second)
    assert ids_of(config.output) == list(range(40))
    upload(tmp_path / "in", str(config.input))
    assert run(config)[1].scored == [1]


def test_no_bucket_is_made_of_a_mistyped_name(s3: s3fs.S3FileSystem) -> None:
    storage.make_folder("s3://bukcet/out/_sparkinfer")
    assert not s3.exists("bukcet")


@pytest.mark.parametrize("name", ["run[12]", "run*", "run?"])
def test_an_output_that_a_store_takes_for_a_pattern_is_refused(memory: str, name: str) -> None:
    with pytest.raises(OutputError, match="pattern that matches other"):
        Output(f"{memory}/{name}").check(overwrite=True)


def test_the_local_engine_scores_a_csv_of_the_store(
    folder: str, classifier: Path, tmp_path: Path
) -> None:
    texts = sentences(50)
    (tmp_path / "csv").mkdir()
    table = pa.table({"id": [str(i) for i in range(50)], "text": texts})
    pa.csv.write_csv(table, tmp_path / "csv" / "in.csv")
    config = ScoringConfig(
        model=str(classifier),
        input=upload(tmp_path / "csv", f"{folder}/in"),
        input_col="text",
        output=f"{folder}/out",
        engine="local",
        device="cpu",
        dtype="float32",
        chunks={"target_rows": 20},
    )
    result = sparkinfer.run(config)
    assert (result.rows, result.error_rows) == (50, 0)
    fs, name = storage.file_system(str(config.output))
    rows = pads.dataset(name, filesystem=fs, format="parquet").to_table()
    assert dict(zip(rows["id"].to_pylist(), rows["text"].to_pylist(), strict=True)) == {
        str(i): text for i, text in enumerate(texts)
    }
    assert sparkinfer.run(config).rows_before == 50


def die(*_: Any) -> None:
    raise Killed


@pytest.fixture(params=["half", "finished"])
def output(request: pytest.FixtureRequest, classifier: Path, tmp_path: Path) -> Path:
    """A local output of 80 rows, or one of a chunk and the first of another's two files."""
    config = config_of(str(tmp_path), classifier, tmp_path, rows=20)
    if request.param == "finished":
        run(config, parts=2)
        return Path(str(config.output))

    def move(source: str, target: str) -> None:
        if "part-00000001-001." in target:
            raise Killed
        storage.move(source, target)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sparkinfer.sinks.parquet, "move", move)
        patched.setattr(Output, "remove_staging", die)
        with pytest.raises(Killed):
            run(config, parts=2)
    return Path(str(config.output))


CARRIED = ["id", "text", "label"]
SCORED = ["prediction", "probability", "probabilities", "n_tokens", "truncated", "error"]


def read_with_pandas(output: Path) -> pd.DataFrame:
    return pd.read_parquet(output)


def read_with_pyarrow(output: Path) -> pd.DataFrame:
    return pads.dataset(output, format="parquet").to_table().to_pandas()


def read_with_duckdb(output: Path) -> pd.DataFrame:
    with duckdb.connect() as connection:
        return connection.execute(f"select * from read_parquet('{output}/*.parquet')").df()


@pytest.mark.parametrize("read", [read_with_pandas, read_with_pyarrow, read_with_duckdb])
def test_readers_see_whole_files_of_an_output_at_any_moment(
    output: Path, read: Callable[[Path], pd.DataFrame]
) -> None:
    assert_rows_are_there_once(output, read(output))


@pytest.mark.spark
def test_spark_sees_whole_files_of_an_output_at_any_moment(
    output: Path, spark: SparkSession
) -> None:
    assert_rows_are_there_once(output, spark.read.parquet(str(output)).toPandas())


def assert_rows_are_there_once(output: Path, rows: pd.DataFrame) -> None:
    files = sorted(output.glob("*.parquet"))
    expected = pa.concat_tables(pq.read_table(file, partitioning=None) for file in files)
    assert list(rows.columns) == expected.column_names == CARRIED + SCORED
    is_finished = storage.exists(f"{output}/_SUCCESS")
    ids = [*range(80)] if is_finished else [*range(20), *range(20, 40, 2)]
    assert sorted(rows["id"]) == sorted(expected["id"].to_pylist()) == ids
    assert is_finished or list(output.glob("_sparkinfer/staging/**/*.parquet"))
    truth = dict(zip(expected["id"].to_pylist(), expected["prediction"].to_pylist(), strict=True))
    found = zip(rows["id"], rows["prediction"].where(rows["prediction"].notna(), None), strict=True)
    assert dict(found) == truth
