import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
import torch

from sparkinfer.batching import budget
from sparkinfer.exceptions import DeviceError
from sparkinfer.models.layout import Layout
from sparkinfer.models.running import RunningModel
from sparkinfer.models.scorer import DEFAULT_BATCH_TOKENS, NOT_FINITE, NULL_TEXT, Scorer
from sparkinfer.option_groups import BatchingConfig
from sparkinfer.workers import heap
from sparkinfer.workers.suspects import Known
from tests.model_options import options_of
from tests.tiny_models import sentences

OPTIONS = options_of()

COLUMNS = [
    "prediction",
    "probability",
    "probabilities",
    "n_tokens",
    "truncated",
    "error",
]


def scorer_of(
    model: RunningModel, report: Callable[[Any], None] | None = None, **batching: int
) -> Scorer:
    return Scorer(model, replace(OPTIONS, batching=BatchingConfig(**batching)), report)


def as_rows(texts: Sequence[str | None]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array(texts, pa.string())], names=["text"])


def score(
    model: RunningModel, batches: Sequence[Sequence[str | None]], **batching: int
) -> tuple[list[dict[str, Any]], Scorer]:
    scorer = scorer_of(model, **batching)
    scored = scorer.process(map(as_rows, batches))
    return [row for batch in scored for row in batch.to_pylist()], scorer


def fail_on(model: RunningModel, fails: Callable[[dict[str, torch.Tensor]], None]) -> list[int]:
    """Makes the model raise what `fails` raises for a batch; returns the sizes it then sees."""
    sizes: list[int] = []
    runtime: Any = model.runtime
    forward = runtime.forward

    def checked(inputs: dict[str, torch.Tensor]) -> Any:
        sizes.append(len(inputs["input_ids"]))
        fails(inputs)
        return forward(inputs)

    runtime.forward = checked
    return sizes


def word(model: RunningModel, text: str) -> int:
    return int(model.encoder.tokenizer.convert_tokens_to_ids(text))


def test_rows_equal_those_of_the_plain_pipeline(model: RunningModel) -> None:
    texts = sentences(203)
    rows, _ = score(model, [texts], max_batch_tokens=128, window_rows=64)
    expected = model.runtime.pipe(texts, top_k=None)
    assert len(rows) == 203
    for row, scores in zip(rows, expected, strict=True):
        by_label = {item["label"]: item["score"] for item in scores}
        assert row["prediction"] == scores[0]["label"]
        assert row["probability"] == pytest.approx(scores[0]["score"], abs=1e-5)
        assert row["probabilities"] == pytest.approx(
            [by_label["NEGATIVE"], by_label["POSITIVE"]], abs=1e-5
        )
        assert row["error"] is None
        assert row["truncated"] is False


def test_the_schema_is_the_row_contract(model: RunningModel) -> None:
    batch = next(scorer_of(model).process([as_rows(["good"])]))
    assert batch.schema.names == COLUMNS
    assert batch.schema.field("probabilities").type == pa.list_(pa.float32())


@pytest.mark.parametrize("cuts", [[1] * 30, [30], [0, 7, 0, 0, 23, 0], [29, 1]])
def test_rows_do_not_depend_on_how_the_input_is_cut(model: RunningModel, cuts: list[int]) -> None:
    texts = sentences(30)
    source = iter(texts)
    batches = [[next(source) for _ in range(cut)] for cut in cuts]
    rows, _ = score(model, batches, window_rows=11)
    expected, _ = score(model, [texts])
    assert [row["prediction"] for row in rows] == [row["prediction"] for row in expected]


def test_no_rows_give_no_rows(model: RunningModel) -> None:
    assert score(model, [])[0] == []
    assert score(model, [[], []])[0] == []


def test_null_text_keeps_its_place_with_a_reason(model: RunningModel) -> None:
    rows, scorer = score(model, [[None, "good", None]])
    assert [row["error"] for row in rows] == [NULL_TEXT, None, NULL_TEXT]
    assert [row["prediction"] is None for row in rows] == [True, False, True]
    assert rows[0]["probabilities"] is None
    assert rows[0]["n_tokens"] is None
    assert scorer.statistics.errors == 2


def test_a_window_of_nulls_only_is_no_problem(model: RunningModel) -> None:
    rows, scorer = score(model, [[None] * 5])
    assert [row["error"] for row in rows] == [NULL_TEXT] * 5
    assert scorer.statistics.batches == 0


def test_empty_and_emoji_texts_are_scored(model: RunningModel) -> None:
    rows, _ = score(model, [["", "😀😀", " \n"]])
    assert [row["error"] for row in rows] == [None] * 3
    assert [row["n_tokens"] for row in rows] == [2, 3, 2]


