"""A model that processes of its own run: several with a part each, or one that keeps it elsewhere.

The worker starts them on its host, gives all of them the same batches and takes the result of the
first. They form a torch world of their own, so that a worker has none, and end with their worker,
whatever ends it: then the socket between them is closed. If one of them ends, so do the others, and
the batch raises `DeviceError`: what waits in a collective operation waits forever.
"""

from __future__ import annotations

import builtins
import pickle
import subprocess
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from sparkinfer.exceptions import DeviceError, SparkInferError
from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.layout import Layout
from sparkinfer.models.tasks.base import Tensors
from sparkinfer.workers.child import start_child

if TYPE_CHECKING:
    from sparkinfer.models.options import ModelOptions

HOME = "sparkinfer.models.model_process:serve"
"""What a process runs."""

GRACE_S = 10.0
"""Time in which the others fail, too, if one fails for a reason that is not its own."""


@dataclass(frozen=True)
class Job:
    """What a process is sent first.

    Attributes:
        path: folder with the model's files.
        options: how it is loaded and run.
        way: how it is run.
        device: torch device of this process.
        max_length: see `Checkpoint`.
        layout: see `Checkpoint`.
        rank: of this process.
        cores: for its threads.
        meeting: file by which the processes find one another.
    """

    path: Path
    options: ModelOptions
    way: Acceleration
    device: str
    max_length: int
    layout: Layout
    rank: int
    cores: int
    meeting: str


@dataclass(frozen=True)
class Answer:
    """What a process answers.

    Attributes:
        value: the result, of the first process alone.
        agreed: what all must agree on.
        error: name and text of what was raised, None if nothing was.
        is_memory: whether that was for lack of memory.
        raised: the error itself, if it is one of ours.
    """

    value: Any = None
    agreed: bytes = b""
    error: tuple[str, str] | None = None
    is_memory: bool = False
    raised: SparkInferError | None = None


class ProcessesRuntime:
    """A model in processes of its own; a `TaskRuntime`.

    Args:
        checkpoint: the model's files.
        way: how it is run.

    Raises:
        SparkInferError: it does not load.
        RuntimeError: a process fails or ends.
    """

    module = None
    batch_tokens = None

    def __init__(self, checkpoint: Checkpoint, way: Acceleration) -> None:
        self._checkpoint = checkpoint
        self._way = way
        self._processes: _Processes | None = None
        self._start()

    def score(self, tensors: Tensors, moved: Callable[[], None]) -> pa.RecordBatch:
        """Returns what the task decodes of one padded batch; see `TaskRuntime`."""
        return self._ask("score", tensors)

    def try_out(self, tensors: Tensors) -> pa.RecordBatch:
        """Returns the numbers by which ways are compared; see `TaskRuntime`."""
        return self._ask("try_out", tensors)

    def close(self) -> None:
        """Ends the processes."""
        if self._processes is not None:
            self._processes.end()
        self._processes = None

    def _start(self) -> _Processes:
        self._processes = _Processes(self._checkpoint, self._way)
        try:
            answers = self._processes.answers()
            _raise_any(answers)
        except BaseException:
            self.close()
            raise
        self._checkpoint.vocabulary = answers[0].value
        return self._processes

    def _ask(self, what: str, tensors: Tensors) -> pa.RecordBatch:
        processes = self._processes or self._start()
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        try:
            processes.send((what, arrays))
            answers = processes.answers()
        except DeviceError:
            self.close()
            raise
        if any(answer is None for answer in answers):
            self.close()  # the others wait for one that has failed; they are restarted
        _raise_any(answers)
        if len({answer.agreed for answer in answers if answer}) > 1:
            self.close()
            raise DeviceError(
                f"the {self._way.processes} processes of a model made different results of one "
                "batch; run again with another dtype, or without parallel.tensor"
            )
        found: pa.RecordBatch = answers[0].value
        return found


def _raise_any(answers: Sequence[Answer | None]) -> None:
    """Raises what a process has raised, in this process."""
    failed = [answer for answer in answers if answer is not None and answer.error is not None]
    if not failed:
        return
    worst = next((answer for answer in failed if answer.is_memory), failed[0])
    if worst.raised is not None:
        raise worst.raised
    name, text = worst.error or ("", "")
    if worst.is_memory:
        raise MemoryError(text)
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        raise kind(text)
    raise RuntimeError(f"{name}: {text}")


class _Processes:
    """The processes of one model, started.

    Args:
        checkpoint: the model's files.
        way: how it is run.
    """

    def __init__(self, checkpoint: Checkpoint, way: Acceleration) -> None:
        import torch

        # Made by the first of them; the name of a file that is there would not do.
        self._folder = tempfile.mkdtemp(prefix="sparkinfer-")
        self._started: list[tuple[subprocess.Popen[bytes], Connection]] = []
        self._finish = weakref.finalize(self, _end, self._started, self._folder)
        devices = [checkpoint.device, *checkpoint.others]
        cores = max(1, torch.get_num_threads() // way.processes)
        try:
            for rank in range(way.processes):
                self._started.append(start_child(HOME, {}))
                job = Job(
                    path=checkpoint.path,
                    options=checkpoint.options,
                    way=way,
                    device=devices[rank] if rank < len(devices) else checkpoint.device,
                    max_length=checkpoint.max_length,
                    layout=checkpoint.layout,
                    rank=rank,
                    cores=cores,
                    meeting=f"file://{self._folder}/meeting",
                )
                self._started[-1][1].send_bytes(pickle.dumps(job))
        except OSError:
            raise self._dead() from None

    def send(self, message: Any) -> None:
        """Sends all of them the same.

        Raises:
            DeviceError: one of them has ended.
        """
        content = pickle.dumps(message)
        try:
            for _, connection in self._started:
                connection.send_bytes(content)
        except OSError:
            raise self._dead() from None

    def answers(self) -> list[Any]:
        """Returns the answer of each; None of those that still wait for one that has failed.

        Raises:
            DeviceError: one of them has ended.
        """
        waiting: dict[Any, int] = {pair[1]: rank for rank, pair in enumerate(self._started)}
        found: list[Answer | None] = [None] * len(waiting)
        deadline: float | None = None
        while waiting:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready = wait(list(waiting), left)
            if not ready:
                break
            for connection in ready:
                answer = self._received(connection)
                found[waiting.pop(connection)] = answer
                if answer.error is not None and deadline is None:
                    deadline = time.monotonic() + GRACE_S
        return found

    def end(self) -> None:
        """Ends them and waits until they have."""
        self._finish()

    def _received(self, connection: Any) -> Answer:
        try:
            answer: Answer = pickle.loads(connection.recv_bytes())  # of a process of our own
        except (EOFError, OSError):
            raise self._dead() from None
        return answer

    def _dead(self) -> DeviceError:
        codes = []
        for process, _ in self._started:
            with suppress(subprocess.TimeoutExpired):
                codes.append(process.wait(0.5))
        said = [f"signal {-code}" if code < 0 else f"exit code {code}" for code in codes]
        self.end()
        return DeviceError(
            f"a process of the model has ended ({', '.join(said) or 'its connection is closed'}), "
            "for lack of memory if nothing else is said above; run again to resume, with more "
            "of it or a smaller batching.max_batch_tokens"
        )


def _end(started: list[tuple[subprocess.Popen[bytes], Connection]], folder: str) -> None:
    for process, connection in started:
        connection.close()
        process.kill()
    for process, _ in started:
        process.wait()
    with suppress(OSError):
        for file in Path(folder).iterdir():
            file.unlink()
        Path(folder).rmdir()
