"""A user's functions in place of a model, under every engine."""

from __future__ import annotations

import datetime
import decimal
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

import sparkinfer
from sparkinfer.exceptions import ConfigError, InputError, ResumeError, TooManyErrorsError
from sparkinfer.functions.stages import DEADLY
from sparkinfer.jobs.summary import summarize
from sparkinfer.report.status import describe_status, read_status
from tests import made_up_functions as functions

Run = Callable[..., tuple[sparkinfer.RunResult, list[dict[str, Any]]]]

ROWS = 60
BAD = (7, 41)


@pytest.fixture
def source(tmp_path: Path) -> str:
    texts: list[str | None] = [f"text {row}" for row in range(ROWS)]
    for row in BAD:
        texts[row] = "bad"
    table = pa.table({"id": range(ROWS), "text": texts, "rating": [row / 7 for row in range(ROWS)]})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=20)
    return str(tmp_path / "in.parquet")


@pytest.fixture
def process(run: Callable[..., Any], source: str) -> Run:
    """Has functions process the source under one engine; returns the result and the rows."""

    def processed(function: Any, *, data: str = source, **options: Any) -> Any:
        given = {"function": function, **options.pop("fn", {})}
        plain = {"model": None, "input_col": None, "dtype": "auto", "chunks": {"target_rows": 20}}
        result, table = run(data, **{**plain, "fn": given, **options})
        return result, table.to_pylist()

    return processed


def test_what_a_function_returns_is_the_output(process: Run) -> None:
    result, rows = process("tests.made_up_functions:shout", fn={"batch_size": 7})
    assert [row["id"] for row in rows] == list(range(ROWS))
    assert rows[0] == {"id": 0, "loud": "TEXT 0", "error": None}
    assert (result.rows, result.rows_read, result.error_rows) == (ROWS, ROWS, 0)
    assert "columns id bigint, loud string" in summarize(result)


