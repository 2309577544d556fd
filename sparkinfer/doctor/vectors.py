"""A check of the vector store that a run would fill."""

from __future__ import annotations

from contextlib import closing

from sparkinfer.doctor.case import Case
from sparkinfer.doctor.findings import Outcome
from sparkinfer.jobs.output import Output
from sparkinfer.jobs.vectors import RunVectors, look
from sparkinfer.plan.processors import make_processor
from sparkinfer.sinks.vectors import open_store
from sparkinfer.sinks.vectors.asked import asked_vectors


def check_vectors(case: Case) -> Outcome:
    """Checks whether the store can be reached, and takes what the run would put there."""
    config = case.config
    asked = asked_vectors(config, make_processor(config))
    if asked is None:
        return Outcome("skipped", "no vector store was given")
    with closing(open_store(asked.uri)) as store:
        if case.table is not None:
            asked.check(case.prelude.asked_columns)
        if config.output is not None:
            RunVectors(asked, store, Output(config.output), config.overwrite).check()
        found = look(asked, store)
        if found is None:
            return Outcome("ok", f"{asked.uri.plain} can be created")
        return Outcome("ok", f"{asked.uri.plain} holds {store.count():,} vectors of {found.output}")
