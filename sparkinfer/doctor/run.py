"""Checks of the run itself, as far as it goes without scoring a row."""

from __future__ import annotations

from sparkinfer.api.functions import spark_engine
from sparkinfer.doctor.case import Case
from sparkinfer.doctor.findings import Outcome
from sparkinfer.models.sources import resolve
from sparkinfer.models.tasks import get_task


def check_engine(case: Case) -> Outcome:
    """Returns whether the engine can be made; notes it."""
    from sparkinfer.engines.horovod.launchers import choose_launcher
    from sparkinfer.engines.horovod.readers import choose_reader
    from sparkinfer.engines.local import LocalEngine

    name, options = case.config.engine, case.config.horovod
    if name == "local":
        case.engine = LocalEngine(case.config)
        return Outcome("ok", "local: one process without Spark")
    case.engine = spark_engine(case.config, case.spark)
    if name != "horovod":
        return Outcome("ok", name)
    reader = choose_reader(options.reader, str(case.config.output))
    return Outcome("ok", f"{name}, launcher {choose_launcher(options.launcher)}, reader {reader}")


def check_workers(case: Case) -> Outcome:
    """Returns whether all workers of the engine run at once."""
    workers = case.engine.find_workers()
    found = f"{workers.count} x {workers.kind}"
    if case.slots is None or workers.count <= case.slots:
        return Outcome("ok", found)
    return Outcome(
        "warning",
        f"{found}, and {case.slots} tasks at once: the others run afterwards",
        f"use --num-workers {case.slots} or add executors",
    )


def check_input(case: Case) -> Outcome:
    """Returns whether the input can be opened and has its columns; notes its table."""
    config = case.config
    if config.input is None:
        return Outcome("skipped", "no input was given", "give --input to have it checked")
    case.table = case.engine.open_input()
    columns = ", ".join(case.table.columns)
    found = f"{case.table.kind} {config.input} with {columns}; text in {config.input_col!r}"
    if "input_col" in case.given:
        return Outcome("ok", found)
    return Outcome("warning", f"{found}, which was not given", "name it with --input-col")


def check_model(case: Case) -> Outcome:
    """Returns whether the model is found; notes its source."""
    config = case.config
    get_task(config.task)
    case.source = resolve(config.model, revision=config.revision, loading=config.loading)
    stand_in = "" if "model" in case.given else " (none was given: the one of the demo)"
    name = f"{case.source.kind} {config.model}{stand_in}"
    return Outcome("ok", f"{name}, fingerprint {case.source.fingerprint[:12]}")


def check_gate(case: Case) -> Outcome:
    """Returns how the model would be run: loads it in one worker."""
    verdict = case.engine.run_gate(case.source)
    found = (
        f"{verdict.accepted} on {verdict.device}: differs from float32 by "
        f"{verdict.max_difference:.2g}, allowed {verdict.tolerance:g}; labels "
        f"{', '.join(verdict.labels[:8])}; texts are cut at {verdict.max_length} tokens"
    )
    if not verdict.rejected:
        return Outcome("ok", found)
    rejected = "; ".join(f"{name}: {reason}" for name, reason in verdict.rejected)
    advice = "rows are scored as said first; --acceleration and --dtype spare the attempts"
    return Outcome("warning", f"{found}; not used: {rejected}", advice)
