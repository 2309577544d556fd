"""The gate: which way of running a model may score rows.

It runs once, in one worker before the job, and asks three things. What fits in memory
(`models/memory.py`)? In plain float32: does a text get one score, whatever texts it shares a batch
with or comes after (`models/examination.py`)? Then the backends run the same texts, the preferred
way first: an exception, an output that is not finite, or a difference from plain float32 beyond the
tolerance rules a way out, and the next best is tried. Every worker follows its verdict.

Where plain float32 does not fit, another way takes its place, and the verdict says so: what that
way makes of a text is then its own, but nobody knows what float32 would have made of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparkinfer.exceptions import ConfigError, JobError
from sparkinfer.logs import get_logger
from sparkinfer.models.backends import BACKENDS, PLAIN, wanted_backends
from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.examination import TOLERANCES, Examined, examine
from sparkinfer.models.layout import Layout
from sparkinfer.models.memory import Fit, fitting
from sparkinfer.models.options import ModelOptions
from sparkinfer.models.probes import difference, score_in_batches
from sparkinfer.models.running import RunningModel, load_way
from sparkinfer.models.tokens import NO_LIMIT
from sparkinfer.workers.devices import release_memory
from sparkinfer.workers.slot import WorkerSlot
from sparkinfer.workers.steps import step

logger = get_logger(__name__)


@dataclass(frozen=True)
class Verdict:
    """What the gate decided, and what it learned about the model in the process.

    Attributes:
        accepted: how every worker runs the model.
        device: kind of device it was tried on, `cpu` or `cuda`.
        max_difference: largest difference of a probability from the reference.
        tolerance: largest difference allowed.
        labels: names in the order of the probabilities; empty if the task has none.
        max_length: tokens at which texts are truncated.
        rejected: for each way tried before, its name and why it was rejected.
        unpadded: why texts of unlike length never share a batch; empty if they may.
        layout: how batches are laid out.
        task: what the task's options come to for the model; see `ModelTask`.
        reference: what it was compared with.
        uncompared: why it was not compared with float32; empty if it was.
        memory: what it takes and what there was, by the headers of its files; empty if unknown.
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
    reference: str = "float32"
    uncompared: str = ""
    memory: str = field(default="", compare=False)

    @property
    def details(self) -> str:
        """What to know of it, as a phrase."""
        if self.uncompared:
            return f"not compared with float32: {self.uncompared}"
        return f"largest difference from float32 {self.max_difference:.1g}"

    @property
    def found(self) -> str:
        """All that was found, but not what was rejected."""
        limit = self.max_length
        cut = "not truncated" if limit >= NO_LIMIT else f"truncated at {limit} tokens"
        by = f"differs from {self.reference} by {self.max_difference:.2g}"
        if self.uncompared:
            by = f"not compared with float32 ({self.uncompared}); {by}"
        found = (
            f"{self.accepted} on {self.device}: {by}, allowed {self.tolerance:g}; labels "
            f"{', '.join(self.labels[:8])}; texts are {cut}"
        )
        if self.memory:
            found += f"; {self.memory}"
        if self.unpadded:
            found += f"; texts of unlike length share no batch: {self.unpadded}"
        return found


def run_gate(
    path: Path,
    options: ModelOptions,
    slot: WorkerSlot,
    longest_text: int | None = None,
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
        slot: what the worker has been given.
        longest_text: an upper bound of the UTF-8 bytes of the job's longest text, None if unknown.

    Raises:
        ModelLoadError: the model does not load, fails in the reference, or gives a text another
            score each time.
        ConfigError: the model does not fit in memory, `max_length` exceeds its limit, or the limit
            is too low for the task.
        JobError: the model can no longer be run in the one way that is allowed.
    """
    device = slot.device
    checkpoint = Checkpoint(path, options, device, others=slot.others)
    _ = checkpoint.task  # refuses what it cannot do, before any weights
    fit = fitting(checkpoint, candidates(options, device), longest_text, slot.on_host)
    with step(f"scoring probe texts in {fit.shown}"):
        found = examine(checkpoint, longest_text, fit.reference)
    choice = _choose(checkpoint, fit, found)
    _refuse_another_way(options, choice)
    model = choice.model or load_way(checkpoint, fit.reference)
    return model, Verdict(
        accepted=choice.way,
        device=device.partition(":")[0],
        max_difference=choice.difference,
        tolerance=_tolerance(options, choice.way),
        labels=model.labels,
        max_length=checkpoint.max_length,
        rejected=choice.rejected,
        unpadded=found.unpadded,
        layout=checkpoint.layout,
        task=dict(checkpoint.task.resolved),
        reference=fit.shown,
        uncompared=fit.uncompared,
        memory=fit.plan,
    )


@dataclass(frozen=True)
class _Choice:
    """The way that is accepted.

    Attributes:
        way: which.
        rejected: for each way tried before, its name and why.
        difference: from the reference.
        model: run in this way; None: it is the reference, to be loaded.
    """

    way: Acceleration
    rejected: tuple[tuple[str, str], ...]
    difference: float = 0.0
    model: RunningModel | None = None


def _choose(checkpoint: Checkpoint, fit: Fit, found: Examined) -> _Choice:
    rejected = list(fit.rejected)
    for name, reason in rejected:
        logger.warning("%s not used: %s", name, reason)
    for way in fit.ways:
        if way == fit.reference:
            break
        model, largest, reason = _try(checkpoint, way, found, fit.shown)
        if model is not None and not reason:
            return _Choice(way, tuple(rejected), largest, model)
        logger.warning("%s not used: %s", way, reason)
        rejected.append((str(way), reason))
        del model  # two copies may not fit on the device
        release_memory(checkpoint.device)
    return _Choice(fit.reference, tuple(rejected))


def _tolerance(options: ModelOptions, way: Acceleration) -> float:
    return options.tolerance or TOLERANCES[way.dtype]


def _refuse_another_way(options: ModelOptions, choice: _Choice) -> None:
    """Raises JobError if only one way is allowed and it was rejected."""
    if options.way in (None, choice.way):
        return
    reasons = "; ".join(reason for _, reason in choice.rejected)
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
    checkpoint: Checkpoint, way: Acceleration, found: Examined, reference: str
) -> tuple[RunningModel | None, float, str]:
    """Returns the model, its largest difference from the reference, and why it fails, if it does.

    The reason is empty if the model passes.
    """
    try:
        model = load_way(checkpoint, way)
        with step(f"scoring probe texts with {way}"):
            scored = score_in_batches(model, found.probes)
    except Exception as error:  # a wrapper may raise anything; each failure is recorded
        return None, float("nan"), f"{type(error).__name__}: {' '.join(str(error).split())}"
    largest, reason = difference(model, found.scored, scored)
    tolerance = _tolerance(checkpoint.options, way)
    if not reason and not largest <= tolerance:
        reason = f"differs from {reference} by {largest:.2g}, allowed {tolerance:g}"
    return model, largest, reason
