from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import ConfigError, InputError
from sparkinfer.plan.inputs import choose_columns, qualified_input, spark_kind
from sparkinfer.plan.ports import InputTable
from sparkinfer.plan.processors import make_processor
from sparkinfer.rows.columns import Columns


def config_for(path: object, **options: object) -> ScoringConfig:
    return ScoringConfig(**{"model": "m", "input_col": "text", "input": str(path), **options})


@pytest.mark.parametrize(
    "name", ["reviews", "main.reviews", "main.reviews.raw", "my-db.my-table", "`a b`.`c``d`"]
)
def test_a_name_that_is_no_path_is_a_table(name: str) -> None:
    assert spark_kind(config_for(name)) == "table"
    assert spark_kind(config_for(name, engine="local")) is None


def test_a_name_that_is_there_as_a_file_is_no_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "reviews").mkdir()
    monkeypatch.chdir(tmp_path)
    assert spark_kind(config_for("reviews")) is None
    assert spark_kind(config_for("reviews", input_format="table")) == "table"


@pytest.mark.parametrize(
    "text", ["select * from t", "\n  select 1", "WITH x AS (SELECT 1) SELECT * FROM x"]
)
def test_a_query_is_told_by_its_first_word(text: str) -> None:
    assert spark_kind(config_for(text)) == "query"


@pytest.mark.parametrize("given", [None, "", ()])
def test_no_input_at_all_says_how_to_give_one(given: Any) -> None:
    with pytest.raises(ConfigError, match="--input PATH"):
        spark_kind(ScoringConfig(model="m", input_col="text", input=given))


@pytest.mark.parametrize("given", ["in.csv", ["in.csv", "more/*.csv"]])
def test_paths_are_made_absolute_and_names_of_tables_are_not(given: Any) -> None:
    config = ScoringConfig(model="m", input_col="text", input=given)
    found = qualified_input(config, lambda path: f"/here/{path}").input
    assert found == ("/here/in.csv" if given == "in.csv" else ("/here/in.csv", "/here/more/*.csv"))
    table = config.replace(input="main.reviews")
    assert qualified_input(table, lambda path: f"/here/{path}") == table


def choose(config: ScoringConfig, refused: dict[str, str] | None = None, **kinds: Any) -> Columns:
    schema = pa.schema(list(kinds.items()))
    names = (*kinds, *(refused or {}))
    table = InputTable(names, "parquet", schema, refused or {})
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
    refused = {"span": "has type interval month, which Arrow does not have"}
    with pytest.raises(InputError, match="'span' has type interval month.*--carry-cols"):
        choose(config_for("in"), refused, text=pa.string())
    columns = choose(config_for("in", carry_cols=("text",)), refused, text=pa.string())
    assert columns.carried.names == ["text"]


def test_a_clash_is_seen_whatever_the_case() -> None:
    kinds = {"text": pa.string(), "PREDICTION": pa.int32()}
    with pytest.raises(ConfigError, match="PREDICTION would be overwritten"):
        choose(config_for("in"), **kinds)
    with pytest.raises(ConfigError, match="m_error would be overwritten"):
        choose(config_for("in", output_prefix="M_"), text=pa.string(), m_error=pa.int32())
    choose(config_for("in", carry_cols=("text",)), **kinds)


def test_a_header_that_was_not_cut_is_told_with_its_delimiter() -> None:
    with pytest.raises(
        InputError, match="has id;text; in a CSV file, give --set csv.delimiter=';'"
    ):
        choose(config_for("in"), **{"id;text": pa.string()})
