"""Places that the process which runs the job and its workers must see alike."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass

from sparkinfer.exceptions import InputError, OutputError
from sparkinfer.storage import exists, is_local_path

LOOKS = 10
PAUSE_S = 0.5
"""Between looks: a mount may show what another host has just made only after a while."""


@dataclass(frozen=True)
class Places:
    """A file of the input and the output's folder, as the process that runs the job sees them.

    Attributes:
        input_file: None where no files are read.
        output: a folder that is there already; None: there is none yet.
    """

    input_file: str | None = None
    output: str | None = None

    def look(self) -> None:
        """Looks for both; called in a worker.

        Raises:
            InputError: the file is not there.
            OutputError: the folder is not there.
        """
        if not _is_seen(self.input_file):
            raise InputError(f"input file {self.input_file!r} {_unseen()}")
        if not _is_seen(self.output):
            raise OutputError(f"output folder {self.output!r} {_unseen()}")


def _is_seen(path: str | None) -> bool:
    """Returns whether a path on a disk or a mount is there; a store is the same from everywhere."""
    if path is None or not is_local_path(path):
        return True
    for _ in range(LOOKS):
        if exists(path):
            return True
        time.sleep(PAUSE_S)
    return False


def _unseen() -> str:
    return (
        "is there for the process that runs the job and not for its worker on "
        f"{socket.gethostname()}; name a place that all machines share: an object store, a Volume "
        "or a network drive"
    )
