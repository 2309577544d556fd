"""Models as graphs of OpenVINO and ONNX Runtime, and compiled by torch."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sparkinfer.exceptions import ConfigError, EngineUnavailableError
from sparkinfer.models import exports
from sparkinfer.models.backends import BACKENDS, PLAIN, check_options
from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.backends.graphs import GraphRuntime
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.encoded import EncodedRows
from sparkinfer.models.gate import run_gate
from sparkinfer.models.layout import Layout
from sparkinfer.models.running import RunningModel, load_way
from sparkinfer.models.scorer import Scorer
from sparkinfer.option_groups import LoadingConfig, ParallelConfig
from sparkinfer.workers.slot import WorkerSlot
from tests.model_options import options_of
from tests.tiny_models import make_classifier, make_tagger

GRAPHS = ("openvino", "onnxruntime")

TEXTS = ["good", "", "a dull film", "good " * 40, "nothing here is any good", "unknown words"]


@pytest.fixture(params=GRAPHS)
def graph(request: pytest.FixtureRequest) -> str:
    problem = BACKENDS[request.param].problem()
    if problem is not None:
        pytest.skip(problem)
    return str(request.param)


def loaded(folder: Path, way: Acceleration, task: str = "text-classification") -> RunningModel:
    return load_way(Checkpoint(folder, options_of(task), "cpu"), way)


def numbers(model: RunningModel, texts: list[str]) -> Any:
    """Returns what the task makes of texts, in one batch and one by one."""
    encoded = model.encode([texts]).encoded
    everything = np.arange(len(texts))
    batches = [everything, *(everything[[index]] for index in everything)]
    return [model.try_out(model.encoder.collate(encoded, one)) for one in batches]


@pytest.mark.parametrize("task", ["text-classification", "embedding", "token-classification"])
def test_a_graph_gives_the_numbers_of_plain_float32(
    graph: str, classifier: Path, tmp_path: Path, task: str
) -> None:
    folder = make_tagger(tmp_path) if task == "token-classification" else classifier
    graphs = loaded(folder, Acceleration(graph, "float32"), task)
    plain = loaded(folder, PLAIN, task)
    assert isinstance(graphs.runtime, GraphRuntime)
    for found, expected in zip(numbers(graphs, TEXTS), numbers(plain, TEXTS), strict=True):
        assert plain.task.difference(expected, found) < 1e-5


def test_a_graph_is_made_once_for_a_node(
    graph: str, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options_of(loading=LoadingConfig(cache_dir=str(tmp_path)))
    way = Acceleration(graph, "float32")
    load_way(Checkpoint(classifier, options, "cpu"), way)
    [made] = (tmp_path / exports.FOLDER).glob("*/notes.json")
    monkeypatch.setattr(Checkpoint, "module", lambda self: pytest.fail("the weights are loaded"))
    model = load_way(Checkpoint(classifier, options, "cpu"), way)
    assert model.vocabulary == json.loads(made.read_text())["vocabulary"] is not None


def test_a_token_that_the_model_lacks_is_an_error_of_its_row(graph: str, classifier: Path) -> None:
    options = options_of()
    model = load_way(Checkpoint(classifier, options, "cpu"), Acceleration(graph, "float32"))
    assert model.vocabulary is not None
    inputs = model.encode([["good", "a dull film"]])
    inputs.encoded.columns["input_ids"][1] = model.vocabulary
    scorer = Scorer(model, options)
    scored = scorer.score(scorer.cut(EncodedRows(np.arange(2), inputs)))
    error, other = scored.column("error").to_pylist()
    assert f"the model has only {model.vocabulary} tokens" in error
    assert other is None


def test_a_damaged_graph_is_made_again(graph: str, classifier: Path, tmp_path: Path) -> None:
    options = options_of(loading=LoadingConfig(cache_dir=str(tmp_path)))
    way = Acceleration(graph, "float32")
    expected = numbers(load_way(Checkpoint(classifier, options, "cpu"), way), TEXTS)
    [notes] = (tmp_path / exports.FOLDER).glob("*/notes.json")
    largest = max(notes.parent.iterdir(), key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 0xFF
    largest.write_bytes(content)
    found = numbers(load_way(Checkpoint(classifier, options, "cpu"), way), TEXTS)
    assert all(one.equals(other) for one, other in zip(found, expected, strict=True))


def test_another_model_has_another_graph(graph: str, classifier: Path, tmp_path: Path) -> None:
    other = make_classifier(tmp_path / "other", seed=7)
    way = Acceleration(graph, "float32")
    first, second = (numbers(loaded(one, way), ["good"])[0] for one in (classifier, other))
    assert not first.equals(second)


def test_the_module_stays_in_evaluation_mode_when_it_is_traced(
    graph: str, classifier: Path, tmp_path: Path
) -> None:
    options = options_of(loading=LoadingConfig(cache_dir=str(tmp_path)))
    checkpoint = Checkpoint(classifier, options, "cpu")
    load_way(checkpoint, Acceleration(graph, "float32"))
    assert not any(part.training for part in checkpoint.module().modules())


def test_a_model_with_state_is_made_into_no_graph(graph: str, classifier: Path) -> None:
    checkpoint = Checkpoint(classifier, options_of(), "cpu", layout=Layout(resets=("bert",)))
    with pytest.raises(Exception, match="a graph has none"):
        load_way(checkpoint, Acceleration(graph, "float32"))


def test_a_model_that_does_not_export_is_rejected_with_its_reason(
    graph: str, classifier: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no such operation")

    monkeypatch.setattr(sys.modules[f"sparkinfer.models.backends.{graph}"], "_trace", fail)
    loading = LoadingConfig(cache_dir=str(tmp_path))
    options = options_of(acceleration=graph, dtype="float32", loading=loading)
    _, verdict = run_gate(classifier, options, WorkerSlot("cpu"))
    assert verdict.accepted == PLAIN
    assert verdict.rejected == ((f"{graph} in float32", "RuntimeError: no such operation"),)
    assert not list((tmp_path / exports.FOLDER).glob("*.part"))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda found, inputs: found * [1, -1],
        lambda found, inputs: found * ([1, -1] if len(inputs["input_ids"]) == 1 else [1, 1]),
        lambda found, inputs: found * np.nan,
    ],
)
def test_a_graph_with_other_numbers_is_rejected(
    graph: str, classifier: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[..., Any]
) -> None:
    keep = GraphRuntime.forward

    def forward(self: Any, tensors: Any, head: Any = None) -> Any:
        found = keep(self, tensors, head)
        changed = spoil(found["logits"].numpy(), tensors)
        return {"logits": torch.from_numpy(changed.astype(np.float32))}

    monkeypatch.setattr(GraphRuntime, "forward", forward)
    options = options_of(acceleration=graph, dtype="float32")
    _, verdict = run_gate(classifier, options, WorkerSlot("cpu"))
    assert verdict.accepted == PLAIN
    [(name, _)] = verdict.rejected
    assert name == f"{graph} in float32"


def test_wrong_numbers_of_a_regression_are_rejected_however_small_they_are(
    graph: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_classifier(tmp_path / "small", labels=("x", "y"), problem_type="regression")
    weights = load_file(folder / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] *= 1e-6
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    options = options_of(acceleration=graph, dtype="float32")
    _, verdict = run_gate(folder, options, WorkerSlot("cpu"))
    assert verdict.accepted == Acceleration(graph, "float32")
    keep = GraphRuntime.forward
    monkeypatch.setattr(GraphRuntime, "forward", lambda *given: {"logits": -keep(*given)["logits"]})
    _, verdict = run_gate(folder, options, WorkerSlot("cpu"))
    assert verdict.accepted == PLAIN


@pytest.mark.parametrize("name", [*GRAPHS, "torch_compile"])
def test_a_task_of_many_passes_is_refused_by_name(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(BACKENDS[name]), "problem", lambda self: None)
    with pytest.raises(ConfigError, match=f"acceleration='{name}' with task='text-generation'"):
        check_options(options_of("text-generation", acceleration=name))
    with pytest.raises(ConfigError, match=r"parallel.tensor=2.* with acceleration="):
        check_options(options_of(acceleration=name, parallel=ParallelConfig(tensor=2)))


@pytest.mark.parametrize("name", GRAPHS)
def test_a_backend_that_is_not_installed_names_its_extra(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(EngineUnavailableError, match=rf"\[{name}\]"):
        check_options(options_of(acceleration=name))


def test_openvino_computes_in_bfloat16_where_it_is_asked_to(classifier: Path) -> None:
    pytest.importorskip("openvino", reason="needs the extra openvino")
    plain = numbers(loaded(classifier, PLAIN), TEXTS)[0].column("probability").to_numpy()
    half = loaded(classifier, Acceleration("openvino", "bfloat16"))
    found = numbers(half, TEXTS)[0].column("probability").to_numpy()
    assert np.abs(found - plain).max() < 0.05


LET_GO_ELSEWHERE = """
import gc, signal, sys, threading
from pathlib import Path
from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.running import load_way
from tests.model_options import options_of

