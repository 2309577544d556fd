import importlib.util
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sparkinfer.exceptions import ConfigError, EngineUnavailableError, ModelLoadError
from sparkinfer.models import gate
from sparkinfer.models.backends import PLAIN, check_acceleration
from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.backends.deepspeed import DeepSpeedBackend
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.gate import run_gate
from sparkinfer.models.running import RunningModel, load_way
from sparkinfer.option_groups import DeepSpeedConfig, GateConfig
from sparkinfer.workers import devices
from sparkinfer.workers.slot import WorkerSlot
from tests.model_options import options_of


def module(model: RunningModel) -> Any:
    return model.runtime.pipe.model  # type: ignore[attr-defined]


def parameter(model: RunningModel) -> torch.Tensor:
    return next(iter(module(model).parameters()))


def test_without_acceleration_the_model_is_the_plain_one(classifier: Path) -> None:
    model, verdict = run_gate(
        classifier, options_of(acceleration="none", dtype="float32"), WorkerSlot("cpu")
    )
    assert verdict.accepted == Acceleration("none", "float32")
    assert (verdict.max_difference, verdict.rejected) == (0.0, ())
    assert (verdict.labels, verdict.max_length) == (("NEGATIVE", "POSITIVE"), 64)
    assert parameter(model).dtype == torch.float32


def test_deepspeed_wraps_the_pipelines_model(classifier: Path) -> None:
    deepspeed = pytest.importorskip("deepspeed", reason="needs the extra deepspeed")
    model, verdict = run_gate(
        classifier, options_of(acceleration="deepspeed", dtype="float32"), WorkerSlot("cpu")
    )
    assert verdict.accepted == Acceleration("deepspeed", "float32")
    assert isinstance(module(model), deepspeed.InferenceEngine)
    assert verdict.max_difference <= verdict.tolerance


def test_kernel_injection_that_fails_falls_back_and_is_recorded(
    classifier: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("deepspeed", reason="needs the extra deepspeed")
    config = options_of(
        acceleration="deepspeed", dtype="float32", deepspeed=DeepSpeedConfig(kernel_inject=True)
    )
    with caplog.at_level(logging.WARNING, logger=gate.__name__):
        _, verdict = run_gate(classifier, config, WorkerSlot("cpu"))
    assert verdict.accepted == Acceleration("deepspeed", "float32")
    [(name, reason)] = verdict.rejected
    assert name == "deepspeed with kernel injection in float32"
    assert reason
    assert "kernel injection" in caplog.text


def test_a_wrong_result_is_rejected_and_the_model_loaded_anew(
    classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(self: Any, module: Any, *_: Any) -> Any:
        with torch.no_grad():
            module.classifier.weight.mul_(-1)
        return module

    monkeypatch.setattr(DeepSpeedBackend, "_wrap", spoil)
    plain = load_way(Checkpoint(classifier, options_of(), "cpu"), PLAIN)
    options = options_of(dtype="float32", acceleration="deepspeed")
    model, verdict = run_gate(classifier, options, WorkerSlot("cpu"))
    assert verdict.accepted == Acceleration("none", "float32")
    [(name, reason)] = verdict.rejected
    assert name == "deepspeed in float32"
    assert "differs from float32 by" in reason
    assert torch.equal(module(model).classifier.weight, module(plain).classifier.weight)


def test_a_dtype_beyond_the_tolerance_falls_back_to_float32(classifier: Path) -> None:
    config = options_of(acceleration="none", dtype="bfloat16", gate=GateConfig(tolerance=1e-9))
    model, verdict = run_gate(classifier, config, WorkerSlot("cpu"))
    assert verdict.accepted == Acceleration("none", "float32")
    assert [name for name, _ in verdict.rejected] == ["none in bfloat16"]
    assert parameter(model).dtype == torch.float32


def test_bfloat16_passes_within_its_tolerance(classifier: Path) -> None:
    config = options_of(acceleration="none", dtype="bfloat16")
    model, verdict = run_gate(classifier, config, WorkerSlot("cpu"))
    assert verdict.accepted == Acceleration("none", "bfloat16")
    assert 0 < verdict.max_difference <= verdict.tolerance
    assert parameter(model).dtype == torch.bfloat16


def test_a_worker_runs_the_model_as_the_verdict_says(classifier: Path) -> None:
    model = load_way(Checkpoint(classifier, options_of(), "cpu"), Acceleration("none", "bfloat16"))
    assert parameter(model).dtype == torch.bfloat16


def test_deepspeed_asked_for_and_not_installed_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EngineUnavailableError, match="pip install deepspeed"):
        check_acceleration("deepspeed")
    check_acceleration("auto")


def test_a_backend_that_was_asked_for_and_that_a_worker_lacks_is_told(
    classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DeepSpeedBackend, "problem", lambda self: "not there")
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    config = options_of(acceleration="deepspeed", dtype="float32")
    _, verdict = run_gate(classifier, config, WorkerSlot("cpu"))
    assert verdict.accepted == Acceleration("none", "float32")
    [(name, reason)] = verdict.rejected
    assert name == "deepspeed in float32"
    assert "deepspeed" in reason


def test_an_unknown_acceleration_names_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match="acceleration='warp': expected one of auto, none, deepspeed, openvino"
    ):
        check_acceleration("warp")


