"""What wraps a model to make it faster, behind a gate that compares it with the plain one.

The gate runs once, in one worker before the job. It scores a padded probe batch in plain float32,
then tries the wanted acceleration on the same texts. An exception or a difference beyond the
tolerance makes it load the model anew (wrapping changes a model in place) and try the next best.
Its verdict is what every worker follows.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import ConfigError, EngineUnavailableError, ModelLoadError
from sparkinfer.models.encoding import Encoder, length_limit, pads_batches
from sparkinfer.models.tasks import get_task

logger = logging.getLogger(__name__)

TOLERANCES = {"float32": 1e-4, "float16": 0.01, "bfloat16": 0.05}
"""Largest difference of a probability from float32 that rounding to the dtype explains.

Half-precision formats keep 11 and 8 significant bits; a silently wrong kernel was seen to be off by
0.35. An output that is no probability is compared relative to its size where that exceeds 1.
"""

PROBE_TEXTS = (
    "good",
    "",
    "A dull, endless film.",
    "I would buy it again without thinking twice, and so would my sister.",
    "Not bad at all - for 3.99 € it does what it says; the box was torn, though.",
    "Die Bedienung war freundlich, aber das Essen kam kalt. 很好吃!",
    "The first half drags, the second half rushes, and between the two nobody seems to have asked "
    "what the story was meant to be about; still, the music is lovely.",
    "word " * 60,
)
"""Texts of very different lengths, so that the probe batch is padded."""


@dataclass(frozen=True)
class Acceleration:
    """One way to run a model.

    Attributes:
        backend: `none` or `deepspeed`.
        dtype: number format of the weights.
        kernel_inject: whether DeepSpeed replaces layers by its own kernels.
    """

    backend: str
    dtype: str
    kernel_inject: bool = False

    def __str__(self) -> str:
        kernels = " with kernel injection" if self.kernel_inject else ""
        return f"{self.backend}{kernels} in {self.dtype}"


@dataclass(frozen=True)
class Verdict:
    """What the gate decided, and what it learned of the model on the way.

    Attributes:
        accepted: how every worker runs the model.
        device: kind of device it was tried on, `cpu` or `cuda`.
        max_difference: largest difference of a probability from plain float32.
        tolerance: what was allowed.
        rejected: for each way tried before, its name and why it was not taken.
        labels: names in the order of the probabilities; empty where the task has none.
        max_length: tokens at which texts are cut.
    """

    accepted: Acceleration
    device: str
    max_difference: float
    tolerance: float
    labels: tuple[str, ...]
    max_length: int
    rejected: tuple[tuple[str, str], ...] = field(default=())


class LoadedModel:
    """A Hugging Face pipeline, wrapped as an `Acceleration` says, ready to score batches.

    Args:
        path: folder with the model's files.
        config: task, length limit and what loading allows.
        device: torch device, such as `cpu` or `cuda:0`.
    """

    def __init__(self, path: Path, config: ScoringConfig, device: str) -> None:
        self.task = get_task(config.task)
        self.device = device
        self.pipe = _load_pipeline(path, config, device)
        model_config = self.pipe.model.config
        limit = length_limit(self.pipe.tokenizer, model_config, config.max_length)
        self.encoder = Encoder(self.pipe.tokenizer, limit)
        self.pads_batches = pads_batches(self.pipe.tokenizer, model_config)
        self.labels = self.task.labels(model_config)
        self._decode = self.task.decoder(self.pipe)

    def accelerate(self, acceleration: Acceleration) -> None:
        """Casts and wraps the model in place; on an exception it must be loaded anew."""
        import torch

        dtype = getattr(torch, acceleration.dtype)
        if acceleration.backend == "deepspeed":
            self.pipe.model = _wrap_with_deepspeed(self.pipe.model, dtype, acceleration, self)
        else:
            self.pipe.model.to(dtype)

    def score(self, inputs: dict[str, Any]) -> Any:
        """Returns the task's columns for one padded batch, as a `pa.RecordBatch`.

        Args:
            inputs: int64 tensors (rows, longest) by input name.
        """
        import torch

        with torch.inference_mode():
            return self._decode(self.pipe.forward(inputs))


def run_gate(path: Path, config: ScoringConfig, device: str) -> tuple[LoadedModel, Verdict]:
    """Returns the model in the best way that passes, and the verdict.

    Cost: one load of the model and two passes over a small batch; a rejected way costs another
    load. Runs where the model runs, never on a Spark driver.

    Raises:
        ModelLoadError: the model does not load or fails on the probe in plain float32.
    """
    reference = None
    rejected: list[tuple[str, str]] = []
    for acceleration in _candidates(config, device):
        model = LoadedModel(path, config, device)
        if reference is None:
            reference = _score_probe(model)
        tolerance = config.gate.tolerance or TOLERANCES[acceleration.dtype]
        difference, reason = _try(model, acceleration, reference, tolerance)
        if not reason:
            return model, Verdict(
                accepted=acceleration,
                device=device.partition(":")[0],
                max_difference=difference,
                tolerance=tolerance,
                labels=model.labels,
                max_length=model.encoder.max_length,
                rejected=tuple(rejected),
            )
        logger.warning("%s not used: %s", acceleration, reason)
        rejected.append((str(acceleration), reason))
        del model  # two copies may not fit on the device
        release_memory(device)
    raise ModelLoadError(  # plain float32 is the last candidate and equals itself
        f"no way of running the model passed the gate: {rejected}"
    )


def load_accepted(
    path: Path, config: ScoringConfig, device: str, accepted: Acceleration
) -> LoadedModel:
    """Returns the model run as a verdict says."""
    model = LoadedModel(path, config, device)
    model.accelerate(accepted)
    return model


def import_libraries(config: ScoringConfig) -> None:
    """Imports what loading a model needs, so that a worker that scores later need not wait."""
    _quiet_libraries()
    importlib.import_module("transformers.pipelines")
    if config.acceleration != "none" and _has_deepspeed():
        importlib.import_module("deepspeed")


def release_memory(device: str) -> None:
    """Gives back what freed models and batches held on the device."""
    gc.collect()
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()


def check_available(config: ScoringConfig) -> None:
    """Raises EngineUnavailableError if a backend was asked for that is not installed."""
    if config.acceleration == "deepspeed" and not _has_deepspeed():
        raise EngineUnavailableError(
            "acceleration='deepspeed': the package deepspeed is not installed; run "
            "pip install deepspeed or use --acceleration auto"
        )


def _candidates(config: ScoringConfig, device: str) -> list[Acceleration]:
    """Returns the ways to try, the wanted one first and plain float32 last."""
    dtype = config.dtype if config.dtype != "auto" else native_dtype(device)
    if dtype == "float16" and not device.startswith("cuda"):
        raise ConfigError(
            f"dtype='float16' on device {device}: CPUs compute float16 slowly or not at all; use "
            "dtype='bfloat16', 'float32' or 'auto'"
        )
    wanted = []
    if config.acceleration == "deepspeed" or (config.acceleration == "auto" and _has_deepspeed()):
        # `auto` leaves kernels out: they are wrong or absent for most architectures, and right
        # for none that could be measured yet.
        if config.deepspeed.kernel_inject:
            wanted.append(Acceleration("deepspeed", dtype, kernel_inject=True))
        wanted.append(Acceleration("deepspeed", dtype))
    wanted += [Acceleration("none", dtype), Acceleration("none", "float32")]
    return list(dict.fromkeys(wanted))


def native_dtype(device: str) -> str:
    """Returns the fastest number format that the device computes in hardware."""
    if device.startswith("cuda"):
        return "float16"
    flags = _cpu_flags()
    return "bfloat16" if {"avx512_bf16", "amx_bf16"} & flags else "float32"


def _cpu_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return set()
    lines = (line for line in text.splitlines() if line.startswith(("flags", "Features")))
    return set(next(lines, "").split())


def _has_deepspeed() -> bool:
    return importlib.util.find_spec("deepspeed") is not None


def _try(
    model: LoadedModel,
    acceleration: Acceleration,
    reference: npt.NDArray[np.float32],
    tolerance: float,
) -> tuple[float, str]:
    """Returns the largest difference from the reference, and why the way fails ("" if not)."""
    try:
        model.accelerate(acceleration)
        values = _score_probe(model)
    except Exception as error:  # a wrapper may raise anything; each failure is recorded
        return float("nan"), f"{type(error).__name__}: {' '.join(str(error).split())}"
    if values.shape != reference.shape:
        return float("nan"), "gives an output that is not finite"
    scale = np.maximum(np.abs(reference), 1.0)
    difference = float(np.max(np.abs(values - reference) / scale, initial=0.0))
    if not difference <= tolerance:
        return difference, f"differs from float32 by {difference:.2g}, allowed {tolerance:g}"
    return difference, ""


def _score_probe(model: LoadedModel) -> npt.NDArray[np.float32]:
    texts = list(PROBE_TEXTS)
    encoded = model.encoder.encode(texts)
    rows = np.array([row for row in range(len(texts)) if row not in encoded.errors])
    groups = [rows] if model.pads_batches else [rows[i : i + 1] for i in range(len(rows))]
    values = [
        model.task.gate_values(model.score(model.encoder.collate(encoded, group)))
        for group in groups
    ]
    return np.concatenate(values)


def _load_pipeline(path: Path, config: ScoringConfig, device: str) -> Any:
    """Returns the plain float32 pipeline of the task.

    Raises:
        ModelLoadError: the files do not load as a model of this task.
    """
    _quiet_libraries()
    import torch
    import transformers

    auto_class = getattr(transformers, get_task(config.task).auto_class)
    trust = config.loading.trust_remote_code
    use_safetensors = None if config.loading.allow_pickle_weights else True
    try:
        model, report = auto_class.from_pretrained(
            path,
            trust_remote_code=trust,
            use_safetensors=use_safetensors,
            output_loading_info=True,
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=trust)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, ...
        reason = " ".join(str(error).split())[:500]
        raise ModelLoadError(f"model {str(path)!r} does not load: {reason}") from error
    if report["missing_keys"]:
        raise ModelLoadError(
            f"model {str(path)!r} has no weights for {sorted(report['missing_keys'])[:3]}: they "
            f"would be random; give a model that was trained for {config.task!r}"
        )
    if device.startswith("cuda"):
        torch.cuda.set_device(torch.device(device))
    return transformers.pipeline(
        config.task, model=model.float().eval(), tokenizer=tokenizer, device=torch.device(device)
    )


def _wrap_with_deepspeed(
    model: Any, dtype: Any, acceleration: Acceleration, loaded: LoadedModel
) -> Any:
    """Returns `deepspeed.init_inference` around the model, which is changed in place."""
    _quiet_libraries()
    import deepspeed

    # The pipeline turns the cache off through a parameter that it looks for in the signature of
    # `forward`; DeepSpeed's wrapper hides that signature.
    model.config.use_cache = False
    if not acceleration.kernel_inject:
        return deepspeed.init_inference(model, dtype=dtype, replace_with_kernel_inject=False)
    model.set_attn_implementation("eager")  # with sdpa, injected layers misread the padding mask
    model.config.return_tuple = False  # transformers 5 expects layers to return a tensor
    return deepspeed.init_inference(
        model,
        dtype=dtype,
        replace_with_kernel_inject=True,
        max_out_tokens=loaded.encoder.max_length,
    )


def _quiet_libraries() -> None:
    """Keeps the libraries' progress bars and notices out of the run's output."""
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if _sees_nvidia() else "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _sees_nvidia() -> bool:
    import torch

    return bool(torch.cuda.is_available())
