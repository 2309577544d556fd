"""Ranks of `torch_batch_process` without processes."""

from __future__ import annotations

import pickle
import threading
from typing import Any

from sparkinfer.engines.horovod.placement import Placement


class RanksInThreads:
    """Stands for a launcher: the ranks are threads of this process, and start at once."""

    def check(self, kind: str) -> None:
        pass

    def launch(self, job: Any, kind: str) -> None:
        threads = [
            threading.Thread(target=self._run, args=(pickle.dumps(job), rank, job.world_size))
            for rank in range(job.world_size)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def cancel(self) -> None:
        pass

    def _run(self, job: bytes, rank: int, world_size: int) -> None:
        pickle.loads(job).run(Placement(rank, rank, world_size))
