"""What every engine must do alike; `local` is the reference.

Each engine runs the same job through `sparkinfer.run` and the rows are compared. The ranks of the
horovod engine run in this process, one after the other, for each launch takes many seconds;
`test_horovod.py` compares the rows of real launches.
"""

from __future__ import annotations

import bisect
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparkinfer.exceptions import ConfigError, InputError, JobError, ResumeError
from sparkinfer.metrics.distributions import LENGTH_EDGES
from sparkinfer.plan import input_chunks
from sparkinfer.report.facts import read_facts
from sparkinfer.workers.statistics import ScoringStatistics
from tests.engines.conftest import Run
from tests.tiny_models import sentences

if TYPE_CHECKING:
    pass

SCORED = ["prediction", "probability", "probabilities", "n_tokens", "truncated", "error"]


def write(path: Path, texts: list[str | None], **columns: Any) -> Path:
    table = pa.table({"id": pa.array(range(len(texts)), pa.int64()), "text": texts, **columns})
    pq.write_table(table.cast(_with_text(table.schema)), path, row_group_size=100)
    return path


def _with_text(schema: pa.Schema) -> pa.Schema:
    return schema.set(schema.get_field_index("text"), pa.field("text", pa.string()))


def rows_of(frame: pa.Table) -> list[tuple[Any, ...]]:
    names = ["id", "prediction", "n_tokens", "truncated", "error"]
    return [tuple(row.values()) for row in frame.select(names).to_pylist()]


def reference(classifier: Path, texts: list[str]) -> list[tuple[str, list[float]]]:
    """Returns label and probabilities of the plain pipeline for each text.

    In float64, so that only the rounding of the engines' float32 is left to be tolerated.
    """
    from transformers import pipeline

    pipe = pipeline("text-classification", model=str(classifier), device="cpu")
    pipe.model.double()
    results = pipe(texts, top_k=None, truncation=True)
    by_label = [{item["label"]: item["score"] for item in scores} for scores in results]
    return [
        (scores[0]["label"], [probabilities["NEGATIVE"], probabilities["POSITIVE"]])
        for scores, probabilities in zip(results, by_label, strict=True)
    ]


@pytest.mark.parametrize("count", [0, 1, 503])
def test_each_row_is_scored_once_with_the_pipelines_result(
    run: Run, classifier: Path, tmp_path: Path, count: int
) -> None:
    texts = sentences(count)
    result, frame = run(write(tmp_path / "in.parquet", list(texts)))
    assert (result.rows, result.error_rows) == (count, 0)
    assert frame["id"].to_pylist() == list(range(count))
    assert frame["text"].to_pylist() == texts
    expected = reference(classifier, texts) if texts else []
    assert frame["prediction"].to_pylist() == [label for label, _ in expected]
    for found, (_, probabilities) in zip(frame["probabilities"].to_pylist(), expected, strict=True):
        assert found == pytest.approx(probabilities, abs=1e-5)


def test_difficult_rows_keep_their_place(run: Run, tmp_path: Path) -> None:
    texts = [None, "", "film " * 20_000, "😀😀", "good", "good", None, "a\nb"]
    result, frame = run(write(tmp_path / "in.parquet", texts))
    label = frame["prediction"].to_pylist()
    assert rows_of(frame) == [
        (0, None, None, None, "text is null"),
        (1, label[1], 2, False, None),
        (2, label[2], 64, True, None),
        (3, label[3], 3, False, None),
        (4, label[4], 3, False, None),
        (5, label[4], 3, False, None),
        (6, None, None, None, "text is null"),
        (7, label[7], 4, False, None),
    ]
    assert None not in label[1:6]
    assert (result.error_rows, result.error_reasons) == (2, {"text is null": 2})
    assert result.statistics.rows == 8


