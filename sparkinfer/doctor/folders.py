"""Checks of where a run writes, and of the space there."""

from __future__ import annotations

import shutil
import socket
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sparkinfer.doctor.case import Case
from sparkinfer.doctor.findings import Outcome
from sparkinfer.doctor.nodes import ask_executors
from sparkinfer.exceptions import OutputError
from sparkinfer.jobs.output import Output
from sparkinfer.models.sources import cache_folder
from sparkinfer.mounts import refusals
from sparkinfer.storage import exists, file_system, is_local_path, join, remove, write_text

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

LOW_DISK_BYTES = 2**30
"""Less is not enough for a model of usual size or for what Spark spills of a table."""


def check_output(case: Case) -> Outcome:
    """Checks whether the output can be written, and executors see the same folder."""
    output = case.config.output
    if output is None:
        return Outcome("skipped", "no output was given")
    folder = Output(output)
    folder.check(case.config.overwrite)
    if case.table is not None and case.table.files is not None:
        folder.refuse_overlap(case.table.files.found.paths)
    nearest = _nearest_folder(output)
    blind = _try_to_write(case, nearest)
    if not blind:
        found = f"{output} can be written (tried in {nearest}){describe_mount(nearest)}"
        return Outcome("ok", found)
    return Outcome(
        "error",
        f"{nearest} on the driver is not the folder that executors on "
        f"{', '.join(sorted(blind)[:8])} see",
        "name a folder on storage that every node sees",
    )


def _try_to_write(case: Case, folder: str) -> set[str]:
    """Writes a temporary file there and returns the hosts that do not see it.

    Raises:
        OutputError: it cannot be written.
    """
    probe = join(folder, f".sparkinfer-probe-{uuid.uuid4().hex}")
    try:
        write_text(probe, "")
        is_shared = not case.nodes or not is_local_path(probe)
        return set() if is_shared else hosts_without(case.spark, case.tasks, probe)
    except OSError as error:
        raise OutputError(
            f"output {case.config.output!r}: no file can be written in {folder!r} "
            f"({error.strerror or error}); name another folder or fix its permissions"
        ) from None
    finally:
        remove(probe)


def describe_mount(folder: str) -> str:
    """Returns what a local folder refuses that a disk does not, as the end of a sentence."""
    if not is_local_path(folder):
        return ""
    refused = refusals(Path(file_system(folder)[1]))
    listed = ", ".join(f"{name} ({reason})" for name, reason in refused.items())
    return f"; the file system there refuses {listed}" if refused else ""


def hosts_without(spark: SparkSession, tasks: int, path: str) -> set[str]:
    """Returns the executor hosts that do not see a file on a mounted file system."""
    name = file_system(path)[1]

    def missing_on() -> str:
        import socket
        from pathlib import Path

        return "" if Path(name).exists() else socket.gethostname()

    return {host for host in ask_executors(spark, tasks, missing_on) if host}


def check_disk(case: Case) -> Outcome:
    """Checks whether there is disk space on the driver and on the nodes."""
    host = socket.gethostname()
    used = [tempfile.gettempdir(), str(cache_folder(case.config.loading))]
    if case.config.output is not None and is_local_path(case.config.output):
        used.append(case.config.output)
    folders = {_nearest_folder(path) for path in used}
    usage = {f"{folder} on {host}": shutil.disk_usage(folder) for folder in folders}
    free = {place: size.free for place, size in usage.items() if size.total}  # /proc has none
    for node in case.nodes:
        free |= {f"{folder} on {node.host}": size for folder, size in node.free_bytes.items()}
    return judge_disk(free)


def judge_disk(free_bytes: Mapping[str, int]) -> Outcome:
    """Returns whether there is enough space in each of the places."""
    shown = {place: f"{size / 2**30:.1f} GiB free in {place}" for place, size in free_bytes.items()}
    low = [shown[place] for place, size in free_bytes.items() if size < LOW_DISK_BYTES]
    if low:
        return Outcome("warning", ", ".join(low), "free space for the model and Spark's files")
    return Outcome("ok", shown[min(free_bytes, key=lambda place: free_bytes[place])] + " at least")


def _nearest_folder(path: str) -> str:
    """Returns the path, or its nearest existing parent folder."""
    if is_local_path(path):
        name = Path(file_system(path)[1])
        return str(next(folder for folder in (name, *name.parents) if folder.is_dir()))
    folder = path.rstrip("/")
    while "/" in folder.split("://", 1)[-1] and not exists(folder):
        folder = folder.rsplit("/", 1)[0]
    return folder
