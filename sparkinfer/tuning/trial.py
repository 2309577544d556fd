"""What one worker does: tries the ways of running a model, then budgets, then processes.

Each later stage goes on with what was fastest before, so that not every combination is measured.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from sparkinfer.exceptions import JobError
from sparkinfer.models.ahead import RowsAhead
from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.processor import ModelScoring
from sparkinfer.plan.places import Places
from sparkinfer.rows.processor import RowsOfInput
from sparkinfer.tuning.asked import asked_ways, splits_of
from sparkinfer.tuning.bench import Bench
from sparkinfer.tuning.found import Findings, Setting, Tried, fastest
from sparkinfer.tuning.sample import first_rows
from sparkinfer.workers import resident
from sparkinfer.workers.devices import device_model, release_memory
from sparkinfer.workers.slot import WorkerSlot

PASS_SHARE = 1 / 20
"""Of the budget that scoring the sample once in the reference may take."""

WAYS_TO_REFINE = 2
"""The fastest ones, for which other budgets of a batch are measured."""

START_S = 10.0
"""For which processes start, until some have been seen to."""


@dataclass(frozen=True)
class Question:
    """What a worker is asked; picklable.

    Attributes:
        processor: the model, its files found.
        ahead: what is known of the job.
        first_rows: of the input.
        places: that the worker must see.
        budget_s: seconds after which it begins nothing more.
        split_given: the option that says how the cores are shared out; empty: none does.
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
            JobError: the model fails on every row, or there was time for nothing that is asked for.
        """
        deadline = time.monotonic() + self.budget_s
        self.places.look()
        for text in self.processor.options.texts:
            text.check()  # a function of the user's must be found here, too
        resident.release()
        rows = first_rows(self.first_rows(), self.processor.inputs)
        pass_s = self.budget_s * PASS_SHARE
        try:
            bench = Bench(self.processor, self.ahead, rows, slot, pass_s)
            return _Trial(self, bench, slot, deadline).findings()
        finally:
            release_memory(slot.device)


class _Trial:
    """The stages, and the time that they take.

    Args:
        question: what is asked.
        bench: measures.
        slot: what the worker has been given.
        deadline: after which nothing more is begun, by the monotonic clock.
    """

    def __init__(self, question: Question, bench: Bench, slot: WorkerSlot, deadline: float) -> None:
        self._question = question
        self._bench = bench
        self._slot = slot
        self._deadline = deadline
        self._asked = asked_ways(question.processor.options, slot.device)
        self._costs: dict[Acceleration, float] = {}
        self._late: list[str] = []
        self._unmeasured: list[str] = []

    def findings(self) -> Findings:
        """Returns all that is found in the time that there is."""
        ways = self._try_ways()
        best = self._best_of(ways)
        budgets = self._try_budgets(ways)
        best = fastest([best, *budgets]) or best
        splits = self._try_splits(best)
        best = fastest(splits) or best
        bench = self._bench
        late = [f"for lack of time: {'; '.join(self._late)}"] if self._late else []
        return Findings(
            tried=tuple(map(bench.with_share, dict.fromkeys([*ways, *budgets, *splits]))),
            chosen=bench.with_share(best),
            as_is=(self._slot.on_host, self._slot.cores),
            default_tokens=bench.default_tokens,
            unmeasured=(*self._unmeasured, *late),
            reference=bench.shown_reference,
            device_model=device_model(self._slot.device),
            rows=bench.rows.num_rows,
            row_tokens=bench.row_tokens,
        )

    def _has_time(self, setting: Setting, takes_s: float) -> bool:
        """Returns whether there is time for a setting, and notes it if there is none."""
        if time.monotonic() + takes_s <= self._deadline:
            return True
        self._late.append(str(setting))
        return False

    def _try_ways(self) -> list[Tried]:
        """Returns what is found of the ways, the reference first."""
        bench = self._bench
        found = [self._try_way(bench.reference)]
        for way in bench.ways:
            if reason := bench.unfit(way):
                found.append(Tried(bench.setting(way), reason))
            elif way != bench.reference and self._has_time(
                bench.setting(way), max(self._costs.values())
            ):
                found.append(self._try_way(way))
        return found

    def _try_way(self, way: Acceleration) -> Tried:
        started = time.monotonic()
        found = self._bench.try_way(way)
        self._costs[way] = time.monotonic() - started
        return found

    def _best_of(self, ways: Sequence[Tried]) -> Tried:
        """Returns the fastest way; the reference only if it was asked for, or no other passes."""
        by_way = {one.setting.way: one for one in ways}
        measured = [by_way[way] for way in self._asked if way in by_way]
        if self._asked and not measured:
            raise JobError(
                f"budget_s={self._question.budget_s:g} was enough to measure "
                f"{ways[0].setting.way.shown} alone, which was not asked for; "
                f"not measured: {'; '.join(self._late)}. Give more (--budget-s)"
            )
        return fastest(measured) or ways[0]

    def _try_budgets(self, ways: Sequence[Tried]) -> list[Tried]:
        """Returns what is found of the fastest ways with other budgets of a batch."""
        if reason := self._why_no_budgets():
            self._unmeasured.append(f"other sizes of a batch: {reason}")
            return []
        refined = set(self._asked) - self._bench.own_batches
        passed = [one for one in ways if not one.rejected and one.setting.way in refined]
        passed.sort(key=lambda one: -one.tokens_per_s)
        found = []
        for one in passed[:WAYS_TO_REFINE]:
            way = one.setting.way
            takes_s = self._costs[way] + self._reserved_s(one)
            for tokens in self._bench.other_tokens:
                if self._has_time(self._bench.setting(way, tokens), takes_s):
                    found.append(self._bench.try_budget(one, tokens))
        return found

    def _why_no_budgets(self) -> str:
        if self._question.processor.options.batching.max_batch_tokens is not None:
            return "batching.max_batch_tokens is given"
        if self._bench.scores_alone:
            return "each text is scored alone"
        return "" if self._bench.other_tokens else "the sample is too small to be cut otherwise"

    def _try_splits(self, best: Tried) -> list[Tried]:
        """Returns what is found where the host's cores are shared out, as by a plain run first.

        A host's one replica was measured in this process; of several, all are measured together.
        """
        if self._question.split_given:
            self._unmeasured.append(f"other processes: {self._question.split_given} is given")
        found = [best] if self._slot.on_host == 1 else []
        takes_s = START_S + self._costs[best.setting.way]
        for setting in self._splits(best):
            if self._has_time(setting, takes_s):
                started = time.monotonic()
                within_s = self._deadline - started + takes_s
                found.append(self._bench.try_split(best, setting, within_s))
                takes_s = time.monotonic() - started
        return found

    def _splits(self, best: Tried) -> list[Setting]:
        """Returns in how many processes a setting is to be measured, on CPUs."""
        slot, setting = self._slot, best.setting
        if slot.device != "cpu" or self._question.split_given or setting.way.is_large:
            return []
        splits = splits_of(setting, slot.on_host * slot.cores, slot.on_host)
        return [one for one in splits if (one.processes, slot.on_host) != (1, 1)]

    def _reserved_s(self, best: Tried) -> float:
        """Returns the seconds that measuring those will take."""
        return (START_S + self._costs[best.setting.way]) * len(self._splits(best))
