"""Processes of a model that do at once what real ones do seldom: see `test_model_processes.py`.

What a text asks for is the first of its tokens.
"""

from __future__ import annotations

import os
import pickle
import time
from multiprocessing.connection import Connection
from typing import Any

import pyarrow as pa

from sparkinfer.exceptions import ConfigError
from sparkinfer.models.backends.processes import Answer, Job

PLAIN, FIRST_LACKS_MEMORY, SECOND_DIES, SECOND_DISAGREES, ALL_FAIL = range(5)
"""What may be asked for."""

BROKEN = "broken"
"""A prefix with which a model does not load."""


def _scored(asked: int, rank: int) -> Answer:
    if asked == ALL_FAIL:
        return Answer(error=("IndexError", "index 9 in a table of 8 rows"))
    if asked == FIRST_LACKS_MEMORY and rank == 0:
        return Answer(error=("OutOfMemoryError", "CUDA out of memory"), is_memory=True)
    if asked == FIRST_LACKS_MEMORY:
        time.sleep(3600)  # in a collective operation, which never ends
    if asked == SECOND_DIES and rank == 1:
        os._exit(3)
    if asked == SECOND_DIES:
        time.sleep(3600)
    said = b"other" if asked == SECOND_DISAGREES and rank == 1 else b"same"
    made: Any = pa.RecordBatch.from_pydict({"process": [os.getpid()]})
    return Answer(made if rank == 0 else None, said)


def serve(descriptor: int) -> None:
    connection = Connection(descriptor)
    job: Job = pickle.loads(connection.recv_bytes())
    if job.options.prefix == BROKEN:
        error = ConfigError("it is broken")
        return connection.send_bytes(pickle.dumps(Answer(error=("", ""), raised=error)))
    connection.send_bytes(pickle.dumps(Answer(32)))
    while True:
        _, arrays = pickle.loads(connection.recv_bytes())
        asked = int(arrays["input_ids"][0, 0])
        connection.send_bytes(pickle.dumps(_scored(asked, job.rank)))
