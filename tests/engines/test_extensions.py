"""A task, a backend and a function that the package does not have, under every engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

import sparkinfer
from sparkinfer.models.backends import BACKENDS
from sparkinfer.models.options import ModelOptions
from sparkinfer.models.processor import ModelScoring
from sparkinfer.models.tasks import TASKS
from sparkinfer.plan.processors import PROCESSORS
from tests import made_up_backend, made_up_function, made_up_task
from tests.engines.test_suite import reference
from tests.made_up_words import Words
from tests.tiny_models import sentences

# Importing them has registered them, which is meant for workers: here each test does that itself.
TASKS.pop(made_up_task.LargestWindowMean.name)
PROCESSORS.pop("shout")
BACKENDS.pop("double")

Run = Callable[..., tuple[sparkinfer.RunResult, list[dict[str, Any]]]]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registries with the made-up entries, for these tests alone."""
    task = made_up_task.LargestWindowMean
    monkeypatch.setitem(TASKS, task.name, task)
    monkeypatch.setitem(PROCESSORS, task.name, scoring_by(ModelScoring))
    monkeypatch.setitem(PROCESSORS, "shout", made_up_function.shout)
    monkeypatch.setitem(BACKENDS, "double", made_up_backend.DoubleBackend())


def scoring_by(kind: Any) -> Callable[[sparkinfer.ScoringConfig], Any]:
    return lambda config: kind(config.model, config.revision, ModelOptions.of(config))


@pytest.fixture
def run(engine: str, classifier: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Run:
    """Scores rows of a text and a title with one engine; returns the result and the rows."""
    spark = None if engine == "local" else request.getfixturevalue("spark")
    of_engine = request.getfixturevalue("ranks_in_turn") if engine == "horovod" else {}

    def run_engine(texts: list[str | None], **options: Any) -> Any:
        titles = [f"film {i % 3}" for i in range(len(texts))]
        columns = {"id": range(len(texts)), "text": pa.array(texts, pa.string()), "title": titles}
        if not (tmp_path / "in.parquet").exists():
            pq.write_table(pa.table(columns), tmp_path / "in.parquet", row_group_size=40)
        config = sparkinfer.ScoringConfig(
            model=str(classifier),
            input=str(tmp_path / "in.parquet"),
            input_col="text",
            engine=engine,
            chunks={"target_rows": 40},
            **{
                "output": str(tmp_path / "out"),
                "dtype": "float32",
                "acceleration": "none",
                **of_engine,
                **options,
            },
        )
        result = sparkinfer.run(config, spark)
        rows = pads.dataset(config.output, format="parquet").to_table().sort_by("id").to_pylist()
        return result, rows

    return run_engine


def largest_window_means(model: Path, text: str) -> tuple[list[float], int]:
    """Returns what the made-up task should find, one window at a time."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, module = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    windows = [ids[i : i + made_up_task.WINDOW] for i in range(0, len(ids), made_up_task.WINDOW)]
    with torch.inference_mode():
        hidden = [module(torch.tensor([window]))["last_hidden_state"][0] for window in windows]
    return np.max([one.mean(dim=0).numpy() for one in hidden], axis=0).tolist(), len(windows)


def test_a_second_task_with_two_columns_and_several_sequences_a_row(
    run: Run, classifier: Path
) -> None:
    texts: list[str | None] = [*sentences(90), None, "good"]
    result, rows = run(
        texts,
        task="largest-window-mean",
        text_pair_col="title",
        output_prefix="m_",
        carry_cols=("id",),
    )
    assert (result.rows, result.error_rows) == (92, 1)
    assert [row["id"] for row in rows] == list(range(92))
    assert rows[90] == {
        **dict.fromkeys(("m_means", "m_windows", "m_n_tokens", "m_truncated")),
        "id": 90,
        "m_error": "text is null",
    }
    for number in (0, 1, 17, 89, 91):
        means, windows = largest_window_means(classifier, f"film {number % 3} {texts[number]}")
        assert rows[number]["m_means"] == pytest.approx(means, abs=1e-5)
        assert rows[number]["m_windows"] == windows
        assert rows[number]["m_n_tokens"] > made_up_task.WINDOW * (windows - 1)
    assert max(row["m_windows"] or 0 for row in rows) > 3


@pytest.mark.parametrize("engine", ["local"])
def test_a_join_is_asked_whatever_the_neighbours_are(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    class CountsTen(made_up_task.WindowMeans):
        def join(self, decoded: pa.RecordBatch, starts: Any, kept: pa.Table) -> pa.RecordBatch:
            joined = super().join(decoded, starts, kept)
            windows = pa.array([10 * n for n in joined.column("windows").to_pylist()], pa.int32())
            return pa.RecordBatch.from_arrays([joined.column(0), windows], schema=joined.schema)

    monkeypatch.setattr(made_up_task, "WindowMeans", CountsTen)
    _, rows = run(["good", "bad"], task="largest-window-mean", text_pair_col="title")
    assert [row["windows"] for row in rows] == [10, 10]


def test_another_backend_passes_the_gate_and_scores(
    run: Run, classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scoring = scoring_by(made_up_backend.WithMadeUpBackend)
    monkeypatch.setitem(PROCESSORS, "text-classification", scoring)
    texts = sentences(90)
    result, rows = run(list(texts), acceleration="double")
    assert str(result.verdict.accepted) == "double with double products in float32"
    for row, (label, probabilities) in zip(rows, reference(classifier, texts), strict=True):
        assert row["prediction"] == label
        assert row["probabilities"] == pytest.approx(probabilities, abs=1e-6)


def test_a_function_over_rows_needs_no_model(run: Run) -> None:
    texts = [*sentences(90), None]
    result, rows = run(texts, task="shout")
    assert (result.rows, result.error_rows, result.verdict) == (91, 1, None)
    assert [row["shouted"] for row in rows[:90]] == [f"{text.upper()}!" for text in texts[:90]]
    assert (rows[90]["shouted"], rows[90]["error"]) == (None, "text is null")
    assert rows[3]["title"] == "film 0"
    assert run(texts, task="shout")[0].rows_before == 91


def test_a_retry_leaves_columns_of_any_type_as_they_are(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    monkeypatch.setitem(PROCESSORS, "words", lambda _: Words(("text",), broken))
    texts = [*sentences(90), None]
    _, whole = run(texts, task="words", output=str(tmp_path / "whole"))
    broken.touch()
    result, rows = run(texts, task="words")
    failed = [row["id"] for row in rows if row["error"] == "not today"]
    assert len(failed) == result.error_rows - 1 > 3
    broken.unlink()
    result, rows = run(texts, task="words", retry_errors=True)
    assert (result.retried_rows, result.recovered_rows, result.error_rows) == (
        len(failed),
        len(failed),
        1,
    )
    assert repr(rows) == repr(whole)  # NaN is not equal to itself
