"""The embedding example, killed in between: each document is in the store once."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import sparkinfer
from tests.embedding_example import ABSTRACTS, ChromaStore, Encoder
from tests.sentence_models import make_encoder
from tests.tiny_models import SPECIAL_TOKENS, WORDS, save_tokenizer

HAPPENS = [
    {"batch:1:3": ("rank", "SIGKILL"), "checkpoint:2:3": ("driver", "SIGKILL")},
    {"finish": ("driver", "SIGKILL")},
    {},
]
"""In each of the calls; the first one goes on when the rank is killed, until the driver is."""

ENDS = [-9, -9, 0]


pytestmark = pytest.mark.skipif(
    find_spec("chromadb") is None, reason="chromadb is not installed here"
)


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """A small random encoder that knows the words of the abstracts."""
    known = {*SPECIAL_TOKENS, *WORDS}
    words = sorted({*re.findall(r"\w+|\.", " ".join(ABSTRACTS).lower())} - known)
    size = len(known) + len(words)
    folder = make_encoder(tmp_path / "encoder", vocab_size=size, initializer_range=0.02)
    save_tokenizer(folder, pieces=words, model_max_length=64)
    return folder


def call(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.embedding_example", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)


def test_each_document_is_there_once_and_the_query_finds_it(tmp_path: Path, encoder: Path) -> None:
    for happens, end in zip(HAPPENS, ENDS, strict=True):
        (tmp_path / "at.json").write_text(json.dumps(happens))
        done = call(tmp_path)
        assert done.returncode == end, done.stderr
        told = {place for place in happens if (tmp_path / "journal" / f"once-{place}").exists()}
        assert told == set(happens)
    run = sparkinfer.read_batch_run(str(tmp_path / "run"))
    assert run.finished
    assert run.steps == (5, 5, 5)
    store = ChromaStore(tmp_path)
    assert sorted(store.ids()) == sorted(f"doc-{one}" for one in range(len(ABSTRACTS)))
    queries = {"data mining techniques": 0, "bread with wild yeast": 5}
    vectors = Encoder(encoder).encode([*queries, *ABSTRACTS])
    found = [store.nearest(vector) for vector in vectors.numpy()]
    assert found == [f"doc-{one}" for one in [*queries.values(), *range(len(ABSTRACTS))]]


def test_the_example_of_the_documentation_runs(tmp_path: Path, encoder: Path) -> None:
    page = Path(__file__).parent.parent / "docs" / "batch_processor.md"
    [script] = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert script.count("sentence-transformers/all-MiniLM-L6-v2") == 1
    script = script.replace("sentence-transformers/all-MiniLM-L6-v2", str(encoder))
    (tmp_path / "example.py").write_text(script)
    command = [sys.executable, "example.py"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=180, check=True)
    run = sparkinfer.read_batch_run(str(tmp_path / "work" / "embedded"))
    assert run.finished
    (tmp_path / "chroma").symlink_to(tmp_path / "work" / "chroma")
    assert len(ChromaStore(tmp_path).ids()) == 100
