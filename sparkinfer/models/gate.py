"""The gate: which way of running a model may score rows.

It runs once, in one worker before the job, and asks four things. What fits in memory
(`models/memory.py`)? In plain float32: does a text get one score, whatever texts it shares a batch
with or comes after (`models/examination.py`)? Then the backends run the same texts, the preferred
way first: an exception, an output that is not finite, or a difference from plain float32 beyond the
tolerance rules a way out, and the next best is tried. Of those that pass in one number format, the
first is taken, or the fastest, if the job is long enough to be measured for (`models/speed.py`).
Every worker follows its verdict.

Where plain float32 does not fit, another way takes its place, and the verdict says so: what that
way makes of a text is then its own, but nobody knows what float32 would have made of it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sparkinfer.exceptions import ConfigError, JobError
from sparkinfer.logs import get_logger
from sparkinfer.models.ahead import NOTHING_KNOWN, RowsAhead
from sparkinfer.models.backends import PLAIN, wanted_backends
from sparkinfer.models.backends.base import Acceleration, shown_way
from sparkinfer.models.backends.graphs import GraphRuntime
from sparkinfer.models.backends.openvino import INT8
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.examination import TOLERANCES, Examined, examine
from sparkinfer.models.layout import Layout
from sparkinfer.models.memory import Fit, fitting
from sparkinfer.models.options import ModelOptions
from sparkinfer.models.probes import difference, score_alone, score_in_batches
from sparkinfer.models.running import RunningModel, load_way
from sparkinfer.models.speed import MARGIN, Measured, SpeedTrial
from sparkinfer.models.tokens import NO_LIMIT
from sparkinfer.workers.devices import device_model, native_dtypes, release_memory
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
        device_model: what device it was tried on; see `workers.devices.device_model`.
        speeds: for each way that was measured, its name and tokens per second of one replica.
        is_remembered: whether it was found before, on this node.
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
    device_model: str = ""
    speeds: tuple[tuple[str, float], ...] = field(default=(), compare=False)
    is_remembered: bool = field(default=False, compare=False)

    @property
    def is_reference(self) -> bool:
        """Whether it is what the other ways were compared with."""
        return self.accepted == PLAIN and not self.uncompared

    @property
    def details(self) -> str:
        """What to know of it, as a phrase."""
        if self.uncompared:
            return f"not compared with float32: {self.uncompared}"
        before = ", as an earlier run found" if self.is_remembered else ""
        return (
            f"at most {self.max_difference:.1g} from {PLAIN.shown} on the probe texts, "
            f"{self.tolerance:g} allowed{before}"
        )

    @property
    def shown_speeds(self) -> str:
        """What was measured, as a phrase; empty if nothing was."""
        return ", ".join(f"{shown_way(way)} {rate:,.0f}" for way, rate in self.speeds)

    @property
    def found(self) -> str:
        """All that was found, but not what was rejected."""
        limit = self.max_length
        cut = "not truncated" if limit >= NO_LIMIT else f"truncated at {limit} tokens"
        by = f"differs from {self.reference} by {self.max_difference:.2g}"
        if self.uncompared:
            by = f"not compared with float32 ({self.uncompared}); {by}"
        found = f"{self.accepted.shown} on {self.device}: {by}, allowed {self.tolerance:g}"
        if self.labels:
            found += f"; labels {', '.join(self.labels[:8])}"
        found += f"; texts are {cut}"
        if self.memory:
            found += f"; {self.memory}"
        if self.speeds:
            found += f"; tokens/s measured: {self.shown_speeds}"
        if self.unpadded:
            found += f"; texts of unlike length share no batch: {self.unpadded}"
        return found


def run_gate(
    path: Path,
    options: ModelOptions,
    slot: WorkerSlot,
    ahead: RowsAhead = NOTHING_KNOWN,
    fingerprint: str | None = None,
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
        ahead: what is known of the job.
        fingerprint: of the files, None if unknown.

    Raises:
        ModelLoadError: the model does not load, fails in the reference, or gives a text another
            score each time.
        ConfigError: the model does not fit in memory, `max_length` exceeds its limit, or the limit
            is too low for the task.
        JobError: the model can no longer be run in the one way that is allowed.
    """
    device = slot.device
    checkpoint = Checkpoint(path, options, device, others=slot.others, fingerprint=fingerprint)
    _ = checkpoint.task  # refuses what it cannot do, before any weights
    ways = candidates(options, device)
    fit = fitting(checkpoint, ways, ahead.longest_text, slot.on_host)
    with step(f"scoring probe texts in {fit.shown}"):
        found = examine(checkpoint, ahead.longest_text, fit.reference)
    trial = _Trial(checkpoint, fit, found, SpeedTrial(options, ahead))
    choice = trial.choose([way for way in ways if way in fit.ways or way == fit.reference])
    _refuse_another_way(options, choice, trial.rejected)
    model = choice.model or load_way(checkpoint, choice.way)
    return model, Verdict(
        accepted=choice.way,
        device=device.partition(":")[0],
        max_difference=choice.difference,
        tolerance=tolerance_of(options, choice.way),
        labels=model.labels,
        max_length=checkpoint.max_length,
        rejected=tuple(trial.rejected),
        unpadded=found.unpadded,
        layout=checkpoint.layout,
        task=dict(checkpoint.task.resolved),
        reference=fit.shown,
        uncompared=fit.uncompared,
        memory=fit.plan,
        device_model=device_model(device),
        speeds=tuple((str(way), one.tokens_per_s) for way, one in trial.measured.items()),
    )


