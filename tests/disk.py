"""Kills a run before any chosen change of its output, and looks after each at what readers see."""

from __future__ import annotations

from typing import Any

import fsspec
import pyarrow.dataset as pads
import pytest

import sparkinfer.jobs.manifest
import sparkinfer.jobs.output
import sparkinfer.jobs.records
import sparkinfer.sinks.parquet

MODULES = (
    sparkinfer.jobs.output,
    sparkinfer.jobs.manifest,
    sparkinfer.jobs.records,
    sparkinfer.sinks.parquet,
)
CHANGES = (
    "move",
    "remove",
    "remove_if_empty",
    "rename_folder",
    "write_text",
    "replace_text",
    "create_exclusively",
)


class Killed(BaseException):
    """Stands for the end of the process; nothing catches it."""


def ids_of(output: str | None) -> list[int]:
    """Returns the ids that a reader finds in an output, sorted."""
    fs, name = fsspec.core.url_to_fs(str(output), use_listings_cache=False)
    if not fs.isdir(name):
        return []
    dataset = pads.dataset(name, filesystem=fs, format="parquet")
    if "id" not in dataset.schema.names:
        return []
    return sorted(dataset.to_table(columns=["id"])["id"].to_pylist())


class Disk:
    """Counts changes of a disk or a store; from the fatal one on, nothing is changed any more.

    Attributes:
        output: where the run writes.
        changes: how many there were.
        fatal: number of the change before which the process is killed, from 0; None for none.
    """

    def __init__(self, output: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
        self.output = output
        self.changes = 0
        self.fatal: int | None = None
        self._monkeypatch = monkeypatch

    def watch_changes(self) -> Disk:
        """Counts the changes that a run makes through the package's storage seam."""
        for module in MODULES:
            self.watch(module, *(name for name in CHANGES if hasattr(module, name)))
        return self

    def watch(self, owner: Any, *names: str) -> Disk:
        """Counts the calls of functions or methods; reading does not count, nor does the lease."""
        for name in names:
            self._monkeypatch.setattr(owner, name, self._counted(getattr(owner, name)))
        return self

    def kill_at(self, change: int | None, output: str | None) -> None:
        """Begins to count anew, for a run that writes there."""
        self.output, self.changes, self.fatal = output, 0, change

    def look(self, change: str) -> None:
        """Looks at what readers see after a change."""
        ids = ids_of(self.output)
        assert len(set(ids)) == len(ids), f"a row is there twice after {change}"

    def _counted(self, change: Any) -> Any:
        def counted(*arguments: Any, **options: Any) -> Any:
            given = [a for a in (*arguments, *options.values()) if isinstance(a, str)]
            if "rb" in given or any("/lease" in a for a in given):
                return change(*arguments, **options)
            if self.changes == self.fatal:
                raise Killed
            self.changes += 1
            result = change(*arguments, **options)
            self.look(f"{change.__name__}{given}")
            return result

        return counted
