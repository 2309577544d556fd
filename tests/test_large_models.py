"""Models that are larger than one GPU: what fits, and that their numbers are the plain ones.

No GPU is here: the free memory of one is made up, and what would run on several runs in as many
processes on the CPU.
"""

from __future__ import annotations

import importlib.util
import json
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from sparkinfer.cli import main
from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import ConfigError, EngineUnavailableError, ModelLoadError
from sparkinfer.models import memory
from sparkinfer.models.ahead import RowsAhead
from sparkinfer.models.backends import BACKENDS, PLAIN, check_options
from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.backends.deepspeed import DeepSpeedBackend
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.examination import examine
from sparkinfer.models.gate import candidates, run_gate
from sparkinfer.models.memory import Fit, fitting
from sparkinfer.models.options import ModelOptions
from sparkinfer.models.processor import ModelScoring
from sparkinfer.models.running import RunningModel, load_way
from sparkinfer.models.scorer import Scorer
from sparkinfer.models.weights import weights_of
from sparkinfer.option_groups import DeepSpeedConfig, ParallelConfig
from sparkinfer.plan.processors import make_processor
from sparkinfer.workers.host_memory import free_host_memory
from sparkinfer.workers.slot import WorkerSlot
from tests.model_options import options_of
from tests.sentence_models import make_encoder
from tests.tiny_generators import make_generator
from tests.tiny_models import make_classifier, save_tokenizer, sentences

GIGA = 10**9
HALF = Acceleration("none", "bfloat16")
OFFLOADED = Acceleration("deepspeed", "float32", offloads=True)
SPLIT = Acceleration("deepspeed", "float32", processes=2)


@pytest.fixture
def memory_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes up the free bytes of each GPU and of the host."""

    def make_up(gpu: float | None, host: float) -> None:
        of_gpu = None if gpu is None else int(gpu)
        monkeypatch.setattr(memory, "free_memory", lambda device: of_gpu)
        monkeypatch.setattr(memory, "free_host_memory", lambda: int(host))

    return make_up


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the configuration of a Llama of 13 billion numbers, none of them written."""
    folder = tmp_path_factory.mktemp("models") / "large"
    folder.mkdir()
    width, inner, layers = 5120, 13824, 40
    sizes = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers}
    kinds = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    more = {"num_attention_heads": 40, "vocab_size": 32000, "max_position_embeddings": 4096}
    (folder / "config.json").write_text(json.dumps({**kinds, **sizes, **more}))
    shapes = {"model.embed_tokens.weight": (32000, width), "lm_head.weight": (32000, width)}
    for layer in range(layers):
        for name in "qkvo":
            shapes[f"model.layers.{layer}.self_attn.{name}_proj.weight"] = (width, width)
        for name in ("gate", "up", "down"):
            shapes[f"model.layers.{layer}.mlp.{name}_proj.weight"] = (inner, width)
    write_headers(folder / "model.safetensors", shapes)
    save_tokenizer(folder, model_input_names=["input_ids", "attention_mask"])
    return folder


