"""Generation under every engine: equal rows, resumed and retried runs, bad rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparkinfer.exceptions import ResumeError
from tests.engines.conftest import Run
from tests.test_generation import by_library, text_of
from tests.tiny_generators import POSITIONS, make_generator
from tests.tiny_models import sentences

NEW = {"max_new_tokens": 12}
SCORED = ("generated_text", "n_generated_tokens", "finish_reason", "n_tokens", "error")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_generator(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_generator(tmp_path_factory.mktemp("models") / "chat", "gpt2", chat=True)


def write(path: Path, texts: Any, kind: pa.DataType | None = None) -> str:
    table = pa.table({"id": range(len(texts)), "text": pa.array(texts, kind or pa.string())})
    pq.write_table(table, path, row_group_size=40)
    return str(path)


def options(model: Path, **more: Any) -> dict[str, Any]:
    how = {"task": "text-generation", "generation": NEW, "acceleration": "none"}
    return {"model": str(model), "chunks": {"target_rows": 40}, **how, **more}


def scored(frame: pa.Table) -> list[dict[str, Any]]:
    return list(frame.select(SCORED).to_pylist())


def with_bytes(path: Path) -> str:
    """Writes rows of which one is null, one no text, one too long; Parquet lets any bytes pass."""
    texts = [b"good film", None, b"\xff\xfe", b"red " * POSITIONS, b"", b"the plot"]
    column = pa.array(texts, pa.binary()).view(pa.string())
    pq.write_table(pa.table({"id": range(6), "text": column}), path)
    return str(path)


def test_rows_are_those_of_generate_and_bad_ones_have_an_error(
    run: Run, llama: Path, tmp_path: Path
) -> None:
    texts = sentences(90)
    result, frame = run(write(tmp_path / "in.parquet", texts), **options(llama))
    assert (result.rows, result.error_rows) == (90, 0)
    expected = [text_of(llama, one) for one in by_library("llama", llama, texts, **NEW)]
    assert frame["generated_text"].to_pylist() == expected
    bad = with_bytes(tmp_path / "bad.parquet")
    _, frame = run(bad, **options(llama, output=str(tmp_path / "bad")))
    errors = frame["error"].to_pylist()
    assert [errors[0], errors[1], errors[5]] == [None, "text is null", None]
    assert errors[2].startswith("text is not valid UTF-8")
    assert errors[3].startswith(f"prompt: more than the {POSITIONS - 12} tokens")
    assert errors[4] == "the tokenizer made no tokens of this text"
    assert [row is None for row in frame["generated_text"].to_pylist()] == [
        error is not None for error in errors
    ]


def test_what_is_drawn_is_the_same_when_a_run_is_cut_off_and_resumed(
    run: Run, llama: Path, tmp_path: Path
) -> None:
    import sparkinfer
    from sparkinfer.exceptions import SparkInferError
    from sparkinfer.jobs.ledger import Ledger

    drawn = {"generation": {**NEW, "do_sample": True, "seed": 3, "temperature": 1.5}}
    texts: list[str | None] = [*sentences(118), None, "good"]
    source = write(tmp_path / "in.parquet", texts)
    config = sparkinfer.ScoringConfig(
        input=source,
        input_col="text",
        output=str(tmp_path / "whole"),
        engine="local",
        dtype="float32",
        batching={"max_batch_rows": 3},
        **options(llama, **drawn),
    )
    sparkinfer.run(config)
    whole = pa.concat_tables(map(pq.read_table, sorted((tmp_path / "whole").glob("*.parquet"))))

    class DiedError(SparkInferError):
        pass

    commit, done = Ledger.commit, []

    def dying(self: Any, *given: Any, **named: Any) -> Any:
        if done:
            raise DiedError("killed by the test")
        done.append(1)
        return commit(self, *given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "commit", dying)
        with pytest.raises(Exception, match="killed by the test"):
            run(source, **options(llama, **drawn))
    result, frame = run(source, **options(llama, **drawn))
    assert result.rows_before > 0
    assert scored(frame) == scored(whole.sort_by("id"))
    with pytest.raises(ResumeError, match=r"generation.seed was 3, is 4"):
        run(source, **options(llama, generation={**drawn["generation"], "seed": 4}))


def test_a_column_of_messages_is_answered(run: Run, chat: Path, tmp_path: Path) -> None:
    kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    said = [[{"role": "user", "content": text}] for text in sentences(20)]
    bad = [{"role": "judge", "content": "good"}]
    asked = [*said, None, bad, []]
    result, frame = run(write(tmp_path / "in.parquet", asked, kind), **options(chat))
    assert (result.rows, result.error_rows) == (23, 3)
    assert frame["error"].to_pylist()[20:] == [
        "text is null",
        "chat template: TemplateError: no such role",
        "the list of messages is empty",
    ]
    texts = write(tmp_path / "texts.parquet", sentences(20))
    _, of_texts = run(texts, **options(chat, output=str(tmp_path / "texts")))
    assert scored(of_texts) == scored(frame)[:20]
    assert frame["text"].to_pylist()[20:] == [None, bad, []]


def test_rows_with_an_error_are_tried_again(
    run: Run, engine: str, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine != "local":
        pytest.skip("a retry is the same job under every engine; what breaks is in this process")
    from sparkinfer.models.generation import loop

    texts = sentences(60)
    source = write(tmp_path / "in.parquet", texts)
    _, whole = run(source, **options(llama, output=str(tmp_path / "whole")))
    generate = loop.generate

    def broken(steps: Any, keys: Any, *given: Any) -> Any:
        if (keys % 3 == 0).any():
            raise RuntimeError("not today")
        return generate(steps, keys, *given)

    monkeypatch.setattr(loop, "generate", broken)
    result, _ = run(source, **options(llama))
    assert 0 < result.error_rows < 60
    monkeypatch.setattr(loop, "generate", generate)
    result, frame = run(source, **options(llama, retry_errors=True))
    assert result.retried_rows == result.recovered_rows > 0
    assert scored(frame) == scored(whole)


def test_an_encoder_decoder_writes(run: Run, tmp_path: Path) -> None:
    folder = make_generator(tmp_path / "t5", "t5", tokenizer={"model_max_length": 64})
    texts = sentences(50)
    how = options(folder, task="text2text-generation")
    _, frame = run(write(tmp_path / "in.parquet", texts), **how)
    expected = [text_of(folder, one) for one in by_library("t5", folder, texts, **NEW)]
    assert frame["generated_text"].to_pylist() == expected