def run_as(
    verdict: Verdict,
    path: Path,
    options: ModelOptions,
    slot: WorkerSlot,
    ahead: RowsAhead,
    fingerprint: str,
) -> RunningModel:
    """Returns the model, run as an earlier gate decided; for the arguments see `run_gate`.

    Raises:
        ConfigError: there is too little memory for it now.
    """
    found = (verdict.max_length, verdict.layout, slot.others, fingerprint)
    checkpoint = Checkpoint(path, options, slot.device, *found)
    way = verdict.accepted
    fit = fitting(checkpoint, [way, PLAIN], ahead.longest_text, slot.on_host)
    if way not in (*fit.ways, fit.reference):
        raise ConfigError("; ".join(reason for _, reason in fit.rejected))
    return load_way(checkpoint, way)


@dataclass(frozen=True)
class _Choice:
    """A way that passes.

    Attributes:
        way: which.
        difference: from the reference.
        model: run in this way; None: it is to be loaded.
    """

    way: Acceleration
    difference: float = 0.0
    model: RunningModel | None = None


class _Trial:
    """The trial of the ways of running a model.

    Args:
        checkpoint: the model.
        fit: the ways that fit, and the reference.
        found: what the reference says of the gate's texts.
        speed: measures them.

    Attributes:
        rejected: for each way that does not pass, its name and why.
        measured: the speed of each way that was measured.
    """

    def __init__(
        self, checkpoint: Checkpoint, fit: Fit, found: Examined, speed: SpeedTrial
    ) -> None:
        self._checkpoint = checkpoint
        self._fit = fit
        self._found = found
        self._speed = speed
        self.rejected = list(fit.rejected)
        self.measured: dict[Acceleration, Measured] = {}
        for name, reason in self.rejected:
            logger.warning("%s not used: %s", shown_way(name), reason)

    def choose(self, ways: Sequence[Acceleration]) -> _Choice:
        """Returns the best way that passes.

        Args:
            ways: the preferred one first; those of a number format stand together.
        """
        reference = self._fit.reference
        for dtype in dict.fromkeys(way.dtype for way in ways):
            alike = [way for way in ways if way.dtype == dtype]
            passing = self._passing(alike)
            if passing is not None:
                return passing
        return _Choice(reference)

    def _passing(self, ways: Sequence[Acceleration]) -> _Choice | None:
        """Returns the best way of one number format that passes, None if none does."""
        best: _Choice | None = None
        for way in ways:
            if best is not None and not self._speed.has_time(self.measured[best.way].cost_s):
                break
            started = time.perf_counter()
            tried = self._try(way)
            if tried is None:
                continue
            if not self._speed.is_worth_it or len(ways) == 1:
                return tried
            model = tried.model or load_way(self._checkpoint, way)
            speed = self._speed.measure(model, time.perf_counter() - started)
            self.measured[way] = speed
            del model
            tried = replace(tried, model=None)  # two copies may not fit on the device
            release_memory(self._checkpoint.device)
            fastest = 0.0 if best is None else self.measured[best.way].tokens_per_s
            if speed.tokens_per_s > fastest * MARGIN:
                best = tried
        return best

    def _try(self, way: Acceleration) -> _Choice | None:
        """Returns a way if it passes."""
        if way == self._fit.reference:
            return _Choice(way)
        model, largest, reason = try_way(self._checkpoint, way, self._found, self._fit.shown)
        if model is not None and not reason:
            return _Choice(way, largest, model)
        logger.warning("%s not used: %s", way.shown, reason)
        self.rejected.append((str(way), reason))
        del model
        release_memory(self._checkpoint.device)
        return None