def test_long_text_is_cut_and_says_so(model: RunningModel) -> None:
    rows, scorer = score(model, [["good", "film " * 50_000]])
    assert [row["truncated"] for row in rows] == [False, True]
    assert [row["n_tokens"] for row in rows] == [3, 64]
    assert scorer.statistics.truncated == 1


def test_equal_texts_within_a_window_are_scored_once(model: RunningModel) -> None:
    sizes = fail_on(model, lambda inputs: None)
    rows, scorer = score(model, [["good", "bad", "good", None, "good"]])
    assert sum(sizes) == scorer.statistics.forward_rows == 2
    assert rows[0] == rows[2] == rows[4]


def test_a_row_that_the_model_refuses_is_alone_in_error(model: RunningModel) -> None:
    guilty = word(model, "awful")

    def refuse(inputs: dict[str, torch.Tensor]) -> None:
        if (inputs["input_ids"] == guilty).any():
            raise ValueError("cannot take this\nsecond line")

    fail_on(model, refuse)
    texts = ["good film"] * 3 + sentences(60)
    texts = [text.replace("awful", "bad") for text in texts]
    texts[20] = "an awful film"
    rows, scorer = score(model, [texts], max_batch_tokens=4096)
    assert {i: row["error"] for i, row in enumerate(rows) if row["error"]} == {
        20: "model: ValueError: cannot take this"
    }
    assert rows[20]["prediction"] is None
    assert rows[20]["n_tokens"] == 5
    assert scorer.statistics.rows == len(texts)


def test_running_out_of_memory_halves_the_budget_and_loses_no_row(model: RunningModel) -> None:
    def run_out(inputs: dict[str, torch.Tensor]) -> None:
        if inputs["input_ids"].numel() > 100:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    sizes = fail_on(model, run_out)
    texts = sentences(500)
    rows, scorer = score(model, [texts], max_batch_tokens=800, window_rows=256)
    assert [row["error"] for row in rows] == [None] * 500
    assert scorer.statistics.out_of_memory in (1, 2, 3)  # 800, 400, 200 tokens; 100 fit
    assert scorer.statistics.rows == 500
    assert len(sizes) == scorer.statistics.batches + scorer.statistics.out_of_memory
    expected = [item["label"] for item in model.runtime.pipe(texts[:40], batch_size=1)]
    assert [row["prediction"] for row in rows[:40]] == expected


def test_a_row_too_large_for_the_memory_alone_gets_an_error(model: RunningModel) -> None:
    def run_out(inputs: dict[str, torch.Tensor]) -> None:
        if inputs["input_ids"].shape[1] > 30:
            raise MemoryError("no room")

    fail_on(model, run_out)
    rows, scorer = score(model, [["good", "film " * 40, "bad"]])
    assert (
        scorer._budget.tokens == DEFAULT_BATCH_TOKENS["cpu"]
    )  # one row's size says nothing of others
    assert [row["error"] for row in rows] == [None, "model: out of memory: no room", None]


def test_a_row_whose_output_is_not_finite_gets_an_error(model: RunningModel) -> None:
    guilty = word(model, "awful")
    runtime: Any = model.runtime
    forward = runtime.forward

    def overflow(inputs: dict[str, torch.Tensor]) -> Any:
        output = forward(inputs)
        output["logits"][(inputs["input_ids"] == guilty).any(dim=1)] = float("nan")
        return output

    runtime.forward = overflow
    rows, scorer = score(model, [["good film", "an awful film", "a bad film"]])
    assert [row["error"] for row in rows] == [None, NOT_FINITE, None]
    assert [row["prediction"] is None for row in rows] == [False, True, False]
    assert rows[1]["probabilities"] is None
    assert scorer.statistics.errors == 1


@pytest.mark.parametrize("message", ["CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED"])
def test_running_out_of_memory_is_not_taken_for_a_broken_device(
    model: RunningModel, message: str
) -> None:
    def run_out(inputs: dict[str, torch.Tensor]) -> None:
        if len(inputs["input_ids"]) > 2:
            raise RuntimeError(message)

    fail_on(model, run_out)
    rows, _ = score(model, [["good", "bad", "red", "blue"]])
    assert [row["error"] for row in rows] == [None] * 4


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: device-side assert triggered\nmore",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`",
        "NCCL error in: ProcessGroupNCCL.cpp:2251, unhandled cuda error",
        "HIP error: an illegal memory access was encountered",
    ],
)
def test_a_broken_device_ends_the_scoring(model: RunningModel, message: str) -> None:
    def break_device(inputs: dict[str, torch.Tensor]) -> None:
        raise RuntimeError(message)

    fail_on(model, break_device)
    with pytest.raises(DeviceError, match="device cpu is broken"):
        score(model, [["good"]])


def test_what_a_device_does_not_support_is_an_error_of_its_rows(model: RunningModel) -> None:
    def refuse(inputs: dict[str, torch.Tensor]) -> None:
        raise RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED")

    fail_on(model, refuse)
    rows, _ = score(model, [["good"]])
    assert "CUDNN_STATUS_NOT_SUPPORTED" in rows[0]["error"]


