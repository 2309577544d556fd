"""One model and a sample, on which settings are measured in one worker."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa

from sparkinfer.models.ahead import RowsAhead
from sparkinfer.models.backends import PLAIN
from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.examination import examine
from sparkinfer.models.gate import tolerance_of, try_way
from sparkinfer.models.memory import Fit, fitting
from sparkinfer.models.options import ModelOptions
from sparkinfer.models.processor import ModelScoring
from sparkinfer.models.running import RunningModel, load_way
from sparkinfer.models.scorer import default_tokens
from sparkinfer.models.sources import stage
from sparkinfer.tuning.asked import ways_of
from sparkinfer.tuning.ceiling import Ceiling, flops_of_token
from sparkinfer.tuning.found import Setting, Tried
from sparkinfer.tuning.peak import Peak
from sparkinfer.tuning.replicas import Job, ReplicaError, score_at_once
from sparkinfer.tuning.sample import (
    Timed,
    affordable,
    compared,
    count_batches,
    measured,
    refuse_failing,
    with_batch_tokens,
)
from sparkinfer.workers.devices import release_memory
from sparkinfer.workers.host_memory import free_host_memory
from sparkinfer.workers.slot import WorkerSlot
from sparkinfer.workers.steps import step

FACTORS = {"cpu": (0.5, 2.0), "cuda": (0.5, 2.0, 4.0)}
"""Of the default budget of a batch, by kind of device."""


class Bench:
    """Measures settings, each against the reference.

    Args:
        processor: the model, its files found.
        ahead: what is known of the job.
        rows: of the input; so many of them are taken as there is time for.
        slot: what the worker has been given.
        pass_s: seconds that scoring them once in the reference may take.

    Attributes:
        reference: the way with which the others are compared.
        shown_reference: the same as a phrase.
        ways: to try.
        default_tokens: most tokens of a batch if nothing says otherwise.
        other_tokens: other budgets of a batch by which the sample is cut otherwise.
        rows: the sample.
        row_tokens: of a row of it, in the mean.
        own_batches: ways that were found to make batches of their own.

    Raises:
        SparkInferError: the model cannot be measured; see `Question.answer`.
    """

    def __init__(
        self,
        processor: ModelScoring,
        ahead: RowsAhead,
        rows: pa.RecordBatch,
        slot: WorkerSlot,
        pass_s: float,
    ) -> None:
        options = self._options = processor.options
        self._slot = slot
        self._checkpoint = _checkpoint(processor, slot)
        self.ways = ways_of(options, slot.device)
        self._fit = fitting(self._checkpoint, self.ways, ahead.longest_text, slot.on_host)
        self.reference, self.shown_reference = self._fit.reference, self._fit.shown
        with step(f"scoring probe texts in {self._fit.shown}"):
            self._found = examine(self._checkpoint, ahead.longest_text, self.reference)
        self._ceiling = Ceiling(slot.device, _flops_of(self._checkpoint, self._fit))
        model = load_way(self._checkpoint, self.reference)
        self.default_tokens = options.batching.max_batch_tokens or default_tokens(model)
        with step("measuring how fast the model is"):
            self.rows = affordable(model, options, rows, pass_s)
            expected = measured(model, options, self.rows, least_s=0.0)
        refuse_failing(expected.scored)
        self._expected = expected.scored
        self.row_tokens = expected.tokens_per_s / expected.rows_per_s
        self.other_tokens = self._that_cut_otherwise(model, expected.batches)
        self.own_batches: set[Acceleration] = set()

    @property
    def scores_alone(self) -> bool:
        """Whether each text is a batch."""
        return self._checkpoint.layout.shared == "nothing"

    def setting(self, way: Acceleration, tokens: int | None = None) -> Setting:
        """Returns a way in this process, by default with the default budget."""
        return Setting(way, tokens or self.default_tokens, 1, self._slot.cores)

    def unfit(self, way: Acceleration) -> str:
        """Returns why a way does not fit in memory; empty if it does."""
        if way in (*self._fit.ways, self.reference):
            return ""
        return dict(self._fit.rejected).get(str(way), "it does not fit in memory")

    def try_way(self, way: Acceleration) -> Tried:
        """Returns what is found of a way with the default budget."""
        self._checkpoint.release()
        peak = Peak(self._slot.device)
        model, largest, reason = self._gated(way)
        difference = None if largest != largest else largest
        found = Tried(self.setting(way), reason, difference=difference)
        if model is None or reason:
            return found
        return self._timed(model, found, peak)

    def try_budget(self, one: Tried, tokens: int) -> Tried:
        """Returns what is found of a way that passes with another budget."""
        way = one.setting.way
        found = Tried(self.setting(way, tokens), difference=one.difference)
        self._checkpoint.release()
        peak = Peak(self._slot.device)
        try:
            model = load_way(self._checkpoint, way)
        except Exception as error:  # a backend may raise anything
            return replace(found, rejected=_said(error))
        return self._timed(model, found, peak)

    def try_split(self, one: Tried, setting: Setting, within_s: float) -> Tried:
        """Returns what is found of a setting that passes with the host's cores shared out.

        Args:
            one: it in this process.
            setting: with another number of processes.
            within_s: seconds after which it is given up.
        """
        self._checkpoint.release()
        release_memory(self._slot.device)
        free, needed = free_host_memory(), (one.memory_bytes or 0) * setting.processes
        if free is not None and needed > free:
            reason = f"takes {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB are free"
            return Tried(setting, reason)
        try:
            with step(f"measuring {setting.split}"):
                rates = score_at_once(self._job(setting), setting.processes, within_s)
        except ReplicaError as error:
            return Tried(setting, str(error))
        return replace(
            one,
            setting=setting,
            rows_per_s=rates.rows_per_s,
            tokens_per_s=rates.tokens_per_s,
            of_ceiling=self._ceiling.share_of(rates.flops, rates.tokens_per_s),
            memory_bytes=rates.memory_bytes,
        )

    def with_share(self, one: Tried) -> Tried:
        """Returns what was found in this process, with its share of the ceiling."""
        if not one.tokens_per_s or one.of_ceiling is not None:
            return one
        share = self._ceiling.share(one.tokens_per_s, one.setting.way.dtype)
        return replace(one, of_ceiling=share)

    def _gated(self, way: Acceleration) -> tuple[RunningModel | None, float, str]:
        if way == self.reference:
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
            self.own_batches.add(setting.way)
        self._ceiling.look(setting.way.dtype)
        peak.settle()
        try:
            with step(f"measuring {setting}"):
                timed = measured(model, options, self.rows)
        except Exception as error:  # a backend may raise anything
            return replace(gated, rejected=_said(error))
        memory, differs = peak.grown(), compared(model, self._expected, timed.scored)
        largest = max(differs.difference or 0.0, gated.difference or 0.0)
        return replace(
            gated,
            rejected=self._problem(timed, setting, differs.failed, largest),
            rows_per_s=timed.rows_per_s,
            tokens_per_s=timed.tokens_per_s,
            difference=largest,
            changed=differs.changed,
            memory_bytes=memory,
        )

    def _problem(self, timed: Timed, setting: Setting, failed: int, largest: float) -> str:
        """Returns why what was scored may not be used; empty if it may."""
        if failed:
            return f"fails on {failed} rows that have a score in {self.shown_reference}"
        if timed.out_of_memory:
            return f"a batch of {setting.batch_tokens} tokens does not fit in memory"
        allowed = tolerance_of(self._options, setting.way)
        # The numbers of other tasks are of tokens that rounding may have chosen otherwise.
        if self._options.task.graph_output is not None and largest > allowed:
            return (
                f"differs from {self.shown_reference} by {largest:.2g} on the sample, allowed "
                f"{allowed:g}"
            )
        return ""

    def _with_tokens(self, tokens: int) -> ModelOptions:
        is_other = tokens != self.default_tokens
        return with_batch_tokens(self._options, tokens) if is_other else self._options

    def _that_cut_otherwise(self, model: RunningModel, batches: int) -> list[int]:
        """Returns the other budgets with which the sample is not as many batches."""
        factors = FACTORS[self._slot.device.partition(":")[0]]
        others = [int(self.default_tokens * factor) for factor in factors]
        return [
            tokens
            for tokens in others
            if count_batches(model, self._with_tokens(tokens), self.rows) != batches
        ]

    def _job(self, setting: Setting) -> Job:
        return Job(
            path=self._checkpoint.path,
            options=self._with_tokens(setting.batch_tokens),
            way=setting.way,
            max_length=self._checkpoint.max_length,
            layout=self._checkpoint.layout,
            fingerprint=self._checkpoint.fingerprint,
            threads=setting.threads,
            rows=self.rows,
        )


def _checkpoint(processor: ModelScoring, slot: WorkerSlot) -> Checkpoint:
    path = stage(processor.found, processor.options.loading)
    fingerprint = processor.found.fingerprint
    made = Checkpoint(
        path, processor.options, slot.device, others=slot.others, fingerprint=fingerprint
    )
    _ = made.task  # refuses what it cannot do, before any weights
    return made


def _flops_of(checkpoint: Checkpoint, fit: Fit) -> int | None:
    """Returns the operations of a token; None where the model does not take each token once."""
    if fit.reference != PLAIN or checkpoint.options.task.graph_output is None:
        return None
    return flops_of_token(checkpoint.module())


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
