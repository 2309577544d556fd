from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

from sparkinfer.exceptions import ConfigError, ModelLoadError
from sparkinfer.models.ahead import RowsAhead
from sparkinfer.models.backends import PLAIN
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.gate import run_gate
from sparkinfer.models.layout import Layout
from sparkinfer.models.options import ModelOptions
from sparkinfer.models.running import RunningModel, load_way
from sparkinfer.models.scorer import NOT_FINITE, NULL_TEXT, Scorer
from sparkinfer.models.tasks import make_task
from sparkinfer.option_groups import BatchingConfig, TaskConfig
from sparkinfer.workers.slot import WorkerSlot
from tests.model_options import options_of
from tests.test_scorer import as_rows
from tests.tiny_models import SPECIAL_TOKENS, WORDS, make_classifier, make_tagger, sentences

STRATEGIES = ["none", "simple", "first", "average", "max"]

TEXTS = [
    "",
    "good",
    "The film was good, not bad.",
    "  the   filmmaker\tloved  Åsa Öberg \n and Straße 京都😀 x😀y but 😀 hated Zoë",
    "naïve cafés: ΑΒΓ Übermut großartig 😀😀😀 end",
    "e\u0301te\u0301 decomposed, ﬁne ligature",
    "[SEP] good [PAD] film",
    *sentences(40),
]
LONG = " ".join(["Unterhaltsam the film was gut", "京都 straße 😀", "not very good plotting"] * 12)


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tagger(tmp_path_factory.mktemp("models") / "tagger")


