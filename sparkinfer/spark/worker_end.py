"""How a Python worker of Spark ends itself so that Spark's error says why.

If `spark.python.worker.faulthandler.enabled` is set (from Spark 4 on also
`spark.sql.execution.pyspark.udf.faulthandler.enabled`), the worker opens a file named after its
process id in the folder PYTHON_FAULTHANDLER_DIR; Spark appends its content to "Python worker exited
unexpectedly (crashed):".

Source: `main` of pyspark/worker.py, `handleException` of PythonRunner.scala; Spark 3.5 and 4.0.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from pathlib import Path

from sparkinfer.workers.watchdog import end_process

HANG_UP_S = 5.0
"""Time that Spark gets to see the end of the worker's output and close the connection."""


def end_worker(report: str) -> None:
    """Ends this process: its task fails with the report, also on stderr, and Spark retries it."""

    def tell() -> None:
        folder = os.environ.get("PYTHON_FAULTHANDLER_DIR")
        if folder:
            with contextlib.suppress(OSError):
                Path(folder, str(os.getpid())).write_bytes(report.encode("utf-8", "replace"))
        print(report, file=sys.stderr, flush=True)
        _hang_up()

    end_process(tell)


def _hang_up() -> None:
    """Closes the connection to Spark in an orderly way.

    A process that ends with unread input resets the connection, and Spark 3.5 looks for the report
    only after an orderly close.
    """
    connection = _connection()
    if connection is None:
        return
    connection.shutdown(socket.SHUT_WR)
    connection.settimeout(HANG_UP_S)
    deadline = time.monotonic() + HANG_UP_S
    with contextlib.suppress(OSError):
        while time.monotonic() < deadline and connection.recv(2**16):
            pass  # unread, what Spark still sends would keep it from closing


def _connection() -> socket.socket | None:
    """Returns the worker's connection to Spark, None if pyspark is not as expected.

    pyspark does not expose it; it is the variable `outfile` of the function that runs the task,
    outermost in the main thread.
    """
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if frame.f_code.co_name == "main" and {"infile", "outfile"} <= set(frame.f_locals):
            with contextlib.suppress(OSError, AttributeError):
                return socket.socket(fileno=os.dup(frame.f_locals["outfile"].fileno()))
        frame = frame.f_back
    return None
