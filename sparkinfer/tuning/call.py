"""`tune`: which settings score an input fastest, measured on its first rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparkinfer.api.functions import Display, displayed, open_prelude
from sparkinfer.config import DisplayMode, ScoringConfig
from sparkinfer.engines import find_engine
from sparkinfer.exceptions import ConfigError, causes_without_secrets
from sparkinfer.messages import shown
from sparkinfer.models.processor import ModelScoring
from sparkinfer.plan.phases import MEASURE
from sparkinfer.plan.prelude import Prelude
from sparkinfer.spark.jvm import death_reported
from sparkinfer.tuning import BUDGET_S
from sparkinfer.tuning.found import Findings
from sparkinfer.tuning.settings_file import as_yaml, options_of
from sparkinfer.tuning.table import describe
from sparkinfer.tuning.trial import Question

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

NOT_OF_TUNE = (
    *("models", "fn", "output", "overwrite", "carry_cols", "output_prefix", "label_col", "metrics"),
    *("incremental", "incremental_col", "retry_errors", "max_error_rows", "stall_timeout_s"),
    *("chunks", "dedupe", "horovod", "vectors", "delta", "table", "price_per_hour", "report"),
    *("mlflow",),
)
"""Options of a run that have no effect where nothing is written."""


@dataclass(frozen=True)
class Tuned:
    """What has been found.

    Attributes:
        findings: of each setting.
        options: by which a run takes the fastest one, as of `ScoringConfig`.
    """

    findings: Findings
    options: Mapping[str, Any]

    def __str__(self) -> str:
        return describe(self.findings)

    @property
    def yaml(self) -> str:
        """The options as `--config` takes them."""
        return as_yaml(self.options)

    @property
    def file(self) -> str:
        """The same, after what was measured as comments."""
        comments = (f"# {line}".rstrip() for line in str(self).splitlines())
        return "\n".join([*comments, self.yaml])


@causes_without_secrets()
def tune(
    config: ScoringConfig,
    budget_s: float = BUDGET_S,
    spark: SparkSession | None = None,
    *,
    progress: DisplayMode | Display = "auto",
    df: DataFrame | None = None,
) -> Tuned:
    """Measures settings on the first rows of `config.input`, or of a DataFrame, in one worker.

    Ways of running the model, sizes of batches, and on CPUs how the cores of a host are shared out
    among processes. What is given is kept; what passes the gate and is fastest is chosen. The rows
    are scored as they are: one that ends its process ends the trial.

    Args:
        config: of the run to come, without what only concerns its output.
        budget_s: seconds after which no further measurement starts. The model is examined in any
            case.
        spark: see `run`.
        progress: see `run`.
        df: see `run`.

    Raises:
        UsageError: the call cannot work.
        JobError: the model fails on every row, or the worker has ended.
    """
    check_tunable(config, budget_s, has_rows=df is not None)
    with death_reported(), displayed(progress) as started:
        prelude = open_prelude(config, spark, df, started)
        try:
            return _tuned(prelude, budget_s)
        finally:
            prelude.engine.close()


def check_tunable(config: ScoringConfig, budget_s: float, has_rows: bool = False) -> None:
    """Raises ConfigError for what cannot be measured, or would have no effect.

    Args:
        config: of the run to come.
        budget_s: see `tune`.
        has_rows: whether there is a DataFrame.
    """
    is_number = isinstance(budget_s, int | float) and not isinstance(budget_s, bool)
    if not (is_number and 0 < budget_s < math.inf):
        raise ConfigError(
            f"budget_s={shown(budget_s)}: expected a number of seconds above 0, such as 120"
        )
    refused = [name for name in NOT_OF_TUNE if _differs(config, name)]
    refused += [f"gate.{name}" for name in ("measure", "remember") if name in config.gate.given]
    if refused:
        raise ConfigError(
            f"{', '.join(refused)} with tune: {_why(refused[0])}; leave it out, and give it to the "
            "run"
        )
    if config.input is None and not has_rows:
        raise ConfigError("option 'input' is required to tune; give --input, or df=... in Python")


def _differs(config: ScoringConfig, name: str) -> bool:
    return bool(getattr(config, name) != _DEFAULTS[name])


_DEFAULTS = ScoringConfig(model="none", input_col="none").as_dict()


def _why(name: str) -> str:
    if name in ("models", "fn"):
        return "one model is measured at a time"
    return "the option would have no effect, since nothing is written or everything is measured"


def _tuned(prelude: Prelude, budget_s: float) -> Tuned:
    config = prelude.config
    prelude.check()
    if not isinstance(prelude.asked, ModelScoring):
        raise ConfigError(
            f"task={config.task.name!r} with tune: it is run by transformers' pipeline, in one "
            "way, so there is nothing to choose; score without it"
        )
    _ = prelude.asked_columns  # those that do not fit are found before the model is fetched
    resolved = prelude.resolved
    if not isinstance(resolved, ModelScoring):
        raise AssertionError("a resolved processor is what it was")
    question = Question(
        resolved, prelude.ahead, prelude.first_rows, prelude.places, budget_s, _split_given(config)
    )
    with prelude.progress.during(MEASURE):
        findings = prelude.engine.on_one_worker(question.answer, resolved.warm_up)
    return Tuned(findings, options_of(findings, find_engine(config.engine).on_spark))


def _split_given(config: ScoringConfig) -> str:
    """Returns the option that says how cores are shared out; empty if none does."""
    if config.num_workers is not None:
        return f"num_workers={config.num_workers}"
    return "spark.task.cpus" if "spark.task.cpus" in config.spark_conf else ""
