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
from sparkinfer.cli import main
from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import ConfigError, JobError, ResumeError
from sparkinfer.jobs.output import Output
from sparkinfer.jobs.records import ChunkRecord, Records
from sparkinfer.jobs.result import RunResult
from sparkinfer.jobs.sealed import seal
from sparkinfer.sinks.footers import read_footer
from sparkinfer.sinks.parquet import ParquetFolder
from tests.chaos.checks import recorded_files, visible_files
from tests.disk import Disk, Killed
from tests.made_up_engine import (
    FAILURE,
    LABELS,
    MadeUpEngine,
    job_of_eighty_rows,
    run_made_up,
)
from tests.test_runner import kill_before, rows_of
from tests.tiny_models import WORDS
from tests.written import record_file, records_of

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

FAILING = (5, 13, 16, 44, 79)


@pytest.fixture
def config(classifier: Path, tmp_path: Path) -> ScoringConfig:
    return job_of_eighty_rows(classifier, tmp_path)


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


def is_finished(config: ScoringConfig) -> bool:
    return (Path(str(config.output)) / "_SUCCESS").exists()


def assert_records_are_true(config: ScoringConfig) -> None:
    found = records_of(config.output)
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
    assert (result.retried_rows, result.recovered_rows, result.error_rows) == (5, 4, 13)
    assert (result.rows, result.rows_before) == (80, 80)
    assert engine.calls == [[0, 2, 3]]
    assert_records_are_true(config)
    output = Path(str(config.output))
    assert visible_files(output) == recorded_files(output)
    assert is_finished(config)
    untouched = {
        name for name, content in published(config).items() if files_before.get(name) == content
    }
    assert {name[:13] for name in untouched} == {"part-00000001"}


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
    assert (result.retried_rows, result.recovered_rows, result.error_rows) == (0, 0, 12)
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
    assert (result.retried_rows, result.recovered_rows, result.error_rows) == (5, 0, 17)
    assert published(config) == before
    assert is_finished(config)


def test_what_is_missing_is_scored_after_the_retry(config: ScoringConfig) -> None:
    with pytest.raises(Killed):
        run(config, FAILING, before_chunk=kill_before(2))
    result, engine = retry(config, failing={44})
    assert engine.calls == [[0], [2, 3]]  # first the rows with an error, then the missing chunks
    assert (result.retried_rows, result.recovered_rows, result.error_rows) == (3, 3, 13)
    assert (result.rows, result.rows_before) == (80, 40)
    assert [row["id"] for row in rows_of(config.output)] == list(range(80))


def test_what_recovers_is_recorded_chunk_by_chunk(config: ScoringConfig) -> None:
    run(config, FAILING)
    with pytest.raises(Killed):
        retry(config, before_chunk=kill_before(2))
    found = records_of(config.output)
    assert [found[number].errors for number in range(4)] == [3, 3, 4, 4]
    assert [found[number].generation for number in range(4)] == [1, 0, 0, 0]
    result, engine = retry(config)
    assert engine.calls == [[2, 3]]
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
        with pytest.raises(JobError, match="chunk 0 has 20 rows but (19|21) were written"):
            retry(config)
        assert published(config) == before


class WatchedDisk(Disk):
    """Looks after each change whether rows are there once, as they were or as they are to be.

    Of a chunk in several files, some may be missing while its next generation is published.

    Attributes:
        is_whole: whether every row must be there.
    """

    before: list[dict[str, Any]]
    after: list[dict[str, Any]]
    is_whole: bool

    def look(self, change: str) -> None:
        rows = rows_of(str(self.output))
        ids = [row["id"] for row in rows]
        assert len(set(ids)) == len(ids), change
        assert not self.is_whole or ids == list(range(80)), change
        for row in rows:
            assert row in (self.before[row["id"]], self.after[row["id"]]), change


@pytest.mark.parametrize("parts", [(1, 1), (3, 2), pytest.param((2, 3), marks=pytest.mark.slow)])
@pytest.mark.parametrize("then", [run, retry])
def test_a_kill_before_any_change_of_the_disk_loses_nothing_and_scores_nothing_again(
    config: ScoringConfig,
    monkeypatch: pytest.MonkeyPatch,
    parts: tuple[int, int],
    then: Callable[..., tuple[RunResult, MadeUpEngine]],
) -> None:
    output = Path(str(config.output))
    run(config, FAILING, parts=parts[0])
    spare = shutil.copytree(output, f"{output}-spare")
    before = rows_of(str(output))
    retry(config, failing={13}, parts=parts[1])
    after = rows_of(str(output))

    def restore() -> None:
        shutil.rmtree(output)
        shutil.copytree(spare, output)

    restore()
    disk = WatchedDisk(str(output), monkeypatch)
    disk.before, disk.after, disk.is_whole = before, after, parts == (1, 1)
    disk.watch_changes()
    retry(config, failing={13}, parts=parts[1])
    changes = disk.changes
    assert changes > 12
    for fatal in range(changes):
        restore()
        disk.kill_at(fatal, str(output))
        with pytest.raises(Killed):
            retry(config, failing={13}, parts=parts[1])
        disk.fatal = None
        result, engine = then(config, failing={13}, parts=parts[1])
        assert then is retry or engine.calls == [], fatal
        assert (result.rows, result.rows_before) == (80, 80)
        assert_records_are_true(config)
        assert is_finished(config)
        if then is retry:
            assert rows_of(str(output)) == after, fatal


