"""Rows with an error are rescored alone, and take the place of what stood there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import accuracy_score

import sparkinfer
import sparkinfer.jobs.retry
from sparkinfer.cli import main
from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import ConfigError, JobError, ResumeError
from sparkinfer.jobs.manifest import ChunkRecord, ManifestFolder
from sparkinfer.jobs.output import Output
from sparkinfer.jobs.replacement import Replacer
from sparkinfer.jobs.result import RunResult
from sparkinfer.jobs.retry import rewrite
from tests.disk import Disk, Killed
from tests.made_up_engine import FAILURE, LABELS, MadeUpEngine, run_made_up, write_input
from tests.test_runner import kill_before, rows_of
from tests.tiny_models import WORDS

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

FAILING = (5, 13, 16, 44, 79)


@pytest.fixture
def config(classifier: Path, tmp_path: Path) -> ScoringConfig:
    return ScoringConfig(
        model=str(classifier),
        input=str(write_input(tmp_path / "in")),
        input_col="text",
        label_col="label",
        output=str(tmp_path / "out"),
        engine="local",
        chunks={"target_rows": 20},
    )


def run(
    config: ScoringConfig, failing: Container[int] = (), **options: Any
) -> tuple[RunResult, MadeUpEngine]:
    """Returns the result and the engine."""
    engine = MadeUpEngine(config, failing=failing, **options)
    return run_made_up(config, engine), engine


def retry(
    config: ScoringConfig, failing: Container[int] = (), **options: Any
) -> tuple[RunResult, MadeUpEngine]:
    return run(config.replace(retry_errors=True), failing, **options)


def published(config: ScoringConfig) -> dict[str, bytes]:
    files = Path(str(config.output)).glob("part-*.parquet")
    return {file.name: file.read_bytes() for file in files}


def records(config: ScoringConfig) -> dict[int, ChunkRecord]:
    output = str(config.output)
    found = ManifestFolder(output).records(Output(output).sizes)
    return {record.number: record for record in found}


def is_finished(config: ScoringConfig) -> bool:
    return (Path(str(config.output)) / "_SUCCESS").exists()


def assert_records_are_true(config: ScoringConfig) -> None:
    found = records(config)
    assert len(found) == 4
    for record in found.values():
        rows = [
            row
            for name in record.files
            for row in pq.read_table(Path(str(config.output)) / name).to_pylist()
        ]
        errors = [row["error"] for row in rows if row["error"] is not None]
        assert (record.rows, record.errors) == (len(rows), len(errors))
        assert record.reasons == {reason: errors.count(reason) for reason in errors}
        assert record.tokens == sum(row["n_tokens"] or 0 for row in rows)


@pytest.mark.parametrize("parts", [1, 3])
def test_what_scores_the_second_time_takes_the_place_of_its_error(
    config: ScoringConfig, parts: int
) -> None:
    run(config.replace(output=f"{config.output}-whole"))
    whole = rows_of(f"{config.output}-whole")
    result, _ = run(config, FAILING, parts=parts)
    assert (result.error_rows, result.retried_rows) == (17, None)
    before, files_before = rows_of(config.output), published(config)
    result, engine = retry(config, failing={13})
    assert rows_of(config.output) == [*whole[:13], before[13], *whole[14:]]
    assert before[13]["error"] == FAILURE
    assert (result.retried_rows, result.mended_rows, result.error_rows) == (5, 4, 13)
    assert (result.rows, result.rows_before) == (80, 80)
    assert engine.calls == [[0]]
    assert_records_are_true(config)
    assert is_finished(config)
    files = published(config)
    assert files.keys() == files_before.keys()
    changed = {name for name in files if files[name] != files_before[name]}
    assert len(changed) == 3 if parts == 1 else 4


def test_rewritten_files_keep_rows_order_schema_and_row_groups(config: ScoringConfig) -> None:
    run(config, FAILING, parts=2)
    shutil.copytree(str(config.output), f"{config.output}-before")
    retry(config)
    for name in published(config):
        old = pq.ParquetFile(Path(f"{config.output}-before") / name)
        new = pq.ParquetFile(Path(str(config.output)) / name)
        assert new.schema_arrow.equals(old.schema_arrow, check_metadata=True)
        assert new.num_row_groups == old.num_row_groups
        for column in ("id", "text", "label"):
            assert new.read([column]).equals(old.read([column]))


def test_metrics_are_measured_anew(config: ScoringConfig) -> None:
    before, _ = run(config, FAILING)
    after, _ = retry(config)
    rows = [row for row in rows_of(config.output) if row["error"] is None]
    predicted = [LABELS.index(row["prediction"]) for row in rows]
    expected = accuracy_score([row["label"] for row in rows], predicted)
    assert before.metrics["labelled_rows"] == 63
    assert after.metrics["labelled_rows"] == len(rows) == 68
    assert after.metrics["accuracy"] == pytest.approx(expected)
    assert run(config)[0].metrics == after.metrics


def test_rows_without_a_text_are_not_rescored(config: ScoringConfig) -> None:
    run(config)
    before = published(config)
    result, engine = retry(config)
    assert (result.retried_rows, result.mended_rows, result.error_rows) == (0, 0, 12)
    assert engine.calls == []
    assert published(config) == before


def test_a_first_run_has_nothing_to_retry(config: ScoringConfig) -> None:
    result, engine = retry(config, FAILING)
    assert (result.retried_rows, result.rows, result.error_rows) == (0, 80, 17)
    assert engine.calls == [[0, 1, 2, 3]]


def test_an_error_that_stays_keeps_its_files_as_they_were(config: ScoringConfig) -> None:
    run(config, FAILING)
    before = published(config)
    result, _ = retry(config, FAILING)
    assert (result.retried_rows, result.mended_rows, result.error_rows) == (5, 0, 17)
    assert published(config) == before
    assert is_finished(config)


def test_what_is_missing_is_scored_after_the_retry(config: ScoringConfig) -> None:
    with pytest.raises(Killed):
        run(config, FAILING, before_chunk=kill_before(2))
    result, engine = retry(config, failing={44})
    assert engine.calls == [[0], [2, 3]]  # first the rows with an error, then the missing chunks
    assert (result.retried_rows, result.mended_rows, result.error_rows) == (3, 3, 13)
    assert (result.rows, result.rows_before) == (80, 40)
    assert [row["id"] for row in rows_of(config.output)] == list(range(80))


@pytest.mark.parametrize("round_rows", [1, 3])
def test_rounds_end_with_a_chunk_and_are_published_one_by_one(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch, round_rows: int
) -> None:
    monkeypatch.setattr(sparkinfer.jobs.retry, "ROUND_ROWS", round_rows)
    run(config, FAILING)
    # The first chunk has three such rows; the second round is that of chunk 2.
    with pytest.raises(Killed):
        retry(config, before_chunk=kill_before(1))
    assert [record.errors for _, record in sorted(records(config).items())] == [3, 3, 4, 4]
    result, _ = retry(config)
    assert (result.retried_rows, result.error_rows) == (2, 12)
    assert_records_are_true(config)


def test_the_prefix_of_the_scored_columns_is_kept(config: ScoringConfig) -> None:
    config = config.replace(output_prefix="m_", carry_cols=("text", "id", "label"))
    run(config, FAILING)
    columns = list(rows_of(config.output)[0])
    result, _ = retry(config)
    assert result.error_rows == 12
    assert list(rows_of(config.output)[0]) == columns


def test_the_limit_of_errors_counts_those_that_are_left(config: ScoringConfig) -> None:
    run(config, FAILING)
    with pytest.raises(JobError, match="15 rows have an error.*allows 12: 12 x 'text is null', 3 "):
        retry(config.replace(max_error_rows=12), failing=(5, 13, 44))
    assert not is_finished(config)
    assert_records_are_true(config)
    assert retry(config.replace(max_error_rows=12))[0].error_rows == 12
    assert is_finished(config)


def test_old_errors_do_not_stop_a_run_that_mends_them(config: ScoringConfig) -> None:
    with pytest.raises(JobError, match="9 rows have an error"):
        run(config.replace(max_error_rows=8), FAILING)
    result, _ = retry(config.replace(max_error_rows=12))
    assert (result.rows, result.error_rows) == (80, 12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"carry_cols": ("id", "label")}, "'text' is not kept there"),
        ({"overwrite": True}, "retry_errors=true with overwrite=true"),
    ],
)
def test_what_cannot_be_retried_is_refused_before_anything_starts(
    config: ScoringConfig, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_made_up(config.replace(**options, retry_errors=True))
    assert not Path(str(config.output)).exists()


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"max_length": 32}, {}, "max_length was None, is 32"),
        ({}, {"dtype": "bfloat16"}, "acceleration was .*float32.*, is .*bfloat16"),
    ],
)
def test_a_retry_with_other_settings_is_refused(
    config: ScoringConfig, changes: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    run(config, FAILING)
    before = published(config)
    with pytest.raises(ResumeError, match=message):
        retry(config.replace(**changes), **options)
    assert published(config) == before
    assert is_finished(config)


def test_rows_that_the_engine_loses_or_swaps_are_not_published(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config, FAILING)
    before = published(config)
    whole = MadeUpEngine._write
    for spoil in (lambda rows: rows.slice(1), lambda rows: pa.concat_tables([rows, rows[:1]])):
        monkeypatch.setattr(
            MadeUpEngine,
            "_write",
            lambda self, plan, task, rows, spoil=spoil: whole(self, plan, task, spoil(rows)),
        )
        with pytest.raises(JobError, match="5 rows were to be rescored, but the [46] returned"):
            retry(config)
        assert published(config) == before


class WatchedDisk(Disk):
    """Looks after each change whether every row is there once, as it was or as it is to be."""

    before: list[dict[str, Any]]
    after: list[dict[str, Any]]

    def look(self, change: str) -> None:
        rows = rows_of(str(self.output))
        assert [row["id"] for row in rows] == list(range(80)), change
        for row, old, new in zip(rows, self.before, self.after, strict=True):
            assert row in (old, new), change


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("then", [run, retry])
def test_a_kill_before_any_change_of_the_disk_loses_nothing_and_scores_nothing_again(
    config: ScoringConfig,
    monkeypatch: pytest.MonkeyPatch,
    parts: int,
    then: Callable[..., tuple[RunResult, MadeUpEngine]],
) -> None:
    output = Path(str(config.output))
    run(config, FAILING, parts=parts)
    spare = shutil.copytree(output, f"{output}-spare")
    before = rows_of(str(output))
    retry(config, failing={13})
    after = rows_of(str(output))

    def restore() -> None:
        shutil.rmtree(output)
        shutil.copytree(spare, output)

    restore()
    disk = WatchedDisk(str(output), monkeypatch)
    disk.watch_changes()
    disk.before, disk.after = before, after
    retry(config, failing={13})
    changes = disk.changes
    assert changes > 12
    mixed = 0
    for fatal in range(changes):
        restore()
        disk.kill_at(fatal, str(output))
        with pytest.raises(Killed):
            retry(config, failing={13})
        mixed += records(config).keys() != {0, 1, 2, 3}
        disk.fatal = None
        result, engine = then(config, failing={13})
        assert engine.calls in ([], [[0]] if then is retry else []), fatal
        assert (result.rows, result.rows_before) == (80, 80)
        assert_records_are_true(config)
        assert not list(output.glob("_sparkinfer/chunks/*.replacing"))
        assert is_finished(config)
        if then is retry:
            assert rows_of(str(output)) == after, fatal
    assert mixed >= 3  # else no kill fell between a file and its record


def test_a_kill_while_another_kill_is_mended_is_mended(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Path(str(config.output))
    run(config, FAILING, parts=2)
    break_off(config, monkeypatch)
    broken = shutil.copytree(output, f"{output}-broken")
    disk = Disk(str(output), monkeypatch).watch_changes()
    run(config)
    for fatal in range(disk.changes):
        shutil.rmtree(output)
        shutil.copytree(broken, output)
        disk.kill_at(fatal, str(output))
        with pytest.raises(Killed):
            run(config)
        disk.fatal = None
        assert run(config)[1].scored == []
        assert_records_are_true(config)


def kill_always(*_: Any) -> None:
    raise Killed


def break_off(config: ScoringConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries up to where the first chunk's files are replaced and not recorded."""
    with monkeypatch.context() as patched:
        patched.setattr(Replacer, "_record", kill_always)
        with pytest.raises(Killed):
            retry(config)


