"""What a model does on a GPU: formats, DeepSpeed, batches in flight, memory, broken devices."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pytest
import torch

from sparkinfer.exceptions import EngineUnavailableError
from sparkinfer.models.backends import BACKENDS, PLAIN
from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.backends.torch import PipelineRuntime
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.gate import TOLERANCES, candidates, run_gate
from sparkinfer.models.layout import Layout
from sparkinfer.models.running import RunningModel, load_way
from sparkinfer.models.scorer import Scorer
from sparkinfer.option_groups import BatchingConfig, GateConfig
from sparkinfer.workers import gpus
from sparkinfer.workers.devices import worker_device
from sparkinfer.workers.slot import WorkerSlot
from tests import model_options
from tests.gpu.models import Shape, heavy_lengths, make_model, texts_of
from tests.gpu.scoring import options_of, reference_of, score, scores_of
from tests.sentence_models import (
    NORMALIZE,
    WIDTH,
    add_sentence_files,
    dense,
    make_encoder,
    pooling,
)
from tests.tiny_generators import make_generator
from tests.tiny_models import make_bert, make_tagger, sentences

pytestmark = pytest.mark.gpu

CHECKOUT = Path(__file__).resolve().parent.parent.parent
GPU = "cuda:0"
SHAPE = Shape()
KINDS = ("Bert", "Roberta", "DebertaV2", "DistilBert", "GPT2")
SPREAD = {"initializer_range": 0.1}
"""Of the random weights, so that texts differ in their probabilities."""

needs_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="deepspeed is not installed"
)


@pytest.fixture
def texts() -> list[str]:
    return texts_of(SHAPE, heavy_lengths(300, SHAPE.length))


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Starts a process of its own, which imports from this checkout."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=CHECKOUT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def outcome(code: str, *arguments: object, timeout_s: float = 120.0) -> Any:
    """Returns what a process prints last, as JSON."""
    process = python(code, *arguments)
    said, errors = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(said.splitlines()[-1])


# Devices


def test_a_process_gets_a_gpu_and_keeps_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpus.tempfile, "gettempdir", lambda: str(tmp_path))
    with worker_device("cuda", "0", 0) as device:
        assert device == GPU
    with worker_device("cuda", None, 0) as device:
        assert device == GPU
    gpus.release_gpus()


def test_the_preferred_format_of_a_gpu_is_half_precision() -> None:
    ways = candidates(options_of(), GPU)
    assert ways[0] == Acceleration("none", "float16")
    assert ways[-1] == PLAIN


SCORE_ON_THE_CPU = """
import json, sys
import torch
import sparkinfer
model, source, output = sys.argv[1:]
config = sparkinfer.ScoringConfig(
    model=model, input=source, input_col="text", output=output, engine="local", device="cpu"
)
result = sparkinfer.run(config)
print(json.dumps([result.rows, result.error_rows, torch.cuda.is_initialized()]))
"""


def test_device_cpu_leaves_the_gpu_alone(folder: Path, tmp_path: Path, texts: list[str]) -> None:
    model = make_model(folder / "Bert", "Bert", SHAPE, **SPREAD)
    source = tmp_path / "in.csv"
    source.write_text("\n".join(["text", *texts]))
    done = outcome(SCORE_ON_THE_CPU, model, source, tmp_path / "out")
    assert done == [len(texts), 0, False]


HOLD_A_GPU = """
import sys
import torch
from sparkinfer.workers import gpus, resident
from sparkinfer.workers.devices import release_memory, worker_device
gpus.tempfile.tempdir = sys.argv[1]
with worker_device("cuda", None, 0) as device:
    big = lambda: torch.empty(1 << 28, dtype=torch.uint8, device=device)
    resident.get("model", big, lambda: (release_memory(device), print("released", flush=True)))
    print(device, flush=True)
    sys.stdin.readline()