def test_a_kill_while_another_kill_is_repaired_is_repaired(
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
        assert records_of(config.output)[0].errors == 3


def kill_always(*_: Any) -> None:
    raise Killed


def break_off(config: ScoringConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries up to where the first chunk is recorded and its files have not moved."""
    with monkeypatch.context() as patched:
        patched.setattr(ParquetFolder, "publish", kill_always)
        with pytest.raises(Killed):
            retry(config)


def test_new_files_of_the_old_sizes_are_not_taken_for_the_old_ones(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config, FAILING)
    break_off(config, monkeypatch)
    record = json.loads(record_file(config.output, 0, 1).read_text())
    [(name, source)] = record["sources"].items()
    work = Path(str(config.output)) / "_sparkinfer"
    content = (work / source).read_bytes()
    (work.parent / name).write_bytes(bytes(len(content)))
    run(config)
    assert (work.parent / name).read_bytes() == content


@pytest.mark.parametrize("spoil", ["source", "record"])
def test_a_generation_that_cannot_be_finished_leaves_the_one_before(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    run(config, FAILING, parts=2)
    before = rows_of(config.output)
    break_off(config, monkeypatch)
    if spoil == "source":
        shutil.rmtree(Path(str(config.output)) / "_sparkinfer" / "staging")
    else:
        record_file(config.output, 0, 1).write_text("{")
    _, engine = run(config)
    assert engine.scored == []
    assert rows_of(config.output) == before
    assert_records_are_true(config)
    result, _ = retry(config)
    assert (result.recovered_rows, records_of(config.output)[0].generation) == (5, 2)


def test_a_retry_that_was_taken_for_dead_cannot_replace_a_file(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config, FAILING)
    before = published(config)
    create = Records.create

    def overtaken(self: Records, record: ChunkRecord) -> ChunkRecord | None:
        there = create(self, record)
        Output(str(config.output)).fence(record.epoch + 1)
        return there

    with monkeypatch.context() as patched:
        patched.setattr(Records, "create", overtaken)
        with pytest.raises(JobError):
            retry(config)
    assert published(config) == before
    _, engine = run(config)
    assert engine.scored == []
    assert published(config) == before
    assert_records_are_true(config)


def forward_that_fails_for(word: str, whole: Callable[..., Any]) -> Callable[..., Any]:
    token = 5 + WORDS.index(word)  # behind the special tokens

    def score(self: Any, inputs: dict[str, Any], *_: Any) -> Any:
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
        failing = forward_that_fails_for("boring", RunningModel.run)
        patched.setattr(RunningModel, "run", failing)
        assert sparkinfer.run(config).error_rows == 3
    errors = [row["error"] for row in rows_of(config.output)]
    assert errors[1] == errors[5] == "model: RuntimeError: no such film"
    given = ["score", "--engine", "local", "--input-col", "text", "--model", str(classifier)]
    given += ["--input", str(config.input), "--output", str(config.output), "--retry-errors"]
    assert main([*given, "--progress", "none"]) == 0
    said = capsys.readouterr().out
    assert "\nerrors     1 row\n           1 x text is null\n" in said
    assert "retried    2 rows that had an error; 2 recovered" in said
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
    assert (result.retried_rows, result.recovered_rows, result.error_rows) == (3, 3, 6)
    rescored = spark.read.parquet(str(config.output)).orderBy("id")
    assert rescored.schema.json() == schema.json()
    for row, other in zip(rescored.collect(), rows, strict=True):
        assert [v for v in row if not isinstance(v, (float, list))] == [
            v for v in other if not isinstance(v, (float, list))
        ]
        if row.probabilities is not None:
            assert row.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def spoil(config: ScoringConfig) -> None:
    """Gives one row of each chunk an error, as a model that fails would have."""
    folder = Path(str(config.output))
    for record in records_of(config.output).values():
        name = max(record.files, key=lambda name: pq.read_metadata(folder / name).num_rows)
        table = pq.read_table(folder / name)
        row = next(i for i, text in enumerate(table["text"].to_pylist()) if text is not None)
        lost = {
            "prediction": None,
            "probability": None,
            "probabilities": None,
            "error": "model: no",
        }
        for index, field in enumerate(table.schema):
            if field.name in lost:
                values = table[field.name].to_pylist()
                values[row] = lost[field.name]
                table = table.set_column(index, field, pa.array(values, field.type))
        pq.write_table(table, folder / name)
        path = record_file(config.output, record.number)
        values = json.loads(path.read_text())
        size = (folder / name).stat().st_size
        values["files"][name] = size
        values["digests"][name] = read_footer(str(folder / name), size).digest
        values["errors"] += 1
        del values["checksum"], values["schema_version"]
        path.write_text(seal(values))