checkpoint = Checkpoint(Path(sys.argv[1]), options_of(), "cpu")
held = [load_way(checkpoint, Acceleration("openvino", "float32"))]

def let_go():
    held.clear()
    gc.collect()

thread = threading.Thread(target=let_go)
thread.start()
thread.join()
heard = []
signal.signal(signal.SIGTERM, lambda *_: heard.append("heard"))
signal.raise_signal(signal.SIGTERM)
print(*heard)
"""


def test_a_process_hears_signals_after_openvinos_model_was_let_go_in_a_thread(
    classifier: Path,
) -> None:
    pytest.importorskip("openvino", reason="needs the extra openvino")
    command = [sys.executable, "-c", LET_GO_ELSEWHERE, str(classifier)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr


def test_openvino_reports_its_use_to_nobody() -> None:
    pytest.importorskip("openvino", reason="needs the extra openvino")
    from sparkinfer.models.backends.openvino import import_openvino

    import_openvino()
    telemetry = sys.modules["openvino.tools.ovc.telemetry_utils"]
    assert telemetry.tm.__name__.endswith("telemetry_stub")  # type: ignore[attr-defined]


def test_what_torch_compiles_gives_the_numbers_of_plain_float32(classifier: Path) -> None:
    problem = BACKENDS["torch_compile"].problem()
    if problem is not None:
        pytest.skip(problem)
    compiled = loaded(classifier, Acceleration("torch_compile", "float32"))
    plain = loaded(classifier, PLAIN)
    for found, expected in zip(numbers(compiled, TEXTS), numbers(plain, TEXTS), strict=True):
        assert plain.task.difference(expected, found) < 1e-5
