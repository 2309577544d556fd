from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkinfer.config import ScoringConfig
from sparkinfer.engines.horovod import prepare_stage, readers
from sparkinfer.engines.horovod.prepare import (
    KEYS_PER_PART,
    Encoding,
    PreparedFile,
    PrepareJob,
    prepare_part,
)
from sparkinfer.engines.horovod.prepare_stage import _parts
from sparkinfer.engines.horovod.readers import READERS, choose_reader, read_row_groups
from sparkinfer.exceptions import EngineUnavailableError, RowConservationError
from sparkinfer.metrics.measure import Measure
from sparkinfer.models.backends import PLAIN
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.gate import Verdict
from sparkinfer.models.processor import ModelScoring
from sparkinfer.models.sources import ModelSource, resolve
from sparkinfer.models.tokens import Asked, Encoder
from sparkinfer.option_groups import BatchingConfig
from sparkinfer.plan.chunks import Chunk
from sparkinfer.plan.plan import Plan, Workers
from sparkinfer.rows.columns import Columns
from sparkinfer.rows.reading import InputFolders, Piece
from sparkinfer.workers.suspects import Suspects
from tests.model_options import options_of
from tests.tiny_models import sentences

pytestmark = [
    # Petastorm leaves a file open for each row group until it is collected.
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

has_petastorm = choose_reader("auto", "out") == "petastorm"

TEXTS: list[str | None] = [*sentences(300), None, "", "good", "good", "film " * 100, None]
INPUTS = ("input_ids", "token_type_ids", "attention_mask")


@pytest.fixture(
    params=[
        pytest.param(
            "petastorm",
            marks=pytest.mark.skipif(not has_petastorm, reason="no Petastorm that works here"),
        ),
        "pyarrow",
    ]
)
def reader(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def source(classifier: Path) -> ModelSource:
    config = ScoringConfig(model=str(classifier), input_col="text")
    return resolve(config.model, revision=None, loading=config.loading)


@pytest.fixture(scope="module")
def encoder(classifier: Path) -> Encoder:
    options = options_of()
    return Checkpoint(classifier, options, "cpu").encoder


def prepare(
    folder: Path, source: ModelSource, texts: Sequence[str | None], **batching: Any
) -> list[PreparedFile]:
    """Prepares the rows of a chunk as a Spark task does, without Spark."""
    path = folder / "in.parquet"
    table = pa.table({"id": range(len(texts)), "text": pa.array(texts, pa.string())})
    pq.write_table(table, path, row_group_size=70)
    piece = Piece(str(path), 0, pq.read_metadata(path).num_row_groups, len(texts))
    return prepared(job_for(folder, source, **batching), 0, Chunk(0, (piece,)))


def prepared(job: PrepareJob, index: int, part: Chunk) -> list[PreparedFile]:
    return list(prepare_part(job, index, part, Encoding(job, Suspects())))


def job_for(folder: Path, source: ModelSource, **batching: Any) -> PrepareJob:
    for name in ("tokens", "carried"):
        (folder / name).mkdir()
    options = BatchingConfig(**{"max_batch_tokens": 16, "window_rows": 100, **batching})
    verdict = Verdict(PLAIN, "cpu", 0.0, 1e-4, ("NEGATIVE", "POSITIVE"), max_length=64)
    of_model = options_of(batching=options)
    processor = ModelScoring("m", None, of_model, source, verdict)
    columns = Columns(
        carried=pa.schema([("id", pa.int64())]),
        inputs=pa.schema([("text", pa.string())]),
        scored=processor.fields,
    )
    read_from = str(folder / "in.parquet")
    plan = Plan(
        processor, columns, Measure(), InputFolders(read_from), str(folder), Workers("cpu", 1)
    )
    return PrepareJob(plan, options, 1, str(folder))


def read_texts(
    folder: Path, files: Sequence[PreparedFile], reader: str, encoder: Encoder
) -> dict[int, tuple[Any, ...]]:
    """Returns by id what was read of each row: its token ids by input, or None, and its error."""
    rows = {}
    for file, (encoded,), carried in read_row_groups(READERS[reader], str(folder), files):
        assert carried.num_rows == file.rows == len(encoded.indices)
        for row, index in zip(carried["id"].to_pylist(), encoded.indices, strict=True):
            assert row not in rows
            if index < 0:
                rows[row] = (None, False, None)
                continue
            inputs, sequences = encoded.inputs, encoded.inputs.encoded
            values = sequences.values_of(inputs.sequences_of(np.array([index])))
            ids = {name: sequences.columns[name][values].tolist() for name in INPUTS}
            errors = inputs.errors(sequences.errors)
            rows[row] = (ids, bool(inputs.truncated[index]), errors.get(int(index)))
    return rows


def test_every_row_is_read_once_with_the_tokenizers_ids(
    tmp_path: Path, source: ModelSource, encoder: Encoder, reader: str
) -> None:
    files = prepare(tmp_path, source, TEXTS)
    assert len(files) > 10
    rows = read_texts(tmp_path, files, reader, encoder)
    assert sorted(rows) == list(range(len(TEXTS)))
    for row, text in enumerate(TEXTS):
        if text is None:
            assert rows[row] == (None, False, None)
        else:
            expected = encoder.tokenizer(text, truncation=True, max_length=64)
            assert rows[row] == ({name: expected[name] for name in INPUTS}, len(text) > 400, None)


def test_no_row_groups_are_no_rows(tmp_path: Path, reader: str) -> None:
    assert list(read_row_groups(READERS[reader], str(tmp_path), [])) == []


@pytest.mark.parametrize("texts", [[None, None], ["good"]], ids=["only nulls", "one row"])
def test_row_groups_of_few_tokens_are_read(
    tmp_path: Path, source: ModelSource, encoder: Encoder, reader: str, texts: list[str | None]
) -> None:
    files = prepare(tmp_path, source, texts)
    assert len(read_texts(tmp_path, files, reader, encoder)) == len(texts)


def test_a_text_that_cannot_be_tokenised_keeps_its_reason(
    tmp_path: Path, source: ModelSource, encoder: Encoder, reader: str, monkeypatch: Any
) -> None:
    whole = Encoder._encode

    def refuse(self: Encoder, columns: Sequence[Sequence[str]], asked: Asked) -> Any:
        if "bad" in columns[0]:
            raise ValueError("refused")
        return whole(self, columns, asked)

    monkeypatch.setattr(Encoder, "_encode", refuse)
    files = prepare(tmp_path, source, ["good", "bad", None])
    rows = read_texts(tmp_path, files, reader, encoder)
    assert rows[1][2] == "tokenizer: ValueError: refused"
    assert rows[1][0] == {name: [] for name in INPUTS}
    assert [rows[0][2], rows[2][2]] == [None, None]


def test_rows_of_a_row_group_are_of_like_length_and_keys_have_no_gap(
    tmp_path: Path, source: ModelSource
) -> None:
    files = prepare(tmp_path, source, TEXTS)
    start = 0
    for file in files:
        table = pa.parquet.read_table(tmp_path / "tokens" / file.name)
        lengths = table["n_tokens"].to_pylist()
        assert lengths == sorted(lengths, reverse=True)
        assert file.first_row == start
        assert table["row"].to_pylist() == list(range(start, start + file.rows))
        assert file.tokens == sum(max(length, 0) for length in lengths)
        start += file.rows
    assert start == len(TEXTS)


def test_parts_of_one_chunk_have_keys_of_their_own_and_its_number(
    tmp_path: Path, source: ModelSource, encoder: Encoder
) -> None:
    path = tmp_path / "in.parquet"
    table = pa.table({"id": range(len(TEXTS)), "text": pa.array(TEXTS, pa.string())})
    pq.write_table(table, path, row_group_size=100)
    pieces = [Piece(str(path), 3, 1, len(TEXTS) - 300), Piece(str(path), 0, 3, 300)]
    job = job_for(tmp_path, source)
    written = [prepared(job, i, Chunk(5, (piece,))) for i, piece in enumerate(pieces)]
    for index, (files, piece) in enumerate(zip(written, pieces, strict=True)):
        assert sum(file.rows for file in files) == piece.rows
        assert files[0].first_row == index * KEYS_PER_PART
    both = [*written[0], *written[1]]
    assert {file.chunk for file in both} == {5}
    rows = read_texts(tmp_path, both, "pyarrow", encoder)
    assert sorted(rows) == list(range(len(TEXTS)))


CHUNKS = st.lists(st.lists(st.integers(1, 9), max_size=5), max_size=6).map(
    lambda chunks: [
        Chunk(number, tuple(Piece(f"f{number}", index, 1, n) for index, n in enumerate(rows)))
        for number, rows in enumerate(chunks)
    ]
)


@given(CHUNKS, st.integers(1, 8), st.integers(1, 9))
def test_parts_hold_every_row_once_and_are_many_where_chunks_are_few(
    chunks: list[Chunk], cores: int, least_rows: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_stage, "LEAST_PART_ROWS", least_rows)
        parts = _parts(chunks, cores)
    assert rows_of(parts) == rows_of(chunks)
    assert all(part.rows for part in parts)
    pieces = sum(len(chunk.pieces) for chunk in chunks)
    assert min(cores, pieces) <= len(parts) <= max(len(chunks), pieces + cores)
    if len(parts) < cores:
        rows = sum(chunk.rows for chunk in chunks)
        assert max((part.rows for part in parts), default=0) <= max(least_rows, -(-rows // cores))


def rows_of(chunks: list[Chunk]) -> list[tuple[int, str, int, int]]:
    """Returns each row by the number of its chunk, its file, its row group and its place."""
    return [
        (chunk.number, piece.path, piece.first, row)
        for chunk in chunks
        for piece in chunk.pieces
        for row in range(piece.before, piece.before + piece.rows)
    ]


def test_windows_are_bounded_in_bytes(tmp_path: Path, source: ModelSource) -> None:
    texts = ["film " * 200] * 20
    files = prepare(tmp_path, source, texts, max_batch_tokens=4000, window_bytes=5_000)
    assert [file.rows for file in files] == [4] * 5  # a row has some 1,020 bytes


def test_equal_rows_of_a_row_group_share_one_encoding(
    tmp_path: Path, source: ModelSource, reader: str
) -> None:
    [file] = prepare(tmp_path, source, ["good"] * 5 + ["film"] * 2, max_batch_tokens=4000)
    [(_, (rows,), _)] = read_row_groups(READERS[reader], str(tmp_path), [file])
    assert len(set(rows.indices.tolist())) == 2


def test_rows_whose_sequences_are_cut_elsewhere_are_no_equals() -> None:
    columns = {
        "n_tokens": np.array([3, 3, 3]),
        "truncated": np.zeros(3, bool),
        "sequences": np.array([2, 2, 2]),
        "lengths": np.array([1, 2, 2, 1, 1, 2]),
        "input_ids": np.array([5, 6, 7] * 3, np.int32),
    }
    rows = readers._encoded_rows(columns, {}, pa.table({}))
    assert rows.indices.tolist() == [0, 1, 0]


def test_a_row_group_that_a_reader_leaves_out_is_an_error(
    tmp_path: Path, source: ModelSource
) -> None:
    files = prepare(tmp_path, source, TEXTS)

    def forgetful(folder: str, files: Sequence[PreparedFile], names: Sequence[str]) -> Iterator:
        yield from readers.read_with_pyarrow(folder, files[1:], names)

    with pytest.raises(RowConservationError, match=f"{files[0].rows} rows in 1 prepared"):
        list(read_row_groups(forgetful, str(tmp_path), files))


def test_a_row_group_that_a_reader_gives_twice_is_an_error(
    tmp_path: Path, source: ModelSource
) -> None:
    files = prepare(tmp_path, source, TEXTS)

    def doubling(folder: str, files: Sequence[PreparedFile], names: Sequence[str]) -> Iterator:
        yield from readers.read_with_pyarrow(folder, [*files, files[0]], names)

    with pytest.raises(RowConservationError, match="read unexpectedly or twice"):
        list(read_row_groups(doubling, str(tmp_path), files))


@pytest.mark.parametrize("change", [slice(None, -1), slice(None, None, -1)], ids=["short", "order"])
def test_rows_that_are_missing_or_out_of_place_are_an_error(
    tmp_path: Path, source: ModelSource, change: slice
) -> None:
    files = prepare(tmp_path, source, TEXTS)
    middle = [file for file in files if file.rows > 1][:1]

    def changing(folder: str, files: Sequence[PreparedFile], names: Sequence[str]) -> Iterator:
        for columns in readers.read_with_pyarrow(folder, files, names):
            rows = columns["row"][change]
            yield {**columns, "row": np.concatenate([columns["row"][:1], rows[1:]])}

    with pytest.raises(RowConservationError, match="in the order in which they were prepared"):
        list(read_row_groups(changing, str(tmp_path), middle))


def test_object_stores_are_read_by_pyarrow() -> None:
    assert choose_reader("auto", "memory://out") == "pyarrow"


def test_petastorm_is_taken_where_it_works() -> None:
    assert choose_reader("auto", "out") == ("petastorm" if has_petastorm else "pyarrow")
    assert choose_reader("pyarrow", "out") == "pyarrow"


@pytest.mark.parametrize(
    ("petastorm", "pyarrow", "output", "problem"),
    [
        (None, "14.0.2", "out", "is not installed"),
        ("0.13.1", "14.0.2", "out", "petastorm 0.13.1 is installed, expected 0.12.1"),
        ("0.12.1", "15.0.0", "out", "pyarrow 15.0.0 is installed"),
        ("0.12.1", "14.0.2", "out#1", "output='out#1' as a URL"),
    ],
)
def test_petastorm_that_cannot_work_is_passed_over_or_refused(
    monkeypatch: pytest.MonkeyPatch,
    petastorm: str | None,
    pyarrow: str,
    output: str,
    problem: str,
) -> None:
    def version(name: str) -> str:
        if petastorm is None:
            raise metadata.PackageNotFoundError(name)
        return petastorm

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(pa, "__version__", pyarrow)
    assert choose_reader("auto", output) == "pyarrow"
    with pytest.raises(EngineUnavailableError, match=f"{problem}.*horovod.reader=pyarrow"):
        choose_reader("petastorm", output)


def test_rows_with_the_same_tokens_and_other_texts_are_no_equals() -> None:
    columns = {
        "n_tokens": np.array([1, 1, 1]),
        "truncated": np.zeros(3, bool),
        "sequences": np.ones(3, int),
        "lengths": np.ones(3, int),
        "input_ids": np.array([5, 5, 5], np.int32),
    }
    kept = pa.table({"text": ["Good", "good", "Good"]})
    rows = readers._encoded_rows(columns, {}, kept)
    assert rows.indices.tolist() == [0, 1, 0]
    assert rows.inputs.kept_of(np.array([1])).to_pylist() == [{"text": "good"}]