def test_carried_columns_are_untouched(run: Run, tmp_path: Path) -> None:
    extra = {
        "weight": pa.array([0.1, None, 3.5]),
        "tags": pa.array([["a"], [], None]),
        "odd name`": pa.array(["x", None, ""]),
        "data": pa.array([b"\x00\xff", None, b""]),
    }
    _, frame = run(write(tmp_path / "in.parquet", ["good", "bad", "red"], **extra))
    assert frame.column_names == ["id", "text", *extra, *SCORED]
    assert frame["weight"].to_pylist() == [0.1, None, 3.5]
    assert frame["odd name`"].to_pylist() == ["x", None, ""]
    assert frame["data"].to_pylist() == [b"\x00\xff", None, b""]
    assert frame["tags"].to_pylist() == [["a"], [], None]


def test_what_chunks_took_is_what_the_run_took(run: Run, tmp_path: Path, engine: str) -> None:
    texts = [*sentences(450), None]
    source = write(tmp_path / "in.parquet", texts)
    result, frame = run(source, chunks={"target_rows": 200})
    facts = read_facts(str(tmp_path / "out"))
    total, devices = ScoringStatistics(), Counter[str]()
    for chunk in facts.chunks:
        total.add(chunk.statistics)
        devices.update(chunk.devices)
        assert (chunk.statistics.rows, sum(chunk.devices.values())) == (chunk.rows, chunk.rows)
    assert total.as_dict() == pytest.approx(result.statistics.as_dict(), abs=1e-4)
    assert devices == {one.device: one.rows for one in result.devices}
    found = facts.models[""].distributions
    lengths = Counter(
        bisect.bisect_right(LENGTH_EDGES, n) for n in frame["n_tokens"].drop_null().to_pylist()
    )
    assert {number: rows for number, rows in enumerate(found.lengths) if rows} == lengths
    assert found.labels == Counter(frame["prediction"].drop_null().to_pylist())
    assert sum(found.confidences) == 450
    [session] = facts.sessions
    assert (session.engine, session.rows, session.errors) == (engine, 451, 1)
    assert {one.device: one.statistics.rows for one in session.devices} == devices
    assert session.hosts.keys() == {name.partition(" on ")[2] for name in devices}


def test_named_columns_alone_are_carried(run: Run, tmp_path: Path) -> None:
    source = write(tmp_path / "in.parquet", ["good"], other=pa.array([1]))
    _, frame = run(source, carry_cols=("id",), output_prefix="m_")
    assert frame.column_names == ["id", *["m_" + name for name in SCORED]]


def test_a_label_column_gives_metrics(run: Run, tmp_path: Path, classifier: Path) -> None:
    texts = sentences(50)
    truth = [label for label, _ in reference(classifier, texts)]
    wrong = ["NEGATIVE" if label == "POSITIVE" else "POSITIVE" for label in truth[:10]]
    ids = [["NEGATIVE", "POSITIVE"].index(label) for label in [*wrong, *truth[10:]]]
    source = write(tmp_path / "in.parquet", list(texts), label=pa.array([*ids[:-1], None]))
    result, _ = run(source, label_col="label")
    assert result.metrics["accuracy"] == pytest.approx(39 / 49)
    assert result.metrics["labelled_rows"] == 49
    assert 0 <= result.metrics["auc_roc"] < 1


