"""The examples of docs/functions.md, run as they stand."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "functions.md"

pytestmark = pytest.mark.spark


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


def test_the_page_on_functions_runs(
    spark: Any, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(classifier, tmp_path / "model")
    texts = [f"a film, the {row}th of them" for row in range(30)]
    pq.write_table(pa.table({"id": range(30), "text": texts}), tmp_path / "reviews.parquet")
    monkeypatch.chdir(tmp_path)
    example = block("python")
    (tmp_path / "my_functions.py").write_text(example[: example.index("# 1.")])
    # Found where workers find it, too: what is typed in a notebook goes by value instead.
    monkeypatch.syspath_prepend(str(tmp_path))
    model = str(tmp_path / "model")
    names: dict[str, Any] = {"df": spark.read.parquet(str(tmp_path / "reviews.parquet"))}
    exec(example.replace('["model"]', f"[{model!r}]"), {"__name__": "__main__", **names}, names)
    lazy = {row.id: row.label for row in names["labelled"].collect()}
    written = pads.dataset("labelled", format="parquet").to_table().sort_by("id")
    assert written.column("id").to_pylist() == list(range(30))
    assert dict(zip(range(30), written.column("label").to_pylist(), strict=True)) == lazy

    [line] = [one for one in block("bash").replace("\\\n", " ").splitlines() if "score" in one]
    command = shlex.split(line.replace("--output labelled", "--output again --engine local"))
    done = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    again = pads.dataset("again", format="parquet").to_table().sort_by("id")
    assert again.column("label").to_pylist() == written.column("label").to_pylist()
