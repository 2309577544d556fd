"""Answers out of contexts, as the pipeline of transformers 4 finds them."""

from __future__ import annotations

import random
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sparkinfer.exceptions import ConfigError, ModelLoadError
from sparkinfer.models.backends import PLAIN
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.gate import run_gate
from sparkinfer.models.options import ModelOptions
from sparkinfer.models.running import load_way
from sparkinfer.models.scorer import NOT_FINITE, Scorer
from sparkinfer.models.tasks.question_answering import best_spans
from sparkinfer.option_groups import BatchingConfig, GateConfig
from sparkinfer.workers.slot import WorkerSlot
from tests.model_options import options_of
from tests.tiny_models import WORDS, make_bert

ODD_WORDS = ("größe", "naïve", "映画", "😀😀", "co-star", "3.5", "ﬁlm", "é")


def make_reader(folder: Path, **tokenizer: Any) -> Path:
    """Returns a folder with a random model that answers questions; see `make_bert`."""
    return make_bert(folder, "QuestionAnswering", seed=3, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_reader(tmp_path_factory.mktemp("models") / "reader")


def pairs(count: int) -> tuple[list[str], list[str]]:
    """Returns questions and contexts, some with many words, some with odd ones."""
    draw = random.Random(1)
    questions, contexts = [], []
    for number in range(count):
        questions.append(" ".join(draw.choices(WORDS, k=draw.randint(1, 12))) + "?")
        words = draw.choices([*WORDS, *ODD_WORDS] if number % 2 else WORDS, k=draw.randint(1, 30))
        contexts.append(" ".join(words * (5 if number % 5 == 0 else 1)) + ".")
    return questions, contexts


def options_with(**task_options: Any) -> ModelOptions:
    return options_of("question-answering", ("question", "context"), task_options)


def score(
    folder: Path, questions: list[str | None], contexts: list[str | None], options: ModelOptions
) -> list[dict[str, Any]]:
    scorer = Scorer(load_way(Checkpoint(folder, options, "cpu"), PLAIN), options)
    columns = [pa.array(one, pa.string()) for one in (questions, contexts)]
    batch = pa.RecordBatch.from_arrays(columns, names=["question", "context"])
    return [row for scored in scorer.process([batch]) for row in scored.to_pylist()]


@cache
def loaded(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    module = AutoModelForQuestionAnswering.from_pretrained(folder).double()
    return AutoTokenizer.from_pretrained(folder), module


def reference(
    folder: Path,
    question: str,
    context: str,
    doc_stride: int = 32,
    max_seq_len: int = 64,
    max_answer_len: int = 15,
    handle_impossible_answer: bool = False,
    align_to_words: bool = True,
) -> dict[str, Any]:
    """Returns the answer by the rule of the pipeline of transformers 4.41, window by window."""
    import torch

    tokenizer, module = loaded(folder)
    made = tokenizer(
        question, context, truncation="only_second", max_length=max_seq_len, stride=doc_stride,
        return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    answers, null = [], 1.0
    for window, encoding in enumerate(made.encodings):
        inputs = {name: torch.tensor([made[name][window]]) for name in tokenizer.model_input_names}
        with torch.inference_mode():
            output = module(**inputs)
        usable = np.array([one == 1 for one in encoding.sequence_ids])
        usable[0] = True  # [CLS]
        start, end = (
            np.where(usable, logits[0].numpy(), -10000.0)
            for logits in (output["start_logits"], output["end_logits"])
        )
        start, end = (np.exp(one - one.max()) for one in (start, end))
        start, end = start / start.sum(), end / end.sum()
        null = min(null, start[0] * end[0])
        start[0] = end[0] = 0.0
        spans = np.tril(np.triu(np.outer(start, end)), max_answer_len - 1)
        i, j = np.unravel_index(spans.argmax(), spans.shape)
        first, last = encoding.offsets[i][0], encoding.offsets[j][1]
        if align_to_words:
            first = encoding.word_to_chars(encoding.token_to_word(int(i)), 1)[0]
            last = encoding.word_to_chars(encoding.token_to_word(int(j)), 1)[1]
        answers.append({"score": spans[i, j], "start": first, "end": last})
    if handle_impossible_answer:
        answers.append({"score": null, "start": 0, "end": 0})
    best = max(answers, key=lambda one: one["score"])
    return {**best, "answer": context[best["start"] : best["end"]]}


def check(row: dict[str, Any], expected: dict[str, Any]) -> None:
    assert row["score"] == pytest.approx(expected["score"], abs=1e-5)
    assert (row["start"], row["end"]) == (expected["start"], expected["end"])
    assert row["answer"] == expected["answer"]
    assert row["error"] is None


@pytest.mark.parametrize(
    "task_options",
    [
        {},
        {"doc_stride": 5},
        {"max_answer_len": 1},
        {"max_answer_len": 60},
        {"handle_impossible_answer": True},
        {"align_to_words": False},
        {"max_seq_len": 32, "doc_stride": 8},
    ],
)
def test_answers_follow_the_rule_of_transformers_4(
    reader: Path, task_options: dict[str, Any]
) -> None:
    questions, contexts = pairs(40)
    rows = score(reader, list(questions), list(contexts), options_with(**task_options))
    found = [reference(reader, *pair, **task_options) for pair in zip(questions, contexts)]  # noqa: B905
    for row, expected in zip(rows, found, strict=True):
        check(row, expected)
        assert row["truncated"] is False
    assert max(row["n_tokens"] for row in rows) > 64
    if task_options.get("handle_impossible_answer"):
        assert 0 < sum(row["answer"] == "" for row in rows) < len(rows)


def test_answers_are_those_of_the_pipeline_where_there_is_one(reader: Path) -> None:
    from transformers.pipelines import get_supported_tasks, pipeline

    if "question-answering" not in get_supported_tasks():
        pytest.skip("this transformers has no pipeline question-answering")
    pipe = pipeline("question-answering", model=str(reader), device="cpu")
    if hasattr(pipe, "get_answer"):
        pytest.skip("the pipeline of this transformers adds up scores of answers alike")
    questions, contexts = pairs(40)
    rows = score(reader, list(questions), list(contexts), options_with())
    for row, question, context in zip(rows, questions, contexts, strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check(row, pipe(question=question, context=context))


def test_characters_are_counted_where_they_are_not_ascii(reader: Path) -> None:
    contexts = ["😀😀 größe 映画 the naïve film é", "ﬁlm é good", "good"]
    rows = score(reader, ["the film?"] * 3, list(contexts), options_with(max_answer_len=2))
    for row, context in zip(rows, contexts, strict=True):
        assert row["answer"] == context[row["start"] : row["end"]] != ""
        check(row, reference(reader, "the film?", context, max_answer_len=2))


def test_rows_without_a_question_or_context_have_an_error(reader: Path) -> None:
    questions = ["good?", None, "", "good?", "good?", "good?", "  "]
    contexts = ["the film", "the film", "the film", "", None, " \n", "the film"]
    rows = score(reader, questions, contexts, options_with())
    empty = "question-answering: the {} is empty".format
    assert [row["error"] for row in rows] == [
        *(None, "text is null", empty("question"), empty("context"), "text is null"),
        *(empty("context"), empty("question")),
    ]
    assert [row["answer"] is None for row in rows] == [False, *[True] * 6]


def test_a_question_that_is_cut_is_told(reader: Path) -> None:
    long, context = "good " * 50, "the red film was great " * 20
    half = " ".join(["good"] * 30)
    rows = score(reader, [long, half, "good"], [context] * 3, options_with())
    assert [row["truncated"] for row in rows] == [True, False, False]
    assert {**rows[0], "truncated": False} == rows[1]
    rows = score(reader, ["good film plot"] * 2, [context, "a"], options_with(max_question_len=2))
    assert [row["truncated"] for row in rows] == [True, True]
    check(rows[0], reference(reader, "good film", context))


def test_equal_pairs_are_one_input_and_equal_tokens_are_not(reader: Path) -> None:
    """Words that the tokenizer does not tell apart are still those of their own context."""
    contexts = ["größer", "übel", "größer"]
    rows = score(reader, ["good?"] * 3, list(contexts), options_with())
    assert [row["answer"] for row in rows] == contexts


def test_an_output_that_is_not_finite_is_an_error_of_its_row(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = make_reader(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["bert.embeddings.position_embeddings.weight"][12] = float("inf")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    options = options_with()
    object.__setattr__(options, "batching", BatchingConfig(max_batch_rows=1))
    contexts = ["film " * 3, "film " * 30, "film"]
    rows = score(folder, ["good"] * 3, list(contexts), options)
    assert [row["error"] for row in rows] == [None, NOT_FINITE, None]
    assert [row["answer"] is None for row in rows] == [False, True, False]


def test_the_gate_finds_padding_and_limit(tmp_path: Path) -> None:
    folder = make_reader(tmp_path / "model", model_max_length=10**6)
    _, verdict = run_gate(folder, options_with(), WorkerSlot("cpu"))
    assert (verdict.max_length, verdict.unpadded) == (64, "")
    _, verdict = run_gate(folder, options_with(max_seq_len=40), WorkerSlot("cpu"))
    assert verdict.max_length == 40


def test_the_gate_compares_probabilities(reader: Path) -> None:
    options = options_of(
        "question-answering", ("question", "context"),
        acceleration="none", dtype="bfloat16", gate=GateConfig(tolerance=1e-5),
    )  # fmt: skip
    _, verdict = run_gate(reader, options, WorkerSlot("cpu"))
    assert str(verdict.accepted) == "none in float32"
    assert "differs from float32 by" in verdict.rejected[0][1]


def test_windows_that_do_not_move_are_refused() -> None:
    with pytest.raises(ConfigError, match="task.doc_stride=64 with task.max_seq_len=64: "):
        options_with(doc_stride=64, max_seq_len=64)


def test_a_tokenizer_that_does_not_know_places_is_refused(reader: Path) -> None:
    checkpoint = Checkpoint(reader, options_with(), "cpu")
    checkpoint.__dict__["tokenizer"] = type("Slow", (), {"is_fast": False})()
    with pytest.raises(ModelLoadError, match="save a fast one"):
        _ = checkpoint.task


def test_the_likeliest_span_is_the_first_of_equals_and_of_chosen_tokens_alone() -> None:
    starts = np.array([[0.9, 0.5, 0.5, 0.0]], np.float32)
    ends = np.array([[0.9, 0.0, 0.5, 0.5]], np.float32)
    usable = np.array([[False, True, True, True]])
    assert [int(one[0]) for one in best_spans(starts, ends, usable, 3)[:2]] == [1, 2]
    assert [int(one[0]) for one in best_spans(starts, ends, usable, 1)[:2]] == [2, 2]
    nothing = np.zeros((1, 4), np.float32)
    assert [int(one[0]) for one in best_spans(nothing, nothing, usable, 9)[:2]] == [1, 1]