def test_a_label_column_of_a_csv_file_means_the_same(
    run: Run, tmp_path: Path, classifier: Path
) -> None:
    texts = ["good", "bad", "red", "blue film", "green"]
    truth = [label for label, _ in reference(classifier, texts)]
    as_text = {"POSITIVE": "1.0", "NEGATIVE": "False"}
    lines = [f"{i},{text},{as_text[truth[i]]}" for i, text in enumerate(texts[:-1])]
    source = tmp_path / "in.csv"
    source.write_text("\n".join(["id,text,label", *lines, f"4,{texts[-1]},"]))
    result, _ = run(source, label_col="label")
    assert (result.metrics["accuracy"], result.metrics["labelled_rows"]) == (1, 4)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_text_files_give_the_rows_of_parquet(run: Run, tmp_path: Path, kind: str) -> None:
    texts = ["good", 'say "hi", they said', "two\nlines", "", "bad"]
    n = ["1", "02", "x", None, "5"]
    rows = [{"id": i, "text": texts[i], "n": n[i]} for i in range(5)]
    source = tmp_path / f"in.{kind}"
    if kind == "csv":
        quoted = [text.replace('"', '""') for text in texts]
        lines = [
            f'{row["id"]},"{text}",{row["n"] or ""}' for row, text in zip(rows, quoted, strict=True)
        ]
        source.write_text("\n".join(["id,text,n", *lines]) + "\n")
    else:
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, frame = run(source)
    assert frame["text"].to_pylist() == texts
    assert frame["n"].to_pylist() == n
    assert frame["error"].to_pylist() == [None] * 5


def test_the_scored_columns_say_which_model_made_them(run: Run, tmp_path: Path) -> None:
    result, _ = run(write(tmp_path / "in.parquet", ["good"]))
    metadata = metadata_by_column(next((tmp_path / "out").glob("*.parquet")))
    for name in SCORED:
        assert json.loads(metadata[name]["sparkinfer"]) == {
            "model_fingerprint": result.model_fingerprint,
            "labels": ["NEGATIVE", "POSITIVE"],
        }
    assert metadata["text"] == {}


def metadata_by_column(file: Path) -> dict[str, dict[str, str]]:
    """Returns each column's metadata where its writer keeps it: Spark's own key, or Arrow's."""
    schema = pq.read_schema(file)
    of_spark = (schema.metadata or {}).get(b"org.apache.spark.sql.parquet.row.metadata")
    if of_spark is not None:
        return {field["name"]: field["metadata"] for field in json.loads(of_spark)["fields"]}
    texts = {name: schema.field(name).metadata or {} for name in schema.names}
    return {
        name: {key.decode(): value.decode() for key, value in items.items()}
        for name, items in texts.items()
    }


def test_a_finished_output_is_marked_and_holds_nothing_else(run: Run, tmp_path: Path) -> None:
    run(write(tmp_path / "in.parquet", ["good"] * 10))
    names = {path.name for path in (tmp_path / "out").iterdir() if path.suffix != ".parquet"}
    assert names == {"_SUCCESS", "_sparkinfer"}
    work = tmp_path / "out" / "_sparkinfer"
    assert {path.name for path in work.iterdir()} == {
        "chunks",
        "lease",
        "manifest-000001.json",
        "runs",
    }
    manifest = json.loads((work / "manifest-000001.json").read_text())
    assert manifest["verdict"]["accepted"]["dtype"] == "float32"
    (record,) = [json.loads(path.read_text()) for path in (work / "chunks").iterdir()]
    assert (record["rows"], record["errors"], record["tokens"]) == (10, 0, 30)


def test_a_finished_run_has_nothing_to_do_and_is_replaced_if_asked(
    run: Run, tmp_path: Path
) -> None:
    source = write(tmp_path / "in.parquet", ["good"] * 4)
    run(source)
    before = files_in(tmp_path / "out")
    result, frame = run(source)
    assert (result.rows, result.rows_before, result.workers) == (4, 4, None)
    assert files_in(tmp_path / "out") == before
    assert frame["id"].to_pylist() == [0, 1, 2, 3]
    with pytest.raises(ResumeError, match="max_length was None, is 8.*--overwrite"):
        run(source, max_length=8)
    result, frame = run(source, max_length=8, overwrite=True)
    assert (result.rows, result.rows_before) == (4, 0)
    assert frame["id"].to_pylist() == [0, 1, 2, 3]


def files_in(output: Path) -> dict[str, int]:
    """Returns the scored files and when each was last changed."""
    return {path.name: path.stat().st_mtime_ns for path in output.glob("*.parquet")}