def test_float16_on_a_cpu_is_refused(classifier: Path) -> None:
    with pytest.raises(ConfigError, match="dtype='float16' on device cpu"):
        run_gate(classifier, options_of(dtype="float16"), WorkerSlot("cpu"))


@pytest.mark.parametrize(
    ("device", "flags", "expected"),
    [
        ("cuda:0", set(), ["float16", "bfloat16"]),
        ("cuda:1", set(), ["float16"]),
        ("cpu", {"avx2", "avx512f"}, ["float32"]),
        ("cpu", {"avx512_bf16"}, ["bfloat16", "float32"]),
        ("cpu", {"amx_bf16"}, ["bfloat16", "float32"]),
    ],
)
def test_the_dtypes_are_what_the_device_computes_natively(
    monkeypatch: pytest.MonkeyPatch, device: str, flags: set[str], expected: list[str]
) -> None:
    monkeypatch.setattr(devices, "_cpu_info", lambda: {"flags": " ".join(flags)})
    monkeypatch.setattr(devices, "_has_bfloat16", lambda device: device == "cuda:0")
    assert devices.native_dtypes(device) == expected


def test_on_a_gpu_auto_tries_bfloat16_between_float16_and_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(devices, "_has_bfloat16", lambda device: True)
    ways = gate.candidates(options_of(acceleration="none"), "cuda:0")
    assert [way.dtype for way in ways] == ["float16", "bfloat16", "float32"]


def test_the_model_of_a_cpu_is_what_linux_tells_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    about = {"model name": "Some CPU", "flags": "fpu avx2 sse amx_bf16"}
    monkeypatch.setattr(devices, "_cpu_info", lambda: about)
    assert devices.device_model("cpu") == "Some CPU amx_bf16 avx2"


def test_a_host_tells_of_its_cpu() -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("it is read from /proc/cpuinfo, which is Linux's")
    assert devices._cpu_info()


def test_a_model_without_a_trained_head_is_refused(tmp_path: Path, classifier: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    body = AutoModelForSequenceClassification.from_pretrained(classifier).bert
    body.save_pretrained(tmp_path / "body")
    AutoTokenizer.from_pretrained(classifier).save_pretrained(tmp_path / "body")
    with pytest.raises(ModelLoadError, match="has no weights for .*classifier"):
        Checkpoint(tmp_path / "body", options_of(), "cpu").module()


def test_damaged_weights_do_not_load(tmp_path: Path, classifier: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in classifier.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "model.safetensors").write_bytes(b"no tensors here")
    with pytest.raises(ModelLoadError, match="does not load"):
        Checkpoint(folder, options_of(), "cpu").module()