print("idle", flush=True)
sys.stdin.readline()
print(torch.cuda.memory_reserved(), flush=True)
"""


def test_two_processes_never_hold_a_model_on_one_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpus.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(gpus, "_former", None)
    monkeypatch.setattr(gpus, "PATIENCE_S", 0.5)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    other = python(HOLD_A_GPU, tmp_path)
    assert other.stdin is not None
    assert other.stdout is not None
    try:
        assert other.stdout.readline().strip() == GPU
        with (
            pytest.raises(EngineUnavailableError, match="held by other processes"),
            worker_device("cuda", None, 0),
        ):
            raise AssertionError("a GPU with a task was taken")
        print(file=other.stdin, flush=True)
        assert other.stdout.readline().strip() == "idle"
        monkeypatch.setattr(gpus, "_gave_up", False)
        monkeypatch.setattr(gpus, "PATIENCE_S", 30.0)
        with worker_device("cuda", None, 0) as device:
            assert device == GPU
            assert other.stdout.readline().strip() == "released"
        print(file=other.stdin, flush=True)
        assert other.stdout.readline().strip() == "0"
    finally:
        other.kill()
        other.communicate()
        gpus.release_gpus()


# Number formats


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_passes_the_gate_and_gives_the_scores_of_float32(
    folder: Path, kind: str, dtype: str, texts: list[str]
) -> None:
    path = make_model(folder / kind, kind, SHAPE, **SPREAD)
    options = options_of(dtype)
    model, verdict = run_gate(path, options, WorkerSlot(GPU))
    assert (verdict.accepted, verdict.rejected) == (Acceleration("none", dtype), ())
    assert (verdict.device, verdict.layout.pad_to_multiple_of) == ("cuda", 8)
    assert next(model.runtime.pipe.model.parameters()).device == torch.device(GPU)
    expected = reference_of(path, texts)
    assert np.ptp(expected, axis=0).max() > 0.1
    found = scores_of(model, options, texts)
    assert np.abs(found - expected).max() <= TOLERANCES[dtype]


def test_what_torch_compiles_passes_the_gate_and_gives_the_scores_of_float32(
    folder: Path, texts: list[str]
) -> None:
    problem = BACKENDS["torch_compile"].problem()
    if problem is not None:
        pytest.skip(problem)
    path = make_model(folder / "compiled", "Bert", SHAPE, **SPREAD)
    options = model_options.options_of(dtype="float16", acceleration="torch_compile")
    model, verdict = run_gate(path, options, WorkerSlot(GPU))
    assert (verdict.accepted, verdict.rejected) == (Acceleration("torch_compile", "float16"), ())
    found = scores_of(model, options, texts)
    assert np.abs(found - reference_of(path, texts)).max() <= TOLERANCES["float16"]


def test_auto_measures_the_ways_on_a_gpu(folder: Path) -> None:
    path = make_model(folder / "measured", "Bert", SHAPE, **SPREAD)
    options = model_options.options_of(gate=GateConfig(measure="always"))
    _, verdict = run_gate(path, options, WorkerSlot(GPU))
    assert verdict.speeds[0][0] == "none in float16"
    assert all(rate > 0 for _, rate in verdict.speeds)


def overflow_in_half_precision(module: Any) -> None:
    """Scales weights so that values between two layers exceed 65504, and the model is the same."""
    for layer in module.bert.encoder.layer:
        layer.intermediate.dense.weight.data *= 2.0**20
        layer.intermediate.dense.bias.data *= 2.0**20
        layer.output.dense.weight.data *= 2.0**-20


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_embeddings_are_pooled_and_changed_by_layers_on_the_gpu(folder: Path, dtype: str) -> None:
    path = make_encoder(folder / f"encoder-{dtype}", initializer_range=0.1)
    norm = ("LayerNorm", {"dimension": 16}, {"norm.weight": (16,), "norm.bias": (16,)})
    add_sentence_files(path, pooling("mean", "max"), dense(2 * WIDTH, 16), norm, NORMALIZE)
    options = model_options.options_of("embedding", dtype=dtype, acceleration="none")
    model, verdict = run_gate(path, options, WorkerSlot(GPU))
    assert (verdict.accepted, verdict.rejected) == (Acceleration("none", dtype), ())
    plain = load_way(Checkpoint(path, options, "cpu"), PLAIN)
    texts = sentences(300)
    found, expected = (
        np.array(score(Scorer(one, options), texts)["embedding"].to_pylist())
        for one in (model, plain)
    )
    assert np.linalg.norm(found - expected, axis=1).max() <= TOLERANCES[dtype]


def test_an_overflow_in_float16_falls_back_to_bfloat16(folder: Path, texts: list[str]) -> None:
    path = make_model(
        folder / "overflow", "Bert", SHAPE, overflow_in_half_precision, hidden_act="relu", **SPREAD
    )
    options = options_of("auto")
    model, verdict = run_gate(path, options, WorkerSlot(GPU))
    assert verdict.rejected[0] == ("none in float16", "gives an output that is not finite")
    assert verdict.accepted == Acceleration("none", "bfloat16")
    difference = np.abs(scores_of(model, options, texts) - reference_of(path, texts)).max()
    assert difference <= TOLERANCES["bfloat16"]


# DeepSpeed

RUN_DEEPSPEED = """
import json, sys
import numpy as np
from pathlib import Path
from sparkinfer.models.gate import run_gate
from sparkinfer.workers.slot import WorkerSlot
from tests.gpu.models import Shape, heavy_lengths, texts_of
from tests.gpu.scoring import options_of, reference_of, scores_of
path, kernel_inject = Path(sys.argv[1]), sys.argv[2] == "True"
options = options_of("float16", "deepspeed", kernel_inject)
model, verdict = run_gate(path, options, WorkerSlot("cuda:0"))
texts = texts_of(Shape(), heavy_lengths(300, Shape().length))
difference = np.abs(scores_of(model, options, texts) - reference_of(path, texts)).max()
print(json.dumps([str(verdict.accepted), verdict.rejected, float(difference)]))
"""


@needs_deepspeed
@pytest.mark.parametrize("kernel_inject", [False, True], ids=["wrapper", "kernels"])
@pytest.mark.parametrize("kind", ["Bert", "DebertaV2"])
def test_deepspeed_gives_the_scores_of_float32_or_is_not_used(
    folder: Path, kind: str, kernel_inject: bool
) -> None:
    path = make_model(folder / kind, kind, SHAPE, **SPREAD)
    # Kernels are compiled when first used; DeepSpeed injects them once per process.
    accepted, rejected, difference = outcome(RUN_DEEPSPEED, path, kernel_inject, timeout_s=240)
    print(f"{kind}: {accepted}; not used: {rejected}; off by {difference:.1g}")
    assert difference <= TOLERANCES["float16"]
    kernels = "deepspeed with kernel injection in float16"
    if kernel_inject and rejected:
        assert rejected[0][0] == kernels
        assert rejected[0][1]
    assert accepted in ("deepspeed in float16", kernels if kernel_inject else "")


# Batches in flight


@pytest.fixture
def models(folder: Path) -> tuple[RunningModel, RunningModel]:
    """A model with one batch in flight, and the same with one batch at a time."""
    path = make_model(folder / "Bert", "Bert", SHAPE, **SPREAD)
    layout = Layout(pad_to_multiple_of=8)
    checkpoint = Checkpoint(path, options_of("float32"), GPU, layout=layout)
    model: Any = load_way(checkpoint, PLAIN)
    return model, RunningModel(checkpoint, PipelineRuntime(model.runtime.pipe))


def test_batches_are_padded_to_multiples_of_eight_and_none_beyond_the_limit(
    models: tuple[RunningModel, RunningModel], texts: list[str]
) -> None:
    model: Any = models[0]
    shapes: list[tuple[int, int]] = []
    module = model.runtime.module
    hook = module.register_forward_pre_hook(
        lambda _, args, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    options = options_of("float32", max_batch_tokens=2048)
    scorer = Scorer(model, options)
    score(scorer, texts)
    hook.remove()
    assert len({width for rows, width in shapes if rows > 1}) > 3
    assert all(width % 8 == 0 for rows, width in shapes if rows > 1)
    assert all(width <= SHAPE.length for _, width in shapes)
    assert scorer.statistics.padded_tokens == sum(rows * width for rows, width in shapes)
    assert scorer.statistics.batches == len(shapes)


def test_batches_wait_in_pinned_memory(
    models: tuple[RunningModel, RunningModel], texts: list[str]
) -> None:
    scorer = Scorer(models[0], options_of("float32", max_batch_rows=16))
    rows = pa.RecordBatch.from_arrays([pa.array(texts)], names=["text"])
    window = scorer.cut(scorer.encoder.encode(rows, scorer.suspects))
    tensors = [tensor for _, batch in window.batches for tensor in batch.values()]
    assert len(tensors) > 10
    assert all(tensor.is_pinned() for tensor in tensors)


def test_with_a_batch_in_flight_rows_are_those_of_one_batch_at_a_time(
    folder: Path,
    models: tuple[RunningModel, RunningModel],
    texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order: list[str] = []
    for name in ("launch", "decode"):
        act = getattr(RunningModel, name)

        def noted(*given: Any, name: str = name, act: Any = act) -> Any:
            order.append(name)
            return act(*given)

        monkeypatch.setattr(RunningModel, name, noted)
    options = options_of("float32", max_batch_rows=16)
    assert [model.overlaps for model in models] == [True, False]
    found, expected = (score(Scorer(model, options), texts) for model in models)
    assert found == expected
    assert order[:3] == ["launch", "launch", "decode"]
    path = make_model(folder / "Bert", "Bert", SHAPE, **SPREAD)
    probabilities = np.stack(found["probabilities"].to_pylist())
    assert np.abs(probabilities - reference_of(path, texts)).max() < 1e-4


def test_several_outputs_are_waited_for_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_bert(folder / "reader", "QuestionAnswering", seed=3)
    columns = ["question", "text"]
    options = model_options.options_of(
        "question-answering", tuple(columns), batching=BatchingConfig(max_batch_rows=8)
    )
    plain = load_way(Checkpoint(path, options, "cpu"), PLAIN)
    model = load_way(Checkpoint(path, options, GPU), PLAIN)
    texts = sentences(60)
    rows = pa.RecordBatch.from_arrays([pa.array(texts[::-1]), pa.array(texts)], names=columns)
    waits: list[int] = []
    wait = torch.cuda.Event.synchronize
    monkeypatch.setattr(torch.cuda.Event, "synchronize", lambda one: (waits.append(1), wait(one)))
    scorer = Scorer(model, options)
    found = pa.Table.from_batches(scorer.process([rows]))
    assert len(waits) == scorer.statistics.batches > 5
    expected = pa.Table.from_batches(Scorer(plain, options).process([rows]))
    assert found["error"].null_count == len(texts)
    np.testing.assert_allclose(
        found["score"].to_numpy(), expected["score"].to_numpy(), atol=1e-4, rtol=1e-3
    )


def test_a_row_that_the_model_refuses_in_flight_is_alone_in_error(
    models: tuple[RunningModel, RunningModel], texts: list[str]
) -> None:
    model: Any = models[0]
    guilty = model.encoder.tokenizer.convert_tokens_to_ids("w7")
    texts = [" ".join("w8" if one == "w7" else one for one in text.split()) for text in texts]
    texts[20] = "w7 w8 w9"

    def refuse(_: Any, args: Any, given: dict[str, Any]) -> None:
        if bool((given["input_ids"] == guilty).any()):
            raise ValueError("cannot take this")

    hook = model.runtime.module.register_forward_pre_hook(refuse, with_kwargs=True)
    scored = score(Scorer(model, options_of("float32", max_batch_rows=32)), texts)
    hook.remove()
    errors = {row: error for row, error in enumerate(scored["error"].to_pylist()) if error}
    assert errors == {20: "model: ValueError: cannot take this"}


# Other tasks


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_texts_written_on_a_gpu_are_those_of_the_cpu(folder: Path, kind: str) -> None:
    path = make_generator(folder / kind, kind)
    task = "text2text-generation" if kind == "t5" else "text-generation"
    options = model_options.options_of(
        task,
        dtype="float32",
        generation={"max_new_tokens": 12},
        batching=BatchingConfig(max_batch_rows=16),
    )
    model, verdict = run_gate(path, options, WorkerSlot(GPU))
    assert verdict.accepted == PLAIN
    plain, _ = run_gate(path, options, WorkerSlot("cpu"))
    texts = sentences(100)
    found, expected = (score(Scorer(one, options), texts).to_pylist() for one in (model, plain))
    assert found == expected
    assert len({row["generated_text"] for row in found}) > 20


def test_tags_on_a_gpu_are_those_of_the_cpu(folder: Path) -> None:
    path = make_tagger(folder / "tagger", initializer_range=0.5)
    options = model_options.options_of("token-classification", dtype="float32")
    model, _ = run_gate(path, options, WorkerSlot(GPU))
    plain = load_way(Checkpoint(path, options, "cpu"), PLAIN)
    texts = sentences(200)
    found, expected = (score(Scorer(one, options), texts).to_pylist() for one in (model, plain))
    assert sum(len(row["entities"]) for row in expected) > 100
    for one, other in zip(found, expected, strict=True):
        assert one["error"] is None
        assert len(one["entities"]) == len(other["entities"])
        for entity, wanted in zip(one["entities"], other["entities"], strict=True):
            assert entity.pop("score") == pytest.approx(wanted.pop("score"), abs=1e-4)
            assert entity == wanted


# Commands


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs the package's command."""
    return subprocess.run(
        [sys.executable, "-m", "sparkinfer", *map(str, arguments)],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=180,
    )


