"""Models whose scores padding or neighbours would change, under every engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import torch

import sparkinfer
from sparkinfer.jobs.summary import summarize
from tests.odd_models import ODD_MODELS, alone
from tests.tiny_models import sentences
from tests.written import manifest_values

TEXTS = [*sentences(12), "film " * 90, "good", "bad", "a good film", "word " * 40, "it was a film"]
"""Of mixed lengths in mixed order, several of one length, one longer than most models take."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ODD_MODELS)
def test_each_row_has_the_score_that_its_text_has_alone(
    engine: str, name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    make, limit = ODD_MODELS[name]
    make(tmp_path / "model")
    pq.write_table(pa.table({"id": range(len(TEXTS)), "text": TEXTS}), tmp_path / "in.parquet")
    spark = None if engine == "local" else request.getfixturevalue("spark")
    of_engine = request.getfixturevalue("ranks_in_turn") if engine == "horovod" else {}
    config = sparkinfer.ScoringConfig(
        model=str(tmp_path / "model"),
        input=str(tmp_path / "in.parquet"),
        input_col="text",
        output=str(tmp_path / "out"),
        engine=engine,
        acceleration="none",
        dtype="float32",
        **of_engine,
    )
    sparkinfer.run(config, spark)
    scored = pads.dataset(config.output, format="parquet").to_table().sort_by("id")
    assert scored["error"].null_count == len(TEXTS)
    expected = alone(tmp_path / "model", TEXTS, limit)
    for found, scores in zip(scored["probabilities"].to_pylist(), expected, strict=True):
        assert found == pytest.approx(scores, abs=1e-5)


def test_it_is_said_why_texts_of_unlike_length_share_no_batch(tmp_path: Path) -> None:
    make, _ = ODD_MODELS["no attention mask"]
    make(tmp_path / "model")
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "in.parquet")
    config = sparkinfer.ScoringConfig(
        model=str(tmp_path / "model"),
        input=str(tmp_path / "in.parquet"),
        input_col="text",
        output=str(tmp_path / "out"),
        engine="local",
        acceleration="none",
        dtype="float32",
    )
    result = sparkinfer.run(config)
    why = result.verdict.unpadded
    assert why.startswith("scores in a batch differ from those of a text alone by ")
    assert f"texts of unlike length share no batch: {why}" in summarize(result)
    manifest = manifest_values(tmp_path / "out")
    assert manifest["verdict"]["unpadded"] == why
    assert result.statistics.padding_share == 0
    assert result.statistics.batches < result.statistics.forward_rows
