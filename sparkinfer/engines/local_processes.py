"""Several replicas on this machine without Spark, each in a process of its own.

A chunk is shared out among them, as among Spark tasks. The shares of several chunks wait for
whichever process is idle.
"""

from __future__ import annotations

import pickle
import queue
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from typing import Any, TypeVar

import cloudpickle

from sparkinfer.engines.deaths import Deaths
from sparkinfer.engines.local_worker import DONE, STALLED, Share, Trial
from sparkinfer.engines.this_process import COMMITS_AT_ONCE, slot_of
from sparkinfer.exceptions import DeviceError, JobError
from sparkinfer.plan.phases import LOAD
from sparkinfer.plan.plan import Plan, Workers
from sparkinfer.plan.ports import ChunkLedger, ChunkTask, ScoredChunk
from sparkinfer.plan.progress import Progress
from sparkinfer.rows.reading import share_out
from sparkinfer.rows.tally import WrittenFile
from sparkinfer.storage import make_folder
from sparkinfer.workers.channel import ProgressAddress, ProgressServer
from sparkinfer.workers.child import start_child
from sparkinfer.workers.slot import WorkerSlot
from sparkinfer.workers.suspects import Attempt

T = TypeVar("T")

HERE = "127.0.0.1"

SHARES_EACH = 2
"""Shares for each process that run or wait, so that none is idle while chunks end."""


class ProcessDiedError(JobError):
    """A process of a replica has ended, or must end."""


class LocalProcesses:
    """Scores in processes of this machine; see `Engine`.

    Args:
        workers: the replicas.
        step_timeout_s: see `ScoringConfig`.
    """

    def __init__(self, workers: Workers, step_timeout_s: int | None) -> None:
        self._workers = workers
        self._step_timeout_s = step_timeout_s
        self._pool = _ProcessPool([slot_of(workers, index) for index in range(workers.count)])

    def workers(self) -> Workers:
        """Returns the replicas."""
        return self._workers

    def on_one_worker(self, act: Callable[[WorkerSlot], T], warm_up: Callable[[], None]) -> T:
        """Calls a function in one process and returns its result; the others warm up meanwhile.

        Raises:
            JobError: the process has ended.
        """

        def warm(slot: WorkerSlot) -> None:
            warm_up()

        found = self._pool.submit(Trial(act, self._step_timeout_s).run)
        for _ in range(self._workers.count - 1):
            self._pool.submit(warm)  # what fails there fails again, and is reported, in its place
        try:
            result: T = found.result()
        except ProcessDiedError as error:
            raise JobError(f"the model's trial: {error}") from None
        return result

    def close(self) -> None:
        """Ends the processes."""
        self._pool.close()

    def score(
        self, plan: Plan, tasks: Iterable[ChunkTask], ledger: ChunkLedger, progress: Progress
    ) -> None:
        """Scores chunks in shares; see `Engine`.

        A chunk over which a process has died is one share, so that suspects run one at a time.
        """
        progress.enter(LOAD)
        with closing(ProgressServer(progress.update, HERE)) as server:
            deaths = Deaths(plan.notes, progress.lose_worker)
            scoring = _Scoring(self._pool, plan, ledger, server.address, deaths)
            with scoring.withdrawn_unless_done():
                scoring.run(tasks)


class _Scoring:
    """The chunks of one call of `score`, several in flight.

    Args:
        pool: the processes.
        plan: how rows are scored.
        ledger: commits the chunks.
        address: where processes report.
        deaths: of processes over them.
    """

    def __init__(
        self,
        pool: _ProcessPool,
        plan: Plan,
        ledger: ChunkLedger,
        address: ProgressAddress,
        deaths: Deaths,
    ) -> None:
        self._pool = pool
        self._plan = plan
        self._ledger = ledger
        self._address = address
        self._deaths = deaths
        self._shares: dict[Future[WrittenFile], tuple[_ChunkRun, int]] = {}
        self._commits: set[Future[None]] = set()
        self._committing = ThreadPoolExecutor(COMMITS_AT_ONCE, "sparkinfer-commit")

    def run(self, tasks: Iterable[ChunkTask]) -> None:
        with self._committing:
            for task in tasks:
                self._start(task)
                while len(self._shares) >= SHARES_EACH * self._plan.workers.count:
                    self._await_one()
            while self._shares or self._commits:
                self._await_one()

    @contextmanager
    def withdrawn_unless_done(self) -> Iterator[None]:
        """Ends the processes if the run ends early: they have not died of their rows."""
        try:
            yield
        except BaseException:
            self._pool.close()
            for chunk in {chunk for chunk, _ in self._shares.values()}:
                self._deaths.withdraw(chunk.attempt.launch)
            raise

    def _start(self, task: ChunkTask) -> None:
        attempt = self._deaths.attempt(task.chunk.number, uuid.uuid4().hex)
        count = 1 if attempt.has_predecessor else self._plan.workers.spread(task.chunk.rows)
        shares = share_out(task.chunk.pieces, count)
        make_folder(task.staging)
        chunk = _ChunkRun(task, attempt, len(shares))
        for part, pieces in enumerate(shares):
            at = attempt.of_task(part, 0)
            share = Share(self._plan, self._address, tuple(pieces), task.staging, at)
            self._shares[self._pool.submit(share.score)] = (chunk, part)

    def _await_one(self) -> None:
        running: list[Future[Any]] = [*self._shares, *self._commits]
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            if future in self._commits:
                self._commits.discard(future)
                future.result()
                continue
            chunk, part = self._shares[future]
            chunk.take(part, future)
            del self._shares[future]
            if chunk.has_ended:
                self._conclude(chunk)

    def _conclude(self, chunk: _ChunkRun) -> None:
        if chunk.death is None:
            self._commits.add(self._committing.submit(self._ledger.commit, chunk.scored()))
            return
        self._deaths.add(chunk.task.chunk.number, chunk.death)
        self._start(chunk.task)


