from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sparkinfer.config import BatchingConfig, ScoringConfig
from sparkinfer.engines import prepare as prepare_module
from sparkinfer.engines import readers
from sparkinfer.engines.prepare import PreparedFile, PrepareJob, prepare_partition
from sparkinfer.engines.readers import READERS, choose_reader, read_row_groups
from sparkinfer.exceptions import EngineUnavailableError, RowConservationError
from sparkinfer.models.encoding import Encoder, load_encoder
from sparkinfer.models.sources import ModelSource, resolve
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
    return load_encoder(classifier, None, trust_remote_code=False)


def prepare(
    folder: Path, source: ModelSource, texts: Sequence[str | None], **batching: Any
) -> list[PreparedFile]:
    """Prepares rows as a Spark task does, without Spark."""
    for name in ("tokens", "carried"):
        (folder / name).mkdir()
    options = BatchingConfig(**{"max_batch_tokens": 16, "window_rows": 100, **batching})
    config = ScoringConfig(model="m", input_col="text", batching=options)
    job = PrepareJob(config, source, "cpu", 1, ("id",), str(folder))
    table = pa.table({"id": range(len(texts)), "text": pa.array(texts, pa.string())})
    return list(prepare_partition(job, table.to_batches(max_chunksize=70)))


def read_texts(
    folder: Path, files: Sequence[PreparedFile], reader: str, encoder: Encoder
) -> dict[int, tuple[Any, ...]]:
    """Returns by id what was read of each row: its token ids by input, or None, and its error."""
    rows = {}
    for file, encoded, carried in read_row_groups(READERS[reader], str(folder), files, INPUTS):
        assert carried.num_rows == file.rows == len(encoded.places)
        for row, place in zip(carried["id"].to_pylist(), encoded.places, strict=True):
            assert row not in rows
            if place < 0:
                rows[row] = (None, False, None)
                continue
            values = encoded.encoded.values_of(np.array([place]))
            ids = {name: encoded.encoded.columns[name][values].tolist() for name in INPUTS}
            cut = bool(encoded.encoded.truncated[place])
            rows[row] = (ids, cut, encoded.encoded.errors.get(int(place)))
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
    assert list(read_row_groups(READERS[reader], str(tmp_path), [], INPUTS)) == []


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

    def refuse(self: Encoder, texts: Sequence[str]) -> Any:
        if "bad" in texts:
            raise ValueError("refused")
        return whole(self, texts)

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


def test_a_row_that_prepare_loses_fails_it(
    tmp_path: Path, source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare_module.cut_row_groups
    monkeypatch.setattr(
        prepare_module, "cut_row_groups", lambda *args, **more: whole(*args, **more)[1:]
    )
    with pytest.raises(RowConservationError, match="partition 0: 306 rows were read and"):
        prepare(tmp_path, source, TEXTS)


def test_windows_are_bounded_in_bytes(tmp_path: Path, source: ModelSource) -> None:
    files = prepare(tmp_path, source, ["good"] * 210, max_batch_tokens=4000, window_bytes=1)
    assert [file.rows for file in files] == [70, 70, 70]


def test_equal_rows_of_a_row_group_share_one_encoding(
    tmp_path: Path, source: ModelSource, reader: str
) -> None:
    [file] = prepare(tmp_path, source, ["good"] * 5 + ["film"] * 2, max_batch_tokens=4000)
    [(_, rows, _)] = read_row_groups(READERS[reader], str(tmp_path), [file], INPUTS)
    assert len(set(rows.places.tolist())) == 2


def test_a_row_group_that_a_reader_leaves_out_is_an_error(
    tmp_path: Path, source: ModelSource
) -> None:
    files = prepare(tmp_path, source, TEXTS)

    def forgetful(folder: str, files: Sequence[PreparedFile], names: Sequence[str]) -> Iterator:
        yield from readers.read_with_pyarrow(folder, files[1:], names)

    with pytest.raises(RowConservationError, match=f"{files[0].rows} rows in 1 prepared"):
        list(read_row_groups(forgetful, str(tmp_path), files, INPUTS))


def test_a_row_group_that_a_reader_gives_twice_is_an_error(
    tmp_path: Path, source: ModelSource
) -> None:
    files = prepare(tmp_path, source, TEXTS)

    def doubling(folder: str, files: Sequence[PreparedFile], names: Sequence[str]) -> Iterator:
        yield from readers.read_with_pyarrow(folder, [*files, files[0]], names)

    with pytest.raises(RowConservationError, match="not expected, or read twice"):
        list(read_row_groups(doubling, str(tmp_path), files, INPUTS))


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

    with pytest.raises(RowConservationError, match="in the order that they were prepared in"):
        list(read_row_groups(changing, str(tmp_path), middle, INPUTS))


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
