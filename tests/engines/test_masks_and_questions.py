"""Masked tokens and answers under every engine."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparkinfer.exceptions import ConfigError
from tests.engines.conftest import Run
from tests.model_options import options_of
from tests.test_fill_mask import make_masked, masked_texts
from tests.test_fill_mask import score as fill
from tests.test_question_answering import make_reader, options_with, pairs
from tests.test_question_answering import score as answer


def write(path: Path, **columns: list[str | None]) -> Path:
    count = len(next(iter(columns.values())))
    arrays = {name: pa.array(values, pa.string()) for name, values in columns.items()}
    pq.write_table(pa.table({"id": range(count), **arrays}), path, row_group_size=30)
    return path


def test_masks_are_filled_in(run: Run, tmp_path: Path) -> None:
    model = make_masked(tmp_path / "model")
    texts: list[str | None] = [*masked_texts(60), None, "no mask", "[MASK]"]
    source = write(tmp_path / "in.parquet", text=texts)
    task = {"name": "fill-mask", "top_k": 2}
    result, frame = run(source, model=str(model), task=task, carry_cols=("id",))
    assert (result.rows, result.error_rows) == (63, 2)
    expected = fill(model, texts, options_of("fill-mask", task_options={"top_k": 2}))
    for row, one in zip(frame.to_pylist(), expected, strict=True):
        assert row["error"] == one["error"]
        for ours, theirs in zip(row["predictions"] or [], one["predictions"] or [], strict=True):
            scores = [item.pop("score") for item in theirs]
            assert [item.pop("score") for item in ours] == pytest.approx(scores, abs=1e-5)
            assert ours == theirs


def test_questions_are_answered(run: Run, tmp_path: Path) -> None:
    model = make_reader(tmp_path / "model")
    some, their = pairs(60)
    questions: list[str | None] = [*some, None, "good?", "good?", "good?"]
    contexts: list[str | None] = [*their, "film", None, "größer", "übel"]
    source = write(tmp_path / "in.parquet", q=questions, context=contexts)
    result, frame = run(
        source,
        model=str(model),
        task="question-answering",
        input_col="q",
        text_pair_col="context",
        output_prefix="qa_",
    )
    assert (result.rows, result.error_rows) == (64, 2)
    assert frame.column_names[3:7] == ["qa_answer", "qa_score", "qa_start", "qa_end"]
    expected = answer(model, questions, contexts, options_with())
    for row, one in zip(frame.to_pylist(), expected, strict=True):
        assert {name: row[f"qa_{name}"] for name in one} == {
            **one,
            "score": one["score"] and pytest.approx(one["score"], abs=1e-5),
        }


@pytest.mark.parametrize("engine", ["local"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "question-answering"}, "reads two texts; name the second with --text-pair-col"),
        ({"task": "fill-mask", "text_pair_col": "context"}, "the task reads one text; drop the"),
    ],
)
def test_a_missing_or_needless_second_text_is_refused(
    run: Run, tmp_path: Path, options: dict[str, str], message: str
) -> None:
    source = write(tmp_path / "in.parquet", text=["good"], context=["film"])
    with pytest.raises(ConfigError, match=message):
        run(source, **options)
