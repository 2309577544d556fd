"""Runs that fill a vector store: each row is there once, whatever happened on the way."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import chromadb
import psycopg
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import ConfigError, JobError, OutputError, ResumeError
from sparkinfer.jobs.ledger import Ledger
from sparkinfer.jobs.summary import summarize
from sparkinfer.report.status import describe_status, read_status
from sparkinfer.sinks.vectors import chroma, delivery, open_store, pgvector
from sparkinfer.sinks.vectors.base import About, StoreAwayError
from sparkinfer.sinks.vectors.uri import parse_store
from tests.disk import Disk, Killed, ids_of
from tests.made_up_vectors import (
    job_with_store,
    lengths_of,
    run_with_vectors,
    stored_in,
)
from tests.postgres_server import PASSWORD, PostgresServer

GOOD = [row for row in range(40) if row % 7]
"""Rows with a text."""

STORES = {"chroma": chroma.ChromaStore, "postgresql": pgvector.PgVectorStore}


@pytest.fixture
def config(classifier: Path, tmp_path: Path, vector_store: str) -> ScoringConfig:
    return job_with_store(classifier, tmp_path, vector_store)


@pytest.fixture
def chroma_config(classifier: Path, tmp_path: Path) -> ScoringConfig:
    return job_with_store(classifier, tmp_path, f"chroma:{tmp_path / 'chroma'}#documents")


def with_vectors(config: ScoringConfig, **options: Any) -> ScoringConfig:
    return config.replace(vectors={**config.vectors.given_values(), **options})


def store_of(config: ScoringConfig) -> str:
    return str(config.vectors.store)


def assert_holds(config: ScoringConfig, rows: Sequence[int] = GOOD) -> None:
    found = {name: one.distance for name, one in stored_in(store_of(config)).items()}
    assert found == pytest.approx(lengths_of(rows))


def receipts(config: ScoringConfig) -> list[Path]:
    return sorted((Path(str(config.output)) / "_sparkinfer" / "vectors").glob("*/*"))


def act_on(config: ScoringConfig, on_chroma: Callable[[Any, str], object], statement: str) -> None:
    """Changes a store as its owner may.

    Args:
        config: names it.
        on_chroma: is called with Chroma's client and the name of the collection.
        statement: of SQL, with a place for the name of the table.
    """
    uri = parse_store(store_of(config))
    if uri.kind == "chroma":
        client = chromadb.PersistentClient(uri.place)
        on_chroma(client, uri.name)
        client.close()
    else:
        with psycopg.connect(uri.place) as connection:
            connection.execute(statement.format(uri.name))


def drop(config: ScoringConfig) -> None:
    """Removes the collection or table."""
    act_on(config, lambda client, name: client.delete_collection(name), "DROP TABLE {}")


def test_rows_without_an_error_are_in_the_store_and_in_the_files(config: ScoringConfig) -> None:
    config = with_vectors(config, metadata=["text", "label"], batch_rows=7)
    result, _ = run_with_vectors(config)
    assert (result.rows, result.error_rows, result.vectors) == (40, 6, 34)
    assert_holds(config)
    assert ids_of(config.output) == list(range(40))
    row = stored_in(store_of(config))["13"]
    assert dict(row.metadata) == {"text": "film 13", "label": 0}
    said = summarize(result)
    assert f"vectors    34 in {parse_store(store_of(config)).plain}" in said
    assert f"vectors    2 chunks in {result.vector_store}" in describe_status(
        read_status(str(config.output))
    )


def test_without_a_key_ids_are_chunk_and_place_and_in_the_files_too(config: ScoringConfig) -> None:
    config = with_vectors(config, key=None, metadata=["id"])
    run_with_vectors(config, parts=3)
    table = pads.dataset(str(config.output), format="parquet").to_table().sort_by("id")
    expected = [f"{row // 20:08d}-{row % 20:08d}" for row in range(40)]
    assert table["row_id"].to_pylist() == expected
    found = stored_in(store_of(config))
    assert {name: one.metadata["id"] for name, one in found.items()} == {
        expected[row]: row for row in GOOD
    }


def test_recovered_rows_get_the_ids_of_their_places_whatever_the_order_of_the_files(
    config: ScoringConfig,
) -> None:
    config = with_vectors(config, key=None, metadata=["id"])
    run_with_vectors(config, failing=[3, 4, 25], parts=3)
    result, _ = run_with_vectors(config.replace(retry_errors=True), parts=2)
    assert (result.error_rows, result.vectors) == (6, 34)
    found = stored_in(store_of(config))
    assert {name: one.metadata["id"] for name, one in found.items()} == {
        f"{row // 20:08d}-{row % 20:08d}": row for row in GOOD
    }
    lengths = {str(one.metadata["id"]): one.distance for one in found.values()}
    assert lengths == pytest.approx(lengths_of(GOOD))


def test_a_row_that_has_an_error_when_its_chunk_is_scored_again_leaves_the_store(
    config: ScoringConfig,
) -> None:
    run_with_vectors(config)
    min(Path(str(config.output)).glob("part-*.parquet")).unlink()
    result, engine = run_with_vectors(config, failing=[3])
    assert (engine.scored, result.error_rows, result.vectors) == ([0], 7, 33)
    assert_holds(config, [row for row in GOOD if row != 3])


def test_an_input_without_rows_makes_an_empty_collection(config: ScoringConfig) -> None:
    source = Path(str(config.input)) / "in-0.parquet"
    pq.write_table(pq.read_table(source).slice(0, 0), source)
    result, _ = run_with_vectors(config)
    assert (result.rows, result.vectors) == (0, 0)
    assert stored_in(store_of(config)) == {}


def test_a_store_alone_leaves_no_files_and_is_gone_on_with(config: ScoringConfig) -> None:
    config = with_vectors(config, parquet=False)

    def kill(task: Any) -> None:
        if task.chunk.number == 1:
            raise Killed

    with pytest.raises(Killed):
        run_with_vectors(config, before_chunk=kill)
    assert_holds(config, [row for row in GOOD if row < 20])
    result, engine = run_with_vectors(config)
    assert engine.scored == [1]
    assert (result.rows, result.rows_before, result.vectors) == (40, 20, 34)
    assert not list(Path(str(config.output)).rglob("*.parquet"))
    assert (Path(str(config.output)) / "_SUCCESS").exists()
    assert_holds(config)
    assert run_with_vectors(config)[1].scored == []
    status = read_status(str(config.output))
    assert (status.state, status.rows, status.vector_chunks) == ("finished", 40, 2)


@pytest.mark.parametrize("parquet", [True, False])
def test_a_kill_before_any_change_loses_and_doubles_nothing(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch, parquet: bool
) -> None:
    config = with_vectors(config, parquet=parquet, batch_rows=15)
    disk = watch(config, monkeypatch)
    run_with_vectors(config)
    changes = disk.changes
    assert changes > 12
    for fatal in range(changes):
        fresh = numbered(config, fatal)
        disk.kill_at(fatal, fresh.output)
        with pytest.raises(Killed):
            run_with_vectors(fresh)
        disk.fatal = None
        result, _ = run_with_vectors(fresh, parts=2)
        assert (result.rows, result.vectors) == (40, 34), fatal
        assert_holds(fresh)
        assert ids_of(fresh.output) == (list(range(40)) if parquet else [])
        assert (Path(str(fresh.output)) / "_SUCCESS").exists()


def test_a_kill_while_errors_are_rescored_leaves_each_row_once(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, spoiled = with_vectors(config, batch_rows=15), [3, 4, 25]
    disk = watch(config, monkeypatch)
    runs: list[int] = []
    for fatal in range(0, 100, 2):
        fresh = numbered(config, fatal)
        disk.kill_at(None, fresh.output)
        run_with_vectors(fresh, failing=spoiled)
        assert_holds(fresh, [row for row in GOOD if row not in spoiled])
        disk.kill_at(fatal, fresh.output)
        try:
            run_with_vectors(fresh.replace(retry_errors=True), parts=2)
            break
        except Killed:
            runs.append(fatal)
        disk.fatal = None
        result, _ = run_with_vectors(fresh.replace(retry_errors=True))
        assert (result.error_rows, result.vectors) == (6, 34)
        assert_holds(fresh)
    assert len(runs) > 4


def watch(config: ScoringConfig, monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk(config.output, monkeypatch).watch_changes()
    disk.watch(delivery, "write_text", "remove")
    return disk.watch(STORES[parse_store(store_of(config)).kind], "make", "write")


def numbered(config: ScoringConfig, number: int) -> ScoringConfig:
    config = with_vectors(config, store=f"{store_of(config)}_{number}")
    return config.replace(output=f"{config.output}-{number}")


def test_overwriting_replaces_what_an_earlier_run_of_the_output_put_there(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_with_vectors(config)
    before = receipts(config)
    source = Path(str(config.input)) / "in-0.parquet"
    pq.write_table(pq.read_table(source).slice(0, 25), source, row_group_size=10)
    again = config.replace(overwrite=True)
    disk = watch(config, monkeypatch)
    for fatal in range(0, 40, 3):
        disk.kill_at(fatal, config.output)
        try:
            run_with_vectors(again)
            break
        except Killed:
            disk.fatal = None
    disk.kill_at(None, config.output)
    run_with_vectors(again)
    assert_holds(config, [row for row in GOOD if row < 25])
    assert len(receipts(config)) == 2
    assert not set(before) & set(receipts(config))


def test_new_files_are_added_to_what_is_there(config: ScoringConfig) -> None:
    run_with_vectors(config)
    table = pq.read_table(Path(str(config.input)) / "in-0.parquet")
    ids = pa.array(range(40, 45))
    texts = pa.array([f"film {row}" for row in range(40, 45)])
    more = table.slice(0, 5).set_column(0, "id", ids).set_column(1, "text", texts)
    pq.write_table(more, Path(str(config.input)) / "in-1.parquet")
    result, engine = run_with_vectors(config.replace(incremental=True))
    assert (engine.scored, result.vectors) == ([2], 39)
    assert_holds(config, [*GOOD, *range(40, 45)])


def test_a_collection_that_was_removed_is_filled_again_from_the_files(
    config: ScoringConfig,
) -> None:
    run_with_vectors(config)
    drop(config)
    result, engine = run_with_vectors(config)
    assert (engine.scored, result.vectors) == ([], 34)
    assert_holds(config)


def test_a_collection_that_was_removed_is_scored_again_without_files(
    config: ScoringConfig,
) -> None:
    config = with_vectors(config, parquet=False)
    run_with_vectors(config)
    drop(config)
    _, engine = run_with_vectors(config)
    assert engine.scored == [0, 1]
    assert_holds(config)


def test_rows_that_something_else_removed_are_noticed(config: ScoringConfig) -> None:
    run_with_vectors(config)
    act_on(
        config,
        lambda client, name: client.get_collection(name, embedding_function=None).delete(["13"]),
        "DELETE FROM {} WHERE id = '13'",
    )
    with pytest.raises(JobError, match="holds 33 vectors of 34: .*Remove the collection or table"):
        run_with_vectors(config)


@pytest.mark.parametrize("places", [(3, 5), (3, 30)])
def test_a_key_that_two_rows_have_stops_the_run(
    config: ScoringConfig, places: tuple[int, int]
) -> None:
    source = Path(str(config.input)) / "in-0.parquet"
    table = pq.read_table(source)
    keys = [f"k{row}" for row in range(40)]
    keys[places[1]] = keys[places[0]]
    pq.write_table(table.append_column("key", pa.array(keys)), source, row_group_size=10)
    config = with_vectors(config, key="key")
    for _ in range(2):
        with pytest.raises(JobError, match=r"vectors.key: key='k3' is .*ids must be there once"):
            run_with_vectors(config)
    assert not (Path(str(config.output)) / "_SUCCESS").exists()


@pytest.mark.parametrize(
    ("column", "options", "said"),
    [
        (["x", None], {"key": "extra"}, "vectors.key='extra': a row has null there"),
        (["x", ""], {"key": "extra"}, "vectors.key='extra': a row has no text there"),
        ([1.5, float("nan")], {"metadata": ["extra"]}, "'extra' holds the number nan"),
        (["x", "a\0b"], {"metadata": ["extra"]}, "'extra' holds text with a character of number 0"),
    ],
)
def test_a_value_that_a_store_would_lose_stops_the_run(
    config: ScoringConfig, column: list[Any], options: dict[str, Any], said: str
) -> None:
    source = Path(str(config.input)) / "in-0.parquet"
    table = pq.read_table(source).slice(1, 2).append_column("extra", pa.array(column))
    pq.write_table(table, source)
    with pytest.raises(JobError, match=said):
        run_with_vectors(with_vectors(config, **options))


def test_a_store_that_does_not_answer_in_the_middle_stops_the_run_resumably(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(delivery.time, "sleep", pauses.append)
    kind = STORES[parse_store(store_of(config)).kind]
    write = kind.write

    def away(store: Any, about: About, chunk: int, rows: Any) -> None:
        if chunk == 1:
            raise StoreAwayError("the line is dead")
        write(store, about, chunk, rows)

    monkeypatch.setattr(kind, "write", away)
    with pytest.raises(JobError, match="does not answer .the line is dead.; .*to resume"):
        run_with_vectors(config)
    assert pauses == list(delivery.PAUSES_S)
    monkeypatch.setattr(kind, "write", write)
    result, engine = run_with_vectors(config)
    assert (engine.scored, result.vectors) == ([], 34)
    assert_holds(config)


def test_a_store_that_hesitates_is_asked_again(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery.time, "sleep", lambda seconds: None)
    kind = STORES[parse_store(store_of(config)).kind]
    write, calls = kind.write, []

    def hesitating(store: Any, about: About, chunk: int, rows: Any) -> None:
        calls.append(chunk)
        if len(calls) % 2:
            raise StoreAwayError("busy")
        write(store, about, chunk, rows)

    monkeypatch.setattr(kind, "write", hesitating)
    run_with_vectors(config)
    assert_holds(config)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"key": "nothing"}, "vectors.key: there is no column 'nothing' in the output; expected"),
        ({"key": "embedding"}, "vectors.key: column 'embedding' has type list"),
        ({"metadata": ["embedding"]}, "vectors.metadata: column 'embedding' has type list"),
        ({"metadata": ["id", "nothing"]}, "vectors.metadata: there is no column 'nothing'"),
        ({"store": "redis://host#x"}, "vectors.store='redis://host#x': expected chroma:FOLDER#"),
        ({"store": "chroma:x#a b"}, "the collection 'a b': expected 3 to 512 letters"),
        ({"store": "chroma:s3://bucket/x#abc"}, "expected a folder on a disk of this machine"),
        ({"store": "postgresql://h/d#No-Table"}, "the table 'No-Table': expected table or"),
        ({"store": "postgresql://h/d"}, "the table '': expected table or schema.table"),
        ({"model": "a"}, "vectors.model='a': expected one of several models"),
        ({"store": None}, "vectors.distance without vectors.store"),
        ({"metadata": ["id", "id"]}, "expected a list of names of columns, each once"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    chroma_config: ScoringConfig, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        run_with_vectors(with_vectors(chroma_config, **options))
    assert not Path(str(chroma_config.output)).exists()


@pytest.mark.parametrize("name", ["chroma:uri", "#key", "$and", "sparkinfer_chunk"])
def test_names_that_chroma_drops_are_refused(chroma_config: ScoringConfig, name: str) -> None:
    [path] = Path(str(chroma_config.input)).glob("*.parquet")
    rows = pq.read_table(path)
    pq.write_table(rows.append_column(name, rows["id"]), path)
    with pytest.raises(ConfigError, match="cannot store a field named"):
        run_with_vectors(with_vectors(chroma_config, metadata=[name]))
    assert not Path(str(chroma_config.output)).exists()


@pytest.mark.parametrize("name", ["sparkinfer_vectors", "sparkinfer_incoming"])
def test_tables_of_our_own_are_no_stores(postgres: PostgresServer, name: str) -> None:
    store = open_store(parse_store(f"{postgres.address}#{name}"))
    with pytest.raises(OutputError, match="that name is taken for notes"):
        store.look()


def test_a_table_that_another_session_locks_is_not_waited_for_endlessly(
    classifier: Path, tmp_path: Path, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = job_with_store(classifier, tmp_path, f"{postgres.address}#locked")
    run_with_vectors(config)
    monkeypatch.setattr(pgvector, "LOCK_WAIT", "50ms")
    store = open_store(parse_store(store_of(config)))
    about = store.look()
    assert about is not None
    with psycopg.connect(postgres.address) as other:
        other.execute("LOCK TABLE locked")
        with pytest.raises(StoreAwayError, match="lock timeout"):
            store.write(about, 0, rows_of(0))
    store.write(about, 0, rows_of(0))
    store.close()


@pytest.mark.parametrize("secret", ["12/34", "12?34", "12#34"])
def test_a_password_that_is_not_escaped_is_refused_and_not_shown(secret: str) -> None:
    for given in (f"postgresql://me:{secret}@h/d#t", f"postgresql://me:{secret}@h/d"):
        with pytest.raises(ConfigError, match="%40, %2F and the like for special") as raised:
            parse_store(given)
        assert "34" not in str(raised.value)


def test_another_task_makes_no_vectors(chroma_config: ScoringConfig) -> None:
    with pytest.raises(ConfigError, match="vectors.store with task='text-classification'"):
        run_with_vectors(chroma_config.replace(task="text-classification"))


def test_an_input_with_the_column_of_ids_is_told_what_to_do(chroma_config: ScoringConfig) -> None:
    source = Path(str(chroma_config.input)) / "in-0.parquet"
    table = pq.read_table(source)
    pq.write_table(table.rename_columns(["Row_id", "text", "label"]), source)
    with pytest.raises(ConfigError, match="the input has 'Row_id'; give --set vectors.key=Row_id"):
        run_with_vectors(with_vectors(chroma_config, key=None))
    run_with_vectors(with_vectors(chroma_config, key="Row_id"))


def test_a_collection_of_another_output_is_refused(config: ScoringConfig) -> None:
    run_with_vectors(config)
    other = config.replace(output=f"{config.output}-other", overwrite=True)
    with pytest.raises(OutputError, match="holds the vectors of output .*out'; name another"):
        run_with_vectors(other)
    assert not Path(str(other.output)).exists()
    assert_holds(config)


def test_a_collection_of_an_output_that_is_gone_takes_overwriting(config: ScoringConfig) -> None:
    run_with_vectors(config)
    Path(str(config.output)).rename(f"{config.output}-away")
    with pytest.raises(OutputError, match="of an earlier run on output .*give --overwrite"):
        run_with_vectors(config)
    run_with_vectors(config.replace(overwrite=True))
    assert_holds(config)


def test_vectors_that_no_run_put_there_are_refused(config: ScoringConfig) -> None:
    act_on(
        config,
        lambda client, name: client.create_collection(name, embedding_function=None),
        "CREATE TABLE {} (id text)",
    )
    with pytest.raises(OutputError, match="that no run (made|put there); name another"):
        run_with_vectors(config.replace(overwrite=True))


def test_another_store_does_not_go_on_with_a_run(config: ScoringConfig) -> None:
    run_with_vectors(config)
    with pytest.raises(ResumeError, match="vectors.store was .*, is None"):
        run_with_vectors(config.replace(vectors={}))
    with pytest.raises(ResumeError, match="vectors.distance was 'l2', is 'ip'"):
        run_with_vectors(with_vectors(config, distance="ip"))


def test_a_store_within_the_output_is_refused(chroma_config: ScoringConfig) -> None:
    inside = with_vectors(chroma_config, store=f"chroma:{chroma_config.output}/store#documents")
    with pytest.raises(ConfigError, match="folders within one another"):
        run_with_vectors(inside)


def test_a_folder_of_something_else_is_refused(
    chroma_config: ScoringConfig, tmp_path: Path
) -> None:
    (tmp_path / "chroma").mkdir()
    (tmp_path / "chroma" / "letters.txt").write_text("dear")
    with pytest.raises(OutputError, match="holds something else than Chroma's files"):
        run_with_vectors(chroma_config)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is no folder that can be written"):
        run_with_vectors(with_vectors(chroma_config, store=f"chroma:{tmp_path}/file#documents"))


def test_files_that_changed_before_they_arrived_are_scored_again(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(STORES[parse_store(store_of(config)).kind], "write", raise_killed)
    with pytest.raises(Killed):
        run_with_vectors(config)
    monkeypatch.undo()
    [file] = Path(str(config.output)).glob("part-*.parquet")
    content = bytearray(file.read_bytes())
    place = content.rindex(b"org.apache.spark")
    content[place : place + 3] = b"xrg"
    file.write_bytes(content)
    assert run_with_vectors(config)[1].scored == [0, 1]
    assert_holds(config)


def raise_killed(*arguments: Any) -> None:
    raise Killed


def test_a_writer_of_a_replaced_run_writes_nothing_more(config: ScoringConfig) -> None:
    run_with_vectors(config)
    store = open_store(parse_store(store_of(config)))
    old = store.look()
    assert old is not None
    run_with_vectors(config.replace(overwrite=True))
    with pytest.raises(OutputError, match="was recreated or removed by something else"):
        store.write(old, 0, rows_of(7))
    store.close()
    assert_holds(config)


def rows_of(row: int) -> Any:
    import numpy as np

    from sparkinfer.sinks.vectors.base import VectorRows

    return VectorRows([str(row)], np.ones((1, 3), np.float32), [{}])


def test_the_password_is_in_no_text(
    config: ScoringConfig, caplog: pytest.LogCaptureFixture
) -> None:
    result, _ = run_with_vectors(config)
    texts = [repr(config), repr(config.vectors), summarize(result), caplog.text]
    texts.append(describe_status(read_status(str(config.output))))
    texts.append(json.dumps(result.as_dict(), default=str))
    for path in Path(str(config.output)).rglob("*.json"):
        texts.append(path.read_text())
    assert not [text for text in texts if PASSWORD in text]


def test_status_of_a_run_that_is_under_way_changes_nothing(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(STORES[parse_store(store_of(config)).kind], "write", raise_killed)
    with pytest.raises(Killed):
        run_with_vectors(config)
    monkeypatch.setattr(Ledger, "recover", None)
    status = read_status(str(config.output))
    assert (status.chunks, status.vector_chunks) == (1, 0)


def test_about_survives_as_text() -> None:
    about = About("run", "out", {"a": [1, None]}, 3, "l2", None, ("x",), "token")
    assert About.of_json(about.to_json(), "store") == about
    assert About.of_json(replace(about, key="é").to_json(), "store").key == "é"
    with pytest.raises(OutputError, match="store: what is kept about its vectors cannot be read"):
        About.of_json("{}", "store")
