"""Which run in MLflow a run writes to: `mlflow-RUN.json` in the output's work folder."""

from __future__ import annotations

import re

from sparkinfer.jobs.sealed import DamagedError, OtherVersionError, seal, unseal
from sparkinfer.storage import WORK_FOLDER, join, names_in, read_bytes, replace_text

NOTE_NAME = re.compile(r"mlflow-([0-9a-f]*)\.json")


def read_note(output: str, run: str) -> str | None:
    """Returns the id of the run in MLflow, None if none is noted, or not whole."""
    try:
        return str(unseal(read_bytes(_path(output, run)) or b"")["mlflow_run"])
    except (DamagedError, OtherVersionError, ValueError, KeyError, TypeError):
        return None


def keep_note(output: str, run: str, mlflow_run: str) -> None:
    """Notes the id of the run in MLflow; the caller holds the output's lease.

    Raises:
        Exception: whatever the store raises.
    """
    replace_text(_path(output, run), seal({"mlflow_run": mlflow_run}))


def notes_of_others(output: str, run: str) -> list[str]:
    """Returns the paths of the notes of all runs but one."""
    names = names_in(join(output, WORK_FOLDER))
    found = (NOTE_NAME.fullmatch(name) for name in names)
    return [_path(output, one[1]) for one in found if one and one[1] != run]


def _path(output: str, run: str) -> str:
    return join(output, WORK_FOLDER, f"mlflow-{run}.json")
