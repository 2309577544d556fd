"""A model that is called with texts one by one: rows, threads, errors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

import sparkinfer
from sparkinfer.engines import make_source
from sparkinfer.engines.local import here
from sparkinfer.engines.this_process import slot_of
from sparkinfer.exceptions import BatcherClosedError, ConfigError, InputError
from sparkinfer.models.scorer import Scorer
from sparkinfer.plan.prelude import Prelude
from tests.tiny_models import sentences

ROWS = 60


@pytest.fixture
def texts() -> list[str | None]:
    return [*sentences(ROWS - 2), None, ""]


@pytest.fixture
def model(classifier: Path) -> Iterator[sparkinfer.LoadedModel]:
    with sparkinfer.load(str(classifier), dtype="float32") as loaded:
        yield loaded


@pytest.fixture
def job(classifier: Path, tmp_path: Path, texts: list[str | None]) -> list[dict[str, Any]]:
    """What a job makes of the texts."""
    pq.write_table(pa.table({"id": range(ROWS), "text": texts}), tmp_path / "in.parquet")
    config = sparkinfer.ScoringConfig(
        input=str(tmp_path / "in.parquet"),
        input_col="text",
        model=str(classifier),
        output=str(tmp_path / "out"),
        engine="local",
        dtype="float32",
    )
    sparkinfer.run(config)
    rows = pads.dataset(config.output, format="parquet").to_table().sort_by("id")
    return list(rows.drop_columns(["id", "text"]).to_pylist())


def check(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [list(row) for row in found] == [list(row) for row in expected]
    for one, other in zip(found, expected, strict=True):
        exact = [name for name in one if not name.startswith("probabilit")]
        assert [one[name] for name in exact] == [other[name] for name in exact]
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)


def test_a_list_of_texts_has_the_rows_of_a_job(
    model: sparkinfer.LoadedModel, texts: list[str | None], job: list[dict[str, Any]]
) -> None:
    check(model(texts), job)
    assert model.statistics.rows == ROWS


def test_callers_in_many_threads_each_get_their_own_row(
    model: sparkinfer.LoadedModel, texts: list[str | None], job: list[dict[str, Any]]
) -> None:
    with ThreadPoolExecutor(16) as pool:
        check(list(pool.map(model, texts)), job)
    assert model.stats.total_batches < ROWS


def test_promised_and_awaited_rows_are_the_same(
    model: sparkinfer.LoadedModel, texts: list[str | None], job: list[dict[str, Any]]
) -> None:
    promised = [model.submit(text) for text in texts]
    check([one.result() for one in promised], job)

    async def all_of_them() -> list[dict[str, Any]]:
        return list(await asyncio.gather(*map(model.asubmit, texts)))

    check(asyncio.run(all_of_them()), job)


def test_what_cannot_be_read_is_an_error_of_its_caller_alone(
    model: sparkinfer.LoadedModel,
) -> None:
    good = model.submit("fine")
    for wrong, problem in (
        (7, "has type int64, expected string"),
        ({"body": "x"}, "has no 'text'; give a mapping with text"),
        ("\ud800", "cannot be read"),
    ):
        with pytest.raises(InputError) as refused:
            model.submit(wrong)
        assert problem in str(refused.value)
    assert good.result()["error"] is None


def test_a_row_that_nobody_wants_any_more_leaves(model: sparkinfer.LoadedModel) -> None:
    first, second, third = (model.submit(text) for text in ("one", "two", "three"))
    was_cancelled = second.cancel()
    assert [first.result()["n_tokens"] > 0, third.result()["n_tokens"] > 0] == [True, True]
    assert second.cancelled() == was_cancelled


def test_a_model_of_several_columns_takes_rows(classifier: Path) -> None:
    with (
        sparkinfer.load(
            str(classifier), input_template="{title}: {body}", dtype="float32"
        ) as templated,
        sparkinfer.load(str(classifier), dtype="float32") as plain,
    ):
        row = templated({"title": "a", "body": 7, "unread": None})
        check([row], [plain("a: 7")])  # both models are there at the same time
        null = templated({"title": None, "body": 7})
        assert (null["prediction"], null["error"]) == (None, "column 'title' is null")
        with pytest.raises(InputError, match="the model reads title, body: give a mapping"):
            templated("a: b")


def test_a_row_that_cannot_be_read_is_told_of_in_one_line(model: sparkinfer.LoadedModel) -> None:
    with pytest.raises(InputError, match="cannot be read") as refused:
        model(pd.Series(["a", "b"]))
    assert "\n" not in str(refused.value)


def test_how_many_rows_wait_is_checked_before_the_model_is_there() -> None:
    with pytest.raises(ConfigError, match="batch_rows=0"):
        sparkinfer.load("no-such-model", batch_rows=0)


def test_closed_it_takes_no_more(classifier: Path) -> None:
    model = sparkinfer.load(str(classifier), dtype="float32")
    model.close()
    with pytest.raises(BatcherClosedError, match="the model was closed"):
        model("text")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"output": "out"}, "output with load: the option has no effect"),
        ({"num_workers": 2}, "num_workers with load"),
        ({"batch_rows": 0}, "batch_rows=0: expected an integer of at least 1"),
        ({"max_lenght": 3}, "did you mean 'max_length'?"),
    ],
)
def test_options_of_a_job_and_wrong_ones_are_refused(
    classifier: Path, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        sparkinfer.load(str(classifier), **options)
    assert problem in str(refused.value)


def test_another_task(classifier: Path) -> None:
    with sparkinfer.load(str(classifier), {"name": "feature-extraction"}) as model:
        assert model("a text")["error"] is None


def test_a_scorer_takes_texts_one_by_one_too(
    classifier: Path, texts: list[str | None], job: list[dict[str, Any]]
) -> None:
    config = sparkinfer.ScoringConfig(
        model=str(classifier), input_col="text", engine="local", dtype="float32"
    )
    prelude = Prelude(config, make_source(config, None), here(config))
    scorer = prelude.processor.open(slot_of(prelude.workers), lambda statistics: None)
    assert isinstance(scorer, Scorer)
    check([one.result() for one in map(scorer.submit, texts)], job)
    check([asyncio.run(scorer.asubmit(texts[0]))], job[:1])
    scorer.requests.close()
