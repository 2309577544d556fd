"""What one worker does: tries the ways of running a model, then budgets, then processes.

Each later stage goes on with what was fastest before, so that not every combination is measured.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from sparkinfer.models.ahead import RowsAhead
from sparkinfer.models.backends import PLAIN
from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.examination import examine
from sparkinfer.models.gate import candidates, tolerance_of, try_way
from sparkinfer.models.memory import Fit, fitting
from sparkinfer.models.options import ModelOptions
from sparkinfer.models.processor import ModelScoring
from sparkinfer.models.running import RunningModel, load_way
from sparkinfer.models.scorer import default_tokens
from sparkinfer.models.sources import stage
from sparkinfer.plan.places import Places
from sparkinfer.rows.processor import RowsOfInput
from sparkinfer.tuning.ceiling import flops_of_token, measured_flops
from sparkinfer.tuning.found import Findings, Setting, Tried, fastest
from sparkinfer.tuning.peak import Peak
from sparkinfer.tuning.replicas import Job, ReplicaError, score_at_once
from sparkinfer.tuning.sample import (
    Timed,
    affordable,
    compared,
    first_rows,
    measured,
    refuse_failing,
    with_batch_tokens,
)
from sparkinfer.workers import resident
from sparkinfer.workers.devices import device_model, native_dtypes, release_memory
from sparkinfer.workers.host_memory import free_host_memory
from sparkinfer.workers.slot import WorkerSlot
from sparkinfer.workers.steps import step

PASS_SHARE = 1 / 30
"""Of the budget that one pass over the sample may take in the reference."""

WAYS_TO_REFINE = 2
"""The fastest ones, for which other budgets of a batch are measured."""

FACTORS = {"cpu": (0.5, 2.0), "cuda": (0.5, 2.0, 4.0)}
"""Of the default budget of a batch, by kind of device."""

START_S = 10.0
"""For which a process starts, until one has been seen to."""


@dataclass(frozen=True)
class Question:
    """What a worker is asked; picklable.

    Attributes:
        processor: the model, its files found.
        ahead: what is known of the job.
        first_rows: of the input.
        places: that the worker must see.
        budget_s: seconds that it may take, about.
        split_given: the option that fixes how the cores are shared out; empty: none does.
    """

    processor: ModelScoring
    ahead: RowsAhead
    first_rows: RowsOfInput
    places: Places
    budget_s: float
    split_given: str = ""

    def answer(self, slot: WorkerSlot) -> Findings:
        """Returns what this worker finds.

        Raises:
            ModelLoadError: the model does not load, or fails on the gate's texts.
            ConfigError: it does not fit in memory, or `max_length` exceeds its limit.
            InputError: the input has no rows with a text, or this worker does not see it.
            JobError: the model fails on every row.
        """
        started = time.monotonic()
        self.places.look()
        for text in self.processor.options.texts:
            text.check()  # a function of the user's must be found here, too
        resident.release()
        rows = first_rows(self.first_rows(), self.processor.inputs)
        trial = _Trial(self, slot, rows, started + self.budget_s)
        try:
            return trial.findings()
        finally:
            release_memory(slot.device)


class _Trial:
    """One worker's trial.

    Args:
        question: what is asked.
        slot: what the worker has been given.
        rows: of the input.
        deadline: after which nothing more is begun, by the monotonic clock.
    """

    def __init__(
        self, question: Question, slot: WorkerSlot, rows: pa.RecordBatch, deadline: float
    ) -> None:
        processor = question.processor
        self._question = question
        self._options = processor.options
        self._slot = slot
        self._deadline = deadline
        self._unmeasured: list[str] = []
        self._late: list[str] = []
        self._costs: dict[Acceleration, float] = {}
        self._flops: dict[str, float] = {}
        self._checkpoint = Checkpoint(
            stage(processor.found, self._options.loading),
            self._options,
            slot.device,
            others=slot.others,
            fingerprint=processor.found.fingerprint,
        )
        _ = self._checkpoint.task  # refuses what it cannot do, before any weights
        self._ways = ways_of(self._options, slot.device)
        longest = question.ahead.longest_text
        self._fit = fitting(self._checkpoint, self._ways, longest, slot.on_host)
        with step(f"scoring probe texts in {self._fit.shown}"):
            self._found = examine(self._checkpoint, longest, self._fit.reference)
        self._model_flops = _flops_of(self._checkpoint, self._fit)
        model = load_way(self._checkpoint, self._fit.reference)
        self._tokens = self._options.batching.max_batch_tokens or default_tokens(model)
        self._own_batches: set[Acceleration] = set()
        with step("measuring how fast the model is"):
            pass_s = question.budget_s * PASS_SHARE
            self._rows = affordable(model, self._options, rows, pass_s)
            self._expected = measured(model, self._options, self._rows, least_s=0.0)
        refuse_failing(self._expected.scored)

    def findings(self) -> Findings:
        """Returns all that is found within the budget."""
        ways = self._try_ways()
        best = self._best(ways)
        budgets = self._try_budgets(ways)
        best = fastest([best, *budgets]) or best
        splits = self._try_splits(best)
        as_is = (self._slot.on_host, self._slot.cores)
        # Alone, a process may be faster than each of several: they are compared with their like.
        best = fastest(sorted(splits, key=lambda one: _split(one) != as_is)) or best
        expected = self._expected
        if self._late:
            self._unmeasured.append(f"for lack of time: {', '.join(self._late)}")
        return Findings(
            tried=(*ways, *budgets, *(one for one in splits if one not in (*ways, *budgets))),
            chosen=best,
            as_is=as_is,
            default_tokens=self._tokens,
            unmeasured=tuple(self._unmeasured),
            reference=self._fit.shown,
            device_model=device_model(self._slot.device),
            rows=self._rows.num_rows,
            row_tokens=expected.tokens_per_s / expected.rows_per_s,
        )

    def _setting(self, way: Acceleration, tokens: int | None = None) -> Setting:
        return Setting(way, tokens or self._tokens, 1, self._slot.cores)

    def _has_time(self, setting: Setting, takes_s: float) -> bool:
        """Returns whether there is time for a setting, and notes it if there is none."""
        if time.monotonic() + takes_s <= self._deadline:
            return True
        self._late.append(str(setting))
        return False

    def _try_ways(self) -> list[Tried]:
        reference = self._fit.reference
        unfit = dict(self._fit.rejected)
        found = [self._try_way(reference)]
        for way in self._ways:
            if way == reference:
                continue
            if way not in self._fit.ways:
                reason = unfit.get(str(way), "does not fit in memory")
                found.append(Tried(self._setting(way), reason))
            elif self._has_time(self._setting(way), max(self._costs.values())):
                found.append(self._try_way(way))
        return found

    def _try_way(self, way: Acceleration) -> Tried:
        """Returns what is found of a way with the default budget."""
        started, setting = time.monotonic(), self._setting(way)
        self._checkpoint.release()
        peak = Peak(self._slot.device)
        model, largest, reason = self._gated(way)
        found = Tried(setting, reason, difference=None if largest != largest else largest)
        if model is not None and not reason:
            found = self._timed(model, found, peak)
        del model
        self._costs[way] = time.monotonic() - started
        return found

    def _gated(self, way: Acceleration) -> tuple[RunningModel | None, float, str]:
        if way == self._fit.reference:
            return load_way(self._checkpoint, way), 0.0, ""
        return try_way(self._checkpoint, way, self._found, self._fit.shown)

    def _timed(self, model: RunningModel, gated: Tried, peak: Peak) -> Tried:
        """Returns what is found of a model that passes the gate, or why it may not score rows.

        Args:
            model: loaded.
            gated: its setting, and the difference that the gate has found.
            peak: counting since before it was loaded.
        """
        setting = gated.setting
        options = self._with_tokens(setting.batch_tokens)
        if model.own_batch_tokens is not None:
            self._own_batches.add(setting.way)
        peak.settle()
        try:
            with step(f"measuring how fast {setting.way} is"):
                timed = measured(model, options, self._rows)
        except Exception as error:  # a backend may raise anything
            return replace(gated, rejected=f"{type(error).__name__}: {error}")
        memory, differs = peak.grown(), compared(model, self._expected.scored, timed.scored)
        largest = max(differs.difference or 0.0, gated.difference or 0.0)
        return replace(
            gated,
            rejected=self._problem(timed, setting, differs.failed, largest),
            rows_per_s=timed.rows_per_s,
            tokens_per_s=timed.tokens_per_s,
            of_ceiling=self._of_ceiling(timed.tokens_per_s, setting.way.dtype),
            difference=largest,
            changed=differs.changed,
            memory_bytes=memory,
        )

    def _with_tokens(self, tokens: int) -> ModelOptions:
        is_other = tokens != self._tokens
        return with_batch_tokens(self._options, tokens) if is_other else self._options

    def _problem(self, timed: Timed, setting: Setting, failed: int, largest: float) -> str:
        """Returns why what was scored may not be used; empty if it may."""
        if failed:
            return f"fails on {failed} rows that have a score in {self._fit.shown}"
        if timed.out_of_memory:
            return f"a batch of {setting.batch_tokens} tokens does not fit in memory"
        allowed = tolerance_of(self._options, setting.way)
        # The numbers of other tasks are of tokens that rounding may have chosen otherwise.
        if self._options.task.graph_output is not None and largest > allowed:
            return f"differs from {self._fit.shown} by {largest:.2g}, allowed {allowed:g}"
        return ""

    def _of_ceiling(self, tokens_per_s: float, dtype: str) -> float | None:
        if self._model_flops is None:
            return None
        if dtype not in self._flops:
            with step("measuring products of matrices"):
                self._flops[dtype] = measured_flops(self._slot.device, dtype)
        return self._model_flops * tokens_per_s / self._flops[dtype]

    def _best(self, ways: Sequence[Tried]) -> Tried:
        """Returns the fastest way; the reference only if it was asked for, or nothing else is."""
        asked = asked_ways(self._options, self._slot.device)
        order = {way: number for number, way in enumerate(asked)}
        eligible = [one for one in ways if one.setting.way in order]
        best = fastest(sorted(eligible, key=lambda one: order[one.setting.way]))
        return best or ways[0]

    def _try_budgets(self, ways: Sequence[Tried]) -> list[Tried]:
        """Returns what is found of the fastest ways with other budgets of a batch."""
        if self._options.batching.max_batch_tokens is not None:
            self._unmeasured.append("other sizes of a batch: max_batch_tokens is given")
            return []
        if self._checkpoint.layout.shared == "nothing":
            self._unmeasured.append("other sizes of a batch: each text is scored alone")
            return []
        refined = set(asked_ways(self._options, self._slot.device)) - self._own_batches
        passed = [one for one in ways if not one.rejected and one.setting.way in refined]
        passed.sort(key=lambda one: -one.tokens_per_s)
        return [
            found
            for one in passed[:WAYS_TO_REFINE]
            for tokens in self._budgets()
            if (found := self._try_budget(one, tokens)) is not None
        ]

    def _budgets(self) -> Iterator[int]:
        for factor in FACTORS[self._slot.device.partition(":")[0]]:
            tokens = int(self._tokens * factor)
            if factor > 1 and self._expected.batches == 1:
                self._note(f"{tokens} tokens: the sample is one batch already")
            else:
                yield tokens

    def _note(self, what: str) -> None:
        if what not in self._unmeasured:
            self._unmeasured.append(what)

    def _try_budget(self, one: Tried, tokens: int) -> Tried | None:
        way = one.setting.way
        setting = self._setting(way, tokens)
        if not self._has_time(setting, self._costs[way]):
            return None
        self._checkpoint.release()
        peak = Peak(self._slot.device)
        try:
            model = load_way(self._checkpoint, way)
        except Exception as error:  # a backend may raise anything
            return Tried(setting, f"{type(error).__name__}: {error}")
        return self._timed(model, Tried(setting, difference=one.difference), peak)

    def _try_splits(self, best: Tried) -> list[Tried]:
        """Returns what is found where the host's cores are shared out otherwise, on CPUs."""
        cores = self._slot.on_host * self._slot.cores
        if self._slot.device != "cpu" or cores == 1:
            return []
        if self._question.split_given:
            self._unmeasured.append(f"other processes: {self._question.split_given} is given")
            return []
        if best.setting.way.is_large:
            self._unmeasured.append("other processes: the model itself is several")
            return []
        self._checkpoint.release()
        release_memory(self._slot.device)
        found = [best] if self._slot.on_host == 1 else []
        takes_s = START_S + self._costs[best.setting.way]
        for setting in splits_of(best.setting, cores, (self._slot.on_host, self._slot.cores)):
            if _split(best) == (setting.processes, setting.threads) and found:
                continue
            if not self._has_time(setting, takes_s):
                continue
            started = time.monotonic()
            found.append(self._try_split(best, setting, takes_s))
            takes_s = time.monotonic() - started
        return found

    def _try_split(self, best: Tried, setting: Setting, takes_s: float) -> Tried:
        free = free_host_memory()
        needed = (best.memory_bytes or 0) * setting.processes
        if free is not None and needed > free:
            reason = f"takes {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB are free"
            return Tried(setting, reason)
        try:
            with step(f"measuring {setting.split}"):
                left_s = max(0.0, self._deadline - time.monotonic())
                rates = score_at_once(self._job(setting), setting.processes, left_s + takes_s)
        except ReplicaError as error:
            return Tried(setting, str(error))
        flops = self._model_flops
        return replace(
            best,
            setting=setting,
            rows_per_s=rates.rows_per_s,
            tokens_per_s=rates.tokens_per_s,
            of_ceiling=None if flops is None else flops * rates.tokens_per_s / rates.flops,
            memory_bytes=rates.memory_bytes,
        )

    def _job(self, setting: Setting) -> Job:
        return Job(
            path=self._checkpoint.path,
            options=self._with_tokens(setting.batch_tokens),
            way=setting.way,
            max_length=self._checkpoint.max_length,
            layout=self._checkpoint.layout,
            fingerprint=self._checkpoint.fingerprint,
            threads=setting.threads,
            rows=self._rows,
        )