def test_new_files_of_the_old_sizes_are_not_taken_for_the_old_ones(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config, FAILING)
    break_off(config, monkeypatch)
    folder = Path(str(config.output)) / "_sparkinfer" / "chunks"
    note, record = folder / "00000000.replacing", folder / "00000000.json"
    noted, old = json.loads(note.read_text()), json.loads(record.read_text())
    assert noted["before"] == old["files"] != noted["record"]["files"]
    noted["before"] = old["files"] = noted["record"]["files"]
    note.write_text(json.dumps(noted))
    record.write_text(json.dumps(old))
    assert records(config)[0].errors == 6  # as long as nobody has read the note
    assert run(config)[0].error_rows == 14
    assert_records_are_true(config)


@pytest.mark.parametrize("spoil", ["file", "note"])
def test_a_chunk_whose_files_are_neither_old_nor_new_is_scored_again(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    run(config, FAILING, parts=2)
    break_off(config, monkeypatch)
    output = Path(str(config.output))
    if spoil == "file":
        (output / "part-00000000-001.parquet").write_bytes(b"PAR1")
    else:
        (output / "_sparkinfer" / "chunks" / "00000000.replacing").write_text("{")
    _, engine = run(config)
    assert engine.scored == [0]
    assert_records_are_true(config)
    assert [row["id"] for row in rows_of(config.output)] == list(range(80))


def test_a_retry_that_was_taken_for_dead_cannot_replace_a_file(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config, FAILING)
    before = published(config)
    note = Replacer._note

    def overtaken(self: Replacer, *arguments: Any) -> None:
        note(self, *arguments)
        self._output.fence(self._lease.epoch + 1)

    with monkeypatch.context() as patched:
        patched.setattr(Replacer, "_note", overtaken)
        with pytest.raises(JobError):
            retry(config)
    assert published(config) == before
    _, engine = run(config)
    assert engine.scored == []
    assert published(config) == before
    assert_records_are_true(config)


def test_rewritten_rows_are_those_that_were_named(tmp_path: Path) -> None:
    table = pa.table({"a": range(10), "b": [[i] for i in range(10)], "c": list("abcdefghij")})
    table = table.replace_schema_metadata({"of": "somebody"})
    pq.write_table(table, tmp_path / "old", row_group_size=4, compression="zstd")
    columns = pa.table({"b": [[-1], None, [-3]], "c": ["x", "y", None]})
    rows = pa.array([0, 7, 9]).to_numpy()
    rewrite(str(tmp_path / "old"), str(tmp_path / "new"), rows, columns)
    new = pq.ParquetFile(tmp_path / "new")
    assert [new.metadata.row_group(i).num_rows for i in range(3)] == [4, 4, 2]
    assert new.metadata.row_group(0).column(0).compression == "ZSTD"
    assert new.schema_arrow.metadata[b"of"] == b"somebody"
    assert new.read().to_pydict() == {
        "a": list(range(10)),
        "b": [[-1], [1], [2], [3], [4], [5], [6], None, [8], [-3]],
        "c": ["x", "b", "c", "d", "e", "f", "g", "y", "i", None],
    }


def forward_that_fails_for(word: str, whole: Callable[..., Any]) -> Callable[..., Any]:
    token = 5 + WORDS.index(word)  # behind the special tokens

    def score(self: Any, inputs: dict[str, Any]) -> Any:
        if (inputs["input_ids"] == token).any():
            raise RuntimeError("no such film")
        return whole(self, inputs)

    return score


def test_a_model_error_that_is_gone_the_second_time_is_gone_from_the_output(
    classifier: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from sparkinfer.models.running import RunningModel

    texts = ["good film", "boring plot", None, "a bad film", "funny", "the boring word"]
    table = pa.table({"id": pa.array(range(6)), "text": pa.array(texts, pa.string())})
    pq.write_table(table, tmp_path / "in.parquet")
    config = ScoringConfig(
        model=str(classifier),
        input=str(tmp_path / "in.parquet"),
        input_col="text",
        output=str(tmp_path / "out"),
        engine="local",
    )
    sparkinfer.run(config.replace(output=str(tmp_path / "whole")))
    with monkeypatch.context() as patched:
        failing = forward_that_fails_for("boring", RunningModel.score)
        patched.setattr(RunningModel, "score", failing)
        assert sparkinfer.run(config).error_rows == 3
    errors = [row["error"] for row in rows_of(config.output)]
    assert errors[1] == errors[5] == "model: RuntimeError: no such film"
    given = ["score", "--engine", "local", "--input-col", "text", "--model", str(classifier)]
    given += ["--input", str(config.input), "--output", str(config.output), "--retry-errors"]
    assert main([*given, "--progress", "none"]) == 0
    said = capsys.readouterr().out
    assert "scored     6 rows, 1 of them with an error" in said
    assert "retried    2 rows that had an error; 2 of them no longer do" in said
    rows, expected = rows_of(config.output), rows_of(str(tmp_path / "whole"))
    for row, other in zip(rows, expected, strict=True):
        assert row.pop("probabilities") == pytest.approx(other.pop("probabilities"), abs=1e-6)
        assert row.pop("probability") == pytest.approx(other.pop("probability"), abs=1e-6)
    assert rows == expected
    assert main([*given, "--progress", "none"]) == 0
    assert "retried    nothing" in capsys.readouterr().out


@pytest.fixture
def proleptic(spark: SparkSession) -> Iterator[SparkSession]:
    """A session that writes times before 1900 as they are."""
    names = [f"spark.sql.parquet.{kind}RebaseModeInWrite" for kind in ("int96", "datetime")]
    for name in names:
        spark.conf.set(name, "CORRECTED")
    yield spark
    for name in names:
        spark.conf.unset(name)


@pytest.mark.spark
@pytest.mark.parametrize(
    ("engine", "year"),
    [("pandas_udf", 1500), pytest.param("horovod", 2001, marks=pytest.mark.slow)],
)
def test_a_spark_engine_rescores_and_its_files_keep_sparks_types(
    classifier: Path, tmp_path: Path, proleptic: SparkSession, engine: str, year: int
) -> None:
    spark = proleptic
    spark.sql(
        "select id, if(id % 10 = 0, null, concat('good film ', id)) as text, "
        f"timestamp'{year}-01-01 00:00:00.000001' + make_interval(cast(id as int)) as old, "
        "cast(id as decimal(9,2)) as price, cast(id as decimal(30,5)) as large, "
        f"date'{year}-01-01' as day, map('a', array(id)) as nested, cast(id as byte) as small "
        "from range(0, 60, 1, 3)"
    ).write.parquet(str(tmp_path / "in"))
    config = ScoringConfig(
        model=str(classifier),
        input=str(tmp_path / "in"),
        input_col="text",
        output=str(tmp_path / "out"),
        engine=engine,
        dtype="float32",
        chunks={"target_rows": 20},
    )
    sparkinfer.run(config, spark)
    whole = spark.read.parquet(str(config.output)).orderBy("id")
    schema, rows = whole.schema, whole.collect()
    spoil(config)
    assert spark.read.parquet(str(config.output)).where("error = 'model: no'").count() == 3
    result = sparkinfer.run(config.replace(retry_errors=True), spark)
    assert (result.retried_rows, result.mended_rows, result.error_rows) == (3, 3, 6)
    mended = spark.read.parquet(str(config.output)).orderBy("id")
    assert mended.schema.json() == schema.json()
    for row, other in zip(mended.collect(), rows, strict=True):
        assert [v for v in row if not isinstance(v, (float, list))] == [
            v for v in other if not isinstance(v, (float, list))
        ]
        if row.probabilities is not None:
            assert row.probabilities == pytest.approx(other.probabilities, abs=1e-5)


@pytest.mark.spark
def test_times_of_every_kind_are_the_same_after_two_rewritings(
    tmp_path: Path, proleptic: SparkSession
) -> None:
    rows = proleptic.sql(
        "select id, t, cast(t as timestamp_ntz) as local, array(t) as list, struct(id, t) as both, "
        "map('k', t) as by_name, map(t, cast(t as timestamp_ntz)) as by_time, 'x' as text "
        "from (select id, timestamp'2001-01-01 01:02:03.000004' + make_interval(-50 * id) as t "
        "from (select cast(id as int) as id from range(12)))"
    )
    rows.coalesce(1).write.parquet(str(tmp_path / "out"))
    path = next((tmp_path / "out").glob("*.parquet"))
    before = proleptic.read.parquet(str(path))
    for number in (1, 2):
        target = tmp_path / f"{number}.parquet"
        rewrite(str(path), str(target), pa.array([number]).to_numpy(), pa.table({"text": ["y"]}))
        path = target
    after = proleptic.read.parquet(str(path))
    assert after.schema.json() == before.schema.json()
    assert after.drop("text").collect() == before.drop("text").collect()
    assert [row.text for row in after.collect()] == ["x", "y", "y", *["x"] * 9]
    files = tmp_path / "out", path
    assert proleptic.read.parquet(*map(str, files)).where("t < '1960-01-01'").count() == 22


@pytest.mark.spark
def test_times_of_the_old_calendar_are_refused(tmp_path: Path, proleptic: SparkSession) -> None:
    proleptic.conf.set("spark.sql.parquet.int96RebaseModeInWrite", "LEGACY")
    rows = proleptic.sql("select 'x' as text, 'no' as error, timestamp'1500-01-01 00:00:00' as t")
    rows.write.parquet(str(tmp_path / "out"))
    path = next((tmp_path / "out").glob("*.parquet"))
    with pytest.raises(JobError, match="calendar of Spark 2.*CORRECTED"):
        list(sparkinfer.jobs.retry._rows_with_error(str(path), "text", "error"))


def spoil(config: ScoringConfig) -> None:
    """Gives one row of each chunk an error, as a model that fails would have."""
    folder = Path(str(config.output))
    for record in records(config).values():
        name = max(record.files, key=lambda name: pq.read_metadata(folder / name).num_rows)
        table = pq.read_table(folder / name)
        row = next(i for i, text in enumerate(table["text"].to_pylist()) if text is not None)
        lost = [table.schema.field(c) for c in ("prediction", "probability", "probabilities")]
        columns = {field.name: pa.nulls(1, field.type) for field in lost}
        columns["error"] = pa.array(["model: no"])
        rewrite(
            str(folder / name), str(folder / "new"), pa.array([row]).to_numpy(), pa.table(columns)
        )
        (folder / "new").replace(folder / name)
        path = folder / "_sparkinfer" / "chunks" / f"{record.number:08d}.json"
        values = json.loads(path.read_text())
        values["files"][name] = (folder / name).stat().st_size
        values["errors"] += 1
        path.write_text(json.dumps(values))
