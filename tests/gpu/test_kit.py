"""That the parts of the GPU tests work, tried on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.gate import TOLERANCES, load_way, run_gate
from sparkinfer.models.scorer import Scorer
from sparkinfer.workers.slot import WorkerSlot
from tests.gpu import bench, job
from tests.gpu.models import Shape, heavy_lengths, make_model, review_lengths, texts_of
from tests.gpu.scoring import options_of, reference_of, score, scores_of
from tests.gpu.test_gpu import (
    CHECKOUT,
    KINDS,
    SHAPE,
    SPREAD,
    add_a_word_that_the_model_lacks,
    overflow_in_half_precision,
)

TEXTS = texts_of(SHAPE, heavy_lengths(40, SHAPE.length))


@pytest.mark.parametrize("kind", [*KINDS, "Llama"])
def test_the_models_pass_the_gate_in_half_precision(folder: Path, kind: str) -> None:
    path = make_model(folder / kind, kind, SHAPE, **SPREAD)
    options = options_of("bfloat16")
    model, verdict = run_gate(path, options, WorkerSlot("cpu"))
    assert verdict.accepted == Acceleration("none", "bfloat16")
    expected = reference_of(path, TEXTS)
    assert np.ptp(expected, axis=0).max() > 0.1
    assert np.abs(scores_of(model, options, TEXTS) - expected).max() <= TOLERANCES["bfloat16"]
    del model
    half = load_way(Checkpoint(path, options, "cpu"), Acceleration("none", "float16"))
    assert np.abs(scores_of(half, options, TEXTS) - expected).max() <= TOLERANCES["float16"]


def test_the_scaled_model_overflows_in_float16_alone(folder: Path) -> None:
    path = make_model(
        folder / "overflow", "Bert", SHAPE, overflow_in_half_precision, hidden_act="relu", **SPREAD
    )
    options = options_of("bfloat16")
    model = load_way(Checkpoint(path, options, "cpu"), Acceleration("none", "float16"))
    errors = score(Scorer(model, options), TEXTS)["error"].to_pylist()
    assert set(errors) == {"model: the output is not finite (NaN or infinity)"}
    model, verdict = run_gate(path, options, WorkerSlot("cpu"))
    assert verdict.accepted == Acceleration("none", "bfloat16")
    found = scores_of(model, options, TEXTS)
    assert np.abs(found - reference_of(path, TEXTS)).max() <= TOLERANCES["bfloat16"]


def test_the_broken_tokenizer_has_an_id_beyond_the_embedding(folder: Path) -> None:
    path = make_model(folder / "broken", "Bert", SHAPE, **SPREAD)
    add_a_word_that_the_model_lacks(path)
    options = options_of("float32", window_rows=2)
    model = load_way(Checkpoint(path, options, "cpu"), Acceleration("none", "float32"))
    model.vocabulary = None  # as the script for the GPU does; else the row is refused before
    errors = score(Scorer(model, options), ["w3", "beyond", "w4"])["error"].to_pylist()
    assert [error is None for error in errors] == [True, False, True]
    assert "index out of range" in errors[1]


def test_the_texts_are_as_long_as_they_say() -> None:
    shape = Shape(length=512)
    reviews, heavy = review_lengths(5000, 510), heavy_lengths(5000, 510)
    assert 20 < np.mean(reviews) < 25  # two tokens more with those around a text
    assert np.median(heavy) < 20
    assert sorted(heavy)[-50] == 510
    texts = texts_of(shape, heavy)
    assert [len(text.split()) for text in texts] == heavy
    assert len(set(texts)) == len(texts)


def test_the_benchmark_measures_each_cell(capsys: pytest.CaptureFixture[str]) -> None:
    options = "--tiny --device cpu --cells 7 --repetitions 2 --repetition-s 0.01"
    assert bench.main(options.split()) == 0
    table, line = capsys.readouterr().out.rsplit("\n", 2)[:2]
    found = json.loads(line)
    assert found["left_out"] == []
    assert [cell["model"] for cell in found["cells"]] == [cell[0] for cell in bench.CELLS[:7]]
    for cell in found["cells"]:
        assert cell["model"] in table
        assert len(cell["scorer_s"]) == len(cell["in_turn_s"]) == len(cell["loop_s"]) == 2
        assert cell["tokens_per_s"] > 0
        assert cell["difference"] < 0.01
        assert 0 <= cell["wait_share"] < 1


def test_the_benchmark_of_jobs_measures_each_way(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "find_spec", lambda name: None)
    options = "--tiny --device cpu --dtype float32 --rows 64 --repetitions 1"
    assert job.main(options.split()) == 0
    lines = capsys.readouterr().out.splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{")]
    jobs = [one for one in found if one["way"].startswith("sparkinfer")]
    assert len(jobs) == 4  # classification and embedding, of two kinds of lengths
    assert all(one["rows"] == 64 and one["rows_per_s"] > 0 for one in jobs)
    assert sum(one["way"].startswith("pipeline") for one in found) == 4


def test_the_benchmark_ends_when_its_time_is_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--tiny", "--device", "cpu", "--cells", "2", "--budget-s", "0"]) == 1
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [one["reason"] for one in found["left_out"]] == ["0 s were up"] * 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_requiring_one_fails() -> None:
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-m", "gpu", "--require-gpu"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "torch sees no CUDA device on this machine: nothing was tested" in done.stdout


RUN_AND_LOOK = """
import sys
import pytest
code = pytest.main(["tests/gpu", "-m", "gpu", "-q", "-p", "no:hypothesispytest"])
print({"pyspark", "horovod", "petastorm", "hypothesis"} & set(sys.modules))
sys.exit(code)
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="they would run once more")
def test_the_gpu_tests_need_neither_spark_nor_what_other_tests_need() -> None:
    command = [sys.executable, "-c", RUN_AND_LOOK]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1] == "set()"
    assert " skipped" in done.stdout
