"""The `local` engine: this machine without Spark, by this process or by several that it starts."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import TypeVar

from sparkinfer.config import ScoringConfig
from sparkinfer.engines.local_processes import LocalProcesses
from sparkinfer.engines.this_process import ThisProcess
from sparkinfer.exceptions import ConfigError, EngineUnavailableError
from sparkinfer.plan.plan import Plan, Workers
from sparkinfer.plan.ports import ChunkLedger, ChunkTask
from sparkinfer.plan.progress import Progress
from sparkinfer.workers.host_memory import free_host_memory
from sparkinfer.workers.slot import WorkerSlot

T = TypeVar("T")

PROCESS_BYTES = 320_000_000
"""What a process of a replica took with torch and transformers imported, before any model."""


class LocalEngine:
    """Scores on this machine; see `Engine`.

    Args:
        config: which device, and how many replicas.
    """

    def __init__(self, config: ScoringConfig) -> None:
        self._config = config

    def __str__(self) -> str:
        return "local: this machine, without Spark"

    def workers(self) -> Workers:
        """Returns one replica per GPU of this machine, else one on its CPU; see `Engine`.

        Raises:
            ConfigError: more of them are asked for than there are GPUs for.
        """
        return self._engine.workers()

    def on_one_worker(self, act: Callable[[WorkerSlot], T], warm_up: Callable[[], None]) -> T:
        """Calls a function in a process that scores later and returns its result; see `Engine`."""
        return self._engine.on_one_worker(act, warm_up)

    def score(
        self, plan: Plan, tasks: Iterable[ChunkTask], ledger: ChunkLedger, progress: Progress
    ) -> None:
        """Scores chunks here or in the processes; see `Engine`."""
        self._engine.score(plan, tasks, ledger, progress)

    def close(self) -> None:
        """Releases the model that this process kept, and ends the others."""
        self._engine.close()

    @cached_property
    def _engine(self) -> ThisProcess | LocalProcesses:
        workers, timeout_s = count_replicas(self._config), self._config.step_timeout_s
        if workers.count == 1:
            return ThisProcess(workers, timeout_s)
        return LocalProcesses(workers, timeout_s)


def here(config: ScoringConfig) -> ThisProcess:
    """Returns an engine that scores in this process, whatever the machine has.

    Raises:
        ConfigError: a replica takes more GPUs than there are.
    """
    return ThisProcess(count_replicas(config, most=1), config.step_timeout_s)


def count_replicas(config: ScoringConfig, most: int | None = None) -> Workers:
    """Returns the replicas on this machine: one per GPU, or per `parallel.tensor` of them.

    Args:
        config: which device, and how many replicas; on the CPU one if it does not say.
        most: in place of `num_workers`.

    Raises:
        EngineUnavailableError: `device="cuda"` and there is no GPU.
        ConfigError: there are fewer GPUs than are asked for, or less memory.
    """
    import torch

    host, each, wanted = socket.gethostname(), config.parallel.tensor, most or config.num_workers
    if config.device == "cuda" and not torch.cuda.is_available():
        raise EngineUnavailableError(
            f"device='cuda': {host} has no GPU that torch can use; use --device cpu, or check the "
            "driver and the torch build"
        )
    if config.device == "cpu" or not torch.cuda.is_available():
        count = wanted or 1
        _refuse_more_than_memory(count, host)
        return Workers("cpu", count, max(1, torch.get_num_threads() // count), each, count)
    found = torch.cuda.device_count()
    if each > found:
        raise ConfigError(
            f"parallel.tensor={each}: {host} has {found} GPU(s); lower it, or use --device cpu"
        )
    count = wanted or found // each
    if count * each > found:
        taken = f", {each} of which a copy of the model takes" if each > 1 else ""
        raise ConfigError(
            f"num_workers={count} with engine='local': {host} has {found} GPU(s){taken}; use "
            f"num_workers={found // each} or fewer, or leave it out"
        )
    return Workers("cuda", count, max(1, torch.get_num_threads() // count), each, count)


def _refuse_more_than_memory(count: int, host: str) -> None:
    """Raises ConfigError if so many processes do not fit: all of them start before the trial."""
    free = free_host_memory()
    if count == 1 or free is None or count * PROCESS_BYTES <= free:
        return
    raise ConfigError(
        f"num_workers={count} with engine='local': each process takes about "
        f"{PROCESS_BYTES / 1e9:.1f} GB before it loads a model, and {host} has {free / 1e9:.1f} GB "
        f"free; use num_workers={max(1, free // PROCESS_BYTES)} or fewer"
    )
