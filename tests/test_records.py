"""Records of chunks: written once, checked when read."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparkinfer.jobs.records import ChunkRecord, Records, recorded, records_of_others
from sparkinfer.jobs.sealed import seal

RUN = "0123abcd"
NAME = "part-00000001-000-0123abcd.parquet"
RECORD = ChunkRecord(
    number=1,
    rows=5,
    errors=1,
    reasons={"the text is null": 1},
    truncated=0,
    tokens=50,
    seconds=2.5,
    device="cpu",
    files={NAME: 7},
    epoch=3,
    finished="2026-01-01T00:00:00+00:00",
    metrics={"m": {"n": 1}},
    sources={NAME: "staging/00000003/a/b.parquet"},
    statistics={"rows": 5, "forward_s": 0.25},
    distributions={"": {"lengths": [1]}},
    devices={"cpu on here": 5},
)


@pytest.fixture
def records(tmp_path: Path) -> Records:
    found = Records(str(tmp_path), RUN)
    found.make_folder()
    return found


def path_of(tmp_path: Path, name: str) -> Path:
    return tmp_path / "_sparkinfer" / "chunks" / name


def test_records_come_back_by_number_and_generation(records: Records, tmp_path: Path) -> None:
    later = replace(RECORD, generation=1, errors=0)
    other = replace(RECORD, number=0, files={"part-0": 1}, sources={})
    for record in (RECORD, later, other):
        assert records.create(record) == record
    assert records.generations() == {0: [0], 1: [1, 0]}
    assert (records.read(1, 0), records.read(1, 1)) == (RECORD, later)
    assert records.read(1, 2) is None
    assert Records(str(tmp_path), "89abcdef").generations() == {}
    assert recorded(str(tmp_path)) == {(RUN, 0), (RUN, 1)}
    assert records_of_others(str(tmp_path), RUN) == []
    assert len(records_of_others(str(tmp_path), "89abcdef")) == 3


def test_of_two_that_create_a_generation_the_second_finds_the_firsts_record(
    records: Records,
) -> None:
    records.create(RECORD)
    second = replace(RECORD, epoch=4, sources={NAME: "staging/00000004/c/d.parquet"})
    assert records.create(second) == RECORD
    assert records.read(1, 0) == RECORD


def test_names_that_are_no_records_are_passed_over(records: Records, tmp_path: Path) -> None:
    for name in ("00000001.000-0123abcd.json.77f0", "1.json", "00000001.replacing", "x"):
        path_of(tmp_path, name).write_text("{}")
    assert records.generations() == {}


def edited(**changes: Any) -> Callable[[str], str]:
    def edit(text: str) -> str:
        values = {**json.loads(text), **changes}
        del values["checksum"], values["schema_version"]
        return seal(values)

    return edit


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "",
        lambda text: text[:1],
        lambda text: text[:40],
        lambda text: text.replace('"rows": 5', '"rows": 4'),
        lambda text: "[" * 100_000,
        edited(number=2),
        edited(generation=1),
        edited(files={}),
        edited(files={"../x": 7}, sources={}),
        edited(files={"a/b": 7}, sources={}),
        edited(sources={NAME: "../../etc/passwd"}),
        edited(sources={NAME: "/etc/passwd"}),
        edited(sources={"other": "staging/x"}),
        edited(surprise=1),
        edited(errors=1.5),
        edited(errors=6),
        edited(truncated=-1),
        edited(tokens=None),
        edited(epoch=True),
        edited(reasons={"the text is null": "1"}),
        edited(files={NAME: None}),
        edited(files=None),
        edited(sources={NAME: 1}),
        edited(digests={NAME: None}),
        edited(seconds="long"),
        edited(metrics=[]),
        edited(statistics=[]),
        edited(statistics={"rows": "5"}),
        edited(statistics={"forward_s": -1.0}),
        edited(distributions=[]),
        edited(devices={"cpu on here": None}),
        edited(devices=3),
        edited(finished="yesterday"),
        edited(finished=None),
    ],
)
def test_a_record_that_is_damaged_or_leads_elsewhere_counts_as_absent_and_is_told(
    records: Records,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[str], str],
) -> None:
    records.create(RECORD)
    path = path_of(tmp_path, "00000001.000-0123abcd.json")
    path.write_text(spoil(path.read_text()))
    with caplog.at_level(logging.WARNING):
        assert records.read(1, 0) is None
    assert f"{path} is damaged" in caplog.text
    assert records.create(RECORD) is None


def test_a_record_of_an_earlier_version_lacks_what_it_did_not_keep(
    records: Records, tmp_path: Path
) -> None:
    records.create(RECORD)
    path = path_of(tmp_path, "00000001.000-0123abcd.json")
    values = json.loads(path.read_text())
    for name in ("checksum", "schema_version", "statistics", "distributions", "devices"):
        del values[name]
    path.write_text(seal(values))
    assert records.read(1, 0) == replace(RECORD, statistics={}, distributions={}, devices={})
