"""The sorted copy of an input: made once, in flat memory, and thrown away if it is half made."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparkinfer
from sparkinfer.batching.rebatch import rebatch, same_rows
from sparkinfer.batching.row_groups import cut_row_groups
from sparkinfer.batching.runs import hash_inputs, whole_runs
from sparkinfer.engines.this_process import ThisProcess
from sparkinfer.exceptions import ConfigError
from sparkinfer.plan import gathered
from sparkinfer.rows import gathering
from sparkinfer.rows.reading import GATHERED, Piece, share_out
from tests.disk import Killed
from tests.engines.test_dedupe import texts, write_files


def rows_of(values: list[str | None]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array(values, pa.string())], names=["text"])


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 9)), max_size=12),
    st.integers(1, 7),
    st.integers(1, 12),
)
def test_windows_end_between_inputs_unless_one_is_too_large(
    runs: list[tuple[str, int]], window: int, most: int
) -> None:
    values = [text for text, count in runs for _ in range(count)]
    windows = rebatch([rows_of(list(values))], same_rows(window), 1 << 20)
    found = [one.column(0).to_pylist() for one in whole_runs(windows, hash_inputs, most)]
    assert [text for one in found for text in one] == values
    for left, right in itertools.pairwise(found):
        if left[-1] == right[0]:
            assert len(set(left)) == 1
            whole = next(n for n in range(len(right) + 1) if n == len(right) or right[n] != left[0])
            assert len(left) + min(whole, window) > most
    assert all(len(one) <= max(most, window) for one in found)


def test_equal_rows_have_equal_hashes_whatever_their_type() -> None:
    odd = pa.array([b"\xff", b"a", b"\xff", None]).cast(pa.binary()).view(pa.string())
    lists = pa.array([[{"role": "user"}], [], [{"role": "user"}], None])
    word = pa.array(["x", "y", "x", None]).dictionary_encode()
    for columns in ([odd], [lists], [word], [odd, lists, word]):
        names = [str(number) for number in range(len(columns))]
        hashes = hash_inputs(pa.RecordBatch.from_arrays(columns, names=names))
        assert hashes[0] == hashes[2]
        assert len(set(hashes.tolist())) == 3


def test_rows_of_one_input_share_a_row_group_whatever_its_limit() -> None:
    inputs = np.array([1, 1, 1, 2, 2, 3])
    lengths = [5, 5, 5, 5, 5, 1]
    groups = cut_row_groups(lengths, same_rows(5), 2, inputs)
    assert [group.tolist() for group in groups] == [[0, 1, 2], [3, 4], [5]]


def test_shares_hold_gathered_pieces_whole() -> None:
    pieces = [Piece(f"{GATHERED}x/f", number, 1, 10, place=10 * number) for number in range(5)]
    shares = share_out(pieces, 3)
    assert [one for share in shares for one in share] == pieces
    assert len(shares) == 3


@pytest.fixture
def config(classifier: Path, tmp_path: Path) -> sparkinfer.ScoringConfig:
    return sparkinfer.ScoringConfig(
        model=str(classifier),
        input=str(write_files(tmp_path / "in", texts(20, 630))),
        input_col="text",
        output=str(tmp_path / "out"),
        engine="local",
        dtype="float32",
        acceleration="none",
        chunks={"target_rows": 200},
        dedupe=True,
    )


def ids_in(config: sparkinfer.ScoringConfig) -> list[int]:
    table = pads.dataset(str(config.output), format="parquet").to_table()
    return sorted(table["id"].to_pylist())


def copies_of(config: sparkinfer.ScoringConfig) -> list[str]:
    folder = Path(str(config.output)) / "_sparkinfer" / "input"
    return sorted(one.name for one in folder.glob("*"))


def test_many_small_runs_in_many_ranges_are_merged_in_several_passes(
    config: sparkinfer.ScoringConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathered, "RANGE_BYTES", 1000)
    monkeypatch.setattr(gathered, "RUN_ROWS", 50)
    monkeypatch.setattr(gathering, "RUN_ROWS", 20)
    monkeypatch.setattr(gathering, "MERGED_AT_ONCE", 3)
    monkeypatch.setattr(gathering, "GROUP_ROWS", 7)
    held: list[int] = []
    join_all = gathering.joined
    monkeypatch.setattr(
        gathering, "joined", lambda parts: held.append(len(parts)) or join_all(parts)
    )
    result = sparkinfer.run(config)
    assert result.statistics.forward_rows == 20
    assert ids_in(config) == list(range(630))
    assert max(held) == 3
    assert [name.split("-")[0] for name in copies_of(config)] == ["gathered"]


def run_until(config: sparkinfer.ScoringConfig, owner: Any, name: str) -> None:
    """Runs until something is called, and is killed there."""
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, owner, name)
        with pytest.raises(Killed):
            sparkinfer.run(config)


def kill_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    def die(*_: Any, **__: Any) -> None:
        raise Killed

    monkeypatch.setattr(owner, name, die)


def test_a_half_made_copy_is_thrown_away(config: sparkinfer.ScoringConfig) -> None:
    run_until(config, gathering.RunMerger, "__call__")
    assert [name.split("-")[0] for name in copies_of(config)] == ["runs"]
    assert sparkinfer.run(config).statistics.forward_rows == 20
    assert ids_in(config) == list(range(630))
    assert [name.split("-")[0] for name in copies_of(config)] == ["gathered"]


@pytest.mark.parametrize("dedupe", [True, False])
def test_a_run_goes_on_with_the_copy_it_began_with(
    config: sparkinfer.ScoringConfig, monkeypatch: pytest.MonkeyPatch, dedupe: bool
) -> None:
    run_until(config, ThisProcess, "score")
    [copy] = copies_of(config)
    assert copy.startswith("gathered-")
    kill_at(monkeypatch, gathering.RunSorter, "__call__")
    result = sparkinfer.run(config.replace(dedupe=dedupe))
    assert (result.rows, result.statistics.forward_rows) == (630, 20)
    assert ids_in(config) == list(range(630))


def test_a_run_that_began_without_goes_on_as_it_is_cut(
    config: sparkinfer.ScoringConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_until(config.replace(dedupe=False), ThisProcess, "score")
    kill_at(monkeypatch, gathering.RunSorter, "__call__")
    result = sparkinfer.run(config)
    assert result.rows == 630
    assert ids_in(config) == list(range(630))


def test_new_files_are_gathered_among_themselves(config: sparkinfer.ScoringConfig) -> None:
    sparkinfer.run(config)
    new = pa.table({"id": range(630, 730), "text": ["good"] * 100})
    pq.write_table(new, Path(str(config.input)) / "new.parquet")
    result = sparkinfer.run(config.replace(incremental=True))
    assert (result.rows, result.statistics.forward_rows) == (730, 1)
    assert ids_in(config) == list(range(730))


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_text_files_are_gathered_too(
    config: sparkinfer.ScoringConfig, tmp_path: Path, kind: str
) -> None:
    frame = pads.dataset(str(config.input)).to_table().to_pandas()
    path = tmp_path / f"in.{kind}"
    if kind == "csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_json(path, orient="records", lines=True)
    result = sparkinfer.run(config.replace(input=str(path)))
    assert (result.rows, result.statistics.forward_rows) == (630, 20)


def test_of_several_models_each_combination_of_columns_is_scored_once(
    config: sparkinfer.ScoringConfig, classifier: Path, tmp_path: Path
) -> None:
    table = pads.dataset(str(config.input)).to_table()
    other = pa.array([f"film {row % 3}" for row in range(630)])
    pq.write_table(table.append_column("other", other), tmp_path / "two.parquet")
    config = config.replace(
        model=None,
        models={
            "a": {"model": str(classifier)},
            "b": {"model": str(classifier), "input_col": "other"},
        },
        input=str(tmp_path / "two.parquet"),
    )
    result = sparkinfer.run(config)
    rows = pq.read_table(tmp_path / "two.parquet").to_pylist()
    both = {(row["text"], row["other"]) for row in rows}
    assert f"dedupe: {len(both)} different inputs in 630 rows" in result.notes
    assert result.statistics.forward_rows <= 2 * len(both)
    assert ids_in(config) == list(range(630))


def test_functions_and_lazy_dataframes_are_refused() -> None:
    with pytest.raises(ConfigError, match="dedupe=true with fn=.*leave the option out"):
        sparkinfer.ScoringConfig(fn="made:up", input="x", output="y", dedupe=True)
    with pytest.raises(ConfigError, match="dedupe with score.*sparkinfer.run"):
        sparkinfer.score(None, "model", "text", dedupe=True)
