"""The Delta table of a run: looked at before the run starts, filled by it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparkinfer.exceptions import ConfigError, EngineUnavailableError
from sparkinfer.jobs.manifest import Manifest
from sparkinfer.jobs.output import Output
from sparkinfer.plan.prelude import Prelude
from sparkinfer.rows.columns import Columns

if TYPE_CHECKING:
    from sparkinfer.sinks.tables.delta import DeltaAppends


def check_delta(prelude: Prelude, output: Output) -> None:
    """Raises UsageError unless the Delta table, if there is to be one, takes the output's rows."""
    path = prelude.config.delta.table
    if path is None:
        return
    try:
        from sparkinfer.sinks.tables.delta import check_table
    except ImportError as error:
        raise EngineUnavailableError(
            f"delta.table={path!r} needs a package that is not installed ({error}); run pip "
            "install deltalake (the extra [delta])"
        ) from error
    if output.overlaps(path):
        raise ConfigError(
            f"delta.table={path!r} and output {output.path!r} are folders within one another; name "
            "another folder for one of them"
        )
    check_table(path, prelude.asked_columns.output)


def delta_appends(path: str, manifest: Manifest, columns: Columns) -> DeltaAppends:
    """Returns the way into a table, in which nothing of the runs that this one replaces is left."""
    from sparkinfer.sinks.tables.delta import DeltaAppends

    appends = DeltaAppends(path, manifest.run, columns.output)
    appends.remove_runs(manifest.replaced)
    return appends
