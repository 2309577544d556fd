"""`compare`: two outputs of real runs, whose scores are made up unless a test says otherwise."""

from __future__ import annotations

import datetime
import decimal
import errno
import json
import math
import shutil
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sparkinfer
from sparkinfer import comparing
from sparkinfer.cli import main
from sparkinfer.comparing import parts
from sparkinfer.comparing.limit import is_within
from sparkinfer.comparing.table import describe
from sparkinfer.exceptions import ConfigError, InputError, JobError, OutputError
from tests.made_up_engine import FAILURE, LABELS, MadeUpEngine, run_made_up, scores_of
from tests.parsed_page import Page
from tests.tiny_models import make_classifier
from tests.written import edit_manifest, part_of

ROWS = 40

Table = Mapping[str, Any]
Score = Callable[..., str]


def reviews(rows: Sequence[int] = range(ROWS), **more: Any) -> pa.Table:
    """Returns rows of the input, in an order; the label is that which the engine makes up."""
    return pa.table({"id": rows, "text": [f"film {row}" for row in rows], **more})


def lower(by: float, ids: Container[int]) -> Callable[..., pa.Table]:
    """Returns what scores as ever, but some rows lower by so much in the second label."""

    def scores(numbers: Sequence[int], texts: Sequence[str | None], failing: Any = ()) -> pa.Table:
        found = scores_of(numbers, texts, failing)
        pairs = found["probabilities"].to_pylist()
        for place, number in enumerate(numbers):
            if number in ids and pairs[place] is not None:
                share = pairs[place][1] - by
                pairs[place] = [1 - share, share]
        labels = [pair and LABELS[int(pair[1] >= 0.5 - 1e-6)] for pair in pairs]
        columns = [pa.array(labels), pa.array([pair and max(pair) for pair in pairs], pa.float32())]
        columns += [pa.array(pairs, pa.list_(pa.float32())), *found.columns[3:]]
        return pa.table([*columns], schema=found.schema)

    return scores


@pytest.fixture
def score(classifier: Path, tmp_path: Path) -> Score:
    """Scores a table that is cut into files; returns the output's folder."""

    def scored(
        name: str,
        table: pa.Table,
        files: int = 1,
        engine: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> str:
        source = tmp_path / f"{name}-in"
        source.mkdir()
        each = -(-len(table) // files)
        for number in range(files):
            part = table.slice(number * each, each)
            pq.write_table(part, source / f"{number}.parquet", row_group_size=7)
        given = {"model": str(classifier), "input_col": "text", "engine": "local", **options}
        config = sparkinfer.ScoringConfig(
            input=str(source), output=str(tmp_path / name), chunks={"target_rows": 10}, **given
        )
        run_made_up(config, MadeUpEngine(config, **(engine or {})))
        return str(tmp_path / name)

    return scored


BACKWARDS = range(ROWS - 1, -1, -1)


def test_an_output_does_not_differ_from_itself(score: Score) -> None:
    output = score("a", reviews())
    found = sparkinfer.compare(output, output)
    assert (found.rows, found.a.only_here, found.b.only_here, found.repeated) == (ROWS, 0, 0, 0)
    assert found.columns == ("id", "text")
    [model] = found.models
    assert (model.rows, model.changed, model.changes, model.largest) == (ROWS, 0, (), ())
    assert model.differences["of any label"].largest == 0
    assert model.differences["of any label"].equal == ROWS
    assert found.settings == found.notes == ()
    assert found.unlike_share == 0


def test_rows_are_found_in_other_files_and_another_order(score: Score) -> None:
    a = score("a", reviews())
    b = score("b", reviews(BACKWARDS), files=3, engine={"scores": lower(0.2, [15, 26])})
    found = sparkinfer.compare(a, b)
    assert found.rows == ROWS
    [model] = found.models
    assert model.changed == 2  # 15 falls from 0.5 to 0.3, 26 from 0.6 to 0.4
    assert [(one.before, one.after, one.rows) for one in model.changes] == [
        ("POSITIVE", "NEGATIVE", 2)
    ]
    assert model.differences["of any label"].largest == pytest.approx(0.2)
    assert model.differences["of the predicted label"].equal == ROWS - 2
    assert [one.row["id"] for one in model.largest] == ["15", "26"]
    assert model.largest[0].row["text"] == "film 15"
    assert model.largest[0].a["prediction"] == "POSITIVE"
    assert model.largest[0].b["prediction"] == "NEGATIVE"
    assert found.unlike_share == pytest.approx(2 / ROWS)


def test_a_key_finds_rows_whose_other_columns_are_missing_or_differ(score: Score) -> None:
    a = score("a", reviews())
    b = score("b", reviews(BACKWARDS), carry_cols=("id",))
    found = sparkinfer.compare(a, b, on="id")
    assert (found.columns, found.is_key, found.rows) == (("id",), True, ROWS)
    assert sparkinfer.compare(a, b).rows == ROWS  # the id is all that both have
    assert sparkinfer.compare(b, a, on=["id"], rows=0).models[0].changed == 0


def test_a_row_is_shown_with_the_columns_that_either_output_has(score: Score) -> None:
    a = score("a", reviews())
    b = score("b", reviews(), carry_cols=("id",), engine={"scores": lower(0.2, [15])})
    for one, other in ((a, b), (b, a)):
        [row] = sparkinfer.compare(one, other, on="id").models[0].largest
        assert row.row == {"id": "15", "text": "film 15"}


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0, None, 2, None], r"on=id: 2 of 4 rows of '.*' are null there"),
        ([0, 1, 1, 1], r"on=id: 3 of 4 rows of '.*' have the values of another row"),
    ],
)
def test_a_key_that_is_none_is_refused_with_how_many_rows(
    score: Score, ids: list[int | None], message: str
) -> None:
    table = pa.table({"id": pa.array(ids, pa.int64()), "text": [f"film {n}" for n in range(4)]})
    a, b = score("a", reviews(range(4))), score("b", table)
    for one, other in ((a, b), (b, a)):
        with pytest.raises(InputError, match=message):
            sparkinfer.compare(one, other, on="id")


