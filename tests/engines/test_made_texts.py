"""Texts made of several columns and changed by a function, and pairs of texts, on every engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparkinfer.exceptions import ConfigError, ModelLoadError, ResumeError
from tests.engines.conftest import Run
from tests.engines.test_suite import reference
from tests.sentence_models import add_sentence_files, dense
from tests.tiny_models import make_classifier, sentences

TEMPLATE = "{title} {{x}} {body} {n}"
SHOUTED = "tests.made_up_texts:shouted"


def write(path: Path, **columns: Any) -> Path:
    count = len(next(iter(columns.values())))
    pq.write_table(pa.table({"id": range(count), **columns}), path, row_group_size=20)
    return path


def test_a_template_and_a_function_make_the_text(
    run: Run, tmp_path: Path, classifier: Path
) -> None:
    bodies = [text.replace("bad", "red") for text in sentences(50)]
    bodies[7], titles, numbers = "so bad", [f"film {i % 3}" for i in range(50)], list(range(50))
    titles[9] = None  # type: ignore[call-overload]
    source = write(tmp_path / "in.parquet", title=titles, body=bodies, n=numbers)
    options = {"input_col": None, "input_template": TEMPLATE, "preprocess": SHOUTED}
    result, frame = run(source, **options)
    assert (result.rows, result.error_rows) == (50, 2)
    rows = frame.to_pylist()
    assert rows[7]["error"] == "preprocess: ValueError: bad words"
    assert rows[9]["error"] == "column 'title' is null"
    scored = [i for i in range(50) if i not in (7, 9)]
    texts = [f"{titles[i]} {{x}} {bodies[i]} {i}".upper() for i in scored]
    for i, (label, probabilities) in zip(scored, reference(classifier, texts), strict=True):
        assert rows[i]["prediction"] == label
        assert rows[i]["probabilities"] == pytest.approx(probabilities, abs=1e-5)
    changed = {**options, "preprocess": {"function": SHOUTED, "version": "2"}}
    with pytest.raises(ResumeError, match=r"preprocess\.version was None, is '2'"):
        run(source, **changed)
    with pytest.raises(ResumeError, match="input_template was '"):
        run(source, **{**options, "input_template": "{title} {body}"})


@pytest.mark.parametrize("engine", ["local"])
def test_wrong_texts_are_refused_before_the_start(run: Run, tmp_path: Path) -> None:
    source = write(tmp_path / "in.parquet", title=["a"], text=["b"])
    template = {"input_col": None, "input_template": "{title} {text}"}
    with pytest.raises(ConfigError, match="preprocess='nothing:f': expected an importable"):
        run(source, preprocess="nothing:f")
    with pytest.raises(ConfigError, match="retry_errors=true .* 'text' is not kept there"):
        run(source, **template, retry_errors=True, carry_cols=("id", "title"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("engine", ["local"])
def test_another_source_of_the_function_is_a_change(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparkinfer.models.preprocess import Preprocess

    source = write(tmp_path / "in.parquet", text=["good"])
    run(source, preprocess=SHOUTED)
    monkeypatch.setattr(Preprocess, "identity", lambda self: f"{self.function} other")
    with pytest.raises(ResumeError, match="preprocess was 'tests.made_up_texts:shouted "):
        run(source, preprocess=SHOUTED)


def test_pairs_are_those_of_the_pipeline(run: Run, tmp_path: Path, classifier: Path) -> None:
    from transformers import pipeline

    texts, pairs = sentences(40), sentences(40, seed=1)
    source = write(tmp_path / "in.parquet", text=texts, other=pairs)
    _, frame = run(source, text_pair_col="other")
    pipe = pipeline("text-classification", model=str(classifier), device="cpu")
    for row, text, other in zip(frame.to_pylist(), texts, pairs, strict=True):
        found = pipe({"text": text, "text_pair": other}, top_k=None, truncation=True)
        by_label = {one["label"]: one["score"] for one in found}
        assert row["prediction"] == max(by_label, key=lambda name: by_label[name])
        expected = [by_label["NEGATIVE"], by_label["POSITIVE"]]
        assert row["probabilities"] == pytest.approx(expected, abs=5e-5)


IDENTITY, SIGMOID = "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Sigmoid"
CROSS_ENCODERS: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {
    "in the configuration": ({"sentence_transformers": {"activation_fn": IDENTITY}}, {}),
    "of old": ({"sbert_ce_default_activation_function": IDENTITY}, {}),
    "no activation": ({"sentence_transformers": {"version": "4.0.0"}}, {}),
    "saved": ({}, {"config_sentence_transformers.json": {}}),
    "saved with another activation": (
        {"sentence_transformers": {"activation_fn": SIGMOID}},
        {"config_sentence_transformers.json": {"activation_fn": IDENTITY}},
    ),
    "saved with a prompt": (
        {},
        {
            "config_sentence_transformers.json": {
                "prompts": {"web": "film was "},
                "default_prompt_name": "web",
            }
        },
    ),
    "saved with a limit": ({}, {"sentence_bert_config.json": {"max_seq_length": 7}}),
}


@pytest.mark.parametrize("engine", ["local"])
@pytest.mark.parametrize("labels", [("LABEL_0",), ("LABEL_0", "LABEL_1", "LABEL_2")], ids=len)
@pytest.mark.parametrize("case", CROSS_ENCODERS)
def test_a_cross_encoder_scores_as_sentence_transformers_does(
    run: Run, tmp_path: Path, case: str, labels: tuple[str, ...]
) -> None:
    cross = pytest.importorskip("sentence_transformers", reason="it is not installed")
    own, beside = CROSS_ENCODERS[case]
    folder = make_classifier(tmp_path / "model", labels=labels, **own)
    if beside:
        folder = tmp_path / "saved"
        cross.CrossEncoder(str(tmp_path / "model"), device="cpu").save_pretrained(str(folder))
        for name, more in beside.items():
            (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | more))
    texts, pairs = sentences(40), sentences(40, seed=1)
    source = write(tmp_path / "in.parquet", text=texts, other=pairs)
    _, frame = run(source, model=str(folder), text_pair_col="other")
    reranker = cross.CrossEncoder(str(folder), device="cpu")
    expected = reranker.predict(list(zip(texts, pairs, strict=True))).reshape(40, -1)
    found = np.array(frame["probabilities"].to_pylist())
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("engine", ["local"])
def test_a_cross_encoder_that_is_built_otherwise_is_refused(run: Run, tmp_path: Path) -> None:
    folder = make_classifier(tmp_path / "model", labels=("LABEL_0",))
    add_sentence_files(folder, dense(2, 1), whole={"model_type": "CrossEncoder"})
    source = write(tmp_path / "in.parquet", text=["good"], other=["bad"])
    with pytest.raises(ModelLoadError, match="names Transformer, Dense, expected a Transformer al"):
        run(source, model=str(folder), text_pair_col="other")
