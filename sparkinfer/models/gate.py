"""The gate: which way of running a model may score rows.

It runs once, in one worker before the job, and asks two things. In plain float32: does a text get
one score, whatever texts it shares a batch with or comes after (`models/examination.py`)? Then the
backends run the same texts, the preferred way first: an exception, an output that is not finite, or
a difference from plain float32 beyond the tolerance rules a way out, and the next best is tried.
Every worker follows its verdict.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from sparkinfer.exceptions import ConfigError, JobError
from sparkinfer.logs import get_logger
from sparkinfer.models.backends import BACKENDS, PLAIN, wanted_backends
from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.examination import examine
from sparkinfer.models.layout import Layout
from sparkinfer.models.options import ModelOptions
from sparkinfer.models.probes import Probes, difference, score_in_batches
from sparkinfer.models.running import RunningModel, load_way
from sparkinfer.models.tokens import NO_LIMIT
from sparkinfer.workers.devices import release_memory
from sparkinfer.workers.steps import step

logger = get_logger(__name__)

TOLERANCES = {"float32": 1e-4, "float16": 0.01, "bfloat16": 0.05}
"""Largest difference of a probability from float32 that rounding to the dtype explains.

Half-precision formats keep 11 and 8 significant bits; a silently wrong kernel was observed to be
off by 0.35. An output that is not a probability is compared relative to its size if that exceeds 1.
"""


@dataclass(frozen=True)
class Verdict:
    """What the gate decided, and what it learned about the model in the process.

    Attributes:
        accepted: how every worker runs the model.
        device: kind of device it was tried on, `cpu` or `cuda`.
        max_difference: largest difference of a probability from plain float32.
        tolerance: largest difference allowed.
        labels: names in the order of the probabilities; empty if the task has none.
        max_length: tokens at which texts are truncated.
        rejected: for each way tried before, its name and why it was rejected.
        unpadded: why texts of unlike length never share a batch; empty if they may.
        layout: how batches are laid out.
        task: what the task's options come to for the model; see `ModelTask`.
    """

    accepted: Acceleration
    device: str
    max_difference: float
    tolerance: float
    labels: tuple[str, ...]
    max_length: int
    rejected: tuple[tuple[str, str], ...] = field(default=())
    unpadded: str = ""
    layout: Layout = field(default=Layout())
    task: Mapping[str, Any] = field(default_factory=dict)

    @property
    def details(self) -> str:
        """What to know of it, as a phrase."""
        return f"largest difference from float32 {self.max_difference:.1g}"

    @property
    def found(self) -> str:
        """All that was found, but not what was rejected."""
        limit = self.max_length
        cut = "not truncated" if limit >= NO_LIMIT else f"truncated at {limit} tokens"
        found = (
            f"{self.accepted} on {self.device}: differs from float32 by "
            f"{self.max_difference:.2g}, allowed {self.tolerance:g}; labels "
            f"{', '.join(self.labels[:8])}; texts are {cut}"
        )
        if self.unpadded:
            found += f"; texts of unlike length share no batch: {self.unpadded}"
        return found


def run_gate(
    path: Path, options: ModelOptions, device: str, longest_text: int | None = None
) -> tuple[RunningModel, Verdict]:
    """Returns the model, run in the best way that passes, and the verdict.

    Cost: one load of the model and, in plain float32, some twenty short texts, one by one and in a
    batch, and the longest text three times over (see `TESTED_TOKENS` for its greatest length). Each
    other way that is tried costs the batch and twice the longest text; a rejected way costs another
    load, and so does a model whose state changes. Runs where the model runs, never on a Spark
    driver.

    Args:
        path: folder with the model's files.
        options: how it is to be run.
        device: torch device.
        longest_text: an upper bound of the UTF-8 bytes of the job's longest text, None if unknown.

    Raises:
        ModelLoadError: the model does not load, fails in plain float32, or gives a text another
            score each time.
        ConfigError: `max_length` exceeds the model's limit, or the limit is too low for the task.
        JobError: the model can no longer be run in the one way that is allowed.
    """
    checkpoint = Checkpoint(path, options, device)
    _ = checkpoint.task  # refuses what it cannot do, before any weights
    *ways, plain = candidates(options, device)
    with step("scoring probe texts in plain float32"):
        found = examine(checkpoint, longest_text)
    rejected: list[tuple[str, str]] = []
    accepted, largest = plain, 0.0
    model: RunningModel | None = None
    for way in ways:
        tolerance = options.tolerance or TOLERANCES[way.dtype]
        model, largest, reason = _try(checkpoint, way, found.probes, found.scored, tolerance)
        if model is not None and not reason:
            accepted = way
            break
        logger.warning("%s not used: %s", way, reason)
        rejected.append((str(way), reason))
        model, largest = None, 0.0  # two copies may not fit on the device
        release_memory(device)
    _refuse_another_way(options, accepted, rejected)
    model = model or load_way(checkpoint, plain)
    return model, Verdict(
        accepted=accepted,
        device=device.partition(":")[0],
        max_difference=largest,
        tolerance=options.tolerance or TOLERANCES[accepted.dtype],
        labels=model.labels,
        max_length=checkpoint.max_length,
        rejected=tuple(rejected),
        unpadded=found.unpadded,
        layout=checkpoint.layout,
        task=dict(checkpoint.task.resolved),
    )


def _refuse_another_way(
    options: ModelOptions, accepted: Acceleration, rejected: list[tuple[str, str]]
) -> None:
    """Raises JobError if only one way is allowed and it was rejected."""
    if options.way in (None, accepted):
        return
    reasons = "; ".join(reason for _, reason in rejected)
    raise JobError(
        f"the output was begun with {options.way}, which does not work now: {reasons}. Run again "
        "where it works, or give --overwrite to score everything in another way"
    )


def candidates(options: ModelOptions, device: str) -> list[Acceleration]:
    """Returns the ways to try, the preferred one first and plain float32 last."""
    if options.way is not None:
        return [options.way, PLAIN] if options.way != PLAIN else [PLAIN]
    dtypes = [options.dtype] if options.dtype != "auto" else native_dtypes(device)
    if "float16" in dtypes and not device.startswith("cuda"):
        raise ConfigError(
            f"dtype='float16' on device {device}: CPUs compute float16 slowly or not at all; use "
            "dtype='bfloat16', 'float32' or 'auto'"
        )
    wanted = [*wanted_backends(options.acceleration), BACKENDS[PLAIN.backend]]
    ways = [way for dtype in dtypes for backend in wanted for way in backend.ways(options, dtype)]
    return [*(way for way in dict.fromkeys(ways) if way != PLAIN), PLAIN]


def native_dtypes(device: str) -> list[str]:
    """Returns the number formats that the device computes fast in hardware, the fastest first.

    What float16 cannot hold, bfloat16 may: its numbers reach as far as those of float32.
    """
    if device.startswith("cuda"):
        return ["float16", "bfloat16"] if _has_bfloat16(device) else ["float16"]
    flags = _cpu_flags()
    return ["bfloat16"] if {"avx512_bf16", "amx_bf16"} & flags else ["float32"]


def _has_bfloat16(device: str) -> bool:
    import torch

    return bool(torch.cuda.get_device_capability(torch.device(device)) >= (8, 0))


def _cpu_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return set()
    lines = (line for line in text.splitlines() if line.startswith(("flags", "Features")))
    return set(next(lines, "").split())


def _try(
    checkpoint: Checkpoint,
    way: Acceleration,
    probes: Probes,
    reference: pa.RecordBatch,
    tolerance: float,
) -> tuple[RunningModel | None, float, str]:
    """Returns the model, its largest difference from the reference, and why it fails, if it does.

    The reason is empty if the model passes.
    """
    try:
        model = load_way(checkpoint, way)
        with step(f"scoring probe texts with {way}"):
            found = score_in_batches(model, probes)
    except Exception as error:  # a wrapper may raise anything; each failure is recorded
        return None, float("nan"), f"{type(error).__name__}: {' '.join(str(error).split())}"
    largest, reason = difference(model, reference, found)
    if not reason and not largest <= tolerance:
        reason = f"differs from float32 by {largest:.2g}, allowed {tolerance:g}"
    return model, largest, reason