class _ChunkRun:
    """One attempt at a chunk, in shares.

    Args:
        task: the chunk.
        attempt: at it.
        shares: how many there are.

    Attributes:
        death: what a process died of, None if none did.
    """

    def __init__(self, task: ChunkTask, attempt: Attempt, shares: int) -> None:
        self.task = task
        self.attempt = attempt
        self.death: ProcessDiedError | None = None
        self._files: dict[int, WrittenFile] = {}
        self._waiting = shares
        self._started = time.perf_counter()

    @property
    def has_ended(self) -> bool:
        return self._waiting == 0

    def take(self, part: int, share: Future[WrittenFile]) -> None:
        """Takes a share that has ended; raises what failed for good."""
        try:
            self._files[part] = share.result()
        except ProcessDiedError as error:
            self.death = error
        self._waiting -= 1

    def scored(self) -> ScoredChunk:
        seconds = time.perf_counter() - self._started
        in_order = tuple(self._files[part] for part in sorted(self._files))
        return ScoredChunk(self.task.chunk, self.task.staging, in_order, seconds)


class _ProcessPool:
    """A process for each slot, started when it is first needed, and again once it has died.

    Args:
        slots: what each has been given.
    """

    def __init__(self, slots: Sequence[WorkerSlot]) -> None:
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        self._processes = [_Process(slot) for slot in slots]
        for process in self._processes:
            self._idle.put(process)
        self._threads = ThreadPoolExecutor(len(slots), "sparkinfer-process")

    def submit(self, act: Callable[[WorkerSlot], T]) -> Future[T]:
        """Returns the result of a function to be, called with the slot of an idle process."""
        return self._threads.submit(self._call, act)

    def close(self) -> None:
        """Ends all of them, whatever they are at."""
        for process in self._processes:
            process.close()
        self._threads.shutdown(cancel_futures=True)

    def _call(self, act: Callable[[WorkerSlot], T]) -> T:
        process = self._idle.get()
        try:
            return process.call(act)
        finally:
            self._idle.put(process)


class _Process:
    """A process of one replica, and the one in its place once it has died.

    Args:
        slot: what it has been given.
    """

    def __init__(self, slot: WorkerSlot) -> None:
        self._slot = slot
        self._started: Any = None
        self._is_closed = False
        self._lock = threading.Lock()

    def call(self, act: Callable[[WorkerSlot], T]) -> T:
        """Returns the result of a function that is called there.

        Raises:
            ProcessDiedError: it has ended meanwhile, or its accelerator is broken.
            SparkInferError: raised by the function.
        """
        process, connection = self._running()
        try:
            connection.send_bytes(cloudpickle.dumps(act))
            kind, value = pickle.loads(connection.recv_bytes())  # made by our own process
        except (EOFError, OSError):
            self._end()
            raise ProcessDiedError(_how_it_ended(process.wait())) from None
        if kind == DONE:
            result: T = value
            return result
        if kind == STALLED or isinstance(value, DeviceError):
            self._end()
            raise ProcessDiedError(str(value))
        raise value

    def close(self) -> None:
        """Ends it for good."""
        with self._lock:
            self._is_closed = True
        self._end()

    def _running(self) -> Any:
        with self._lock:
            if self._is_closed:
                raise ProcessDiedError("its process was ended, since the run ends")
            if self._started is None:
                home = "sparkinfer.engines.local_worker:serve"
                self._started = start_child(home, {}, in_session=True)
                self._started[1].send(self._slot)
            return self._started

    def _end(self) -> None:
        with self._lock:
            if self._started is None:
                return
            process, _ = self._started
            process.kill()
            process.wait()
            self._started = None  # whoever waits for an answer sees the connection end


def _how_it_ended(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        return f"its process was ended by {name}, for lack of memory if nothing else is said above"
    return f"its process ended with exit code {code}"
