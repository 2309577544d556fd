"""`load`: the model of a job, tried interactively, from any number of threads."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from sparkinfer.api.functions import NOT_OF_SCORE
from sparkinfer.config import ScoringConfig
from sparkinfer.engines import make_source
from sparkinfer.engines.local import here
from sparkinfer.engines.this_process import slot_of
from sparkinfer.exceptions import ConfigError, causes_without_secrets
from sparkinfer.models.requests import BATCH_ROWS, TIMEOUT_MS, RequestOptions, Requests, Row
from sparkinfer.option_groups import DEFAULT_TASK
from sparkinfer.plan.prelude import Prelude
from sparkinfer.rows.processor import PlannedProcessor
from sparkinfer.workers import resident
from sparkinfer.workers.statistics import ScoringStatistics

NOT_OF_LOAD = {*NOT_OF_SCORE, "carry_cols", "engine", "fn", "models", "num_workers"}
"""Options of a job that have no effect on texts that come one by one."""


class LoadedModel:
    """A model that scores texts as a job does, for callers in many threads or coroutines.

    What they ask for at the same time shares batches. A row is a dict of the columns that a job
    adds; one that cannot be scored has its reason as `error` there as well.

    Attributes:
        verdict: how the model is run, and what was tried before.
        statistics: counts and seconds of the scoring so far.
    """

    def __init__(self, requests: Requests, verdict: Any, statistics: ScoringStatistics) -> None:
        self._requests = requests
        self.verdict = verdict
        self.statistics = statistics

    @property
    def stats(self) -> Any:
        """How many texts and batches there were, and how long callers waited."""
        return self._requests.stats

    def __call__(self, texts: Any, *, timeout_s: float | None = None) -> Any:
        """Returns the scored row of a text, or a list of rows for a list of texts.

        Args:
            texts: a text, a mapping of the columns that the model reads, or a list of such.
            timeout_s: how long to wait for them, in seconds; None: as long as it takes.

        Raises:
            InputError: it is none.
            CallError: there is no result; see `sparkinfer.exceptions`.
        """
        return self._requests(texts, timeout_s)

    def submit(self, text: Any) -> Future[Row]:
        """Returns what will hold the scored row of a text; cancelled, it waits no more."""
        return self._requests.submit(text)

    async def asubmit(self, text: Any) -> Row:
        """Returns the scored row of a text, without keeping the event loop waiting."""
        return await self._requests.asubmit(text)

    def close(self) -> None:
        """Ends what waits with an error; the model goes with the last reference to this."""
        self._requests.close()

    def __enter__(self) -> LoadedModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@causes_without_secrets()
def load(
    model: str,
    task: str | Mapping[str, Any] = DEFAULT_TASK,
    *,
    batch_rows: int = BATCH_ROWS,
    timeout_ms: float = TIMEOUT_MS,
    **options: Any,
) -> LoadedModel:
    """Returns a model that is called with texts, in this process and without Spark.

    It is fetched, tried and run as by a job with these options: the same tokens, limits, gate and
    columns.

        mood = sparkinfer.load("./my-model")
        mood("a fine film")["prediction"]

    Args:
        model: hub id, folder, `models:/` or `runs:/` URI.
        task: what it does, or a mapping of the task's `name` and options.
        batch_rows: most texts that are scored together.
        timeout_ms: how long the first of fewer waits for others, in milliseconds.
        **options: further options of `ScoringConfig`, except those of a job. Without `input_col`
            and `input_template` the column is called `text`.

    Raises:
        UsageError: the call cannot work.
    """
    refused = [name for name in options if name in NOT_OF_LOAD]
    if refused:
        raise ConfigError(
            f"{refused[0]} with load: the option has no effect on texts that come one by one; "
            "leave it out, or use sparkinfer.run"
        )
    shared = RequestOptions(batch_rows=batch_rows, timeout_ms=timeout_ms)
    if "input_template" not in options:
        options.setdefault("input_col", "text")
    config = ScoringConfig(model=model, task=task, engine="local", **options)
    prelude = Prelude(config, make_source(config, None), here(config))
    prelude.check()
    processor: PlannedProcessor = prelude.processor
    scorer = processor.open(slot_of(prelude.workers), _unreported)
    resident.release()  # it is the scorer's alone
    requests = Requests(scorer.process, processor.inputs, processor.check_types, shared)
    return LoadedModel(requests, processor.verdict, scorer.statistics)


def _unreported(statistics: ScoringStatistics) -> None:
    """Takes what was done: it is read from the model itself."""
