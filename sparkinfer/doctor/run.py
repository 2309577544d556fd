"""Checks of the run itself, as far as possible without scoring a row."""

from __future__ import annotations

from sparkinfer.api.functions import open_prelude
from sparkinfer.doctor.case import Case
from sparkinfer.doctor.findings import Outcome
from sparkinfer.engines import find_engine
from sparkinfer.plan.processors import make_processor


def check_engine(case: Case) -> Outcome:
    """Checks whether the engine can be created; keeps the steps before its first row."""
    spark = case.spark if find_engine(case.config.engine).on_spark else None
    case.prelude = open_prelude(case.config, spark)
    return Outcome("ok", str(case.prelude.engine))


def check_workers(case: Case) -> Outcome:
    """Checks whether all workers of the engine can run in parallel."""
    workers = case.prelude.workers
    found = f"{workers.count} x {workers.device_type}"
    if case.slots is None or workers.count <= case.slots:
        return Outcome("ok", found)
    return Outcome(
        "warning",
        f"{found}, but only {case.slots} tasks at a time: the others run afterwards",
        f"use --num-workers {case.slots} or add executors",
    )


def check_input(case: Case) -> Outcome:
    """Checks whether the input can be opened and has the configured columns."""
    config = case.config
    if config.input is None:
        return Outcome("skipped", "no input was given", "give --input to have it checked")
    table, _ = case.prelude.table, case.prelude.asked_columns
    case.table = table
    columns = ", ".join(table.columns)
    text = config.input_template or config.input_col
    found = f"{table.input_format} {config.input} with {columns}; text in {text!r}"
    if {"input_col", "input_template"} & case.given:
        return Outcome("ok", found)
    return Outcome("warning", f"{found}, which was not given", "name it with --input-col")


def check_model(case: Case) -> Outcome:
    """Checks whether the model is found."""
    config = case.config
    # The model is looked for even without an engine.
    opened = case.prelude if hasattr(case, "prelude") else None
    asked = opened.asked if opened else make_processor(config)
    asked.check()
    resolved = opened.resolved if opened else asked.resolved()
    fingerprint = resolved.settings().get("model_fingerprint")
    if fingerprint is None:
        return Outcome(
            "skipped", f"task={config.task.name!r} uses no model", "there is nothing to do"
        )
    stand_in = "" if "model" in case.given else " (none was given: the demo's)"
    return Outcome("ok", f"{config.model}{stand_in}, fingerprint {fingerprint[:12]}")


def check_gate(case: Case) -> Outcome:
    """Checks how the model would be run: loads it in one worker."""
    verdict = case.prelude.processor.verdict
    if verdict is None:
        return Outcome("skipped", "there is no model to try", "there is nothing to do")
    if not verdict.rejected:
        return Outcome("ok", verdict.found)
    rejected = "; ".join(f"{name}: {reason}" for name, reason in verdict.rejected)
    advice = "rows are scored the first way; set --acceleration and --dtype to skip the attempts"
    return Outcome("warning", f"{verdict.found}; not used: {rejected}", advice)