def ids_by_chunk(output: Path) -> list[list[int]]:
    ids: dict[str, list[int]] = {}
    for path in sorted(output.glob("*.parquet")):
        found = pq.read_table(path, columns=["id"])["id"].to_pylist()
        ids.setdefault(path.name.split("-")[1], []).extend(found)
    assert list(ids) == [f"{number:08d}" for number in range(len(ids))]
    return [sorted(found) for found in ids.values()]


def test_chunks_of_whole_row_groups_are_published_under_their_numbers(
    run: Run, tmp_path: Path
) -> None:
    texts = sentences(450)
    _, frame = run(write(tmp_path / "in.parquet", list(texts)), chunks={"target_rows": 200})
    assert frame["id"].to_pylist() == list(range(450))
    assert frame["text"].to_pylist() == texts
    assert ids_by_chunk(tmp_path / "out") == [
        list(range(200)),
        list(range(200, 400)),
        list(range(400, 450)),
    ]


@pytest.mark.parametrize("is_copied", [False, True])
def test_a_large_row_group_is_cut_into_chunks(
    run: Run, tmp_path: Path, is_copied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_copied:
        monkeypatch.setattr(input_chunks, "should_copy", lambda *_: True)
    texts = sentences(450)
    folder = tmp_path / "in" / "day=7"
    folder.mkdir(parents=True)
    tags = pa.array([["a", str(number)] if number % 3 else None for number in range(450)])
    table = pa.table({"id": range(450), "text": texts, "tags": tags})
    pq.write_table(table, folder / "in.parquet")
    _, frame = run(folder.parent, chunks={"target_rows": 200})
    assert frame.select(["id", "text", "tags"]).to_pydict() == table.to_pydict()
    assert set(frame["day"].to_pylist()) == {7}
    assert frame["error"].null_count == 450
    assert ids_by_chunk(tmp_path / "out") == [
        list(range(start, start + 150)) for start in (0, 150, 300)
    ]
    assert len(list((tmp_path / "out").glob("_sparkinfer/input/*/day=7/*.parquet"))) == is_copied


def test_a_damaged_file_of_a_large_row_group_is_named_when_it_is_copied(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_chunks, "should_copy", lambda *_: True)
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"id": range(9000), "text": sentences(9000)}), source)
    content = bytearray(source.read_bytes())
    content[1000:20_000] = b"\xff" * 19_000
    source.write_bytes(bytes(content))
    with pytest.raises(JobError, match=f"{source}' cannot be copied \\(.*repair it and run again"):
        run(source, chunks={"target_rows": 2000})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"input_col": "txt"}, InputError, "input_col='txt': no such column.*'text'"),
        ({"input_col": "id"}, InputError, "input_col='id' has type .*int.*, expected string"),
        ({"label_col": "y"}, InputError, "label_col='y': no such column"),
        ({"label_col": "tags"}, InputError, "label_col='tags' has type .*, expected a number"),
        ({"carry_cols": ("z",)}, InputError, "carry_cols='z': no such column"),
        ({"task": "summarise"}, ConfigError, "task='summarise'"),
        ({"max_length": 65}, ConfigError, "max_length=65: this model takes at most 64"),
    ],
)
def test_a_wrong_call_is_refused_before_anything_is_written(
    run: Run, tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    source = write(tmp_path / "in.parquet", ["good"], tags=pa.array([["x"]]))
    with pytest.raises(error, match=message):
        run(source, **options)
    assert not (tmp_path / "out").exists()


def test_a_column_that_would_be_overwritten_is_refused(run: Run, tmp_path: Path) -> None:
    source = write(tmp_path / "in.parquet", ["good"], Error=pa.array(["x"]))
    with pytest.raises(ConfigError, match="Error would be overwritten.*output_prefix"):
        run(source)
    _, frame = run(source, output_prefix="scored_")
    assert frame["Error"].to_pylist() == ["x"]
    assert frame["scored_error"].to_pylist() == [None]