def test_a_job_on_a_gpu_gives_the_labels_of_one_on_the_cpu(
    folder: Path, tmp_path: Path, texts: list[str]
) -> None:
    model = make_model(folder / "Bert", "Bert", SHAPE, **SPREAD)
    source = tmp_path / "in.csv"
    rows = (f"{number},{text}" for number, text in enumerate(texts))
    source.write_text("\n".join(["id,text", *rows]))
    outputs = {device: tmp_path / device for device in ("cuda", "cpu")}
    for device, output in outputs.items():
        given = ("--model", model, "--input", source, "--input-col", "text", "--output", output)
        done = command("score", *given, "--engine", "local", "--device", device)
        assert done.returncode == 0, done.stderr[-3000:]
    found, expected = (
        pads.dataset(output, format="parquet").to_table().sort_by("id")
        for output in outputs.values()
    )
    assert found["error"].null_count == len(texts)
    odds = [np.stack(one["probabilities"].to_pylist()) for one in (found, expected)]
    assert np.abs(odds[0] - odds[1]).max() <= TOLERANCES["float16"]
    shown = command("status", outputs["cuda"])
    assert shown.returncode == 0, shown.stderr
    page = command("report", outputs["cuda"], "--to", tmp_path / "page.html")
    assert page.returncode == 0, page.stderr
    assert torch.cuda.get_device_name(0) in (tmp_path / "page.html").read_text()
    again = command("score", *given[:-1], outputs["cuda"], "--engine", "local", "--device", "cuda")
    assert again.returncode == 0, again.stderr[-3000:]


