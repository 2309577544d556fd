from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import ConfigError, InputError
from sparkinfer.plan.inputs import choose_columns, input_format
from sparkinfer.plan.ports import InputTable
from sparkinfer.plan.processors import make_processor
from sparkinfer.rows.columns import Columns


def config_for(path: object, **options: object) -> ScoringConfig:
    return ScoringConfig(**{"model": "m", "input_col": "text", "input": str(path), **options})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.parquet", "parquet"),
        ("a.PQ", "parquet"),
        ("a.csv", "csv"),
        ("a.csv.gz", "csv"),
        ("a.jsonl", "json"),
        ("a.ndjson", "json"),
        ("a.json.gz", "json"),
    ],
)
def test_the_name_of_a_file_tells_its_format(tmp_path: Path, name: str, expected: str) -> None:
    (tmp_path / name).write_text("x")
    assert input_format(config_for(tmp_path / name)) == expected


def test_a_folder_has_the_format_of_its_files(tmp_path: Path) -> None:
    for name in ("_SUCCESS", ".part-0.csv.crc", "part-0.parquet", "part-1.parquet"):
        (tmp_path / name).write_text("")
    assert input_format(config_for(tmp_path)) == "parquet"


def test_a_partitioned_folder_is_looked_into(tmp_path: Path) -> None:
    (tmp_path / "year=2024" / "month=1").mkdir(parents=True)
    (tmp_path / "year=2024" / "month=1" / "part-0.csv").write_text("")
    assert input_format(config_for(tmp_path)) == "csv"


def test_files_of_several_formats_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("")
    (tmp_path / "b.parquet").write_text("")
    with pytest.raises(InputError, match=r"files of kinds \['csv', 'parquet'\].*--input-format"):
        input_format(config_for(tmp_path))
    assert input_format(config_for(tmp_path, input_format="csv")) == "csv"


def test_an_unknown_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_text("")
    with pytest.raises(InputError, match="no known kind of file"):
        input_format(config_for(tmp_path / "a.xlsx"))


@pytest.mark.parametrize("name", ["reviews", "main.reviews", "main.reviews.raw"])
def test_a_name_that_is_no_path_is_a_table(name: str) -> None:
    assert input_format(config_for(name)) == "table"
    with pytest.raises(InputError, match="does not exist"):
        input_format(config_for(name, engine="local"))


def test_a_missing_path_is_not_taken_for_a_table() -> None:
    with pytest.raises(InputError, match="'/nowhere/x.parquet' does not exist"):
        input_format(config_for("/nowhere/x.parquet"))


def test_no_input_at_all_says_how_to_give_one() -> None:
    with pytest.raises(ConfigError, match="--input PATH"):
        input_format(ScoringConfig(model="m", input_col="text"))


def choose(config: ScoringConfig, foreign: dict[str, str] | None = None, **kinds: Any) -> Columns:
    schema = pa.schema(list(kinds.items()))
    names = (*kinds, *(foreign or {}))
    table = InputTable(names, "parquet", "in", schema, foreign or {})
    return choose_columns(config, table, make_processor(config))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_every_type_of_text_is_accepted(kind: pa.DataType) -> None:
    config = config_for("in", label_col="y")
    columns = choose(config, text=kind, y=pa.int64())
    assert (columns.read.names, columns.inputs.names) == (["text", "y"], ["text"])
    with pytest.raises(InputError, match="input_col='text' has type binary"):
        choose(config, text=pa.binary(), y=pa.int64())


def test_an_input_that_is_not_kept_is_read_all_the_same() -> None:
    columns = choose(config_for("in", carry_cols=("id",)), id=pa.int64(), text=pa.string())
    assert columns.read.names == ["id", "text"]
    assert columns.output.names[:2] == ["id", "prediction"]


def test_a_column_that_arrow_has_no_type_for_is_refused_only_where_it_is_read() -> None:
    foreign = {"span": "interval month"}
    with pytest.raises(InputError, match="'span' has type interval month.*--carry-cols"):
        choose(config_for("in"), foreign, text=pa.string())
    columns = choose(config_for("in", carry_cols=("text",)), foreign, text=pa.string())
    assert columns.carried.names == ["text"]


def test_a_clash_is_seen_whatever_the_case() -> None:
    kinds = {"text": pa.string(), "PREDICTION": pa.int32()}
    with pytest.raises(ConfigError, match="PREDICTION would be overwritten"):
        choose(config_for("in"), **kinds)
    with pytest.raises(ConfigError, match="m_error would be overwritten"):
        choose(config_for("in", output_prefix="M_"), text=pa.string(), m_error=pa.int32())
    choose(config_for("in", carry_cols=("text",)), **kinds)
