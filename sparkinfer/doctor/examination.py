"""All checks, and the examination that runs them.

The checks are a table, cheapest first. Each one looks at one thing and returns what it found; if it
raises, that becomes an error with the message, and checks that need its result are skipped. Nothing
is written except small files next to the output, which are removed immediately.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sparkinfer.config import ScoringConfig
from sparkinfer.doctor import cluster, folders, installation, run
from sparkinfer.doctor.case import Case
from sparkinfer.doctor.findings import Finding, Outcome, as_outcome
from sparkinfer.doctor.tables import check_tables
from sparkinfer.doctor.vectors import check_vectors
from sparkinfer.logs import get_logger
from sparkinfer.messages import shortened
from sparkinfer.redaction import without_secrets

logger = get_logger(__name__)


@dataclass(frozen=True)
class Check:
    """One thing to check.

    Attributes:
        name: shown to the user.
        run: returns the outcome, or raises.
        remedy: advice for an error whose message has none.
        needs: names of the checks that must not have failed.
        on_spark: whether it does not apply to `engine="local"`.
    """

    name: str
    run: Callable[[Case], Outcome]
    remedy: str
    needs: tuple[str, ...] = ()
    on_spark: bool = False


def examine(config: ScoringConfig) -> Iterator[Finding]:
    """Yields one finding per check, in the order of `CHECKS`, as soon as it is available.

    Cost: a Spark session (an active one is used), a few small jobs, fetching the model and loading
    it in one worker. Like a run, it leaves the session open.

    Args:
        config: options of the run; `ExaminedConfig` if not all of them are known yet.
    """
    # Workers unpickle it: they must get what a run would send.
    case = Case(config.replace(), config.given)
    failed: dict[str, str] = {}
    for check in CHECKS:
        outcome = _run(check, case, failed)
        found, advice = (_as_line(text) for text in outcome[1:])
        yield Finding(check.name, outcome.status, found, advice)


def _run(check: Check, case: Case, failed: dict[str, str]) -> Outcome:
    """Returns the outcome of a check.

    Args:
        check: what to check.
        case: what is examined.
        failed: for each check without a result, by name, the one to blame; updated.
    """
    if check.on_spark and case.config.engine == "local":
        return Outcome("skipped", "engine='local' works without Spark")
    blamed = next((failed[name] for name in check.needs if name in failed), None)
    if blamed is not None:
        failed[check.name] = blamed
        return Outcome("skipped", f"it needs {blamed!r}, which has an error")
    try:
        outcome = check.run(case)
    except Exception as error:  # whatever a check raises, a run would run into
        logger.debug("check %r", check.name, exc_info=True)
        outcome = as_outcome(error, check.remedy)
    if outcome.status == "error":
        failed[check.name] = check.name
    return outcome


def _as_line(text: str) -> str:
    return shortened(" ".join(without_secrets(text).split()))


_DEBUG = "run again with --debug to see where it comes from"

CHECKS = (
    Check("python", installation.check_python, _DEBUG),
    Check("packages", installation.check_packages, _DEBUG),
    Check("deepspeed", installation.check_deepspeed, _DEBUG),
    Check("graphs", installation.check_graphs, _DEBUG),
    Check("horovod", installation.check_horovod, _DEBUG),
    Check("petastorm", installation.check_petastorm, _DEBUG),
    Check("mlflow", installation.check_mlflow, _DEBUG),
    Check("java", cluster.check_java, "install pyspark and a Java that it supports", on_spark=True),
    Check("spark", cluster.check_spark, "check --master and spark_conf", ("java",), on_spark=True),
    Check("settings", cluster.check_settings, "correct the setting", ("spark",), on_spark=True),
    Check(
        "executors",
        cluster.check_executors,
        "let every node have the driver's Python (PYSPARK_PYTHON) and the same packages",
        ("settings",),
        on_spark=True,
    ),
    Check("gpus", cluster.check_gpus, _DEBUG, ("executors",), on_spark=True),
    Check("engine", run.check_engine, _DEBUG, ("spark",)),
    Check("workers", run.check_workers, _DEBUG, ("gpus", "engine")),
    Check("input", run.check_input, "give a table with that column", ("engine",)),
    Check("output", folders.check_output, "name another folder"),
    Check("tables", check_tables, "name another table", ("input", "output")),
    Check("vectors", check_vectors, "name another collection or table", ("output",)),
    Check("disk", folders.check_disk, _DEBUG),
    Check("model", run.check_model, "give a hub id, a folder or a URI of a model"),
    Check(
        "gate",
        run.check_gate,
        "give a model that was trained for the task",
        ("workers", "input", "model"),
    ),
)
"""All checks, in order; those that need Spark come after those that do not."""