def test_tune_measures_on_a_gpu(folder: Path, tmp_path: Path, texts: list[str]) -> None:
    model = make_model(folder / "Bert", "Bert", SHAPE, **SPREAD)
    source = tmp_path / "in.csv"
    source.write_text("\n".join(["text", *texts]))
    given = ("--model", model, "--input", source, "--input-col", "text", "--engine", "local")
    done = command("tune", *given, "--budget-s", 20, "--save", tmp_path / "fast.yaml")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "float16" in done.stdout
    assert "dtype:" in (tmp_path / "fast.yaml").read_text()


# Memory and broken devices


@dataclass
class MemoryLimit:
    """Bounds the memory that this process may use on the GPU."""

    more_bytes: int

    def __enter__(self) -> None:
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        allowed = torch.cuda.memory_reserved(0) + self.more_bytes
        torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total), 0)

    def __exit__(self, *_: object) -> None:
        torch.cuda.set_per_process_memory_fraction(1.0, 0)
        torch.cuda.empty_cache()


def test_memory_that_runs_out_halves_the_budget_and_scoring_goes_on(folder: Path) -> None:
    path = make_model(folder / "Bert", "Bert", SHAPE, **SPREAD)
    options = options_of("float32", max_batch_tokens=1 << 20, max_batch_rows=1 << 20)
    model = load_way(Checkpoint(path, options, GPU), PLAIN)
    texts = texts_of(SHAPE, [SHAPE.length - 2] * 8000)  # a million tokens
    scorer = Scorer(model, options)
    # The inner values alone of a million tokens take 2 GB.
    with MemoryLimit(1 << 30):
        scored = score(scorer, texts)
    assert scorer.statistics.out_of_memory > 0
    assert scored["error"].null_count == len(texts)
    assert scorer.statistics.batches > 1
    some = slice(0, len(texts), 100)
    probabilities = np.stack(scored["probabilities"].to_pylist())[some]
    assert np.abs(probabilities - reference_of(path, texts[some])).max() < 1e-4