def tolerance_of(options: ModelOptions, way: Acceleration) -> float:
    """Returns how far a way's numbers may be from the reference's."""
    return options.gate.tolerance or TOLERANCES[way.dtype]


def _refuse_another_way(
    options: ModelOptions, choice: _Choice, rejected: Sequence[tuple[str, str]]
) -> None:
    """Raises JobError if only one way is allowed and it was rejected."""
    if options.way is None or options.way == choice.way:
        return
    reasons = "; ".join(reason for _, reason in rejected)
    raise JobError(
        f"the output was started with {options.way.shown}, which does not work now: {reasons}. Run "
        "again where it works, or give --overwrite to score everything in another way"
    )


def candidates(options: ModelOptions, device: str) -> list[Acceleration]:
    """Returns the ways to try, the preferred one first, plain float32 among them.

    Plain float32 comes last unless `auto` prefers it to another one in float32.
    """
    if options.way is not None:
        return list(dict.fromkeys([options.way, PLAIN]))
    dtypes = [options.dtype] if options.dtype != "auto" else native_dtypes(device)
    if "float16" in dtypes and not device.startswith("cuda"):
        raise ConfigError(
            f"dtype='float16' on device {device}: CPUs compute float16 slowly or not at all; use "
            "dtype='bfloat16', 'float32' or 'auto'"
        )
    if INT8 in dtypes and device != "cpu":
        raise ConfigError(
            f"dtype='int8' on device {device}: models are run in int8 on CPUs; use dtype='auto', "
            "or device='cpu'"
        )
    ways = [
        way
        for dtype in dtypes
        for one in wanted_backends(options.acceleration, dtype, device)
        for way in one.ways(options, dtype, device)
    ]
    return list(dict.fromkeys([*ways, PLAIN]))


def try_way(
    checkpoint: Checkpoint, way: Acceleration, found: Examined, reference: str
) -> tuple[RunningModel | None, float, str]:
    """Returns the model, its largest difference from the reference, and why it fails, if it does.

    The reason is empty if the model passes. A graph scores each text alone, too: what its trace of
    a batch took for constant may be something else for other shapes.
    """
    try:
        model = load_way(checkpoint, way)
        with step(f"scoring probe texts with {way}"):
            pairs = [(found.scored, score_in_batches(model, found.probes))]
            if isinstance(model.runtime, GraphRuntime):
                pairs.append((found.alone, score_alone(model, found.probes)))
    except Exception as error:  # a wrapper may raise anything
        return None, float("nan"), f"{type(error).__name__}: {' '.join(str(error).split())}"
    compared = [difference(model, *pair) for pair in pairs]
    largest = max(number for number, _ in compared)
    reason = next((why for _, why in compared if why), "")
    tolerance = tolerance_of(checkpoint.options, way)
    if not reason and not largest <= tolerance:
        reason = f"differs from {reference} by {largest:.2g}, allowed {tolerance:g}"
    return model, largest, reason