def write_headers(file: Path, shapes: dict[str, tuple[int, int]]) -> None:
    """Writes a file of weights in half precision that are a hole in it."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * shape[0] * shape[1]
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    content = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(content)) + content)
    os.truncate(file, 8 + len(content) + end)


def generating(**more: Any) -> ModelOptions:
    return options_of("text-generation", generation={"max_new_tokens": 8}, **more)


def fit_of(folder: Path, options: ModelOptions, device: str = "cuda:0") -> Fit:
    asked = replace(options, dtype="bfloat16") if options.dtype == "auto" else options
    return fitting(Checkpoint(folder, asked, device), candidates(asked, device), 4000)


def test_weights_are_counted_by_headers_alone(classifier: Path, tmp_path: Path) -> None:
    found = weights_of(classifier)
    wanted = load_file(classifier / "model.safetensors")
    layer = sum(one.numel() for name, one in wanted.items() if ".layer.0." in name)
    assert found is not None
    assert found.total == sum(one.numel() for one in wanted.values())
    assert (found.in_layers, found.largest) == (2 * layer, layer)


def test_shards_are_counted_each_once(large: Path, tmp_path: Path) -> None:
    shards = {"a.safetensors": "x.0.w", "b.safetensors": "x.1.w"}
    for file, name in shards.items():
        write_headers(tmp_path / file, {name: (3, 4)})
    index = {"weight_map": {name: file for file, name in shards.items()}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    found = weights_of(tmp_path)
    assert found is not None
    assert (found.total, found.largest) == (24, 12)
    whole = weights_of(large)
    assert whole is not None
    assert 12.9 * GIGA < whole.total < 13.1 * GIGA


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 16, b"\x02\0\0\0\0\0\0\0[]", b"\x08\0\0\0\0\0\0\0"]
)
def test_damaged_headers_tell_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    assert weights_of(tmp_path) is None
    assert weights_of(tmp_path / "nowhere") is None


def test_a_model_that_fits_is_compared_with_float32(large: Path, memory_of: Any) -> None:
    memory_of(80 * GIGA, 200 * GIGA)
    fit = fit_of(large, generating(acceleration="none"))
    assert (fit.reference, fit.ways, fit.uncompared) == (PLAIN, (HALF,), "")
    assert fit.plan == "needs 29.9 GB in bfloat16; this GPU has 80.0 GB free"


def test_where_float32_does_not_fit_half_precision_is_the_reference(
    large: Path, memory_of: Any
) -> None:
    memory_of(40 * GIGA, 200 * GIGA)
    fit = fit_of(large, generating(acceleration="none"))
    assert (fit.reference, fit.ways) == (HALF, (HALF,))
    assert fit.uncompared.startswith("it does not fit: needs 5")
    assert fit.uncompared.endswith("GB in float32; this GPU has 40.0 GB free")


def test_what_fits_nowhere_is_refused_with_what_would(large: Path, memory_of: Any) -> None:
    memory_of(15.6 * GIGA, 200 * GIGA)
    with pytest.raises(ConfigError) as caught:
        fit_of(large, generating(acceleration="none"))
    message = caught.value.message
    assert "in bfloat16, of which 26.0 GB are its weights; this GPU has 15.6 GB free: " in message
    assert "offload to CPU (parallel.offload=cpu) or parallel.tensor=2" in message
    memory_of(9 * GIGA, 200 * GIGA)
    with pytest.raises(ConfigError, match=r"parallel\.tensor=4, with as many such GPUs on a host"):
        fit_of(large, generating(acceleration="none"))


def test_only_what_the_host_holds_is_advised(large: Path, memory_of: Any) -> None:
    memory_of(15.6 * GIGA, 20 * GIGA)
    with pytest.raises(ConfigError, match="15.6 GB free: use a machine with more, or a smaller"):
        fit_of(large, generating(acceleration="none"))


def test_an_offloaded_model_is_compared_with_its_float32_if_the_host_holds_that(
    large: Path, memory_of: Any
) -> None:
    options = generating(acceleration="deepspeed", parallel=ParallelConfig(offload="cpu"))
    memory_of(15.6 * GIGA, 200 * GIGA)
    fit = fit_of(large, options)
    assert fit.reference == OFFLOADED
    assert [str(way) for way in fit.ways] == [
        "deepspeed with weights in the host's memory in bfloat16"
    ]
    memory_of(15.6 * GIGA, 40 * GIGA)
    fit = fit_of(large, options)
    assert fit.reference == fit.ways[0]
    assert "in float32; this GPU has 15.6 GB free" in fit.uncompared
    memory_of(15.6 * GIGA, 20 * GIGA)
    with pytest.raises(ConfigError, match="this host has 20.0 GB free"):
        fit_of(large, options)


def test_a_model_that_the_one_fitting_way_cannot_run_is_refused(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise AssertionError("AutoTP not supported for model")

    monkeypatch.setattr(DeepSpeedBackend, "load", fail)
    options = replace(
        options_for("text-generation"),
        dtype="float32",
        acceleration="deepspeed",
        parallel=ParallelConfig(tensor=2),
    )
    with pytest.raises(ModelLoadError, match=r"by deepspeed over 2 processes in float32 \(Assert"):
        examine(Checkpoint(folders["text-generation"], options, "cpu"), 100, SPLIT)


def test_replicas_on_one_host_share_its_memory(large: Path, memory_of: Any) -> None:
    memory_of(None, 100 * GIGA)
    checkpoint = Checkpoint(large, generating(dtype="bfloat16"), "cpu")
    fit = fitting(checkpoint, [HALF, PLAIN], 4000, 3)
    assert (fit.ways, fit.reference) == ((HALF,), HALF)
    with pytest.raises(ConfigError) as caught:
        fitting(checkpoint, [HALF, PLAIN], 4000, 4)
    assert "this host has 25.0 GB free for each of 4 replicas: " in caught.value.message
    assert "use fewer workers (num_workers), 3 on this host" in caught.value.message


def test_a_split_model_needs_its_part_on_each_gpu(large: Path, memory_of: Any) -> None:
    memory_of(16 * GIGA, 200 * GIGA)
    options = generating(acceleration="deepspeed", parallel=ParallelConfig(tensor=2))
    fit = fit_of(large, options)
    assert fit.reference == fit.ways[0] == Acceleration("deepspeed", "bfloat16", processes=2)
    memory_of(9 * GIGA, 200 * GIGA)
    with pytest.raises(ConfigError, match="this GPU has 9.0 GB free"):
        fit_of(large, options)


def test_pickled_weights_are_tried_as_ever(tmp_path: Path, classifier: Path) -> None:
    checkpoint = Checkpoint(tmp_path, options_of(), "cpu")
    assert fitting(checkpoint, [HALF, PLAIN], None) == Fit(PLAIN, (HALF,))


def test_a_run_that_does_not_fit_ends_with_2_before_anything_is_loaded(
    classifier: Path,
    tmp_path: Path,
    memory_of: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    memory_of(None, 1000)
    monkeypatch.delattr(Checkpoint, "_load_module")
    source = tmp_path / "in.csv"
    source.write_text("text\ngood\n")
    model = ["--model", str(classifier), "--dtype", "float32", "--input-col", "text"]
    paths = ["--input", str(source), "--output", str(tmp_path / "out"), "--engine", "local"]
    assert main(["score", *model, *paths]) == 2
    said = capsys.readouterr().err
    assert "in float32, of which 119.8 kB are its weights; this host has 1.0 kB free" in said
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("*.parquet"))


def test_a_model_that_does_not_fit_in_float32_is_at_no_time_in_it(
    classifier: Path, memory_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory_of(None, 150_000)
    loaded = []
    load = Checkpoint._load_module

    def noting(self: Checkpoint, dtype: str) -> Any:
        module = load(self, dtype)
        loaded.append((dtype, {one.dtype for one in module.parameters()}))
        return module

    monkeypatch.setattr(Checkpoint, "_load_module", noting)
    options = options_of(acceleration="none", dtype="bfloat16")
    model, verdict = run_gate(classifier, options, WorkerSlot("cpu"), RowsAhead(100))
    assert {dtype for dtype, _ in loaded} == {"bfloat16"}
    assert {found for _, kinds in loaded for found in kinds} == {torch.bfloat16}
    assert (verdict.accepted, verdict.reference) == (HALF, "none in bfloat16")
    assert verdict.details.startswith("not compared with float32: it does not fit: needs ")
    assert {row["error"] for row in rows_of(model, options, TEXTS)} == {None}


def test_weights_in_half_precision_are_those_of_float32_rounded(classifier: Path) -> None:
    checkpoint = Checkpoint(classifier, options_of(), "cpu")
    found = checkpoint.take_module("bfloat16").state_dict()
    for name, weight in checkpoint.module().state_dict().items():
        assert torch.equal(found[name], weight.to(torch.bfloat16)), name


class TestHostMemory:
    def host(self, root: Path, **files: str) -> Path:
        for name, text in {"proc/meminfo": "MemAvailable:   1000 kB\n", **files}.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        return root

    def test_without_limits_it_is_the_hosts(self, tmp_path: Path) -> None:
        assert free_host_memory(self.host(tmp_path)) == 1_024_000
        assert free_host_memory(tmp_path / "nowhere") is None

    def test_a_limit_of_a_group_above_holds_and_its_cache_makes_room(self, tmp_path: Path) -> None:
        at = "sys/fs/cgroup"
        files = {
            "proc/self/cgroup": "0::/job/task\n",
            f"{at}/job/task/memory.max": "max\n",
            f"{at}/job/task/memory.current": "5\n",
            f"{at}/job/memory.max": "9000\n",
            f"{at}/job/memory.current": "7000\n",
            f"{at}/job/memory.stat": "anon 6500\ninactive_file 500\n",
        }
        assert free_host_memory(self.host(tmp_path, **files)) == 2500

    def test_the_first_version_of_groups_is_read_too(self, tmp_path: Path) -> None:
        at = "sys/fs/cgroup/memory/pod"
        files = {
            "proc/self/cgroup": "5:cpu,cpuacct:/pod\n4:memory:/pod\n",
            f"{at}/memory.limit_in_bytes": "9000\n",
            f"{at}/memory.usage_in_bytes": "8000\n",
        }
        assert free_host_memory(self.host(tmp_path, **files)) == 1000


TEXTS = ["good", "a film", *sentences(30), "word " * 60]


def rows_of(model: RunningModel, options: ModelOptions, texts: Sequence[str | None]) -> Any:
    rows = pa.RecordBatch.from_arrays([pa.array(texts, pa.string())], names=["text"])
    return [row for batch in Scorer(model, options).process([rows]) for row in batch.to_pylist()]


def close_to(found: Any, wanted: Any) -> None:
    """Asserts that rows are the same, and their numbers to 1e-4."""
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            is_number = isinstance(value, float | list)
            assert one[name] == (pytest.approx(value, abs=1e-4) if is_number else value), name


MAKERS: dict[str, Any] = {
    "text-classification": make_classifier,
    "embedding": make_encoder,
    "text-generation": lambda folder: make_generator(folder, "llama", intermediate_size=128),
    "text2text-generation": lambda folder: make_generator(folder, "t5", d_ff=128),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = tmp_path_factory.mktemp("large")
    return {task: make(made / task) for task, make in MAKERS.items()}


def options_for(task: str) -> ModelOptions:
    how = {"max_new_tokens": 12} if "generation" in task else {}
    return options_of(task, generation=how)


def running(folder: Path, options: ModelOptions, way: Acceleration) -> RunningModel:
    side = "left" if options.task.name == "text-generation" else "right"
    checkpoint = Checkpoint(folder, options, "cpu", 64)
    checkpoint.follow(replace(checkpoint.layout, padding_side=side))
    return load_way(checkpoint, way)


@pytest.fixture(
    scope="module",
    params=[
        (OFFLOADED, "text-classification"),
        (OFFLOADED, "text-generation"),
        (SPLIT, "embedding"),
        (SPLIT, "text-generation"),
        (SPLIT, "text2text-generation"),
    ],
    ids=lambda pair: f"{'offloaded' if pair[0].offloads else 'split'}-{pair[1]}",
)
def large_model(
    request: pytest.FixtureRequest, folders: dict[str, Path]
) -> Iterator[tuple[RunningModel, str]]:
    way, task = request.param
    pytest.importorskip("deepspeed", reason="needs the extra deepspeed")
    if way.offloads:
        pytest.importorskip("accelerate", reason="DeepSpeed's ZeRO needs the package accelerate")
    model = running(folders[task], options_for(task), way)
    yield model, task
    model.runtime.close()  # type: ignore[union-attr]


def test_rows_are_those_of_the_plain_model(
    large_model: tuple[RunningModel, str], folders: dict[str, Path]
) -> None:
    model, task = large_model
    options = options_for(task)
    found = rows_of(model, options, [*TEXTS, None])
    plain = running(folders[task], options, PLAIN)
    close_to(found, rows_of(plain, options, [*TEXTS, None]))
    assert {row["error"] for row in found[:-1]} == {None}


def test_the_gate_takes_a_split_model_as_it_is_in_float32(folders: dict[str, Path]) -> None:
    pytest.importorskip("deepspeed", reason="needs the extra deepspeed")
    options = replace(
        options_for("text-classification"),
        dtype="float32",
        acceleration="deepspeed",
        parallel=ParallelConfig(tensor=2),
    )
    model, verdict = run_gate(
        folders["text-classification"], options, WorkerSlot("cpu"), RowsAhead(100)
    )
    model.runtime.close()  # type: ignore[union-attr]
    assert verdict.accepted == SPLIT
    assert (verdict.rejected, verdict.reference) == ((), "float32")
    assert verdict.max_difference < 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"parallel": ParallelConfig(offload="cpu", tensor=2)},
            "parallel.offload=cpu with parallel.tensor=2",
        ),
        (
            {"parallel": ParallelConfig(tensor=2), "acceleration": "none"},
            "parallel.tensor=2 with acceleration='none'",
        ),
        (
            {
                "parallel": ParallelConfig(tensor=2),
                "deepspeed": DeepSpeedConfig(kernel_inject=True),
            },
            "with deepspeed.kernel_inject=true",
        ),
        (
            {"parallel": ParallelConfig(offload="cpu"), "acceleration": "vllm"},
            "acceleration='vllm' with parallel.offload=cpu",
        ),
    ],
)
def test_options_that_contradict_one_another_are_refused(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = options_of(**{"acceleration": "deepspeed", **options})
    monkeypatch.setattr(type(BACKENDS[asked.acceleration]), "problem", lambda self: None)
    with pytest.raises(ConfigError, match=message):
        check_options(asked)


def test_offloading_without_accelerate_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "accelerate" else find(name)
    )
    monkeypatch.setattr(type(BACKENDS["deepspeed"]), "problem", lambda self: None)
    offloading = options_of(acceleration="deepspeed", parallel=ParallelConfig(offload="cpu"))
    with pytest.raises(EngineUnavailableError, match="pip install accelerate on every node"):
        check_options(offloading)


def config_of(**options: Any) -> ScoringConfig:
    return ScoringConfig(input="x", input_col="text", output="y", engine="local", **options)


def test_a_large_model_is_alone_in_its_run() -> None:
    several = {"a": "one", "b": "two"}
    processor = make_processor(config_of(models=several, parallel={"tensor": 2}))
    with pytest.raises(ConfigError, match=r"models\.a: parallel.tensor=2 with several models"):
        processor.check()


def test_without_a_name_it_is_the_backend_that_can() -> None:
    assert ModelOptions.of(config_of(model="m")).acceleration == "auto"
    options = ModelOptions.of(config_of(model="m", parallel={"tensor": 2}))
    assert options.acceleration == "deepspeed"
    assert candidates(replace(options, dtype="float32"), "cpu") == [SPLIT, PLAIN]


def test_a_resumed_run_goes_on_only_with_as_many_processes() -> None:
    earlier = {"accepted": {"backend": "deepspeed", "dtype": "float32", "processes": 2}}
    spec = make_processor(config_of(model="m", parallel={"tensor": 2}))
    assert isinstance(spec, ModelScoring)
    assert spec.pinned(earlier).options.way == SPLIT
    other = make_processor(config_of(model="m", parallel={"tensor": 4}))
    assert isinstance(other, ModelScoring)
    assert other.pinned(earlier).options.way is None