def test_after_a_while_larger_batches_are_tried_again(
    model: RunningModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "PATIENCE", 4)
    seen: list[int] = []

    def run_out_once(inputs: dict[str, torch.Tensor]) -> None:
        seen.append(inputs["input_ids"].numel())
        if len(seen) == 1:
            raise RuntimeError("out of memory")

    fail_on(model, run_out_once)
    batches = [sentences(64, seed=number) for number in range(20)]
    rows, scorer = score(model, batches, max_batch_tokens=256, window_rows=64)
    assert not any(row["error"] for row in rows)
    assert scorer.statistics.out_of_memory == 1
    first = seen[1 : 1 + budget.PATIENCE]
    assert max(first) <= 128 < max(seen[1:])


def test_stopping_early_leaves_the_rest_unread_and_no_thread(model: RunningModel) -> None:
    pulled = []

    def source() -> Iterator[pa.RecordBatch]:
        for number in range(10_000):
            pulled.append(number)
            yield as_rows(sentences(64, seed=number))

    scored = scorer_of(model).process(source())
    assert next(scored).num_rows == 256
    scored.close()  # type: ignore[attr-defined]
    assert len(pulled) < 200
    assert not any(t.name == "sparkinfer-lookahead" for t in threading.enumerate())


def test_padding_counts_what_the_model_saw(model: RunningModel) -> None:
    seen = []
    fail_on(model, lambda inputs: seen.append(inputs["input_ids"].numel()))
    _, scorer = score(model, [sentences(300)])
    assert scorer.statistics.padded_tokens == sum(seen)
    assert scorer.statistics.tokens < scorer.statistics.padded_tokens
    assert scorer.statistics.padding_share == 1 - scorer.statistics.tokens / sum(seen)


def test_progress_is_told_within_a_window(model: RunningModel) -> None:
    seen: list[int] = []
    scorer = scorer_of(
        model,
        lambda statistics: seen.append(statistics.rows + statistics.rows_in_window),
        max_batch_tokens=64,
    )
    for _ in scorer.process([as_rows(sentences(100))]):
        pass
    assert len(seen) > 3
    assert seen == sorted(seen)
    assert seen[-1] == 100


def test_a_model_that_cannot_pad_gets_rows_one_by_one(model: RunningModel) -> None:
    model.layout = Layout(shared="nothing")
    sizes = fail_on(model, lambda inputs: None)
    rows, _ = score(model, [["good", "a bad film"]])
    assert sizes == [1, 1]
    assert [row["error"] for row in rows] == [None, None]


def test_texts_of_equal_length_alone_share_a_batch_where_padding_changes_scores(
    model: RunningModel,
) -> None:
    model.layout = Layout(shared="equal length")
    shapes: list[tuple[int, ...]] = []
    fail_on(model, lambda inputs: shapes.append(tuple(inputs["input_ids"].shape)))
    texts = ["good", "a bad film", "bad", "the plot was good", "not a film"]
    rows, scorer = score(model, [texts])
    assert shapes == [(1, 6), (2, 5), (2, 3)]
    assert scorer.statistics.padding_share == 0
    assert [row["error"] for row in rows] == [None] * 5


def test_a_token_that_the_model_lacks_is_an_error_of_its_row(model: RunningModel) -> None:
    model.vocabulary = word(model, "awful")
    rows, _ = score(model, [["good", "an awful film", "bad"]])
    lacks = f"tokenizer: token {model.vocabulary}, but the model has only {model.vocabulary} tokens"
    assert [row["error"] for row in rows] == [None, lacks, None]


def test_the_heap_is_trimmed_after_every_window(
    model: RunningModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    trimmed = []
    monkeypatch.setattr(heap, "trim", lambda: trimmed.append(1))
    score(model, [["good"] * 30], window_rows=11)
    assert len(trimmed) == 3


def test_the_tokenizer_waits_for_the_model_where_there_are_suspects(
    model: RunningModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an innocent text that is in the one alone would die of what is in the other."""
    threads: list[str] = []
    encode = model.encode

    def noting_thread(columns: Any) -> Any:
        threads.append(threading.current_thread().name)
        return encode(columns)

    monkeypatch.setattr(model, "encode", noting_thread)
    texts = sentences(30)
    expected, _ = score(model, [texts], window_rows=10)
    assert set(threads) == {"sparkinfer-lookahead"}
    threads.clear()
    scorer = scorer_of(model, window_rows=10)
    scorer.suspects.known = Known(suspected=frozenset({"x"}))
    found = [row for batch in scorer.process([as_rows(texts)]) for row in batch.to_pylist()]
    assert set(threads) == {threading.current_thread().name}
    assert found == expected
