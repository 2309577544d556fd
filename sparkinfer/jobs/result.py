"""What a run returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sparkinfer.plan.plan import Workers
from sparkinfer.plan.progress import SCORE, DeviceProgress, Progress
from sparkinfer.workers.statistics import ScoringStatistics


@dataclass(frozen=True)
class RunResult:
    """What the output holds, and what this run contributed.

    Attributes:
        output: folder with the scored Parquet files.
        rows: rows in them, those with an error included.
        rows_read: rows of the input that they were made of: as many, unless a function made others.
        error_rows: rows among them that could not be scored.
        error_reasons: why not, the most frequent reasons, and how often each occurs.
        metrics: by name, over all rows with a known label; empty without a label column, or if no
            label is one of the model's.
        metrics_problem: why there are none in the latter case, else None.
        rows_before: rows of the input whose results an earlier run had committed.
        seconds: from the call to the end.
        phases: of these, the seconds for each part of the engine's work: `score`, preceded by
            `prepare` and `start` if the engine has them.
        workers: replicas that scored, and on what; None if there was nothing to do.
        verdict: how the model was run, and what was tried before; None if there was nothing to do.
        model_fingerprint: hash of the model's files.
        statistics: counts and seconds, summed over the workers that could report.
        devices: what the model ran on, with the rows of each.
        retried_rows: rows with an error that this run rescored; None if it was not asked to.
        mended_rows: rows among these that no longer have an error.
        notes: what there is to know of how the input was read.
        vector_store: where vectors are, too; None: nowhere.
        vectors: how many are there.
        report: path of the page that shows what was done; None: there is none.
    """

    output: str
    rows: int
    rows_read: int
    error_rows: int
    error_reasons: Mapping[str, int]
    metrics: Mapping[str, float]
    metrics_problem: str | None
    rows_before: int
    seconds: float
    phases: dict[str, float]
    workers: Workers | None
    verdict: Any
    model_fingerprint: str
    statistics: ScoringStatistics
    devices: Sequence[DeviceProgress]
    retried_rows: int | None = None
    mended_rows: int = 0
    notes: tuple[str, ...] = ()
    vector_store: str | None = None
    vectors: int | None = None
    report: str | None = None

    @property
    def rows_per_s(self) -> float:
        """Rows that this run scored, per second of scoring."""
        scoring_s = self.phases.get(SCORE, 0.0)
        rows = self.rows_read - self.rows_before + (self.retried_rows or 0)
        return rows / scoring_s if scoring_s else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Returns the result as plain values, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Retried:
    """What a retry of the rows with an error did.

    Attributes:
        rows: rows that were rescored.
        mended_rows: rows among them that no longer have an error.
        progress: of the rescoring; None if there was nothing to rescore.
        workers: what rescored them; None likewise.
        verdict: how the model was run; None likewise.
    """

    rows: int = 0
    mended_rows: int = 0
    progress: Progress | None = None
    workers: Workers | None = None
    verdict: Any = None


def with_retried(result: RunResult, retried: Retried | None) -> RunResult:
    """Returns the result of a run with its retry's contribution added."""
    if retried is None:
        return result
    result = replace(result, retried_rows=retried.rows, mended_rows=retried.mended_rows)
    if retried.progress is None:
        return result
    statistics = retried.progress.statistics()
    statistics.add(result.statistics)
    phases = retried.progress.phases
    return replace(
        result,
        phases={
            name: phases.get(name, 0.0) + result.phases.get(name, 0.0)
            for name in {**phases, **result.phases}
        },
        workers=result.workers or retried.workers,
        verdict=result.verdict or retried.verdict,
        statistics=statistics,
        devices=_joined([*retried.progress.devices, *result.devices]),
    )


def _joined(devices: Sequence[DeviceProgress]) -> tuple[DeviceProgress, ...]:
    """Returns each device once, with the sum of what it did and its latest rate."""
    joined: dict[str, DeviceProgress] = {}
    for device in devices:
        statistics = replace(device.statistics)
        if device.device in joined:
            statistics.add(joined[device.device].statistics)
        joined[device.device] = replace(device, statistics=statistics)
    return tuple(joined.values())
