"""Checks of the run itself, as far as possible without scoring a row."""

from __future__ import annotations

from sparkinfer.api.functions import open_prelude
from sparkinfer.config import ScoringConfig
from sparkinfer.doctor.case import Case
from sparkinfer.doctor.findings import Outcome
from sparkinfer.engines import find_engine
from sparkinfer.functions.processor import FunctionVerdict
from sparkinfer.models.any_pipeline import PipelineVerdict
from sparkinfer.models.backends.base import shown_way
from sparkinfer.models.gate import Verdict
from sparkinfer.plan.processors import make_processor
from sparkinfer.rows.processor import PlannedProcessor
from sparkinfer.rows.several import SeveralVerdict, members_of


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
        return Outcome("skipped", "no input was given")
    table, _ = case.prelude.table, case.prelude.asked_columns
    case.table = table
    columns = ", ".join(table.columns)
    if config.fn.function:
        return Outcome("ok", f"{table.input_format} {config.input} with {columns}")
    of_models = config.by_model.values()
    texts = dict.fromkeys(one.input_template or one.input_col for one in of_models)
    shown = ", ".join(map(repr, texts))
    found = f"{table.input_format} {config.input} with {columns}; text in {shown}"
    if {"input_col", "input_template"} & case.given or config.input_col not in texts:
        return Outcome("ok", found)
    return Outcome("warning", f"{found}, which was not given", "name it with --input-col")


def check_model(case: Case) -> Outcome:
    """Checks whether the model is found."""
    config = case.config
    # The model is looked for even without an engine.
    opened = case.prelude if hasattr(case, "prelude") else None
    asked = opened.asked if opened else make_processor(config)
    asked.check()
    if asked.replaces_rows:
        return Outcome("skipped", "functions are called in place of a model")
    resolved = opened.resolved if opened else asked.resolved()
    found = [_described(config, name, one) for name, one in members_of(resolved).items()]
    models = [what for what, has_model in found if has_model]
    if not models:
        return Outcome("skipped", "; ".join(what for what, _ in found))
    stand_in = "" if {"model", "models"} & case.given else " (none was given: the demo's)"
    return Outcome("ok", "; ".join(models) + stand_in)


def _described(config: ScoringConfig, name: str, processor: PlannedProcessor) -> tuple[str, bool]:
    """Returns what one of the models is, and whether it is a model."""
    config = config.by_model[name]
    label = f"{name}: " if name else ""
    fingerprint = processor.settings().get("model_fingerprint")
    if fingerprint is None:
        return f"{label}task={config.task.name!r} uses no model", False
    return f"{label}{config.model}, fingerprint {fingerprint[:12]}", True


def check_gate(case: Case) -> Outcome:
    """Checks how the model would be run: loads it in one worker."""
    processor = case.prelude.processor
    members = members_of(processor)
    outcomes = [_judged(name, one.verdict) for name, one in members.items() if one.verdict]
    if not outcomes:
        return Outcome("skipped", "there is no model to try")
    found = "; ".join(outcome.found for outcome in outcomes)
    if isinstance(processor.verdict, SeveralVerdict) and processor.verdict.takes_turns:
        found += "; the models do not fit on the device together and take turns"
    warnings = [outcome for outcome in outcomes if outcome.status == "warning"]
    return Outcome("warning", found, warnings[0].advice) if warnings else Outcome("ok", found)


def _judged(name: str, verdict: Verdict | PipelineVerdict | FunctionVerdict) -> Outcome:
    """Returns how one of the models would be run."""
    found = f"{name}: {verdict.found}" if name else verdict.found
    if not verdict.rejected:
        return Outcome("ok", found)
    rejected = "; ".join(f"{shown_way(way)}: {reason}" for way, reason in verdict.rejected)
    advice = (
        "rows are scored in the first way; give --acceleration and --dtype to skip the attempts"
    )
    return Outcome("warning", f"{found}; not used: {rejected}", advice)
