from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.text import Text

from sparkinfer.cli import main
from sparkinfer.display import as_html, describe_devices
from sparkinfer.doctor.findings import Finding, print_findings
from sparkinfer.plan.progress import DeviceProgress, ProgressState
from sparkinfer.report.first_rows import first_rows
from sparkinfer.report.status import describe_status, read_status
from sparkinfer.terminal import printable, printable_lines
from sparkinfer.workers.statistics import ScoringStatistics
from tests.written import edit_record

ACTING = "\x1b[2J\u202e\u200b\x9b"
SHOWN = r"\x1b[2J\u202e\u200b\x9b"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\rb\nc\td\x00", r"a\rb\nc\td\x00"),
        ("\x9b31m\x85\x7f", r"\x9b31m\x85\x7f"),
        ("abc\u202edcba\u2066\u200f", r"abc\u202edcba\u2066\u200f"),
        ("zero\u200bwidth\ufeff\u2060\u00ad", r"zero\u200bwidth\ufeff\u2060\xad"),
        ("line\u2028paragraph\u2029", r"line\u2028paragraph\u2029"),
        ("half\ud83d", r"half\ud83d"),
        ("joined\u200dletters\u200c", r"joined\u200dletters\u200c"),
        ("tag\U000e0041", r"tag\U000e0041"),
    ],
)
def test_what_would_act_on_a_terminal_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "café e\u0301",
        "日本語",
        "עברית",
        "हिन्दी",
        "🙂 👩‍💻 👨‍👩‍👧 👩🏽‍🚀 🏳️‍🌈 ❤️‍🔥",
        "C:\\x1b",
        "½ № —",
    ],
)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_lines_stay_lines() -> None:
    assert printable_lines("a\x1b\nb\u2028") == "a\\x1b\nb\\u2028"


def acts(text: str) -> bool:
    return printable_lines(text) != text


def test_first_rows_show_texts_names_and_nested_values_escaped(tmp_path: Path) -> None:
    table = pa.table({f"a{ACTING}": [f"é日{ACTING}", "x\ny"], "b": [[ACTING], ["\x1b"]]})
    pq.write_table(table, tmp_path / "part-00000000-000.parquet")
    found = first_rows(str(tmp_path), run="")
    assert not acts(found)
    assert f"é日{SHOWN}" in found
    assert len(found.strip().splitlines()) == 3


def test_first_rows_show_an_error_that_is_null_as_none(tmp_path: Path) -> None:
    errors = pa.array([None, "text is null"], pa.string())
    table = pa.table({"n": [1.5, 2.5], "error": errors})
    pq.write_table(table, tmp_path / "part-00000000-000.parquet")
    found = first_rows(str(tmp_path), run="").split()
    assert found == ["n", "error", "1.5", "None", "2.5", "text", "is", "null"]


def test_first_rows_show_whole_numbers_beside_a_null_as_whole_numbers(tmp_path: Path) -> None:
    table = pa.table({"n_tokens": pa.array([18, None], pa.int32())})
    pq.write_table(table, tmp_path / "part-00000000-000.parquet")
    assert first_rows(str(tmp_path), run="").split() == ["n_tokens", "18", "None"]


def test_findings_are_shown_escaped() -> None:
    stream = io.StringIO()
    print_findings([Finding("input", "error", f"found {ACTING}", f"do {ACTING}")], stream)
    assert not acts(stream.getvalue())
    assert f"found {SHOWN}" in stream.getvalue()


def test_devices_are_shown_escaped() -> None:
    device = DeviceProgress(f"cpu on {ACTING}", ScoringStatistics(), 1.0)
    state = ProgressState("", 0.0, 1.0, 1, 2, 0, 0, 1, 1.0, 1.0, None, 0, 0.0, (device,))
    assert describe_devices(state)[0].startswith(f"cpu on {SHOWN}")
    assert not acts(as_html(state))
    assert not acts(str(Text(describe_devices(state)[0])))


def test_a_run_and_its_status_show_paths_labels_and_reasons_escaped(
    tmp_path: Path, classifier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = tmp_path / f"in {ACTING}", tmp_path / f"out {ACTING}"
    folder.mkdir()
    table = pa.table({f"t{ACTING}": ["good", "bad"], "y": ["LABEL_0", ACTING]})
    pq.write_table(table, folder / "a.parquet")
    given = ["score", "--input", str(folder), "--output", str(output), "--model", str(classifier)]
    given += ["--engine", "local", "--dtype", "float32", "--label-col", "y"]
    assert main([*given, "--input-col", f"t{ACTING}"]) == 0
    said = capsys.readouterr()
    assert f"out {SHOWN}" in said.out
    assert not acts(said.out)
    assert not acts(said.err)
    edit_record(output, 0, errors=1, reasons={f"why {ACTING}\n": 1})
    status = describe_status(read_status(str(output)))
    assert f"why {SHOWN}\\n" in status
    assert not acts(status)
    assert main([*given, "--input-col", f"x{ACTING}"]) == 2
    assert not acts(capsys.readouterr().err)
