"""Several models in one run: turns on the device, broken-off runs, retries, and what is told."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

import sparkinfer
from sparkinfer.cli import main
from sparkinfer.exceptions import JobError, ResumeError
from sparkinfer.jobs.manifest import read_manifest
from sparkinfer.jobs.summary import summarize
from sparkinfer.models import processor, residence
from sparkinfer.models.careful import hashes_of_sequences
from sparkinfer.models.running import RunningModel
from sparkinfer.models.scorer import Scorer
from sparkinfer.report.status import describe_status, read_status
from sparkinfer.rows import several_scoring
from sparkinfer.rows.several_scoring import SeveralScoring
from sparkinfer.workers.suspects import DEADLY, Known, Suspects
from tests.model_options import options_of
from tests.tiny_generators import make_generator
from tests.tiny_models import make_classifier, sentences
from tests.written import records_of

Score = Callable[..., tuple[sparkinfer.RunResult, list[dict[str, Any]]]]


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "other"
    return make_classifier(folder, labels=("red", "green", "blue"))


@pytest.fixture
def models(classifier: Path, other: Path) -> dict[str, Any]:
    return {"a": {"model": str(classifier)}, "b": {"model": str(other)}}


@pytest.fixture
def configure(tmp_path: Path, models: dict[str, Any]) -> Callable[..., sparkinfer.ScoringConfig]:
    """Returns a run over eighty rows in four chunks; row 7 has no text and row 30 no title."""
    texts: list[str | None] = list(sentences(80))
    titles: list[str | None] = [f"film {row % 9}" for row in range(80)]
    texts[7] = titles[7] = titles[30] = None
    label = [row % 2 for row in range(80)]
    table = pa.table({"id": range(80), "text": texts, "title": titles, "label": label})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=20)

    def made(**options: Any) -> sparkinfer.ScoringConfig:
        return sparkinfer.ScoringConfig(
            **{
                "models": models,
                "input": str(tmp_path / "in.parquet"),
                "input_col": "text",
                "label_col": "label",
                "output": str(tmp_path / "out"),
                "engine": "local",
                "dtype": "float32",
                "acceleration": "none",
                "chunks": {"target_rows": 20},
                **options,
            }
        )

    return made


@pytest.fixture
def score(configure: Callable[..., sparkinfer.ScoringConfig]) -> Score:
    """Scores them."""

    def run(**options: Any) -> Any:
        config = configure(**options)
        result = sparkinfer.run(config)
        rows = pads.dataset(config.output, format="parquet").to_table().sort_by("id").to_pylist()
        return result, rows

    return run


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """A device whose memory is less than the models' weights; returns the moves of weights.

    The device is made up, as is its name: what is moved stays where it was.
    """
    moves: list[tuple[str, str]] = []

    def move(self: RunningModel, device: str) -> None:
        moves.append((str(len(self.labels)), device))

    monkeypatch.setattr(residence, "free_memory", lambda device: 1000)
    monkeypatch.setattr(residence, "HOST", "host")
    monkeypatch.setattr(RunningModel, "move", move)
    return moves


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts how often each model is read from disk after its trial."""
    found: Counter[str] = Counter()
    load = processor.ModelScoring.load

    def counting(self: Any, slot: Any) -> RunningModel:
        found[self.model] += 1
        return load(self, slot)

    monkeypatch.setattr(processor.ModelScoring, "load", counting)
    return found


def test_models_that_fit_together_stay_on_the_device(
    score: Score, no_room: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residence, "free_memory", lambda device: 2**40)
    result, _ = score()
    assert result.verdict.takes_turns is False
    assert no_room == [("2", "host"), ("3", "host"), ("2", "cpu"), ("3", "cpu")]


def test_models_that_do_not_fit_take_turns_over_each_chunk(
    score: Score, tmp_path: Path, no_room: list[tuple[str, str]], loads: Counter[str]
) -> None:
    result, _ = score()
    assert result.verdict.takes_turns is True
    assert result.verdict.weights_bytes > 10_000
    assert "GiB of weights do not fit on the device: the models take turns" in summarize(result)
    two, three = [("2", "cpu"), ("2", "host")], [("3", "cpu"), ("3", "host")]
    # Each of the four chunks begins with the model that is there.
    parked = [("2", "host"), ("3", "host")]
    assert no_room == [*parked, *two, *three, *two, *three, two[0]]
    assert loads == {}  # the trial's stay in host memory
    manifest = read_manifest(str(tmp_path / "out"))
    assert manifest is not None
    assert manifest.verdict["takes_turns"] is True