BREAK_THE_DEVICE = """
import json, sys
from pathlib import Path
from sparkinfer.exceptions import DeviceError
from sparkinfer.models.backends import PLAIN
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.running import load_way
from sparkinfer.models.scorer import Scorer
from tests.gpu.scoring import options_of, score
options = options_of("float32", max_batch_rows=int(sys.argv[2]))
model = load_way(Checkpoint(Path(sys.argv[1]), options, "cuda:0"), PLAIN)
model.vocabulary = None  # as if it did not tell, so that the token goes to the device
scorer = Scorer(model, options)
print(score(scorer, ["w1 w2"])["error"].to_pylist(), file=sys.stderr)
try:
    score(scorer, ["w3", "beyond", "w4"] + [f"w{number}" for number in range(5, 50)])
except DeviceError as error:
    print(json.dumps(str(error)))
"""


def add_a_word_that_the_model_lacks(path: Path) -> Path:
    """Gives a tokenizer a word whose id is beyond the rows of the model's embedding."""
    file = path / "tokenizer.json"
    values = json.loads(file.read_text())
    values["model"]["vocab"]["beyond"] = SHAPE.vocabulary + 100_000
    file.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize("rows", [1, 1024], ids=["others in flight", "others in its batch"])
def test_an_assertion_on_the_device_ends_its_worker_alone(
    folder: Path, texts: list[str], rows: int
) -> None:
    path = make_model(folder / "Bert", "Bert", SHAPE, **SPREAD)
    options = options_of("float32")
    model = load_way(Checkpoint(path, options, GPU), PLAIN)
    before = scores_of(model, options, texts)
    broken = add_a_word_that_the_model_lacks(make_model(folder / "broken", "Bert", SHAPE, **SPREAD))
    said = outcome(BREAK_THE_DEVICE, broken, rows)
    assert "device cuda:0 is broken (CUDA error: device-side assert triggered" in said
    assert "the worker process ends" in said
    after = scores_of(model, options, texts)
    np.testing.assert_array_equal(before, after)
