"""A rank as a process of this machine.

It gets its job on stdin, which stays open as long as the driver lives: when it ends, so does the
rank, whatever it is at.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
import threading
from typing import TYPE_CHECKING, BinaryIO

import cloudpickle

from sparkinfer.signals import ASKS_TO_END

if TYPE_CHECKING:
    from sparkinfer.engines.horovod.placement import Placement, RankWork

LENGTH = struct.Struct("<Q")

FAILED = 1


def message(job: RankWork, placement: Placement) -> bytes:
    """Returns what a rank reads from its stdin."""
    content: bytes = cloudpickle.dumps((job, placement))
    return LENGTH.pack(len(content)) + content


def main() -> None:
    """Runs the rank and ends the process."""
    for number in ASKS_TO_END:  # the driver decides, who gets them too; children hear them again
        signal.signal(number, lambda *_: None)
    control = os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), sys.stdin.fileno())
    (length,) = LENGTH.unpack(control.read(LENGTH.size))
    content = control.read(length)
    threading.Thread(target=_end_with_driver, args=(control,), daemon=True).start()
    job, placement = cloudpickle.loads(content)

    from sparkinfer.batch_process.rank import run_rank

    ended_well = run_rank(job, placement)
    sys.stdout.flush()
    sys.exit(0 if ended_well else FAILED)


def _end_with_driver(control: BinaryIO) -> None:
    control.read(1)
    os._exit(FAILED)