def test_rows_may_become_more_or_fewer(process: Run, tmp_path: Path) -> None:
    more, rows = process(functions.twice)
    assert [(row["id"], row["copy"]) for row in rows] == [
        (i, c) for i in range(ROWS) for c in (0, 1)
    ]
    assert (more.rows, more.rows_read) == (2 * ROWS, ROWS)
    assert f"Scored {ROWS} rows, of which the output has {2 * ROWS} rows, in" in summarize(more)
    status = describe_status(read_status(more.output))
    assert f"rows       {ROWS} of {ROWS} (100.0%)" in status
    assert f"which gave {2 * ROWS} rows" in status
    fewer, rows = process(functions.even, output=str(tmp_path / "fewer"))
    assert [row["id"] for row in rows] == list(range(0, ROWS, 2))
    assert (fewer.rows, fewer.rows_read) == (ROWS // 2, ROWS)


def test_a_class_is_constructed_and_called_with_arguments(process: Run) -> None:
    arguments = {
        "constructor_args": [100],
        "constructor_kwargs": {"sign": -1},
        "kwargs": {"more": 1000},
    }
    _, rows = process("tests.made_up_functions:Adds", fn=arguments)
    assert [row["sum"] for row in rows] == [row + 900 for row in range(ROWS)]


def test_functions_run_one_after_the_other(process: Run) -> None:
    chain = ["tests.made_up_functions:picky", "tests.made_up_functions:says_process"]
    result, rows = process(chain, fn={"batch_size": 5})
    assert [row["id"] for row in rows] == list(range(ROWS))
    assert [row["id"] for row in rows if row["error"]] == list(BAD)
    assert rows[0]["loud"] == "TEXT 0"
    assert result.error_rows == len(BAD)


def test_a_row_that_fails_has_the_reason_and_what_the_input_has_of_the_columns(
    process: Run,
) -> None:
    result, rows = process(functions.picky, fn={"batch_size": 16})
    failed = [row for row in rows if row["error"]]
    reason = "function: ValueError: a bad text"
    assert failed == [{"id": row, "loud": None, "error": reason} for row in BAD]
    assert len(rows) == ROWS
    assert result.error_reasons == {reason: len(BAD)}
    assert result.statistics.errored_batches == len(BAD)


def test_all_rows_of_a_batch_fail_where_rows_give_several(process: Run) -> None:
    result, rows = process(functions.picky_twice, fn={"batch_size": 4})
    failed = {row["id"] for row in rows if row["error"]}
    assert set(BAD) <= failed
    # Under Spark batches are cut anew in each task, the last of which is short.
    assert len(failed) <= 8
    good = sorted(row["id"] for row in rows if not row["error"])
    assert good == sorted([row for row in range(ROWS) if row not in failed] * 2)
    assert result.rows == len(rows)


def everything() -> pa.Table:
    moment = datetime.datetime(2024, 2, 29, 12, 30, 15, 123456)
    return pa.table(
        {
            "id": range(4),
            "text": ["a", None, "", "é"],
            "small": pa.array([1, None, -3, 4], pa.int8()),
            "large": pa.array([2**60 + 1, None, -1, 0], pa.int64()),
            "flag": [True, None, False, True],
            "exact": pa.array([decimal.Decimal("1.10"), None, 2, 3], pa.decimal128(10, 2)),
            "day": pa.array([moment.date(), None, moment.date(), moment.date()]),
            "instant": pa.array([moment, None, moment, moment], pa.timestamp("us", "UTC")),
            "wall_clock": pa.array([moment, None, moment, moment], pa.timestamp("us")),
            "raw": [b"\x00", None, b"", b"x"],
            "many": pa.array([[1.5], None, [], [None, 2.0]], pa.list_(pa.float32())),
            "both": [{"a": 1, "b": "x"}, None, {"a": None, "b": None}, {"a": 2, "b": ""}],
            "of_each": pa.array(
                [[("k", 1)], None, [], [("a", None)]], pa.map_(pa.string(), pa.int32())
            ),
        }
    )


def test_every_type_comes_through_as_it_was(process: Run, tmp_path: Path) -> None:
    pq.write_table(everything(), tmp_path / "all.parquet")
    _, rows = process(
        functions.same, data=str(tmp_path / "all.parquet"), fn={"batch_format": "pyarrow"}
    )
    expected = [{**row, "error": None} for row in everything().to_pylist()]
    assert rows == expected


def test_columns_that_it_does_not_change_keep_their_types_as_numpy_arrays(
    process: Run, tmp_path: Path
) -> None:
    kept = ["id", "text", "small", "flag", "day", "instant", "exact"]
    pq.write_table(everything().select(kept), tmp_path / "all.parquet")
    result, rows = process(functions.same, data=str(tmp_path / "all.parquet"))
    assert rows == [{**row, "error": None} for row in everything().select(kept).to_pylist()]
    assert "small tinyint" in result.verdict.schema


def test_it_is_given_the_columns_that_are_asked_for(process: Run) -> None:
    _, rows = process(functions.same, fn={"input_cols": ["id", "rating"]})
    assert list(rows[0]) == ["id", "rating", "error"]


@pytest.mark.parametrize(
    ("fn", "options", "kind", "problem"),
    [
        (functions.shout, {"schema": "id bigint"}, ConfigError, "a column 'loud', which is not"),
        (functions.shout, {"schema": "id bigint, loud int"}, ConfigError, "does not fit int32"),
        (functions.shout, {"schema": "id"}, ConfigError, "fn.schema='id' at its end"),
        (functions.shout, {"input_cols": ["nope"]}, InputError, "fn.input_cols='nope'"),
        (functions.fails, {}, ConfigError, "gives no row for the first 20 of the input: function:"),
        (functions.Broken, {}, ConfigError, "cannot be constructed: OSError: no such weights"),
        (functions.only_nulls, {}, ConfigError, "nothing but nulls for column 'none'"),
        (functions.named_error, {}, ConfigError, "a column 'error', which says why a row has"),
        (functions.none, {}, ConfigError, "it returned nothing, expected a dict of arrays"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_written(
    process: Run, tmp_path: Path, fn: Any, options: dict[str, Any], kind: type, problem: str
) -> None:
    with pytest.raises(kind) as refused:
        process(fn, fn={"batch_size": 20, **options})
    assert problem in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_finished_output_is_kept_and_another_function_refused(process: Run) -> None:
    _, first = process(functions.shout)
    again, rows = process(functions.shout)
    assert again.workers is None
    assert rows == first
    with pytest.raises(ResumeError, match="fn was .*shout"):
        process(functions.even)


def test_what_a_class_keeps_of_the_rows_it_is_tried_with_is_gone_in_the_run(process: Run) -> None:
    result, _ = process(functions.Once, chunks={"target_rows": 1000})
    assert result.rows == ROWS


def test_a_batch_that_an_asynchronous_function_cannot_be_given_fails_alone(
    process: Run, tmp_path: Path
) -> None:
    table = pa.table({"id": range(6), "n": pa.array([1, 2, 3, 4, None, 2**53 + 1])})
    pq.write_table(table, tmp_path / "odd.parquet")
    fn = {"batch_size": 2}
    _, rows = process(functions.same_later, data=str(tmp_path / "odd.parquet"), fn=fn)
    assert [row["n"] for row in rows] == [1, 2, 3, 4, None, 2**53 + 1]


def test_rows_that_failed_are_tried_again_with_the_rest_of_their_chunk(
    process: Run, tmp_path: Path
) -> None:
    allowed = tmp_path / "allowed"
    options = {"constructor_args": [str(allowed)], "batch_size": 4}
    first, rows = process(functions.FailsUnlessAllowed, fn=options)
    assert first.error_rows == len(BAD)
    allowed.touch()
    second, rows = process(functions.FailsUnlessAllowed, fn=options, retry_errors=True)
    assert (second.retried_rows, second.recovered_rows, second.error_rows) == (2, 2, 0)
    assert [row["id"] for row in rows] == list(range(ROWS))
    assert not [row for row in rows if row["error"]]


def test_too_many_failed_batches_end_the_run_and_a_higher_limit_goes_on(process: Run) -> None:
    with pytest.raises(TooManyErrorsError, match="batches failed over a row, fn.max_errored"):
        process(functions.picky, fn={"batch_size": 4, "max_errored_batches": 0})
    result, rows = process(functions.picky, fn={"batch_size": 4, "max_errored_batches": 10})
    assert [row["id"] for row in rows] == list(range(ROWS))
    assert result.error_rows == len(BAD)


@pytest.mark.spark
def test_a_row_over_which_the_process_dies_has_an_error(spark: Any, tmp_path: Path) -> None:
    texts = ["bad" if row in (300, 390) else "good" for row in range(400)]
    pq.write_table(pa.table({"id": range(400), "text": texts}), tmp_path / "in.parquet")
    config = sparkinfer.ScoringConfig(
        input=str(tmp_path / "in.parquet"),
        output=str(tmp_path / "out"),
        fn="tests.made_up_functions:dies_over_bad",
        chunks={"target_rows": 200},
    )
    result = sparkinfer.run(config, spark)
    rows = pads.dataset(config.output, format="parquet").to_table().sort_by("id").to_pylist()
    assert [row["id"] for row in rows] == list(range(400))
    failed = [row for row in rows if row["error"]]
    assert failed == [{"id": row, "text": "bad", "error": DEADLY} for row in (300, 390)]
    assert result.error_rows == 2


def test_a_killed_job_goes_on_where_it_was(source: str, tmp_path: Path) -> None:
    go_on = tmp_path / "go-on"
    command = [
        *(sys.executable, "-m", "sparkinfer", "score", "--engine", "local", "--input", source),
        *("--output", str(tmp_path / "out"), "--fn", "tests.made_up_functions:WaitsForFile"),
        *("--set", f"fn.constructor_args=[{go_on}, 45]", "--set", "fn.batch_size=5"),
        *("--set", "chunks.target_rows=20", "--progress", "none"),
        *("--set", "fn.schema=id bigint, loud string"),
    ]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    waiting, parts = Path(f"{go_on}.waiting"), tmp_path / "out"
    # The third chunk is at hand while the second is still being committed.
    while not waiting.exists() or len(list(parts.glob("*.parquet"))) < 2:
        assert killed.poll() is None
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = {part.name: part.stat().st_mtime_ns for part in parts.glob("*.parquet")}
    assert len(before) == 2
    go_on.touch()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    rows = pads.dataset(str(tmp_path / "out"), format="parquet").to_table().sort_by("id")
    assert rows.column("id").to_pylist() == list(range(ROWS))
    after = {part.name: part.stat().st_mtime_ns for part in (tmp_path / "out").glob("*.parquet")}
    assert before.items() <= after.items()