@pytest.fixture(scope="module")
def slow_tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a tokenizer that is written in Python."""
    from transformers import ProphetNetTokenizer

    folder = make_tagger(tmp_path_factory.mktemp("models") / "slow")
    for file in folder.glob("token*.json"):
        file.unlink()
    vocabulary = folder / "words.txt"
    vocabulary.write_text("\n".join([*SPECIAL_TOKENS, *WORDS, *"abcdefgh"]), encoding="utf-8")
    names = ["input_ids", "attention_mask"]
    made = ProphetNetTokenizer(str(vocabulary), model_max_length=64, model_input_names=names)
    made.save_pretrained(folder)
    return folder


def options_for(**task_options: Any) -> ModelOptions:
    return options_of("token-classification", task_options=task_options)


def load(folder: Path, options: ModelOptions, max_length: int | None = None) -> RunningModel:
    return load_way(Checkpoint(folder, options, "cpu", max_length), PLAIN)


def score(
    model: RunningModel, options: ModelOptions, texts: list[str | None], **batching: int
) -> list[dict[str, Any]]:
    options = replace(options, batching=BatchingConfig(**batching))
    scored = Scorer(model, options).process([as_rows(texts)])
    return [row for batch in scored for row in batch.to_pylist()]


@cache
def reference_model(folder: Path) -> Any:
    return AutoModelForTokenClassification.from_pretrained(folder)


def reference(
    folder: Path, texts: list[str], max_length: int | None = None, **options: Any
) -> list[list[dict[str, Any]]]:
    """Returns what the pipeline says of each text alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if max_length is not None:
        tokenizer.model_max_length = max_length
    model = reference_model(folder)
    options = {"aggregation_strategy": "none", **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = pipeline("ner", model=model, tokenizer=tokenizer, device="cpu", **options)
        return [pipe(text) for text in texts]


def assert_same(rows: list[dict[str, Any]], expected: list[list[dict[str, Any]]]) -> None:
    for row, entities in zip(rows, expected, strict=True):
        assert row["error"] is None
        found = row["entities"]
        assert [one["score"] for one in found] == pytest.approx(
            [float(one["score"]) for one in entities], abs=2e-6
        )
        names = ("start", "end", "word")
        assert [(one["entity"], *(one[name] for name in names)) for one in found] == [
            (one.get("entity", one.get("entity_group")), *(one[name] for name in names))
            for one in entities
        ]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_entities_are_those_of_the_pipeline(tagger: Path, strategy: str) -> None:
    options = options_for(aggregation_strategy=strategy)
    rows = score(load(tagger, options), options, list(TEXTS), max_batch_tokens=256)
    assert_same(rows, reference(tagger, TEXTS, aggregation_strategy=strategy))
    assert sum(len(row["entities"]) for row in rows) > 100
    assert rows[0]["entities"] == []


@pytest.mark.parametrize(
    ("strategy", "ignored"),
    [
        ("none", []),
        ("none", ["I-PER", "MISC"]),
        ("simple", ["PER"]),
        ("simple", ["O", "MISC", "LOC"]),
        ("first", ["I-PER", "O"]),
        ("average", ["LOC"]),
        ("max", []),
    ],
)
def test_ignored_labels_are_left_out_as_by_the_pipeline(
    tagger: Path, strategy: str, ignored: list[str]
) -> None:
    options = options_for(aggregation_strategy=strategy, ignore_labels=ignored)
    texts = TEXTS[:12]
    rows = score(load(tagger, options), options, list(texts))
    expected = reference(tagger, texts, aggregation_strategy=strategy, ignore_labels=ignored)
    assert_same(rows, expected)


@pytest.mark.parametrize(
    ("strategy", "stride"), [("simple", 0), ("first", 3), ("average", 5), ("max", 13)]
)
def test_a_long_text_is_read_in_windows_as_by_the_pipeline(
    tagger: Path, strategy: str, stride: int
) -> None:
    options = options_for(aggregation_strategy=strategy, stride=stride)
    texts = [LONG, "good", "", LONG[10:], LONG]
    rows = score(load(tagger, options, 16), options, list(texts))
    expected = reference(tagger, texts, 16, aggregation_strategy=strategy, stride=stride)
    assert_same(rows, expected)
    assert [row["truncated"] for row in rows] == [False] * 5
    assert max(one["end"] for one in rows[0]["entities"]) > 500
    assert rows[0]["n_tokens"] > 200 > rows[1]["n_tokens"] == 3


def test_without_a_stride_a_long_text_is_cut_and_says_so(tagger: Path) -> None:
    options = options_for(aggregation_strategy="simple")
    rows = score(load(tagger, options, 16), options, [LONG, "good"])
    assert_same(rows, reference(tagger, [LONG, "good"], 16, aggregation_strategy="simple"))
    assert [(row["truncated"], row["n_tokens"]) for row in rows] == [(True, 16), (False, 3)]


def test_places_are_characters_of_python_strings(tagger: Path) -> None:
    options = options_for(ignore_labels=[])
    (row,) = score(load(tagger, options), options, ["😀 京都 good"])
    places = [(one["start"], one["end"]) for one in row["entities"]]
    assert places == [(0, 1), (2, 3), (3, 4), (5, 9)]


def test_texts_with_the_same_tokens_keep_their_own_places_and_words(tagger: Path) -> None:
    options = options_for(ignore_labels=[], aggregation_strategy="simple")
    texts = ["good ωμέγα", "GOOD   Ωμέγα", None, "good ωμέγα", "good \x00 ωμέγα"]
    rows = score(load(tagger, options), options, list(texts))
    there = [text for text in texts if text is not None]
    assert_same(
        [row for row in rows if row["error"] is None],
        reference(tagger, there, aggregation_strategy="simple", ignore_labels=[]),
    )
    assert rows[0] == rows[3]
    assert rows[0]["entities"] != rows[1]["entities"]
    assert (rows[2]["entities"], rows[2]["error"]) == (None, NULL_TEXT)


@pytest.mark.parametrize("strategy", ["none", "simple"])
def test_a_slow_tokenizer_gives_entities_without_places(slow_tagger: Path, strategy: str) -> None:
    options = options_for(aggregation_strategy=strategy)
    texts = ["", "good film unknown a b c", *sentences(10)]
    rows = score(load(slow_tagger, options), options, list(texts))
    assert_same(rows, reference(slow_tagger, texts, aggregation_strategy=strategy))
    assert {one["start"] for row in rows for one in row["entities"]} == {None}


@pytest.mark.parametrize(
    ("task_options", "reason"),
    [
        ({"aggregation_strategy": "first"}, "task.aggregation_strategy='first': .*ProphetNet"),
        ({"aggregation_strategy": "simple", "stride": 2}, "task.stride=2: .*ProphetNet"),
    ],
)
def test_what_takes_places_is_refused_for_a_slow_tokenizer(
    slow_tagger: Path, task_options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        run_gate(slow_tagger, options_for(**task_options), WorkerSlot("cpu"))


def test_padding_on_the_left_leaves_the_entities(tagger: Path) -> None:
    options = options_for(aggregation_strategy="simple")
    model = load(tagger, options)
    with torch.no_grad():  # padding on the left would move them
        model.runtime.module.bert.embeddings.position_embeddings.weight.zero_()
    expected = score(model, options, list(TEXTS))
    left = model.in_layout(Layout(padding_side="left", pad_id=0))
    for row, other in zip(score(left, options, list(TEXTS)), expected, strict=True):
        spans, others = ([dict(one, score=0) for one in x["entities"]] for x in (row, other))
        assert spans == others


@pytest.mark.parametrize("strategy", ["simple", "average"])
def test_a_row_whose_scores_are_not_finite_has_the_error(
    tagger: Path, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options_for(aggregation_strategy=strategy, stride=1)
    model = load(tagger, options, 16)
    forward, awful = model.runtime.forward, model.encoder.tokenizer.convert_tokens_to_ids("awful")

    def overflowing(tensors: Any, head: Any = None) -> Any:
        logits = forward(tensors)["logits"]
        logits[tensors["input_ids"] == awful] = float("nan")
        return {"logits": logits}

    monkeypatch.setattr(model.runtime, "forward", overflowing)
    rows = score(model, options, ["good film", "good film " * 20 + "awful", "film", ""])
    assert [row["error"] for row in rows] == [None, NOT_FINITE, None, None]
    assert [row["entities"] is None for row in rows] == [False, True, False, False]


def test_the_gate_takes_a_tagger_with_windows(tagger: Path) -> None:
    options = replace(
        options_for(aggregation_strategy="max", stride=8), dtype="float32", acceleration="none"
    )
    model, verdict = run_gate(tagger, options, WorkerSlot("cpu"), RowsAhead(5000))
    assert (verdict.max_length, verdict.labels) == (64, model.labels)
    assert verdict.layout.shared == "any length"


def test_a_changed_label_counts_with_the_lead_that_its_own_had(tagger: Path) -> None:
    task = load(tagger, options_for()).task

    def rows(*tokens: list[float]) -> pa.RecordBatch:
        flat = [number for token in tokens for number in token]
        column = pa.array([flat], pa.large_list(pa.float32()))
        return pa.RecordBatch.from_arrays([column], names=["scores"])

    sure, unsure = [0.0, 0.9, 0.1, 0, 0, 0], [0.0, 0.33, 0.37, 0.3, 0, 0]
    same = task.difference(rows(sure, unsure), rows(sure, [0.0, 0.32, 0.36, 0.32, 0, 0]))
    assert same == pytest.approx(0.02)
    changed = task.difference(rows(sure, unsure), rows(sure, [0.0, 0.355, 0.345, 0.3, 0, 0]))
    assert changed == pytest.approx(0.04)
    assert np.isnan(task.difference(rows(sure), rows(sure, sure)))
    assert task.difference(rows(), rows()) == 0


@pytest.mark.parametrize(
    ("task_options", "reason"),
    [
        ({"stride": 4}, "task.stride=4 with task.aggregation_strategy='none'"),
        ({"stride": -1, "aggregation_strategy": "max"}, "task.stride=-1: expected an integer"),
        ({"aggregation_strategy": "last"}, "task.aggregation_strategy='last': expected 'none', "),
        ({"ignore_labels": "O"}, "task.ignore_labels='O': expected a list of strings"),
        ({"strides": 4}, "unknown option 'task.strides'; did you mean 'task.stride'"),
    ],
)
def test_options_that_cannot_be_followed_are_refused(
    task_options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        make_task(TaskConfig("ner", task_options))


def test_a_stride_that_leaves_a_window_nothing_new_is_refused(tagger: Path) -> None:
    options = replace(options_for(aggregation_strategy="simple", stride=14), max_length=16)
    with pytest.raises(ConfigError, match="task.stride=14: a window has 16 tokens, 14 of them"):
        run_gate(tagger, options, WorkerSlot("cpu"))


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    of_texts = make_classifier(tmp_path / "of texts")
    with pytest.raises(ModelLoadError, match="expected one that ends with ForTokenClassification"):
        run_gate(of_texts, options_for(), WorkerSlot("cpu"))
    from transformers import AutoModel

    headless = make_tagger(tmp_path / "headless")
    AutoModel.from_pretrained(headless).save_pretrained(headless)
    with pytest.raises(ModelLoadError, match="no weights for .*trained for 'token-classification'"):
        run_gate(headless, options_for(), WorkerSlot("cpu"))


def test_a_tokenizer_that_makes_no_words_is_refused_where_words_are_made(
    tagger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint(tagger, options_for(aggregation_strategy="max"), "cpu")
    monkeypatch.setattr(type(checkpoint.tokenizer), "convert_tokens_to_string", None)
    with pytest.raises(ModelLoadError, match="expected a decoder in tokenizer.json"):
        _ = checkpoint.task


def test_a_byte_level_tokenizer_gives_what_the_pipeline_gives(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    folder = make_tagger(tmp_path / "tagger")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[:70]
    words = ["<pad>", "<s>", "</s>", "<unk>", *letters]
    inner = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.BertProcessing(("</s>", 2), ("<s>", 1))
    names = {"pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(
        tokenizer_object=inner,
        model_max_length=64,
        model_input_names=["input_ids", "attention_mask"],
        **names,
    ).save_pretrained(folder)
    for strategy in STRATEGIES:
        options = options_for(aggregation_strategy=strategy)
        rows = score(load(folder, options), options, list(TEXTS[:12]))
        assert_same(rows, reference(folder, TEXTS[:12], aggregation_strategy=strategy))