def asked_ways(options: ModelOptions, device: str) -> list[Acceleration]:
    """Returns the ways that a run with these options might take, the preferred one first.

    In every number format that the device computes natively, and in float32, if none is given.
    Plain float32 is among them only where it is asked for.
    """
    dtypes = [options.dtype]
    if options.dtype == "auto":
        dtypes = list(dict.fromkeys([*native_dtypes(device), "float32"]))
    asked = [way for dtype in dtypes for way in candidates(replace(options, dtype=dtype), device)]
    includes_plain = options.acceleration in ("auto", PLAIN.backend) and PLAIN.dtype in dtypes
    return [way for way in dict.fromkeys(asked) if way != PLAIN or includes_plain]


def ways_of(options: ModelOptions, device: str) -> list[Acceleration]:
    """Returns the ways to try: those asked for, and plain float32."""
    return list(dict.fromkeys([*asked_ways(options, device), PLAIN]))


def splits_of(setting: Setting, cores: int, as_is: tuple[int, int]) -> list[Setting]:
    """Returns a setting with the cores shared out in each way, that of a plain run first."""
    counts = [count for count in range(1, cores + 1) if cores % count == 0]
    counts.sort(key=lambda count: count != as_is[0])
    return [replace(setting, processes=one, threads=cores // one) for one in counts]


def _split(one: Tried) -> tuple[int, int]:
    return one.setting.processes, one.setting.threads


def _flops_of(checkpoint: Checkpoint, fit: Fit) -> int | None:
    """Returns the operations of a token; None where the model does not take each token once."""
    if fit.reference != PLAIN or checkpoint.options.task.graph_output is None:
        return None
    return flops_of_token(checkpoint.module())
