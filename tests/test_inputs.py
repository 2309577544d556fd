from pathlib import Path

import pytest

from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import ConfigError, InputError
from sparkinfer.plan.inputs import check_columns, input_format


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


@pytest.mark.parametrize("kind", ["string", "large_string", "varchar(20)", "string collate UTF8"])
def test_every_type_of_text_is_accepted(kind: str) -> None:
    config = config_for("in", label_col="y")
    check_columns(config, {"text": kind, "y": "bigint"})
    with pytest.raises(InputError, match="input_col='text' has type binary"):
        check_columns(config, {"text": "binary", "y": "bigint"})


def test_a_clash_is_seen_whatever_the_case() -> None:
    with pytest.raises(ConfigError, match="PREDICTION would be overwritten"):
        check_columns(config_for("in"), {"text": "string", "PREDICTION": "int"})
    with pytest.raises(ConfigError, match="m_error would be overwritten"):
        check_columns(config_for("in", output_prefix="M_"), {"text": "string", "m_error": "int"})
    check_columns(config_for("in", carry_cols=("text",)), {"text": "string", "PREDICTION": "int"})
