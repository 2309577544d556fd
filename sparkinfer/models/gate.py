"""The gate: which way of running a model may score rows.

It runs once, in one worker before the job. It scores a padded probe batch in plain float32, then
has the backends run the same texts, the preferred way first. An exception or a difference beyond
the tolerance rules a way out, and the next best is tried. Every worker follows its verdict.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sparkinfer.exceptions import ConfigError, ModelLoadError
from sparkinfer.models.backends import BACKENDS, PLAIN, wanted_backends
from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.options import ModelOptions
from sparkinfer.models.running import RunningModel
from sparkinfer.workers.devices import release_memory

logger = logging.getLogger(__name__)

TOLERANCES = {"float32": 1e-4, "float16": 0.01, "bfloat16": 0.05}
"""Largest difference of a probability from float32 that rounding to the dtype explains.

Half-precision formats keep 11 and 8 significant bits; a silently wrong kernel was observed to be
off by 0.35. An output that is not a probability is compared relative to its size if that exceeds 1.
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
class Verdict:
    """What the gate decided, and what it learned about the model in the process.

    Attributes:
        accepted: how every worker runs the model.
        device: kind of device it was tried on, `cpu` or `cuda`.
        max_difference: largest difference of a probability from plain float32.
        tolerance: largest difference allowed.
        rejected: for each way tried before, its name and why it was rejected.
        labels: names in the order of the probabilities; empty if the task has none.
        max_length: tokens at which texts are truncated.
    """

    accepted: Acceleration
    device: str
    max_difference: float
    tolerance: float
    labels: tuple[str, ...]
    max_length: int
    rejected: tuple[tuple[str, str], ...] = field(default=())


def run_gate(path: Path, options: ModelOptions, device: str) -> tuple[RunningModel, Verdict]:
    """Returns the model, run in the best way that passes, and the verdict.

    Cost: one load of the model and two passes over a small batch; a rejected way costs another
    load. Runs where the model runs, never on a Spark driver.

    Raises:
        ModelLoadError: the model does not load or fails on the probe in plain float32.
    """
    checkpoint = Checkpoint(path, options, device)
    ways = candidates(options, device)
    reference = _score_probe(load_way(checkpoint, PLAIN))
    rejected: list[tuple[str, str]] = []
    for way in ways:
        tolerance = options.tolerance or TOLERANCES[way.dtype]
        model, difference, reason = _try(checkpoint, way, reference, tolerance)
        if model is not None and not reason:
            return model, Verdict(
                accepted=way,
                device=device.partition(":")[0],
                max_difference=difference,
                tolerance=tolerance,
                labels=model.labels,
                max_length=model.encoder.max_length,
                rejected=tuple(rejected),
            )
        logger.warning("%s not used: %s", way, reason)
        rejected.append((str(way), reason))
        del model  # two copies may not fit on the device
        release_memory(device)
    raise ModelLoadError(  # plain float32 is the last candidate and equals itself
        f"no way of running the model passed the gate: {rejected}"
    )


def load_way(checkpoint: Checkpoint, way: Acceleration) -> RunningModel:
    """Returns the model, run in this way."""
    return RunningModel(checkpoint, BACKENDS[way.backend].load(checkpoint, way))


def candidates(options: ModelOptions, device: str) -> list[Acceleration]:
    """Returns the ways to try, the preferred one first and plain float32 last."""
    dtype = options.dtype if options.dtype != "auto" else native_dtype(device)
    if dtype == "float16" and not device.startswith("cuda"):
        raise ConfigError(
            f"dtype='float16' on device {device}: CPUs compute float16 slowly or not at all; use "
            "dtype='bfloat16', 'float32' or 'auto'"
        )
    wanted = [*wanted_backends(options.acceleration), BACKENDS[PLAIN.backend]]
    ways = [way for backend in wanted for way in backend.ways(options, dtype)]
    return list(dict.fromkeys([*ways, PLAIN]))


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


def _try(
    checkpoint: Checkpoint,
    way: Acceleration,
    reference: npt.NDArray[np.float32],
    tolerance: float,
) -> tuple[RunningModel | None, float, str]:
    """Returns the model, its largest difference from the reference, and why it fails, if it does.

    The reason is empty if the model passes.
    """
    try:
        model = load_way(checkpoint, way)
        values = _score_probe(model)
    except Exception as error:  # a wrapper may raise anything; each failure is recorded
        return None, float("nan"), f"{type(error).__name__}: {' '.join(str(error).split())}"
    if values.shape != reference.shape:
        return model, float("nan"), "gives an output that is not finite"
    scale = np.maximum(np.abs(reference), 1.0)
    difference = float(np.max(np.abs(values - reference) / scale, initial=0.0))
    if not difference <= tolerance:
        return model, difference, f"differs from float32 by {difference:.2g}, allowed {tolerance:g}"
    return model, difference, ""


def _score_probe(model: RunningModel) -> npt.NDArray[np.float32]:
    """Returns the task's numbers for the probe texts, in one padded batch if the model allows it.

    A task with several columns gets the probe texts in each, rotated by one per column.
    """
    turns = range(model.num_inputs)
    columns = [[*PROBE_TEXTS[turn:], *PROBE_TEXTS[:turn]] for turn in turns]
    encoded = model.encode(columns).encoded
    rows = np.array([row for row in range(len(encoded.n_tokens)) if row not in encoded.errors])
    groups: Sequence[npt.NDArray[np.int64]] = [rows]
    if not model.pads_batches:
        groups = [rows[i : i + 1] for i in range(len(rows))]
    values = [
        model.task.gate_values(model.score(model.encoder.collate(encoded, group)))
        for group in groups
    ]
    return np.concatenate(values)
