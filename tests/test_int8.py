"""Models in int8, by OpenVINO on CPUs: only where it is asked for, and checked as all else is."""

from __future__ import annotations

import importlib.util
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparkinfer.cli import main
from sparkinfer.exceptions import ConfigError, EngineUnavailableError
from sparkinfer.models import exports
from sparkinfer.models.backends import PLAIN, check_options
from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.backends.graphs import GraphRuntime
from sparkinfer.models.backends.openvino import check_int8
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.gate import candidates, run_gate
from sparkinfer.models.running import RunningModel, load_way
from sparkinfer.option_groups import LoadingConfig, ParallelConfig
from sparkinfer.tuning.ceiling import Ceiling
from sparkinfer.workers.slot import WorkerSlot
from tests.model_options import options_of
from tests.tiny_models import make_classifier

INT8 = Acceleration("openvino", "int8")

TEXTS = ["good", "", "a dull film", "good " * 40, "nothing here is any good", "unknown words"]

needs_packages = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("openvino", "nncf")),
    reason="needs the extra int8",
)


def loaded(folder: Path, way: Acceleration, cache: Path) -> RunningModel:
    loading = LoadingConfig(cache_dir=str(cache))
    return load_way(Checkpoint(folder, options_of(loading=loading), "cpu"), way)


def probabilities(model: RunningModel, batches: list[Any]) -> Any:
    """Returns the probabilities of the first label, of batches of `TEXTS` by their places."""
    encoded = model.encode([TEXTS]).encoded
    scored = [model.try_out(model.encoder.collate(encoded, np.array(one))) for one in batches]
    rows = [row for batch in scored for row in batch.column("probabilities").to_pylist()]
    return np.array(rows)[:, 0]


@needs_packages
def test_numbers_are_near_those_of_float32_and_not_equal(classifier: Path, tmp_path: Path) -> None:
    together = [range(len(TEXTS))]
    plain = probabilities(loaded(classifier, PLAIN, tmp_path), together)
    found = probabilities(loaded(classifier, INT8, tmp_path), together)
    assert 0 < np.abs(found - plain).max() < 0.1


@needs_packages
def test_a_text_has_its_numbers_whatever_is_beside_it(classifier: Path, tmp_path: Path) -> None:
    model = loaded(classifier, INT8, tmp_path)
    together = probabilities(model, [range(len(TEXTS))])
    alone = probabilities(model, [[place] for place in range(len(TEXTS))])
    assert np.abs(together - alone).max() < 1e-5


@needs_packages
def test_in_batches_of_one_shape_a_text_has_the_same_numbers(tmp_path: Path) -> None:
    folder = make_classifier(tmp_path / "model", hidden_size=48, num_hidden_layers=4)
    model = loaded(folder, INT8, tmp_path)
    longest = TEXTS.index("good " * 40)
    beside = [[0, other, longest] for other in (1, 2, 4, 5)]
    [first, *others] = [probabilities(model, [batch])[0] for batch in beside]
    assert others == [first] * 3


@needs_packages
def test_its_graph_is_another_than_that_of_float32(classifier: Path, tmp_path: Path) -> None:
    loaded(classifier, Acceleration("openvino", "float32"), tmp_path)
    loaded(classifier, INT8, tmp_path)
    sizes = [
        sum(file.stat().st_size for file in notes.parent.glob("*.bin"))
        for notes in (tmp_path / exports.FOLDER).glob("*/notes.json")
    ]
    small, large = sorted(sizes)
    assert small < large / 2


@needs_packages
def test_making_it_prints_nothing_and_leaves_loggers_as_they_are(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = logging.getLoggerClass()
    loaded(classifier, INT8, tmp_path)
    assert capsys.readouterr().out == ""
    assert logging.getLoggerClass() is before


@needs_packages
def test_its_use_is_reported_to_nobody(classifier: Path, tmp_path: Path) -> None:
    loaded(classifier, INT8, tmp_path)
    assert "nncf.telemetry" in sys.modules
    assert sys.modules["openvino_telemetry"] is None  # by which it would


@needs_packages
def test_it_passes_the_gate(classifier: Path) -> None:
    _, verdict = run_gate(classifier, options_of(dtype="int8"), WorkerSlot("cpu"))
    assert (verdict.accepted, verdict.tolerance, verdict.rejected) == (INT8, 0.1, ())


@needs_packages
def test_wrong_numbers_are_rejected_with_their_difference(
    classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = GraphRuntime.forward

    def forward(self: Any, tensors: Any, head: Any = None) -> Any:
        return {"logits": keep(self, tensors, head)["logits"].flip(-1) * 5}

    monkeypatch.setattr(GraphRuntime, "forward", forward)
    _, verdict = run_gate(classifier, options_of(dtype="int8"), WorkerSlot("cpu"))
    assert verdict.accepted == PLAIN
    [(name, reason)] = verdict.rejected
    assert name == "openvino in int8"
    assert "0.1" in reason


@needs_packages
def test_the_command_scores_in_int8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in.csv"
    source.write_text("text\nA superb film.\nDull and far too long.\n")
    demo = Path(__file__).parents[1] / "sparkinfer" / "demo" / "model"
    words = ["score", "--engine", "local", "--device", "cpu", "--input", str(source)]
    words += ["--input-col", "text", "--model", str(demo), "--output", str(tmp_path / "out")]
    assert main([*words, "--dtype", "int8"]) == 0
    assert "with OpenVINO in int8" in capsys.readouterr().out
    assert main([*words, "--dtype", "bfloat16"]) == 2
    assert "dtype was 'int8', is 'bfloat16'" in capsys.readouterr().err


def test_nothing_else_is_tried_in_int8_and_int8_is_tried_for_nothing_else() -> None:
    assert candidates(options_of(dtype="int8"), "cpu") == [INT8, PLAIN]
    for dtype in ("auto", "float32", "bfloat16"):
        assert INT8 not in candidates(options_of(dtype=dtype), "cpu")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"acceleration": "onnxruntime"}, "dtype='int8' with acceleration='onnxruntime'"),
        ({"acceleration": "deepspeed"}, "dtype='int8' with acceleration='deepspeed'"),
        ({"task": "text-generation"}, "dtype='int8' with task='text-generation'"),
        ({"parallel": ParallelConfig(tensor=2)}, "on one CPU"),
    ],
)
def test_what_cannot_be_in_int8_is_refused(
    asked: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparkinfer.models.backends.check_acceleration", lambda name: None)
    with pytest.raises(ConfigError, match=message):
        check_options(options_of(**asked, dtype="int8"))


def test_each_task_that_can_be_in_int8_is_named_once() -> None:
    with pytest.raises(ConfigError, match="takes, for embedding, text-classification, token-"):
        check_int8(options_of("text-generation", dtype="int8"))


def test_a_gpu_is_refused() -> None:
    with pytest.raises(ConfigError, match="dtype='int8' on device cuda:0"):
        candidates(options_of(dtype="int8"), "cuda:0")


@pytest.mark.parametrize("missing", ["openvino", "nncf"])
def test_a_package_that_is_missing_is_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == missing else name)
    with pytest.raises(EngineUnavailableError, match=rf"package {missing} .*\[int8\]"):
        check_options(options_of(dtype="int8"))


def test_torch_has_no_ceiling_for_it() -> None:
    ceiling = Ceiling("cpu", 1000)
    ceiling.look("int8")
    assert ceiling.share(1e6, "int8") is None
