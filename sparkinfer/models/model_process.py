"""One process of a model that has several; see `backends.processes`, which starts it."""

from __future__ import annotations

import hashlib
import os
import pickle
import queue
import threading
import warnings
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pyarrow as pa

from sparkinfer.exceptions import SparkInferError
from sparkinfer.models.backends.processes import Answer, Job
from sparkinfer.models.backends.sharded import load_large
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.running import RunningModel
from sparkinfer.workers.devices import is_out_of_memory, release_memory


def serve(descriptor: int) -> None:
    """Runs a model for whoever is at the other end of a connection, until that is closed."""
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    warnings.simplefilter("ignore")  # other libraries' notes to their callers
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what they print
    connection = Connection(descriptor)
    asked: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    job: Job = pickle.loads(connection.recv_bytes())
    threading.Thread(target=_listen, args=(connection, asked), daemon=True).start()
    try:
        model = _load(job)
    except Exception as error:  # loading may raise anything
        _answer(connection, _failure(error))
        return
    _answer(connection, Answer(model.vocabulary))
    while True:
        what, arrays = pickle.loads(asked.get())
        _answer(connection, _asked(model, what, arrays, is_first=job.rank == 0))


def _listen(connection: Connection, asked: queue.SimpleQueue[bytes]) -> None:
    """Takes messages; ends this process with the worker, even within a collective operation."""
    try:
        while True:
            asked.put(connection.recv_bytes())
    except (EOFError, OSError):
        os._exit(0)


def _load(job: Job) -> RunningModel:
    import torch

    torch.set_num_threads(job.cores)
    checkpoint = Checkpoint(job.path, job.options, job.device, job.max_length, job.layout)
    return RunningModel(checkpoint, load_large(checkpoint, job.way, job.rank, job.meeting))


def _asked(
    model: RunningModel, what: str, arrays: dict[str, np.ndarray[Any, Any]], is_first: bool
) -> Answer:
    import torch

    try:
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        made = model.try_out(tensors) if what == "try_out" else model.score(tensors)
    except Exception as error:  # a model may raise anything
        return _failure(error, model.device)
    return Answer(made if is_first else None, _agreed(made))


def _agreed(made: pa.RecordBatch) -> bytes:
    """Returns what represents all that is no number with a fraction, which rounding may change."""
    exact = [
        column.to_pylist() for column in made.columns if not pa.types.is_floating(_inner(column))
    ]
    return hashlib.blake2b(repr((made.num_rows, exact)).encode(), digest_size=8).digest()


def _inner(column: pa.Array) -> pa.DataType:
    return column.type.value_type if pa.types.is_list(column.type) else column.type


def _failure(error: Exception, device: str = "cpu") -> Answer:
    is_memory = is_out_of_memory(error)
    if is_memory:
        error = error.with_traceback(None)  # which would hold the batch
        release_memory(device)
    ours = error if isinstance(error, SparkInferError) else None
    said = (type(error).__name__, " ".join(str(error).split()))
    return Answer(error=said, is_memory=is_memory, raised=ours)


def _answer(connection: Connection, answer: Answer) -> None:
    connection.send_bytes(pickle.dumps(answer))
