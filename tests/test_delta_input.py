"""An input that is a version of a Delta table."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, Field, write_deltalake

from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import ConfigError, InputError, ResumeError
from tests.disk import ids_of
from tests.made_up_engine import run_made_up


def rows(first: int, count: int, **more: Any) -> pa.Table:
    ids = range(first, first + count)
    texts = [f"film {row}" for row in ids]
    columns = {name: [value] * count for name, value in more.items()}
    return pa.table({"id": pa.array(ids, pa.int64()), "text": texts, **columns})


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table of three versions: ten rows, twenty, five others."""
    path = tmp_path / "a table"
    write_deltalake(path, rows(0, 10))
    write_deltalake(path, rows(10, 10), mode="append")
    write_deltalake(path, rows(100, 5), mode="overwrite")
    return path


def config_of(classifier: Path, table: Path, **options: Any) -> ScoringConfig:
    return ScoringConfig(
        model=str(classifier),
        input=str(table),
        input_col="text",
        output=str(table.parent / "out"),
        engine="local",
        **options,
    )


@pytest.mark.parametrize(("version", "ids"), [(0, range(10)), (1, range(20)), (2, range(100, 105))])
def test_each_version_has_its_own_rows(
    classifier: Path, table: Path, version: int, ids: range
) -> None:
    config = config_of(classifier, table, input_version=version)
    run_made_up(config)
    assert ids_of(config.output) == list(ids)
    write_deltalake(table, rows(200, 1), mode="append")
    assert run_made_up(config).rows_before == len(ids)
    with pytest.raises(ResumeError, match="input_version was"):
        run_made_up(config.replace(input_version=3))


def test_values_in_folders_names_are_columns(classifier: Path, tmp_path: Path) -> None:
    path = tmp_path / "table"
    for first, day in ((0, "a b"), (2, "c/d")):
        write_deltalake(path, rows(first, 2, day=day), partition_by=["day"], mode="append")
    config = config_of(classifier, path, input_version=1)
    run_made_up(config)
    import pyarrow.dataset as pads

    found = pads.dataset(str(config.output), format="parquet").to_table().sort_by("id")
    assert found["day"].to_pylist() == ["a b", "a b", "c/d", "c/d"]


def test_values_that_would_get_another_type_are_refused(classifier: Path, tmp_path: Path) -> None:
    path = tmp_path / "table"
    write_deltalake(path, rows(0, 2, day="7"), partition_by=["day"])
    with pytest.raises(InputError, match="'day' would be read as int32, and are string"):
        run_made_up(config_of(classifier, path, input_version=0))


def test_a_folder_that_would_be_taken_for_another_is_refused(
    classifier: Path, tmp_path: Path
) -> None:
    write_deltalake(tmp_path / "a b", rows(0, 2))
    (tmp_path / "a b").rename(tmp_path / "a%20b")
    write_deltalake(tmp_path / "a b", rows(5, 2))
    with pytest.raises(InputError, match="deltalake misreads '%20' in the name"):
        run_made_up(config_of(classifier, tmp_path / "a%20b", input_version=0))


def moved(table: Path, file: str) -> None:
    """Gives the only file of a table another name, which the log then has."""
    log = table / "_delta_log" / "00000000000000000000.json"
    [name] = pa.table(DeltaTable(table).get_add_actions())["path"].to_pylist()
    (table / file).parent.mkdir(exist_ok=True)
    (table / name).rename(table / file)
    log.write_text(log.read_text().replace(f'"{name}"', f'"{file}"'))


def test_a_column_that_files_lack_is_not_left_out(classifier: Path, tmp_path: Path) -> None:
    in_log, added = tmp_path / "in_log", tmp_path / "added"
    write_deltalake(in_log, rows(0, 2, day="a"), partition_by=["day"])
    moved(in_log, "some.parquet")
    write_deltalake(added, rows(0, 2))
    DeltaTable(added).alter.add_columns([Field("day", "string")])
    for table, version in ((in_log, 0), (added, 1)):
        with pytest.raises(InputError, match="its log: 'day' is in none of them; register it"):
            run_made_up(config_of(classifier, table, input_version=version))


def test_a_folders_name_adds_no_column(classifier: Path, tmp_path: Path) -> None:
    write_deltalake(tmp_path / "table", rows(0, 2))
    moved(tmp_path / "table", "day=1/some.parquet")
    with pytest.raises(InputError, match="its log: 'day' is not in the table; register it"):
        run_made_up(config_of(classifier, tmp_path / "table", input_version=0))


def test_what_there_is_not_is_told(classifier: Path, table: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read as version 9 of a Delta table"):
        run_made_up(config_of(classifier, table, input_version=9))
    with pytest.raises(InputError, match="cannot be read as version 0 of a Delta table"):
        run_made_up(config_of(classifier, tmp_path / "none", input_version=0))
    with pytest.raises(InputError, match="or its folder with --input-version"):
        run_made_up(config_of(classifier, table))
    with pytest.raises(ConfigError, match="input_version=1 with incremental=true"):
        config_of(classifier, table, input_version=1, incremental=True)


def test_files_that_are_gone_are_told(classifier: Path, table: Path) -> None:
    [name] = pa.table(DeltaTable(table, version=0).get_add_actions())["path"].to_pylist()
    (table / name).unlink()
    with pytest.raises(InputError, match="of version 0 is gone, as VACUUM removes"):
        run_made_up(config_of(classifier, table, input_version=0))


def test_a_table_whose_files_hold_deleted_rows_is_refused(classifier: Path, table: Path) -> None:
    log = table / "_delta_log" / "00000000000000000000.json"
    text = log.read_text()
    assert '"minReaderVersion":1,"minWriterVersion":2' in text
    features = '"readerFeatures":["deletionVectors"],"writerFeatures":["deletionVectors"]'
    log.write_text(
        text.replace(
            '"minReaderVersion":1,"minWriterVersion":2',
            f'"minReaderVersion":3,"minWriterVersion":7,{features}',
        )
    )
    with pytest.raises(InputError, match="a Delta table with deletionVectors, and its files"):
        run_made_up(config_of(classifier, table, input_version=0))
    shutil.rmtree(table)
