"""Facts about the model and the sample that the package carries."""

from __future__ import annotations

import runpy
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

DEMO = Path(str(resources.files("sparkinfer.demo")))
MODEL = DEMO / "model"
SAMPLE = DEMO / "reviews.parquet"
SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "train_demo_model.py"


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return pq.read_table(SAMPLE).to_pylist()


def test_model_and_sample_take_at_most_three_megabytes() -> None:
    carried = [SAMPLE, *MODEL.iterdir()]
    assert sum(path.stat().st_size for path in carried) <= 3_000_000


def test_sample_has_its_columns_and_is_compressed() -> None:
    file = pq.ParquetFile(SAMPLE)
    assert [(field.name, field.type) for field in file.schema_arrow] == [
        ("id", pa.int64()),
        ("text", pa.string()),
        ("label", pa.int64()),
        ("product", pa.string()),
    ]
    assert file.metadata.row_group(0).column(1).compression == "ZSTD"


def test_sample_ids_are_unique_and_labels_binary(rows: list[dict[str, Any]]) -> None:
    assert len(rows) == 2000
    assert len({row["id"] for row in rows}) == len(rows)
    positive = sum(row["label"] for row in rows)
    assert {row["label"] for row in rows} == {0, 1}
    assert 0.45 <= positive / len(rows) <= 0.55
    assert all(row["product"] for row in rows)


def test_sample_has_missing_empty_and_repeated_texts(rows: list[dict[str, Any]]) -> None:
    texts = [row["text"] for row in rows]
    told = [text for text in texts if text]
    assert texts.count(None) == 10
    assert texts.count("") == 10
    assert len(told) - len(set(told)) == 40


def test_model_folder_loads_with_the_auto_classes() -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForSequenceClassification.from_pretrained(MODEL)
    assert model.config.id2label == {0: "NEGATIVE", 1: "POSITIVE"}
    assert model.config.max_position_embeddings == tokenizer.model_max_length == 128
    assert len(tokenizer) == model.config.vocab_size <= 2000
    assert tokenizer.tokenize("GOOD") == ["good"]
    assert f"{model.num_parameters():,} parameters" in " ".join(
        (MODEL / "README.md").read_text(encoding="utf-8").split()
    )


def test_a_few_texts_are_longer_than_the_model_reads(rows: list[dict[str, Any]]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    texts = [row["text"] for row in rows if row["text"]]
    kept = tokenizer(texts, truncation=True)["input_ids"]
    whole = tokenizer(texts, truncation=True, max_length=10_000)["input_ids"]
    assert 20 <= sum(len(a) < len(b) for a, b in zip(kept, whole, strict=True)) <= 40


def test_plain_pipeline_reaches_the_stated_accuracy(rows: list[dict[str, Any]]) -> None:
    from transformers import pipeline

    told = [row for row in rows if row["text"]][:300]
    classify = pipeline("text-classification", model=str(MODEL), device="cpu")
    answers = classify([row["text"] for row in told], batch_size=32, truncation=True)
    pairs = zip(told, answers, strict=True)
    right = sum(answer["label"] == ("NEGATIVE", "POSITIVE")[row["label"]] for row, answer in pairs)
    assert right / len(told) >= 0.93


def test_script_writes_the_carried_sample_and_trains_on_other_texts(
    rows: list[dict[str, Any]],
) -> None:
    train, sample = runpy.run_path(str(SCRIPT))["build_corpus"]()
    carried = [(row["text"], row["label"], row["product"]) for row in rows]
    assert [tuple(review) for review in sample] == carried
    trained_on = {review.text.lower() for review in train}
    assert not any(row["text"].lower() in trained_on for row in rows if row["text"])
