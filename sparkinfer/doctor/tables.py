"""A check of the tables to which a run would write."""

from __future__ import annotations

from sparkinfer.doctor.case import Case
from sparkinfer.doctor.findings import Outcome
from sparkinfer.jobs.delta import check_delta
from sparkinfer.jobs.output import Output
from sparkinfer.jobs.table import check_table


def check_tables(case: Case) -> Outcome:
    """Checks whether the tables take the output's columns, or can be made of them."""
    config = case.config
    named = [name for name in (config.delta.table, config.table.name) if name is not None]
    if not named:
        return Outcome("skipped", "no table was given")
    if case.table is None or config.output is None:
        return Outcome("skipped", "no input or no output was given")
    check_delta(case.prelude, Output(config.output))
    check_table(case.prelude)
    return Outcome("ok", f"{', '.join(named)} can be written")