def test_turns_give_the_rows_of_no_turns(
    score: Score, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, expected = score()
    monkeypatch.setattr(residence, "free_memory", lambda device: 1000)
    for turn_bytes in (2**30, 1):
        monkeypatch.setattr(several_scoring, "TURN_BYTES", turn_bytes)
        output = str(tmp_path / f"turns-{turn_bytes}")
        result, rows = score(output=output, batching={"window_rows": 7})
        assert result.verdict.takes_turns is True
        for name in ("id", "a_prediction", "b_prediction", "a_n_tokens", "b_error"):
            assert [row[name] for row in rows] == [row[name] for row in expected]


def test_a_worker_reads_each_model_once(
    score: Score, no_room: list[tuple[str, str]], loads: Counter[str], classifier: Path, other: Path
) -> None:
    from sparkinfer.rows.several import SeveralProcessors
    from sparkinfer.workers import resident

    keep = SeveralProcessors.try_out

    def elsewhere(self: Any, slot: Any, ahead: Any) -> Any:
        found = keep(self, slot, ahead)
        resident.release()  # as if another process had tried them
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SeveralProcessors, "try_out", elsewhere)
        score()
    assert loads == {str(classifier): 1, str(other): 1}


def test_a_broken_off_run_goes_on_and_has_the_rows_and_metrics_of_a_whole_one(
    score: Score, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, expected = score(output=str(tmp_path / "whole"))
    calls: list[None] = []
    process = SeveralScoring.process

    def breaking_off(self: Any, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        calls.append(None)
        if len(calls) == 3:
            raise JobError("broken off")
        return process(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(SeveralScoring, "process", breaking_off)
        with pytest.raises(JobError, match="broken off"):
            score()
    status = read_status(str(tmp_path / "out"))
    assert (status.state, status.chunks) == ("broken off", 2)
    assert status.metrics["a.labelled_rows"] + status.metrics["b.unknown_labels"] > 0
    result, rows = score()
    assert (result.rows, result.rows_before) == (80, 40)
    assert rows == expected
    assert result.metrics == whole.metrics
    assert result.metrics["a.labelled_rows"] == 79


SCORE_AND_DIE = """
    import os, pickle, signal, sys
    from pathlib import Path

    import sparkinfer
    from sparkinfer.models.generation import loop

    config = pickle.loads(bytes.fromhex(sys.argv[1]))
    generate = loop.generate

    def dying(steps, keys, settings, stops):
        if settings.do_sample and list(Path(config.output).glob("*.parquet")):
            os.kill(os.getpid(), signal.SIGKILL)
        return generate(steps, keys, settings, stops)

    loop.generate = dying
    sparkinfer.run(config)
"""
"""Ends while a text is drawn, once the first rows are there."""

GENERATED = {"model": "", "task": "text-generation", "generation": {"max_new_tokens": 6}}
DRAWN = {**GENERATED, "generation": {"max_new_tokens": 6, "do_sample": True, "seed": 7}}


def test_a_killed_run_goes_on_and_every_model_gives_what_it_gives_undisturbed(
    score: Score,
    configure: Callable[..., sparkinfer.ScoringConfig],
    tmp_path: Path,
    models: dict[str, Any],
) -> None:
    """Greedily or drawn, what is generated is the same; each row is there once."""
    generator = str(make_generator(tmp_path / "llama", "llama"))
    models = {
        "said": {**GENERATED, "model": generator},
        "drawn": {**DRAWN, "model": generator},
        "a": models["a"],
    }
    options: dict[str, Any] = {"models": models, "label_col": None}
    _, expected = score(**options, output=str(tmp_path / "whole"))
    given = pickle.dumps(configure(**options)).hex()
    command = [sys.executable, "-c", textwrap.dedent(SCORE_AND_DIE), given]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    assert subprocess.run(command, check=False, env=env).returncode == -signal.SIGKILL
    done = pads.dataset(tmp_path / "out", format="parquet").count_rows()
    assert 0 < done < 80
    drawn = {**models["drawn"], "generation": {**DRAWN["generation"], "seed": 8}}
    with pytest.raises(ResumeError, match=r"models.drawn.generation.seed was 7, is 8\. Undo"):
        score(**options | {"models": {**models, "drawn": drawn}})
    result, rows = score(**options)
    assert (result.rows, result.rows_before) == (80, done)
    for row, other in zip(rows, expected, strict=True):
        for name in ("a_probability", "a_probabilities"):
            assert row.pop(name) == pytest.approx(other.pop(name), abs=1e-5)
        assert row == other


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Labels counts of models that fail on every batch with one sequence; others are cut to it."""
    models: set[int] = set()
    run = RunningModel.run

    def maybe(self: RunningModel, tensors: Any, *_: Any) -> Any:
        ids = tensors["input_ids"]
        if len(self.labels) in models and bool((ids == GUILTY).any()):
            raise ValueError("not today")
        return run(self, tensors)

    monkeypatch.setattr(RunningModel, "run", maybe)
    return models


GUILTY = 7
"""Token of the word `film`."""


def test_a_retry_runs_only_the_model_whose_error_is_set(
    score: Score, tmp_path: Path, failing: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, expected = score(output=str(tmp_path / "whole"))
    failing.add(3)
    result, rows = score()
    failed = [row["id"] for row in rows if row["b_error"] == "model: ValueError: not today"]
    assert len(failed) > 3
    assert [row["a_prediction"] for row in rows] == [row["a_prediction"] for row in expected]
    assert result.error_rows == len(failed) + 1
    status = read_status(str(tmp_path / "out"))
    assert status.reasons == {
        "b: model: ValueError: not today": len(failed),
        "text is null": 1,
    }
    failing.clear()
    scored: Counter[int] = Counter()
    run = RunningModel.run

    def counting(self: RunningModel, tensors: Any, *_: Any) -> Any:
        scored[len(self.labels)] += len(tensors["input_ids"])
        return run(self, tensors)

    monkeypatch.setattr(RunningModel, "run", counting)
    result, rows = score(retry_errors=True)
    assert (result.retried_rows, result.recovered_rows, result.error_rows) == (
        len(failed),
        len(failed),
        1,
    )
    assert scored[2] == 0
    assert 0 < scored[3] <= len(failed)
    assert [{**row, "b_probability": 0, "b_probabilities": 0} for row in rows] == [
        {**row, "b_probability": 0, "b_probabilities": 0} for row in expected
    ]
    assert result.metrics["b.unknown_labels"] == whole.metrics["b.unknown_labels"]


def test_a_row_has_an_error_if_any_model_has_one(
    score: Score, tmp_path: Path, models: dict[str, Any]
) -> None:
    models["b"]["input_col"] = "title"
    result, rows = score()
    assert [row["id"] for row in rows if row["a_error"]] == [7]
    assert [row["id"] for row in rows if row["b_error"]] == [7, 30]
    assert (result.error_rows, result.statistics.errors) == (2, 2)
    records = records_of(str(tmp_path / "out")).values()
    assert [record.errors for record in records] == [1, 1, 0, 0]
    assert [record.tokens for record in records] == [
        sum((row["a_n_tokens"] or 0) + (row["b_n_tokens"] or 0) for row in rows[start : start + 20])
        for start in (0, 20, 40, 60)
    ]
    assert score(retry_errors=True)[0].retried_rows == 0


def test_status_and_summary_tell_of_each_model(score: Score, tmp_path: Path) -> None:
    result, _ = score()
    told = summarize(result)
    assert "model      a: PyTorch in float32" in told
    assert "model      b: PyTorch in float32" in told
    assert "tokenised once for a, b" in told
    assert "a.accuracy " in told
    status = read_status(str(tmp_path / "out"))
    assert status.metrics == result.metrics
    assert "a.accuracy " in describe_status(status)
    assert json.loads(json.dumps(status.as_dict()))["settings"]["models"] == ["a", "b"]
    assert result.as_dict()["verdict"]["models"]["b"]["labels"] == ("red", "green", "blue")
    assert result.model_fingerprint.startswith("a=")


def test_the_command_line_scores_with_two_models(
    tmp_path: Path, score: Score, classifier: Path, other: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, expected = score()
    command = ["score", "--engine", "local", "--dtype", "float32", "--acceleration", "none"]
    command += ["--model", f"a={classifier}", "--model", f"b={other}", "--input-col", "text"]
    command += ["--input", str(tmp_path / "in.parquet"), "--output", str(tmp_path / "cli")]
    assert main([*command, "--set", "models.b.max_length=9"]) == 0
    rows = pads.dataset(tmp_path / "cli", format="parquet").to_table().sort_by("id").to_pylist()
    assert [row["a_prediction"] for row in rows] == [row["a_prediction"] for row in expected]
    assert max(row["b_n_tokens"] or 0 for row in rows) == 9
    capsys.readouterr()
    assert main(command) == 2
    assert "models.b.max_length was 9, is None" in capsys.readouterr().err
    assert main(["doctor", *command[1:3], *command[7:-2]]) == 0
    said = capsys.readouterr().out
    assert f"a: {classifier}, fingerprint" in said
    assert re.search(r"b: \w+ in \w+ on cpu", said)


def test_a_text_that_is_deadly_to_one_model_is_scored_by_the_other(model: RunningModel) -> None:
    rows = pa.RecordBatch.from_arrays([pa.array(["good film", "bad"])], names=["text"])
    scorers = {name: Scorer(model, options_of(), name=name) for name in "ab"}
    shared = scorers["a"].encoder.encode(rows, Suspects())
    [deadly, _] = hashes_of_sequences(shared.inputs.encoded, np.arange(2), "a")
    errors = {}
    for name, scorer in scorers.items():
        scorer.suspects.known = Known(deadly=frozenset([deadly]))
        scored = scorer.score(scorer.cut(shared))
        errors[name] = scored.column("error").to_pylist()
    assert errors == {"a": [DEADLY, None], "b": [None, None]}
    assert shared.inputs.encoded.errors == {}
