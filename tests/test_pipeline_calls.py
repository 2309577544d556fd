"""A pipeline's scorer: what it notes of the texts that it is about to run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sparkinfer.models.pipeline_calls import PipelineScorer
from sparkinfer.models.preprocess import Preprocess
from sparkinfer.models.text_sources import ColumnText, TextSource
from sparkinfer.workers.suspects import DEADLY, Attempt, Suspects
from sparkinfer.workers.watchdog import Tokenising
from tests import made_up_texts

ROWS = pa.RecordBatch.from_arrays([pa.array(["film", "good", None])], names=["text"])
SHOUTED = Preprocess("tests.made_up_texts:shouted")
COLUMNS = pa.schema([("said", pa.string())])


class DiedError(BaseException):
    """Stands for the end of the process."""


def scorer_of(
    folder: Path, launch: str, preprocess: Preprocess | None = None, salt: str = ""
) -> PipelineScorer:
    """Returns the scorer of an attempt, which follows those of other launches."""
    source = TextSource("input_col", ColumnText("input_col", "text"), preprocess)
    scorer = PipelineScorer(said, source, COLUMNS, lambda _: None, salt)
    scorer.suspects = Suspects(Attempt(str(folder), "00000000", launch, has_predecessor=True))
    return scorer


def said(text: str) -> dict[str, str]:
    return {"said": text}


def dying(text: Any) -> Any:
    if "good" in list(text) or "good" in text:
        raise DiedError
    return text


def errors_of(scorer: PipelineScorer) -> list[str | None]:
    [scored] = scorer.process([ROWS])
    errors: list[str | None] = scored.column("error").to_pylist()
    return errors


def test_a_text_that_is_deadly_to_the_users_function_costs_its_row_and_two_deaths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(made_up_texts, "shouted", dying)
        for launch in "ab":
            with pytest.raises(DiedError):
                errors_of(scorer_of(tmp_path, launch, SHOUTED))
        assert errors_of(scorer_of(tmp_path, "c", SHOUTED)) == [None, DEADLY, "text is null"]


def test_a_text_that_is_deadly_to_one_pipeline_is_not_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("tests.test_pipeline_calls.said", dying)
        for launch in "ab":
            with pytest.raises(DiedError):
                errors_of(scorer_of(tmp_path, launch, salt="a_"))
    assert errors_of(scorer_of(tmp_path, "c", salt="a_"))[1] == DEADLY
    assert errors_of(scorer_of(tmp_path, "c", salt="b_"))[1] is None


def test_the_users_function_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = scorer_of(tmp_path, "a", SHOUTED)
    seen: list[Any] = []

    def looking(texts: Any) -> Any:
        seen.extend(scorer.activities())
        return texts

    monkeypatch.setattr(made_up_texts, "shouted", looking)
    errors_of(scorer)
    assert seen == [Tokenising(ROWS.column("text"))]
    assert scorer.activities() == (None,)