def test_a_key_that_is_missing_or_is_a_result_is_refused(score: Score) -> None:
    a, b = score("a", reviews()), score("b", reviews(), carry_cols=("text",))
    with pytest.raises(InputError, match=r"on='id': '.*/b' has no such column, but text, pred"):
        sparkinfer.compare(a, b, on="id")
    with pytest.raises(InputError, match=r"on='prediction': it is a result in"):
        sparkinfer.compare(a, b, on="prediction")


def test_outputs_without_a_column_in_common_are_refused(score: Score) -> None:
    a, b = score("a", reviews(), carry_cols=("id",)), score("b", reviews(), carry_cols=("text",))
    with pytest.raises(InputError, match="has id of its input, '.*' has text: nothing by which"):
        sparkinfer.compare(a, b)


def test_columns_that_leave_open_which_rows_belong_together_are_refused(score: Score) -> None:
    table = reviews(group=[row // 2 for row in range(ROWS)])
    a, b = (score(name, table, carry_cols=("group",)) for name in "ab")
    with pytest.raises(InputError, match="40 of 40 rows have the values of other rows in group"):
        sparkinfer.compare(a, b)


@pytest.mark.parametrize("on", [(), "id"])
def test_an_output_without_rows_is_refused_as_such(score: Score, on: Any) -> None:
    a, b = score("a", reviews(range(0))), score("b", reviews(range(0)))
    with pytest.raises(InputError, match="'.*a' has no rows: there is nothing to compare"):
        sparkinfer.compare(a, b, on)


def test_no_row_in_common_is_refused(score: Score) -> None:
    a, b = score("a", reviews()), score("b", reviews(range(100, 110)))
    with pytest.raises(
        InputError, match="no row of '.*' has the values of one of '.*' in id, text"
    ):
        sparkinfer.compare(a, b)


def test_rows_with_the_same_values_are_paired_as_often_as_both_have_them(score: Score) -> None:
    texts = ["film 1", "film 2", "film 1", "film 1"]
    a, b = score("a", pa.table({"text": texts})), score("b", pa.table({"text": texts[:3][::-1]}))
    found = sparkinfer.compare(a, b)
    assert (found.rows, found.repeated) == (3, 2)
    assert (found.a.only_here, found.b.only_here) == (1, 0)
    assert found.only_a == ({"text": "film 1"},)
    assert found.models[0].changed == 0
    assert found.unlike_share == 1 / 4


def test_rows_with_the_same_values_and_results_are_paired_with_one_another(score: Score) -> None:
    made = {"a": [0.1, 0.9, 0.6], "b": [0.9, 0.6, 0.1]}

    def of(shares: list[float]) -> Callable[..., pa.Table]:
        def scores(ids: Sequence[int], texts: Sequence[str], failing: Any = ()) -> pa.Table:
            return lower(0, ())([round(10 * share) for share in shares], texts)

        return scores

    table = pa.table({"text": ["film 1"] * 3})
    outputs = [score(name, table, engine={"scores": of(made[name])}) for name in made]
    found = sparkinfer.compare(*outputs)
    assert (found.repeated, found.models[0].changed) == (3, 0)
    assert found.models[0].differences["of any label"].largest == 0


def test_rows_that_only_one_has_are_shown(score: Score) -> None:
    a, b = score("a", reviews(range(30))), score("b", reviews(range(10, 40)))
    found = sparkinfer.compare(a, b, rows=3)
    assert (found.rows, found.a.only_here, found.b.only_here) == (20, 10, 10)
    assert [row["id"] for row in found.only_a] == ["0", "1", "2"]
    assert [row["id"] for row in found.only_b] == ["30", "31", "32"]
    assert found.unlike_share == 20 / 40


def test_errors_in_one_alone_are_counted_and_shown(score: Score) -> None:
    texts = [None if row == 5 else f"film {row}" for row in range(ROWS)]
    table = pa.table({"id": range(ROWS), "text": texts})
    a = score("a", table, engine={"failing": [7, 8]})
    b = score("b", table, engine={"failing": [8, 9, 10]})
    [model] = (found := sparkinfer.compare(a, b)).models
    assert (model.errors_a, model.errors_b, model.errors_both) == (1, 2, 2)
    assert (model.rows, model.changed) == (ROWS - 5, 0)
    assert [one.row["id"] for one in model.errors] == ["7", "9", "10"]
    assert [one.a["error"] for one in model.errors] == [FAILURE, "null", "null"]
    assert model.errors[0].b["prediction"] == "POSITIVE"
    assert found.unlike_share == 3 / ROWS


def test_what_is_there_of_an_unfinished_output_is_compared_and_it_is_said(score: Score) -> None:
    a, b = score("a", reviews()), score("b", reviews())
    part_of(b, 1).unlink()
    (Path(b) / "_SUCCESS").unlink()
    found = sparkinfer.compare(a, b)
    assert 0 < found.rows < ROWS
    assert found.a.only_here == ROWS - found.rows
    assert found.notes == (
        f"B is not finished (broken off): it has {found.rows} of {ROWS} rows of its input",
    )
    assert not found.b.is_finished
    with pytest.raises(InputError, match="fail_above: .* is not finished"):
        is_within(found, 1.0)


def test_what_is_no_output_is_refused(score: Score, tmp_path: Path) -> None:
    output = score("a", reviews())
    (tmp_path / "other").mkdir()
    pq.write_table(reviews(), tmp_path / "other" / "part-0.parquet")
    for path in ("other", "absent"):
        with pytest.raises(OutputError, match="holds no manifest of a run"):
            sparkinfer.compare(output, str(tmp_path / path))


def test_a_file_that_was_changed_is_not_compared(score: Score) -> None:
    a, b = score("a", reviews()), score("b", reviews())
    file = part_of(b, 0)
    pq.write_table(pq.read_table(file).slice(1), file)
    found = sparkinfer.compare(a, b)
    kept = found.b.rows
    assert (found.rows, found.a.only_here, found.b.only_here) == (kept, ROWS - kept, 0)
    assert found.notes == (
        f"B is not finished (broken off): it has {kept} of {ROWS} rows of its input",
    )


def test_an_output_of_an_earlier_version_is_compared() -> None:
    output = str(Path(__file__).parent / "outputs" / "layout2" / "finished")
    found = sparkinfer.compare(output, output)
    assert found.models[0].changed == 0
    assert found.unlike_share == 0


NESTED = {
    "time": pa.array(
        [datetime.datetime(2024, 1, 1, 0, 0, n) for n in range(4)], pa.timestamp("us")
    ),
    "price": pa.array([decimal.Decimal(n) / 4 for n in range(4)], pa.decimal128(9, 2)),
    "float": pa.array([0.0, math.nan, None, 1.5]),
    "tags": pa.array([["a", None], [], None, ["b"]], pa.list_(pa.string())),
    "about": pa.array([{"x": 1}, {"x": None}, None, {"x": 4}], pa.struct([("x", pa.int64())])),
    "map": pa.array([[("a", 1), ("b", 2)], [], None, [("a", 2)]], pa.map_(pa.string(), pa.int64())),
    "kind": pa.array(["x", "y", None, "x"]).dictionary_encode(),
    "bytes": pa.array([b"\0", b"", None, b"a"]),
}


@pytest.mark.parametrize("name", NESTED)
def test_rows_are_found_by_columns_of_any_type(score: Score, name: str) -> None:
    table = reviews(range(4)).drop_columns(["id"]).append_column(name, NESTED[name])
    a, b = score("a", table), score("b", table.take([2, 0, 3, 1]))
    found = sparkinfer.compare(a, b)
    assert found.columns == ("text", name)
    assert (found.rows, found.models[0].changed) == (4, 0)
    other = score("c", table.set_column(1, name, NESTED[name].take(pa.array([1, 0, 2, 3]))))
    assert sparkinfer.compare(a, other).rows == 2


def test_equal_values_of_different_types_are_found(score: Score) -> None:
    table = reviews(range(4), price=pa.array([decimal.Decimal(n) / 4 for n in range(4)]))
    narrow = table.set_column(0, "id", table["id"].cast(pa.int8())).set_column(
        2, "price", table["price"].cast(pa.decimal128(20, 9))
    )
    found = sparkinfer.compare(score("a", table), score("b", narrow))
    assert (found.columns, found.rows) == (("id", "text", "price"), 4)


def test_a_column_whose_types_have_no_values_in_common_is_left_out_and_told(score: Score) -> None:
    table = reviews(range(4))
    other = table.set_column(0, "id", table["id"].cast(pa.string()))
    a, b = score("a", table), score("b", other)
    found = sparkinfer.compare(a, b)
    assert (found.columns, found.rows) == (("text",), 4)
    assert found.notes == (
        "column 'id' does not tell rows apart: it has types without values in common: "
        "int64 and string",
    )
    with pytest.raises(InputError, match="on='id': its types, int64 and string, have no values"):
        sparkinfer.compare(a, b, on="id")


def test_whole_numbers_that_no_fraction_is_equal_to_are_refused(score: Score) -> None:
    table = reviews(range(4), n=[1, 2, 3, 2**60 + 1])
    other = table.set_column(2, "n", pa.array([1.0, 2.0, 3.0, 2.0**60]))
    a, b = score("a", table), score("b", other)
    with pytest.raises(
        InputError, match="column 'n' has values of type int64 that are none of dou"
    ):
        sparkinfer.compare(a, b)
    assert sparkinfer.compare(a, b, on="id").rows == 4


def test_the_result_does_not_depend_on_how_many_parts_rows_are_divided_into(
    score: Score, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"film {row % 25}" for row in range(ROWS)]
    table = pa.table({"text": texts})
    a = score("a", table, engine={"failing": [3]})
    b = score(
        "b", table.slice(2).take(list(range(37, -1, -1))), engine={"scores": lower(0.2, [5, 6])}
    )
    whole = sparkinfer.compare(a, b)
    read: list[int] = []
    monkeypatch.setattr(parts, "PART_BYTES", 200)
    monkeypatch.setattr(parts, "_GATHERED_BYTES", 500)
    counted = parts.Parts.__init__

    def count(self: Any, schema: pa.Schema, number: int) -> None:
        read.append(number)
        counted(self, schema, number)

    monkeypatch.setattr(parts.Parts, "__init__", count)
    divided = sparkinfer.compare(a, b)
    assert min(read) > 10
    assert divided == whole
    assert whole.models[0].changed > 0


def test_a_full_disk_names_the_folder_of_temporary_files(
    score: Score, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = score("a", reviews())

    def fail(self: Any, batch: pa.RecordBatch) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(parts.Parts, "_write", fail)
    with pytest.raises(JobError, match="do not fit into the folder of temporary files.*TMPDIR"):
        sparkinfer.compare(output, output)


def test_labels_in_another_order_are_the_same_labels(score: Score, tmp_path: Path) -> None:
    a = score("a", reviews())
    shutil.copytree(a, tmp_path / "b")
    edit_manifest(tmp_path / "b", labels=list(LABELS[::-1]))
    [model] = sparkinfer.compare(a, str(tmp_path / "b")).models
    assert model.changed == 0
    assert model.differences["of any label"].largest == pytest.approx(1.0)


def test_settings_that_differ_are_named(score: Score) -> None:
    a = score("a", reviews())
    b = score("b", reviews(), engine={"dtype": "bfloat16"}, max_length=32)
    named = {one.name: (one.a, one.b) for one in sparkinfer.compare(a, b).settings}
    assert named["acceleration"] == ("none in float32", "none in bfloat16")
    assert named["max_length"] == (None, 32)
    assert "model_fingerprint" not in named
    assert set(named) == {"acceleration", "max_length", "input"}


def test_a_column_with_another_prefix_holds_the_same_results(score: Score) -> None:
    a, b = score("a", reviews()), score("b", reviews(), output_prefix="new_")
    [model] = sparkinfer.compare(a, b).models
    assert (model.rows, model.changed) == (ROWS, 0)


@pytest.fixture(scope="module")
def two_models(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The outputs of two real runs with two models each, of which one is the same."""
    folder = tmp_path_factory.mktemp("two")
    other = make_classifier(folder / "other", labels=("red", "green", "blue"))
    pq.write_table(reviews(range(9)), folder / "in.parquet")
    runs = {"a": {"x": classifier, "y": other}, "b": {"x": classifier, "z": other}}
    for name, models in runs.items():
        config = sparkinfer.ScoringConfig(
            models={key: {"model": str(model)} for key, model in models.items()},
            input=str(folder / "in.parquet"),
            input_col="text",
            output=str(folder / name),
            engine="local",
            dtype="float32",
            acceleration="none",
        )
        sparkinfer.run(config)
    return [str(folder / name) for name in runs]


def test_models_of_one_name_are_compared_and_the_others_told(two_models: list[str]) -> None:
    found = sparkinfer.compare(*two_models)
    assert [(one.name, one.rows, one.changed) for one in found.models] == [("x", 9, 0)]
    assert found.notes == ("not compared: y of A", "not compared: z of B")
    assert found.settings == ()


def test_models_are_named_where_their_names_differ(two_models: list[str]) -> None:
    [model] = sparkinfer.compare(*two_models, model_a="y", model_b="z").models
    assert (model.name, model.changed) == ("y / z", 0)
    [unlike] = sparkinfer.compare(*two_models, model_a="x", model_b="z").models
    assert unlike.changed == 9
    assert unlike.labels_b == ("red", "green", "blue")
    with pytest.raises(ConfigError, match="model_b='q': '.*' has the models x, z"):
        sparkinfer.compare(*two_models, model_a="x", model_b="q")
    with pytest.raises(ConfigError, match="'.*' has the models x, z: name one as model_b"):
        sparkinfer.compare(*two_models, model_a="y")


def test_one_model_is_compared_with_one_of_several(two_models: list[str], score: Score) -> None:
    alone = score("alone", reviews(range(9)))
    assert sparkinfer.compare(alone, two_models[0], model_b="x").models[0].rows == 9
    with pytest.raises(ConfigError, match="has the models x, y: name one as model_b"):
        sparkinfer.compare(alone, two_models[0])
    with pytest.raises(ConfigError, match="model_a='x': '.*' has one model, which has no name"):
        sparkinfer.compare(alone, two_models[0], model_a="x")


def test_outputs_of_functions_are_compared_by_their_columns(tmp_path: Path) -> None:
    pq.write_table(reviews(), tmp_path / "in.parquet")
    for name in ("shout", "picky"):
        config = sparkinfer.ScoringConfig(
            fn={"function": f"tests.made_up_functions:{name}", "batch_size": 5},
            input=str(tmp_path / "in.parquet"),
            output=str(tmp_path / name),
            engine="local",
        )
        sparkinfer.run(config)
    a, b = (str(tmp_path / name) for name in ("shout", "picky"))
    with pytest.raises(InputError, match="nothing of its input"):
        sparkinfer.compare(a, b)
    found = sparkinfer.compare(a, b, on="id")
    assert (found.rows, found.models[0].changed) == (ROWS, 0)
    assert found.models[0].counts == {"rows with another loud": 0}


def test_the_command_prints_what_differs(score: Score, capsys: pytest.CaptureFixture[str]) -> None:
    a = score("a", reviews())
    b = score("b", reviews(), engine={"scores": lower(0.2, [15])})
    assert main(["compare", a, b]) == 0
    printed = capsys.readouterr().out
    assert f"{ROWS} rows are in both, found by the values of id, text." in printed
    assert f"changed     1 of {ROWS} rows (2.5000%)" in printed
    assert "text=film 15" in printed
    assert main(["compare", a, b, "--on", "id,text", "--json", "--rows", "1"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["models"][0]["changes"] == [
        {"before": "POSITIVE", "after": "NEGATIVE", "rows": 1}
    ]
    assert document["is_key"] is True


def test_the_command_fails_if_more_has_changed_than_may(
    score: Score, capsys: pytest.CaptureFixture[str]
) -> None:
    a = score("a", reviews())
    b = score("b", reviews(), engine={"scores": lower(0.2, [15])})
    assert main(["compare", a, b, "--fail-above", "2.5%"]) == 0
    assert main(["compare", a, b, "--fail-above", "2.4%"]) == 1
    assert main(["compare", a, a, "--fail-above", "0%"]) == 0
    capsys.readouterr()
    assert main(["compare", a, b, "--fail-above", "0.1"]) == 2
    assert "fail_above='0.1': expected a share of rows" in capsys.readouterr().err


def test_the_command_refuses_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(tmp_path), str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "holds no manifest of a run" in said


def test_texts_do_not_act_on_the_terminal(score: Score, capsys: pytest.CaptureFixture[str]) -> None:
    table = pa.table({"text": ["[red]\x1b[31m\nfilm 15", "film 3"]})
    a = score("a", table)
    b = score("b", table, engine={"scores": lower(0.2, [15])})
    assert main(["compare", a, b]) == 0
    printed = capsys.readouterr().out
    assert r"text=[red]\x1b[31m\nfilm 15" in printed
    assert "\x1b" not in printed


def test_the_page_shows_what_differs_and_texts_are_no_markup(
    score: Score, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pa.table({"text": ["<em onclick=x>&amp; film 15", "film 3", "film 4"]})
    a = score("a", table.slice(0, 2))
    b = score("b", table, engine={"scores": lower(0.2, [15])})
    page = tmp_path / "page.html"
    assert main(["compare", a, b, "--to", str(page), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["models"][0]["changed"] == 1
    text = page.read_text()
    read = Page(text)
    assert not read.all("script", "em")
    assert "&lt;em onclick=x&gt;&amp;amp; film 15" in text
    assert "66.7 % of all rows differ" in text
    assert "POSITIVE" in text
    assert "Only in B, for example" in text
    assert len(read.all("svg")) == 2


def test_a_page_that_cannot_be_written_is_refused(score: Score, tmp_path: Path) -> None:
    output = score("a", reviews())
    with pytest.raises(OutputError, match="page '.*/absent/page.html' cannot be written"):
        sparkinfer.compare(output, output, to=str(tmp_path / "absent" / "page.html"))


def test_the_cost_and_the_rate_are_those_of_the_calls_that_made_an_output(score: Score) -> None:
    a, b = score("a", reviews(), price_per_hour=2.0), score("b", reviews())
    found = sparkinfer.compare(a, b)
    assert found.a.speed.cost_per_million is not None
    assert found.b.speed.cost_per_million is None
    assert found.b.speed.seconds is not None
    shown = describe(found, 120)
    assert "cost of a million rows" in shown
    assert "time in all" in shown


def test_rows_to_show_are_a_number(score: Score) -> None:
    output = score("a", reviews())
    with pytest.raises(ConfigError, match="rows=-1"):
        sparkinfer.compare(output, output, rows=-1)
    assert comparing.SHOWN_ROWS == 10
